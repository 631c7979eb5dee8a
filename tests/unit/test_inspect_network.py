"""Counting, receptive fields and drawings, against hand, torch and gradients."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from medimg_utils.brain.models import PaddedUNet, UnpaddedUNet
from medimg_utils.errors import InputError
from medimg_utils.inspect_network import Window, draw, half_width, influence, trace
from medimg_utils.pneumothorax.models import UNet

NETWORKS = {
    "alexnet": (models.alexnet, (3, 224, 224)),
    "resnet18": (models.resnet18, (3, 96, 128)),
    "squeezenet": (models.squeezenet1_1, (3, 96, 96)),
    "unet": (UNet, (1, 448, 448)),
    "unshuffled": (lambda: UNet(channels=(8, 16, 24), unshuffle=4), (1, 64, 96)),
    "brain, step 1": (PaddedUNet, (5, 64, 64, 64)),
    "brain, step 2": (UnpaddedUNet, (5, 124, 124, 124)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_agree_with_torch(name: str) -> None:
    make, shape = NETWORKS[name]
    network = make()
    found = trace(network, *shape)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    counter = FlopCounterMode(display=False)
    with counter:
        network.to("meta").eval()(torch.empty(1, *shape, device="meta"))
    assert found.multiply_adds == counter.get_total_flops() / 2


def test_counts_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(2, 6, 5, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(6 * 4 * 4, 10),
    )
    found = trace(network, 2, 11, 11)
    convolution, linear = (
        next(layer for layer in found.layers if layer.kind == kind)
        for kind in ("convolution", "linear")
    )
    assert convolution.shape == (6, 4, 4)
    assert convolution.parameters == 6 * 25 + 6
    assert convolution.multiply_adds == 6 * 16 * 25  # one input channel for each group
    assert linear.parameters == 96 * 10 + 10
    assert linear.multiply_adds == 96 * 10


def test_memory_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2))
    image, map_, indices = 4 * 32 * 32, 4 * 8 * 30 * 30, 8 * 8 * 15 * 15
    assert trace(network, 1, 32, 32).kept == image + map_ + indices


def test_memory_on_meta_is_that_of_real_tensors() -> None:
    network = UNet(channels=(8, 16, 24)).eval()
    weights = {p.data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(torch.rand(1, 1, 64, 64))
    real = sum(storage.nbytes() for storage in kept.values())
    assert trace(network, 1, 64, 64).kept == pytest.approx(real, rel=0.01)


def test_the_network_is_left_as_it_was() -> None:
    network = UNet(channels=(8, 16)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trace(network, 1, 32, 32)
    assert network.training
    assert next(network.parameters()).device.type == "cpu"
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
    assert not any(module._forward_hooks for module in network.modules())


# --------------------------------------------------------------------- receptive fields

LAYERS = st.one_of(
    st.builds(
        lambda size, stride, dilation: nn.Conv2d(
            1, 1, size, min(stride, size), padding=size // 2, dilation=dilation
        ),
        st.integers(1, 4),
        st.integers(1, 3),
        st.integers(1, 2),
    ),
    st.builds(nn.AvgPool2d, st.integers(2, 3)),
    st.builds(
        lambda size, stride: nn.ConvTranspose2d(1, 1, size, min(stride, size)),
        st.integers(1, 3),
        st.integers(1, 2),
    ),
)


@settings(max_examples=60, deadline=None)
@given(layers=st.lists(LAYERS, min_size=1, max_size=4), place=st.floats(0, 0.999))
def test_the_field_is_where_the_gradient_is_not_zero(layers, place: float) -> None:
    pools = [one.kernel_size for one in layers if isinstance(one, nn.AvgPool2d)]
    assume(math.prod(pools) <= 18)  # else no map is left
    network = nn.Sequential(*layers)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 1.0)
    found = trace(network, 1, 180, 140)
    rows, columns = found.layers[-1].shape[1:]
    pixel = [int((0.35 + 0.3 * place) * n) for n in (rows, columns)]
    fields = found.fields(len(found.layers) - 1, pixel)
    # away from the borders of all maps, across which a dilated kernel can reach
    for k, field in fields.items():
        for (low, high), n in zip(field, found.layers[k].shape[1:], strict=True):
            assume(low > 0 and high < n - 1)
    box = fields[0]
    measured = influence(network, torch.rand(1, 180, 140), pixel).nonzero()
    assert box == tuple(
        (int(measured[:, axis].min()), int(measured[:, axis].max())) for axis in (0, 1)
    )


def test_the_field_of_a_unet_holds_all_influence() -> None:
    torch.manual_seed(0)
    network = UNet(channels=(4, 8, 8)).eval()
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.GroupNorm):  # it looks at the whole image
            network.get_submodule(name.rpartition(".")[0])[
                int(name.rpartition(".")[2])
            ] = nn.Identity()
    found = trace(network, 1, 128, 128)
    for pixel in ((64, 64), (71, 50)):
        (top, bottom), (left, right) = found.fields(len(found.layers) - 1, pixel)[0]
        total = sum(
            influence(network, torch.rand(1, 128, 128), pixel) for _ in range(4)
        )
        inside = total[top : bottom + 1, left : right + 1]
        assert inside.sum() == total.sum()
        assert bottom - top < 60


def test_layer_by_layer_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.MaxPool2d(2))
    found = trace(network, 1, 8, 8)
    fields = found.fields(2, (1, 3))
    assert fields[2] == ((1, 1), (3, 3))
    assert fields[1] == ((2, 3), (6, 7))
    assert fields[0] == ((1, 4), (5, 7))  # the border cuts the last column off


def test_a_linear_layer_sees_everything() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 3))
    assert trace(network, 1, 8, 8).receptive_field() == (8, 8)


def test_resnet_takes_the_wider_of_two_ways() -> None:
    found = trace(models.resnet18(), 3, 512, 512)
    # stem 7/2 and 3/2, four stages of four 3 × 3: worked out with r += (k - 1) j
    r, j = 1, 1
    for size, stride in [(7, 2), (3, 2), *[(3, 1)] * 4]:
        r, j = r + (size - 1) * j, j * stride
    for _ in range(3):
        for stride in (2, 1, 1, 1):
            r, j = r + 2 * j, j * stride
    assert found.receptive_field(found.find("layer4")) == (r, r)


@given(
    size=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 3),
    output=st.integers(0, 20),
)
def test_a_window_is_what_its_definition_says(
    size, stride, padding, dilation, output
) -> None:
    window = Window(size, stride, padding, dilation)
    indices = [output * stride - padding + t * dilation for t in range(size)]
    low, high = window.back((output, output), 1000)
    assert (low, high) == (max(0, indices[0]), indices[-1])


def test_influence_of_one_convolution_is_its_kernel() -> None:
    layer = nn.Conv2d(1, 1, 3)
    found = influence(layer, torch.rand(1, 9, 9), (3, 4))
    torch.testing.assert_close(found[3:6, 4:7], layer.weight[0, 0].abs())
    assert found.count_nonzero() == 9


def test_half_width_of_a_square_by_hand() -> None:
    field = torch.zeros(21, 21)
    field[5:16, 5:16] = 1  # 121 pixels; 49 lie in the 7 × 7 in the middle, 81 in 9 × 9
    assert half_width(field) == 9
    with pytest.raises(InputError, match="0 everywhere"):
        half_width(torch.zeros(3, 3))


def test_what_is_not_there_is_refused() -> None:
    found = trace(nn.Sequential(nn.Conv2d(1, 1, 3)), 1, 8, 8)
    with pytest.raises(InputError, match=r"module 'head'.*there are: "):
        found.find("head")
    with pytest.raises(InputError, match=r"\(6, 0\) does not lie in a map of \(6, 6\)"):
        found.fields(1, (6, 0))
    with pytest.raises(InputError, match="does not lie"):
        found.fields(1, (0,))


# ------------------------------------------------------------------------------ drawing


def test_a_drawing_has_a_box_for_each_operation_and_a_line_for_each_bridge() -> None:
    found = trace(UNet(channels=(4, 8, 16)), 1, 32, 32)
    axes = draw(found).axes[0]
    kinds = [layer.kind for layer in found.layers]
    drawn = sum(kind not in ("normalisation", "activation", "other") for kind in kinds)
    assert len(axes.patches) == drawn
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2  # three levels have two bridges
    # The bottom is drawn lowest, at the logarithm of its size.
    heights = [patch.get_y() + patch.get_height() / 2 for patch in axes.patches]
    coarsest = [
        min(layer.shape[1:])
        for layer in found.layers
        if layer.kind not in ("normalisation", "activation", "other")
    ]
    assert np.argmin(heights) == np.argmin(coarsest)
    top, middle, bottom = sorted(set(np.round(heights, 6)), reverse=True)
    assert math.isclose(top - middle, middle - bottom, abs_tol=1e-5)
