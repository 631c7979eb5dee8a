from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn import functional as F
from torchvision import models as torchvision_models

from medimg_utils.errors import InputError
from medimg_utils.io import read_pickled_arrays
from medimg_utils.knee import imagenet
from medimg_utils.knee.imagenet import load_imagenet
from medimg_utils.knee.models import (
    BACKBONES,
    MRNet,
    alexnet,
    enlarge,
    grey_input,
    lattice,
    positive_share,
    small,
    squeezenet,
    squeezenet_state,
    weighted_loss,
)
from medimg_utils.knee.preprocess import to_network
from medimg_utils.physics import anatomy


@pytest.fixture(params=["as it is", "scaled"])
def network(request):
    torch.manual_seed(0)
    network = MRNet(*small(), outputs=3).eval()
    if request.param == "scaled":
        network.scale([exam(3, seed) for seed in range(4)], gain=2.0)
        nn.init.normal_(network.classifier.weight, std=0.1)
    return network


def exam(slices, seed=0, size=64):
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (slices, 1, size, size), generator=random).byte()


# -------------------------------------------------------------------------------- network


def test_the_papers_network_has_its_published_size():
    network = MRNet(*alexnet())
    assert sum(weights.numel() for weights in network.parameters()) == 2_469_953
    maps = network.feature_maps(exam(2, size=256))
    assert maps.shape == (2, 256, 7, 7)
    assert network.feature_maps(exam(2, size=224)).shape == (2, 256, 6, 6)


def test_it_is_the_published_computation():
    """Grey repeated to three channels, features, mean, maximum, linear layer."""
    torch.manual_seed(0)
    network = MRNet(*alexnet()).eval()
    slices = exam(4, size=128)
    with torch.no_grad():
        maps = network.features(to_network(slices).repeat(1, 3, 1, 1))
        pooled = F.adaptive_avg_pool2d(maps, 1).flatten(1).max(dim=0).values
        expected = network.classifier(pooled)
        np.testing.assert_allclose(network([slices])[0], expected, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_features_have_the_width_they_promise(backbone):
    features, width = BACKBONES[backbone]()
    network = MRNet(features, width)
    assert network.feature_maps(exam(1, size=128)).shape[1] == width


def test_exams_of_a_batch_do_not_touch_each_other(network):
    exams = [exam(slices, seed) for seed, slices in enumerate((1, 7, 3))]
    with torch.no_grad():
        together = network(exams)
        alone = torch.cat([network([one]) for one in exams])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_order_of_slices_does_not_matter_and_copies_add_nothing(network):
    slices = exam(6)
    with torch.no_grad():
        first = network([slices])
        np.testing.assert_allclose(first, network([slices.flip(0)]), atol=1e-5)
        doubled = torch.cat([slices, slices])
        np.testing.assert_allclose(first, network([doubled]), atol=1e-5)


def test_an_explanation_adds_up_to_the_logit(network):
    slices = exam(6)
    found = network.explain(slices)
    with torch.no_grad():
        np.testing.assert_allclose(found.logits, network([slices])[0], atol=1e-5)
    np.testing.assert_allclose(
        found.bias + found.shares.sum(dim=1), found.logits, atol=1e-4
    )
    # A slice alone says the mean of its map.
    for index in range(6):
        with torch.no_grad():
            alone = network([slices[index : index + 1]])[0]
        own = found.maps[:, index].mean((1, 2)) + found.bias
        np.testing.assert_allclose(own, alone, atol=1e-4)
    assert found.picked.shape == (3,)
    assert not found.logits.requires_grad


def test_the_picked_slice_is_the_one_that_the_maximum_took():
    """One bright slice among dark ones, and a network that measures brightness."""
    features = nn.Sequential(nn.Conv2d(1, 1, 3, stride=2), nn.ReLU())
    nn.init.ones_(features[0].weight)
    network = MRNet(features, 1)
    nn.init.ones_(network.classifier.weight)
    slices = torch.zeros(9, 1, 32, 32, dtype=torch.uint8)
    slices[5, 0, 10:14, 20:24] = 255
    found = network.explain(slices)
    assert found.picked.item() == 5
    assert found.shares[0, 5] == found.shares.sum()
    place = np.unravel_index(int(found.maps[0, 5].argmax()), found.maps[0, 5].shape)
    start, step = network.start, network.step
    assert 10 <= start + step * place[0] <= 13
    assert 20 <= start + step * place[1] <= 23


def test_a_probe_fits_the_linear_layer_and_nothing_else():
    """As scikit-learn's regression of the same features; alike labels teach nothing."""
    torch.manual_seed(0)
    network = MRNet(*small(), outputs=2).eval()
    exams = [(exam(3, seed).float() * (1 + seed % 2) / 2).byte() for seed in range(12)]
    labels = torch.tensor([[seed % 2, 1] for seed in range(12)]).float()
    network.scale(exams)
    before = {
        name: value.clone() for name, value in network.features.named_parameters()
    }
    network.probe(exams, labels, strength=1.0)
    for name, value in network.features.named_parameters():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    with torch.no_grad():
        logits = network(exams)
        pooled = torch.cat(
            [network.feature_maps(e).mean((2, 3)).amax(0, True) for e in exams]
        )
        scaled = ((pooled - network.mean) / network.spread).numpy()
    expected = LogisticRegression(C=1.0, class_weight="balanced", max_iter=1000)
    expected.fit(scaled, labels[:, 0].numpy())
    np.testing.assert_allclose(
        logits[:, 0], expected.decision_function(scaled), atol=1e-3
    )
    assert (logits[labels[:, 0] == 1, 0] > logits[labels[:, 0] == 0, 0].max()).all()
    assert not logits[:, 1].any()


def test_exams_follow_the_network_to_its_device():
    """After the rehearsal the network is on the GPU, and exams come from the disk."""
    network = MRNet(*small(), outputs=2).to("meta")
    assert network.pooled([exam(3, 0), exam(4, 1)]).device.type == "meta"


def test_scaled_features_have_zero_mean_and_the_wanted_spread():
    torch.manual_seed(0)
    network = MRNet(*small(), outputs=2)
    exams = [exam(3, seed) // (1 + seed) for seed in range(6)]
    network.scale(exams, gain=3.0)
    with torch.no_grad():
        pooled = torch.stack(
            [network.feature_maps(one).mean((2, 3)).amax(0) for one in exams]
        )
        scaled = (pooled - network.mean) / network.spread
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    spread = scaled.std(0, correction=0)
    assert 2.9 < spread.max() < 3.0
    assert network(exams).abs().max() == 0  # says one half of everything at first


def test_scaling_is_another_way_to_write_the_weights():
    """The same function without it, with other weights and another bias."""
    torch.manual_seed(0)
    network = MRNet(*small(), outputs=2)
    network.scale([exam(3, seed) for seed in range(4)], gain=2.0)
    nn.init.normal_(network.classifier.weight)
    plain = MRNet(network.features, network.classifier.in_features, outputs=2)
    with torch.no_grad():
        plain.classifier.weight.copy_(network.classifier.weight / network.spread)
        shift = (plain.classifier.weight * network.mean).sum(1)
        plain.classifier.bias.copy_(network.classifier.bias - shift)
        one = [exam(5, 9)]
        np.testing.assert_allclose(plain(one), network(one), atol=1e-3)


def test_frozen_layers_stay_and_the_others_learn():
    torch.manual_seed(0)
    network = MRNet(*small())
    network.freeze(2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adam = torch.optim.AdamW(network.parameters(), lr=0.1, weight_decay=0.1)
    network([exam(3)]).sum().backward()
    adam.step()
    changed = {
        name for name, value in network.state_dict().items()
        if not torch.equal(value, before[name])
    }  # fmt: skip
    assert {"features.0.weight", "features.0.bias"} & changed == set()
    assert {"features.2.weight", "classifier.weight"} <= changed


def test_logits_keep_full_precision_under_autocast(network):
    """bfloat16 has three digits: exams would share a score that differ."""
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = network([exam(3, seed) for seed in range(8)])
    assert logits.dtype == torch.float32
    assert len(logits[:, 0].unique()) == 8
    assert (logits != logits.bfloat16().float()).any()


# -------------------------------------------------------------------------------- places


@pytest.mark.parametrize("backbone", BACKBONES)
def test_cells_lie_where_their_gradient_comes_from(backbone):
    """The centre of mass of what a cell reacts to is the centre that `lattice` says."""
    torch.manual_seed(0)
    features, _ = BACKBONES[backbone]()
    for layer in features.modules():  # without dead units and ties
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.weight, 0.01)
            nn.init.constant_(layer.bias, 0.1)
    channels = next(
        m for m in features.modules() if isinstance(m, nn.Conv2d)
    ).in_channels
    start, step = lattice(features)
    total = torch.zeros(256, 256)
    for seed in range(8):  # a maximum takes one of its inputs: average that out
        random = torch.Generator().manual_seed(seed)
        image = torch.rand(1, channels, 256, 256, generator=random, requires_grad=True)
        maps = features(image)
        cell = maps.shape[-1] // 2
        maps[0, :, cell, cell].sum().backward()
        total += image.grad[0].abs().sum(0)
    rows = (total.sum(1) * torch.arange(256)).sum() / total.sum()
    assert float(rows) == pytest.approx(start + step * cell, abs=0.06 * step + 0.5)


def test_enlarged_maps_keep_their_values_at_the_centres():
    maps = torch.rand(2, 5, 4, 4)
    large = enlarge(maps, 64, start=7.0, step=16)
    assert large.shape == (2, 5, 64, 64)
    np.testing.assert_allclose(large[..., 7::16, 7::16], maps, atol=1e-6)
    assert large.max() <= maps.max() + 1e-6
    np.testing.assert_allclose(large[..., 0, 0], maps[..., 0, 0], atol=1e-6)
    halfway = (maps[..., 1, 2] + maps[..., 2, 2]) / 2
    np.testing.assert_allclose(large[..., 31, 39], halfway, atol=1e-6)


# ------------------------------------------------------------------------------ ImageNet


@pytest.fixture(scope="module")
def arrays():
    path = anatomy.path("squeezenet")
    return {
        name: tuple(torch.from_numpy(np.array(array)) for array in pair)
        for name, pair in read_pickled_arrays(path).items()
    }


def test_squeezenet_recognises_a_temple(arrays):
    """The weights are in their places: the whole network names what a photo shows."""
    network = torchvision_models.squeezenet1_1(weights=None).eval()
    network.features.load_state_dict(squeezenet_state(arrays))
    kernel, bias = arrays["conv10"]
    last = {"weight": kernel.permute(3, 2, 0, 1), "bias": bias}
    network.classifier[1].load_state_dict(last)
    photo = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[
        None
    ]
    small_photo = F.interpolate(photo.float(), size=(256, 384), mode="bilinear")
    middle = small_photo[..., 16:243, 78:305]
    mean = torch.tensor([103.939, 116.779, 123.68])[:, None, None]
    with torch.no_grad():
        found = network(middle.flip(1) - mean)[0].topk(5).indices
    names = torchvision_models.SqueezeNet1_1_Weights.DEFAULT.meta["categories"]
    assert {"stupa", "dome", "monastery"} <= {names[index] for index in found}


def test_grey_kernels_do_what_colour_kernels_do_to_grey(arrays):
    weight = squeezenet_state(arrays)["0.weight"]
    grey = torch.rand(2, 1, 32, 32) - 0.5
    colour = F.conv2d(58 * grey.repeat(1, 3, 1, 1), weight, stride=2)
    np.testing.assert_allclose(
        F.conv2d(grey, grey_input(weight), stride=2), colour, atol=1e-3
    )


def test_squeezenet_gets_its_weights(arrays):
    features, _ = squeezenet()
    assert "SqueezeNet 1.1" in load_imagenet(features, "squeezenet")
    kernel = arrays["fire9/expand3x3"][0]
    assert torch.equal(features[12].expand3x3.weight, kernel.permute(3, 2, 0, 1))
    assert features[0].in_channels == 1


def test_without_weights_it_says_so(monkeypatch, tmp_path):
    def refuse(*arguments, **options):
        raise anatomy.AnatomyError("no network")

    monkeypatch.setattr(imagenet.anatomy, "path", refuse)
    features, _ = squeezenet()
    before = features[0].weight.clone()
    with pytest.warns(UserWarning, match=r"no ImageNet weights.*random weights"):
        origin = load_imagenet(features, "squeezenet", tmp_path)
    assert origin.startswith("none")
    assert torch.equal(features[0].weight, before)
    with pytest.raises(InputError, match="'small'"):
        load_imagenet(small()[0], "small")


def test_a_hostile_file_of_weights_is_not_run(monkeypatch, tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"cos\nmkdir\n(S'" + str(tmp_path / "ran").encode() + b"'\ntR.")
    monkeypatch.setattr(imagenet.anatomy, "path", lambda *_: Path(path))
    with pytest.warns(UserWarning, match="only arrays of numbers"):
        load_imagenet(squeezenet()[0], "squeezenet")
    assert not (tmp_path / "ran").exists()


# ---------------------------------------------------------------------------------- loss


def test_the_loss_by_hand():
    """One positive and one negative; a quarter of the training exams is positive."""
    logits, labels = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [0.0]])
    share = torch.tensor([0.25])
    positive = 0.75 * np.log(2)
    negative = 0.25 * np.log1p(np.exp(2))
    assert float(weighted_loss(logits, labels, share)) == pytest.approx(
        (positive + negative) / 2, rel=1e-6
    )


def test_both_classes_weigh_the_same_in_total():
    labels = torch.tensor([[1.0]] * 3 + [[0.0]] * 9)
    share = positive_share(labels)
    assert share.tolist() == [0.25]
    logits = torch.zeros_like(labels, requires_grad=True)
    weighted_loss(logits, labels, share).backward()
    assert float(logits.grad.sum()) == pytest.approx(0, abs=1e-7)
    assert float(logits.grad[:3].sum()) == pytest.approx(-float(logits.grad[3:].sum()))


def test_each_diagnosis_has_its_own_weights():
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    share = positive_share(labels)
    assert share.tolist() == [0.75, 0.25]
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    single = [
        weighted_loss(logits[:, k : k + 1], labels[:, k : k + 1], share[k : k + 1])
        for k in range(2)
    ]
    assert float(weighted_loss(logits, labels, share)) == pytest.approx(
        float(sum(single)) / 2
    )


def test_a_diagnosis_of_one_class_counts_as_even():
    assert positive_share(torch.tensor([[1.0, 0.0], [1.0, 1.0]])).tolist() == [0.5, 0.5]
