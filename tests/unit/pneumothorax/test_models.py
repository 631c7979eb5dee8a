import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medimg_utils.pneumothorax.experiment import EXPERIMENTS
from medimg_utils.pneumothorax.models import (
    UNet,
    conv_block,
    image_logits,
    image_score,
    segmentation_loss,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return UNet(channels=(8, 8, 16, 16)).eval()


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (48, 8)])
def test_output_has_the_size_of_the_input(network, shape):
    assert network(torch.zeros(2, 1, *shape)).shape == (2, 1, *shape)


def test_other_depths_and_channels():
    assert UNet(3, 2, (4, 8))(torch.zeros(1, 3, 6, 10)).shape == (1, 2, 6, 10)
    assert UNet(channels=(4,))(torch.zeros(1, 1, 5, 7)).shape == (1, 1, 5, 7)


def test_unshuffling_keeps_every_pixel_in_its_place():
    """A network that copies its folded input gives the image back."""
    network = UNet(channels=(4,), unshuffle=2)
    network.contract[0] = torch.nn.Identity()
    with torch.no_grad():
        network.head.weight.copy_(torch.eye(4)[..., None, None])
        network.head.bias.zero_()
    image = torch.rand(2, 1, 6, 10)
    torch.testing.assert_close(network(image), image)


def test_sizes_that_cannot_be_halved_are_refused(network):
    with pytest.raises(ValueError, match="multiples of 8"):
        network(torch.zeros(1, 1, 60, 64))


def test_number_of_parameters_by_hand():
    # conv 1→2 3×3: 18 + norm 4 | conv 2→4, 4→4: 72 + 144 + 2 norms 16 |
    # up 4→2 2×2: 32 + 2 | conv 4→2: 72 + norm 4 | head 2 + 1
    counted = sum(p.numel() for p in UNet(channels=(2, 4)).parameters())
    assert counted == 18 + 4 + 72 + 144 + 16 + 34 + 72 + 4 + 3


def test_the_shipped_size_fits_in_5_megabytes():
    lab = EXPERIMENTS["lab"]
    network = UNet(channels=lab.channels, unshuffle=lab.unshuffle)
    assert sum(p.numel() for p in network.parameters()) <= 1_200_000


def test_a_shifted_image_gives_a_shifted_map(network):
    """Convolutions know no place; shifts by the coarsest stride commute, far from borders."""
    image = torch.zeros(1, 1, 160, 160)
    image[..., 70:90, 60:80] = torch.rand(20, 20)
    with torch.no_grad():
        moved = network(image.roll((8, 16), (2, 3))).roll((-8, -16), (2, 3))
        plain = network(image)
    torch.testing.assert_close(
        moved[..., 60:100, 50:90], plain[..., 60:100, 50:90], atol=1e-3, rtol=0
    )


def test_gain_and_offset_of_the_input_barely_matter():
    """Group normalisation removes the gain of the first convolution."""
    torch.manual_seed(0)
    block = conv_block(1, 8, convolutions=1)
    image = torch.randn(1, 1, 32, 32)
    torch.testing.assert_close(block(image), block(5 * image), atol=1e-3, rtol=0)


def test_images_of_a_batch_do_not_touch_each_other(network):
    batch = torch.randn(3, 1, 32, 32)
    with torch.no_grad():
        together, alone = network(batch)[1:2], network(batch[1:2])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_a_pixel_of_the_output_sees_a_whole_lung(monkeypatch):
    """Receptive field of the lab network, which does not depend on its widths.

    Two things would hide it: group normalisation lets every pixel see the whole image, and a
    maximum hands its gradient to one pixel of four.
    """
    monkeypatch.setattr(F, "max_pool2d", F.avg_pool2d)
    lab = EXPERIMENTS["lab"]
    widths = (1,) * len(lab.channels)
    network = UNet(channels=widths, unshuffle=lab.unshuffle).double()
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 0.1)
    for block in [*network.contract, *network.expand]:
        for index, layer in enumerate(block):
            if isinstance(layer, torch.nn.GroupNorm):
                block[index] = torch.nn.Identity()
    image = torch.ones(1, 1, 448, 448, dtype=torch.double, requires_grad=True)
    network(image)[0, 0, 224, 224].backward()
    rows = torch.nonzero(image.grad[0, 0].abs().sum(1))[:, 0]
    assert int(rows.max() - rows.min()) > 330  # a lung is some 330 pixels high


def test_it_starts_by_saying_no():
    torch.manual_seed(0)
    probability = UNet()(torch.randn(1, 1, 64, 64)).sigmoid()
    assert float(probability.detach().mean()) < 0.1


# --------------------------------------------------------------------------------- score


def test_the_image_score_is_the_mean_of_the_highest_pixels():
    logits = torch.zeros(2, 1, 20, 20) - 5
    logits[0, 0, 3, 4] = 3
    logits[0, 0, 8, 8] = 1
    torch.testing.assert_close(
        image_logits(logits, share=2 / 400), torch.tensor([2.0, -5.0])
    )
    probability = logits[0, 0].sigmoid()
    assert image_score(probability, 2 / 400) == pytest.approx(
        torch.tensor(2.0).sigmoid().item()
    )
    assert image_score(torch.zeros(10, 10)) < 1e-5
    assert image_score(torch.ones(10, 10)) > 1 - 1e-5


def test_the_gradient_reaches_the_highest_pixels_alone():
    logits = torch.randn(1, 1, 20, 20, requires_grad=True)
    image_logits(logits, share=0.01).sum().backward()
    assert int((logits.grad != 0).sum()) == 4


# ---------------------------------------------------------------------------------- loss


def _case(positive=True):
    mask = torch.zeros(1, 1, 16, 16)
    if positive:
        mask[..., 4:8, 4:8] = 1
    return mask, mask.flatten(1).any(1).float(), torch.tensor([True])


def test_a_perfect_answer_costs_nothing():
    for positive in (True, False):
        mask, label, annotated = _case(positive)
        loss = segmentation_loss(40 * mask - 20, mask, label, annotated)
        assert float(loss) < 1e-3
        assert float(segmentation_loss(20 - 40 * mask, mask, label, annotated)) > 1


def test_the_loss_by_hand():
    mask, label, annotated = _case()
    logits = torch.zeros(1, 1, 16, 16)  # p = 1/2 everywhere
    overlap = 1 - 2 * (16 / 2) / (256 / 2 + 16)
    expected = torch.log(torch.tensor(2.0)) * 1.5 + overlap
    assert float(segmentation_loss(logits, mask, label, annotated)) == pytest.approx(
        float(expected)
    )


def test_the_weights_of_the_pixels_by_hand():
    mask, label, annotated = _case()
    logits = torch.zeros(1, 1, 16, 16)
    plain, weighted = (
        segmentation_loss(logits, mask, label, annotated, image_weight=0, **weights)
        for weights in ({}, {"pixel_weight": 3.0, "positive_weight": 9.0})
    )
    # each pixel costs log 2; the 16 positive ones of 256 cost it nine times
    expected = np.log(2) * (3 * (240 + 9 * 16) / 256 - 1)
    assert float(weighted - plain) == pytest.approx(expected, rel=1e-5)


def test_dice_of_negatives_does_not_count():
    """A negative beside a positive must not dilute the Dice term of the positive."""
    positive, label, annotated = _case()
    negative = torch.zeros_like(positive)
    logits = torch.full_like(positive, -20)
    alone = segmentation_loss(logits, positive, label, annotated, image_weight=0)
    both = segmentation_loss(
        torch.cat([logits, logits]),
        torch.cat([positive, negative]),
        torch.tensor([1.0, 0.0]),
        torch.tensor([True, True]),
        image_weight=0,
    )
    pixels = F.binary_cross_entropy_with_logits(logits, positive)
    assert float(both) == pytest.approx(float(alone - pixels / 2), rel=1e-5)


def test_a_positive_without_mask_teaches_its_label_alone():
    mask, _, _ = _case(positive=False)
    logits = torch.full((1, 1, 16, 16), -3.0, requires_grad=True)
    segmentation_loss(
        logits, mask, torch.tensor([1.0]), torch.tensor([False])
    ).backward()
    assert (logits.grad <= 0).all()  # push up, nowhere down
    assert (logits.grad < 0).any()


def test_a_crop_that_lost_the_finding_is_a_negative():
    mask, _, annotated = _case(positive=False)
    logits = torch.full((1, 1, 16, 16), -20.0)
    assert float(segmentation_loss(logits, mask, torch.tensor([1.0]), annotated)) < 1e-3


def test_the_curriculum_lets_small_findings_wait():
    mask, label, annotated = _case()  # 6 % of the image
    logits = torch.full((1, 1, 16, 16), -8.0)
    logits = torch.cat([logits, logits])
    large = torch.zeros_like(mask)
    large[..., :8, :] = 1
    masks, labels = torch.cat([mask, large]), torch.cat([label, label])
    both = torch.cat([annotated, annotated])
    full = segmentation_loss(logits, masks, labels, both)
    early = segmentation_loss(logits, masks, labels, both, smallest=0.5)
    assert float(early) < float(full)
    assert float(
        segmentation_loss(logits, masks, labels, both, smallest=0.01)
    ) == pytest.approx(float(full))
