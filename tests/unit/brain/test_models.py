import pytest
import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional as F

from medimg_utils.brain.inference import RIM
from medimg_utils.brain.models import (
    FixedNorm,
    InstanceNorm,
    PaddedUNet,
    UnpaddedUNet,
    count_parameters,
    dice_loss,
    find_loss,
    fix_statistics,
    fuse,
    max_pool,
    valid_size,
)

# ------------------------------------------------------------------------------ networks


def test_the_networks_are_those_of_the_paper():
    assert count_parameters(PaddedUNet()) == 2_042_162
    assert count_parameters(UnpaddedUNet()) == 6_420_420
    assert count_parameters(UnpaddedUNet(norm=FixedNorm)) == 6_420_420


def test_a_patch_of_124_gives_36():
    seen = []
    network = UnpaddedUNet(width=1)
    for block in [*network.contract, *network.expand]:
        block.register_forward_hook(lambda *a: seen.append(a[2].shape[-1]))
    with torch.inference_mode():
        out = network(torch.randn(1, 5, 124, 124, 124))
    assert out.shape == (1, 4, 36, 36, 36)
    assert seen == [120, 56, 24, 8, 12, 20, 36]


@pytest.mark.parametrize("size", [91, 93, 96, 44])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match="92, 100, 108"):
        UnpaddedUNet(width=1)(torch.zeros(1, 5, 92, 92, size))


def test_step_1_wants_multiples_of_8():
    with pytest.raises(ValueError, match="multiples of 8"):
        PaddedUNet(width=1)(torch.zeros(1, 5, 8, 12, 8))


@pytest.mark.parametrize("size", range(1, 60))
def test_valid_sizes_are_the_next_of_4_12_20(size):
    found = valid_size(size)
    assert found % 8 == 4
    assert size <= found < size + 8


def fixed_network(width=2, seed=0):
    torch.manual_seed(seed)
    patch = torch.randn(1, 5, 92, 92, 92)
    return fix_statistics(UnpaddedUNet(width), [patch]).eval(), patch


def test_all_but_the_last_planes_do_not_depend_on_where_the_tile_ends():
    network, _ = fixed_network(width=1)
    image = torch.randn(1, 5, 108, 92, 92)
    with torch.inference_mode():
        whole, short = network(image), network(image[:, :, :100])
        later = network(image[:, :, 8:])
    assert torch.allclose(whole[:, :, : 12 - RIM], short[:, :, :-RIM], atol=1e-5)
    assert not torch.allclose(whole[:, :, 12 - RIM], short[:, :, -RIM], atol=1e-5)
    # Shifted by 8, the same voxels come out, beginning with the first.
    assert torch.allclose(whole[:, :, 8:], later, atol=1e-5)


def test_a_shift_that_is_no_multiple_of_8_gives_other_values():
    network, _ = fixed_network(width=1)
    image = torch.randn(1, 5, 104, 92, 92)
    with torch.inference_mode():
        first, later = network(image[:, :, :100]), network(image[:, :, 4:])
    assert not torch.allclose(first[:, :, 4:], later[:, :, :8], atol=1e-3)


# -------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_instance_norm_is_that_of_torch(batch, layout):
    x = torch.randn(batch, 3, 5, 6, 7).to(memory_format=layout)
    expected = nn.InstanceNorm3d(3)(x)
    assert torch.allclose(InstanceNorm(3)(x), expected, atol=1e-6)
    half = InstanceNorm(3)(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), expected, atol=0.03)


def test_instance_norm_has_the_gradient_of_torch():
    x = torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    y = x.detach().clone().requires_grad_(True)
    weight = torch.randn(2, 3, 4, 4, 4)
    (InstanceNorm(3)(x) * weight).sum().backward()
    (F.instance_norm(y) * weight).sum().backward()
    assert torch.allclose(x.grad, y.grad, atol=1e-5)


@pytest.mark.parametrize("learning", [False, True])
def test_max_pool_is_that_of_torch(learning):
    x = torch.randn(2, 3, 4, 6, 8, requires_grad=learning)
    assert torch.equal(max_pool(x), F.max_pool3d(x, 2))


# ---------------------------------------------------------------------- fixed statistics


def test_fixed_statistics_of_one_patch_are_those_of_the_patch():
    torch.manual_seed(0)
    network, patch = UnpaddedUNet(2), torch.randn(1, 5, 92, 92, 92)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fixed = fix_statistics(network, [patch])
    with torch.inference_mode():
        assert torch.allclose(fixed(patch), network(patch), atol=1e-4)
        other = torch.randn_like(patch) * 2
        assert not torch.allclose(fixed(other), network(other), atol=1e-2)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(torch.equal(before[k], fixed.state_dict()[k]) for k in before)


def test_statistics_of_two_patches_are_pooled():
    torch.manual_seed(1)
    first, second = torch.randn(2, 1, 5, 92, 92, 92) * torch.tensor([1.0, 3.0]).reshape(
        2, 1, 1, 1, 1, 1
    )
    network = UnpaddedUNet(1)
    fixed = fix_statistics(network, [first, second])
    with torch.inference_mode():
        both = torch.cat([network.contract[0][0](x).flatten() for x in (first, second)])
    norm = fixed.contract[0][1]
    assert norm.mean.item() == pytest.approx(both.mean().item(), abs=1e-5)
    assert norm.variance.item() == pytest.approx(
        both.var(correction=0).item(), rel=1e-4
    )


def test_fusing_changes_nothing_but_rounding():
    network, patch = fixed_network()
    fused = fuse(network)
    assert not [m for m in fused.modules() if isinstance(m, FixedNorm)]
    with torch.inference_mode():
        assert torch.allclose(fused(patch), network(patch), atol=1e-4)


# -------------------------------------------------------------------------------- losses


def one_hot(labels, classes=4):
    return F.one_hot(labels, classes).movedim(-1, 1).float()


def test_dice_loss_by_hand():
    # Two voxels; the network says (0.5, 0.5, 0, 0) twice, the truth is classes 0 and 1.
    logits = torch.tensor([0.0, 0.0, -60.0, -60.0]).reshape(1, 4, 1, 1, 1)
    logits = logits.expand(1, 4, 2, 1, 1)
    target = one_hot(torch.tensor([0, 1]).reshape(1, 2, 1, 1))
    # Classes 0 and 1: 2 · 0.5 / (0.5² · 2 + 1) = 2/3; classes 2 and 3: ε / ε = 1.
    assert dice_loss(logits, target).item() == pytest.approx(
        1 - (2 * 2 / 3 + 2) / 4, abs=1e-4
    )


def test_dice_loss_is_that_of_monai():
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 6, 6, 6)
    target = one_hot(torch.randint(0, 4, (2, 6, 6, 6)))
    theirs = DiceLoss(
        softmax=True, squared_pred=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5
    )
    assert dice_loss(logits, target).item() == pytest.approx(
        theirs(logits, target).item(), abs=1e-6
    )


def test_the_best_answer_to_a_mixed_voxel_is_the_mixture():
    share = torch.tensor([0.6, 0.4, 0.0, 0.0]).reshape(1, 4, 1, 1, 1)
    losses = {
        p: dice_loss(
            torch.tensor([p, 1 - p, 1e-9, 1e-9]).log().reshape(1, 4, 1, 1, 1), share
        ).item()
        for p in (0.5, 0.6, 0.7, 0.999)
    }
    assert min(losses, key=losses.get) == 0.6


def test_find_loss_is_the_cross_entropy_of_both_channels():
    logits = torch.tensor([[2.0, -1.0]]).reshape(1, 2, 1, 1, 1)
    tumour = torch.ones(1, 1, 1, 1)
    right, wrong = torch.sigmoid(torch.tensor([-1.0, 2.0]))
    expected = -(right.log() + (1 - wrong).log()) / 2
    assert find_loss(logits, tumour).item() == pytest.approx(expected.item())
