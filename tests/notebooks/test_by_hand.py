"""What the first five chapters write by hand equals a library's, on new inputs.

The notebooks compare each piece once, on their own pictures. Here its definition is
taken out of the notebook, as the reader sees it, and meets inputs that the chapter does
not have: odd sizes, ties, empty classes, other seeds. All tolerances are absolute.
"""

import ast
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import nibabel as nib
import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_hausdorff_distance
from pydicom import Dataset
from pydicom.pixels import apply_windowing
from scipy import signal, stats
from sklearn.feature_selection import SelectFwe
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.transforms import v2

from medimg_utils import inspect_network, metrics, training
from medimg_utils.brain.models import InstanceNorm, PaddedUNet, conv_block, up_block
from medimg_utils.knee.models import BACKBONES, MRNet
from medimg_utils.physics import anatomy
from medimg_utils.pneumothorax.models import UNet

FOUNDATIONS = Path(__file__).parents[2] / "book" / "foundations"
EXACT, SINGLE = 1e-10, 1e-5  # in double and in single precision

untimed = settings(deadline=None, max_examples=50)


def by_hand(chapter: str, *names: str) -> dict[str, Any]:
    """The definitions of `names` in a chapter, with what the chapter imports."""
    cells = nbformat.read(FOUNDATIONS / f"{chapter}.ipynb", as_version=4).cells
    space: dict[str, Any] = {}
    for cell in cells:
        if cell.cell_type != "code" or "%pip" in cell.source:
            continue
        for node in ast.parse(cell.source).body:
            named = getattr(node, "name", None) in names or (
                isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and node.targets[0].id in names
            )
            if named or isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.unparse(node), chapter, "exec"), space)
    assert set(names) <= set(space), f"{chapter} defines no {set(names) - set(space)}"
    return space


IMAGES = by_hand(
    "images", "keep_bits", "window", "millilitres_of", "to_mm", "affine_from", "z_score",
    "to_ras",
)  # fmt: skip
CONVOLUTION = by_hand(
    "convolution", "slide", "torch_conv", "size_after", "slope_weights", "conv2d",
    "pool", "stamp", "blur_then_skip", "judge",
)  # fmt: skip
NETWORKS = by_hand(
    "networks", "lenet", "convolutions_of_alexnet", "ResidualBlock", "CoarserBlock",
    "resnet18", "rounds", "SmallUNet", "double", "upward", "SmallUNet3d", "field",
    "kept_for_real",
)  # fmt: skip
TRAINING = by_hand(
    "training", "cross_entropy", "slope", "forward_and_back", "descend", "sizes",
    "normalise", "loop", "adamw", "stopped",
)  # fmt: skip
EVALUATION = by_hand(
    "evaluation", "four_counts", "five_rates", "after_positive", "staircase",
    "precision_recall", "average_precision", "dice", "outline", "hausdorff", "wilson",
    "draw", "calibration_error", "brier", "move", "bonferroni", "holm",
    "benjamini_hochberg", "jaccard_of",
)  # fmt: skip

# ---------------------------------------------------------------------- what images are


@untimed
@given(
    picture=hnp.arrays(np.uint8, (5, 7)),
    bits=st.integers(1, 8),
)
def test_fewer_bits_are_those_of_torchvision(picture, bits: int) -> None:
    kept = IMAGES["keep_bits"](picture / 256, bits) * (2**bits - 1)
    library = v2.functional.posterize(torch.from_numpy(picture)[None], bits)[0]
    np.testing.assert_array_equal(kept.round(), library.numpy() >> (8 - bits))


@untimed
@given(
    values=hnp.arrays(np.int16, (4, 5), elements=st.integers(-1024, 3071)),
    centre=st.integers(-600, 600),
    width=st.integers(1, 2000),
)
def test_a_window_is_that_of_pydicom(values, centre: int, width: int) -> None:
    header = Dataset()
    header.WindowCenter, header.WindowWidth = centre, width
    header.VOILUTFunction = "LINEAR_EXACT"
    header.PhotometricInterpretation = "MONOCHROME2"
    header.BitsStored, header.PixelRepresentation = 16, 1
    library = apply_windowing(values, header)
    low, high = -(2**15), 2**15 - 1
    np.testing.assert_allclose(
        IMAGES["window"](values, centre, width), (library - low) / (high - low),
        rtol=0, atol=EXACT,
    )  # fmt: skip


@untimed
@given(
    mask=hnp.arrays(bool, (3, 4, 5)),
    edges=st.tuples(*[st.integers(1, 512).map(lambda n: n / 64)] * 3),
)
def test_the_volume_of_a_mask_is_that_of_nibabel(mask, edges) -> None:
    image = nib.Nifti1Image(mask.astype(np.uint8), np.diag([*edges, 1]))
    library = nib.imagestats.mask_volume(image) / 1000  # mm³ to ml
    ours = IMAGES["millilitres_of"](mask, edges)
    assert ours == pytest.approx(library, abs=1e-5)  # ml; it is in single precision


@untimed
@given(
    hnp.arrays(float, (3, 4), elements=st.floats(-9, 9)),
    hnp.arrays(int, (6, 3), elements=st.integers(0, 500)),
)
def test_the_affine_product_is_that_of_nibabel(upper, indices) -> None:
    affine = np.vstack([upper, [0, 0, 0, 1]])
    library = nib.affines.apply_affine(affine, indices)
    ours = IMAGES["to_mm"](affine, indices)
    np.testing.assert_allclose(ours, library, rtol=0, atol=EXACT)
    np.testing.assert_allclose(
        IMAGES["to_mm"](affine, indices[0]), library[0], rtol=0, atol=EXACT
    )


@untimed
@given(
    hnp.arrays(np.int16, (4, 5), elements=st.integers(-500, 500)), st.integers(2, 20)
)
def test_the_z_score_is_that_of_scipy(values, count: int) -> None:
    inside = np.arange(values.size).reshape(values.shape) < count
    assume(np.ptp(values[inside]) > 0)
    ours = IMAGES["z_score"](values.astype(float), inside)
    np.testing.assert_allclose(
        ours, stats.zmap(values, values[inside]), rtol=0, atol=EXACT
    )


@untimed
@given(st.permutations(range(3)), st.tuples(*[st.sampled_from((1, -1))] * 3))
def test_axes_are_turned_as_nibabel_turns_them(order, signs) -> None:
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[order] * np.multiply(signs, (0.7, 1.0, 2.5))
    affine[:3, 3] = (5, -3, 8)
    array = np.arange(120.0).reshape(4, 5, 6)
    ours, moved = IMAGES["to_ras"](array, affine)
    library = nib.as_closest_canonical(nib.Nifti1Image(array, affine))
    np.testing.assert_array_equal(ours, library.get_fdata())
    np.testing.assert_allclose(moved, library.affine, rtol=0, atol=EXACT)


def test_the_affine_of_dicom_slices_is_that_of_nibabel() -> None:
    with warnings.catch_warnings():  # nibabel calls its reader of DICOM experimental
        warnings.simplefilter("ignore", UserWarning)
        from nibabel.nicom.dicomwrappers import wrapper_from_file

    library = [
        wrapper_from_file(path) for path in anatomy.path("knee-echoes").iterdir()
    ]
    first = min(float(one.get("EchoTime")) for one in library)
    library = [one for one in library if float(one.get("EchoTime")) == first]
    library.sort(key=lambda one: one.slice_indicator)
    ours = IMAGES["affine_from"]([one.dcm_data for one in library])
    for number, row, column in itertools.product((0, 5, -1), (0, 100), (0, 250)):
        there = library[number].affine @ (row, column, 0, 1)
        here = ours @ (number % len(library), row, column, 1)
        np.testing.assert_allclose(here, there, rtol=0, atol=0.01)  # mm


# -------------------------------------------------------------------------- convolution

NUMBERS = st.floats(-10, 10, width=32)


@untimed
@given(
    image=hnp.arrays(float, st.tuples(*[st.integers(5, 9)] * 2), elements=NUMBERS),
    kernel=st.integers(1, 4).flatmap(
        lambda k: hnp.arrays(float, (k, k), elements=NUMBERS)
    ),
)
def test_a_sliding_kernel_is_the_correlation_of_scipy_and_torch(image, kernel) -> None:
    ours = CONVOLUTION["slide"](image, kernel)
    library = signal.correlate2d(image, kernel, "valid")
    np.testing.assert_allclose(ours, library, rtol=0, atol=EXACT)
    np.testing.assert_allclose(
        ours, CONVOLUTION["torch_conv"](image, kernel), rtol=0, atol=EXACT
    )


OPTIONS = {
    "stride": st.integers(1, 3),
    "padding": st.integers(0, 3),
    "dilation": st.integers(1, 3),
}


@untimed
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(7, 12), st.integers(7, 12)),
    outputs=st.integers(1, 4),
    k=st.integers(1, 3),
    options=st.fixed_dictionaries(OPTIONS),
    seed=st.integers(0, 99),
)
def test_the_layer_is_that_of_torch(shape, outputs, k, options, seed) -> None:
    random = np.random.default_rng(seed)
    arrays = (
        random.normal(size=shape), random.normal(size=(outputs, shape[0], k, k)),
        random.normal(size=outputs),
    )  # fmt: skip
    ours = CONVOLUTION["conv2d"](*arrays, **options)
    library = F.conv2d(*map(torch.from_numpy, arrays), **options).numpy()
    np.testing.assert_allclose(ours, library, rtol=0, atol=EXACT)
    size = CONVOLUTION["size_after"](
        shape[1], k, options["padding"], options["stride"], options["dilation"]
    )
    assert size == library.shape[1]


@untimed
@given(
    hnp.arrays(float, (2, 12, 24), elements=NUMBERS), st.sampled_from((1, 2, 3, 4, 6))
)
def test_pooling_is_that_of_torch(x, size: int) -> None:
    tensor = torch.from_numpy(x)
    for how, library in ((np.max, F.max_pool2d), (np.mean, F.avg_pool2d)):
        np.testing.assert_allclose(
            CONVOLUTION["pool"](x, size, how), library(tensor, size).numpy(),
            rtol=0, atol=EXACT,
        )  # fmt: skip


@untimed
@given(
    y=hnp.arrays(float, st.tuples(*[st.integers(1, 5)] * 2), elements=NUMBERS),
    kernel=st.integers(1, 4).flatmap(
        lambda k: hnp.arrays(float, (k, k), elements=NUMBERS)
    ),
    stride=st.integers(1, 4),
)
def test_stamps_are_the_transposed_convolution_of_torch(y, kernel, stride) -> None:
    arrays = (torch.from_numpy(a)[None, None] for a in (y, kernel))
    library = F.conv_transpose2d(*arrays, stride=stride)[0, 0]
    ours = CONVOLUTION["stamp"](y, kernel, stride)
    np.testing.assert_allclose(ours, library.numpy(), rtol=0, atol=EXACT)


@untimed
@given(
    times=hnp.arrays(float, 8, elements=st.floats(5, 100), unique=True),
    logarithms=hnp.arrays(float, (8, 3), elements=st.floats(0, 10)),
)
def test_a_decay_by_a_1_x_1_convolution_is_the_regression_of_scipy(
    times, logarithms
) -> None:
    assume(np.diff(np.sort(times)).min() > 0.1)
    weights = torch.from_numpy(CONVOLUTION["slope_weights"](times))
    image = torch.from_numpy(logarithms)[None, :, None]  # (1, 8, 1, 3)
    ours = F.conv2d(image, weights[None, :, None, None])[0, 0, 0].numpy()
    library = [stats.linregress(times, column).slope for column in logarithms.T]
    np.testing.assert_allclose(ours, library, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", ["small", "squeezenet"])
@pytest.mark.parametrize("slices", [1, 7])
def test_three_lines_are_the_packaged_mrnet(name: str, slices: int) -> None:
    torch.manual_seed(slices)
    network = MRNet(*BACKBONES[name]()).eval()
    exam = 255 * torch.rand(slices, 1, 64, 80)
    with torch.inference_mode():
        maps = network.feature_maps(exam)
        vectors, whole, logit = CONVOLUTION["judge"](maps, network.classifier)
        assert vectors.shape == maps.shape[:2]
        assert torch.equal(whole, vectors.max(dim=0).values)
        torch.testing.assert_close(network([exam])[0], logit, rtol=0, atol=SINGLE)


def test_the_blur_before_a_stride_is_a_filter_of_scipy() -> None:
    x = np.random.default_rng(0).normal(size=(3, 24, 24)).astype(np.float32)
    row = np.array([1, 3, 3, 1]) / 8
    kept = x.astype(float)
    for _ in range(2):
        kept = np.stack(
            [signal.correlate2d(np.pad(one, 2), np.outer(row, row), "valid")
             for one in kept]
        )[:, ::2, ::2]  # fmt: skip
    ours = CONVOLUTION["blur_then_skip"](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(ours, kept, rtol=0, atol=SINGLE)


# ----------------------------------------------------------------------------- networks


def test_lenet_has_the_parameters_of_its_paper() -> None:
    # 156, 2416 (all connections), 48120, 10164, 850: the table of the chapter by hand
    layers = [p for p in NETWORKS["lenet"] if list(p.parameters())]
    numbers = [sum(w.numel() for w in layer.parameters()) for layer in layers]
    assert numbers == [156, 2416, 48_120, 10_164, 850]


def test_lenet_is_the_layers_of_the_chapter_before() -> None:
    torch.manual_seed(0)
    lenet = NETWORKS["lenet"].double()
    x = torch.randn(1, 1, 32, 32, dtype=torch.double)
    with torch.no_grad():
        library = lenet(x)[0].numpy()
    arrays = [p.detach().numpy() for p in lenet.parameters()]
    lenet.float()
    maps, shapes = x[0].numpy(), []
    for weight, bias in zip(arrays[:4:2], arrays[1:4:2], strict=True):
        maps = np.tanh(CONVOLUTION["conv2d"](maps, weight, bias))
        shapes.append(maps.shape)
        maps = CONVOLUTION["pool"](maps, 2, np.mean)
        shapes.append(maps.shape)
    assert shapes == [(6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5)]
    first, second, last = zip(arrays[4::2], arrays[5::2], strict=True)
    values = np.tanh(first[0] @ maps.ravel() + first[1])
    values = np.tanh(second[0] @ values + second[1])
    np.testing.assert_allclose(last[0] @ values + last[1], library, rtol=0, atol=EXACT)


def the_same(
    ours: nn.Module, theirs: nn.Module, *shape: int, atol: float = SINGLE
) -> None:
    theirs.load_state_dict(ours.state_dict())  # strict: no name too many or too few
    x = torch.randn(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=atol)


def as_after_training(network: nn.Module) -> None:
    """Give all batch normalisations weights and averages that are not 0 and 1."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)


def test_alexnet_is_that_of_torchvision() -> None:
    torch.manual_seed(1)
    theirs = models.alexnet(weights=None).features
    the_same(NETWORKS["convolutions_of_alexnet"](), theirs, 3, 127, 95)


@pytest.mark.parametrize("channels", [4, 9])
def test_the_residual_block_is_that_of_torchvision(channels: int) -> None:
    torch.manual_seed(1)
    ours = NETWORKS["ResidualBlock"](channels)
    as_after_training(ours)
    the_same(ours, models.resnet.BasicBlock(channels, channels), channels, 7, 11)


@pytest.mark.parametrize("channels", [4, 9])
def test_the_coarser_block_is_that_of_torchvision(channels: int) -> None:
    torch.manual_seed(1)
    ours = NETWORKS["CoarserBlock"](channels)
    as_after_training(ours)
    shortcut = nn.Sequential(
        nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False),
        nn.BatchNorm2d(2 * channels),
    )
    theirs = models.resnet.BasicBlock(channels, 2 * channels, 2, shortcut)
    the_same(ours, theirs, channels, 7, 12)


def test_our_resnet_18_is_that_of_torchvision() -> None:
    torch.manual_seed(1)
    ours, theirs = NETWORKS["resnet18"](), models.resnet18()
    count = sum(p.numel() for p in ours.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) == 11_689_512
    the_same(ours, theirs, 3, 65, 50)
    # Random averages let the answers grow to hundreds: relative to these.
    as_after_training(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 65, 50)
    with torch.no_grad():
        a, b = ours.double()(x.double()), theirs.double()(x.double())
    torch.testing.assert_close(a, b, rtol=EXACT, atol=0)


@pytest.mark.parametrize("widths", [(8, 16), (16, 24)])
def test_the_small_unet_is_the_packaged_one(widths: tuple[int, int]) -> None:
    torch.manual_seed(1)
    the_same(NETWORKS["SmallUNet"](*widths), UNet(channels=widths), 1, 22, 34)


def test_the_double_convolution_is_the_packaged_one() -> None:
    torch.manual_seed(1)
    ours, theirs = NETWORKS["double"](3, 8), conv_block(3, 8, InstanceNorm, padding=1)
    the_same(ours, theirs, 3, 6, 7, 9)


def test_the_way_up_in_3_d_is_the_packaged_one() -> None:
    torch.manual_seed(1)
    ours, theirs = NETWORKS["upward"](4), up_block(4, 4, InstanceNorm)
    the_same(ours, theirs, 4, 3, 5, 2)


@pytest.mark.parametrize("width", [2, 6])
def test_the_small_3_d_unet_is_the_packaged_one(width: int) -> None:
    torch.manual_seed(1)
    ours, theirs = NETWORKS["SmallUNet3d"](width), PaddedUNet(width)
    the_same(ours, theirs, 5, 16, 32, 24, atol=1e-4)


@untimed
@given(st.lists(st.tuples(*[st.integers(1, 4)] * 3), min_size=1, max_size=4))
def test_the_rule_of_the_field_is_that_of_the_trace(layers) -> None:
    layers = [(k, min(s, k), d) for k, s, d in layers]
    side = NETWORKS["field"](layers)
    assume(side < 1200)
    network = nn.Sequential(*(nn.Conv2d(1, 1, k, s, dilation=d) for k, s, d in layers))
    found = inspect_network.trace(network, 1, 3 * side + 20, 3 * side + 20)
    assert side == found.receptive_field()[0]


def test_memory_that_was_measured_is_what_the_trace_predicts() -> None:
    network = UNet(channels=(8, 16), unshuffle=2)
    measured = NETWORKS["kept_for_real"](network, torch.rand(1, 1, 64, 32))
    predicted = inspect_network.trace(network, 1, 64, 32).kept
    assert measured == pytest.approx(predicted, rel=0.01)


# ----------------------------------------------------------------------------- training

LOGITS = hnp.arrays(float, 6, elements=st.floats(-60, 60))


@untimed
@given(LOGITS, hnp.arrays(np.int8, 6, elements=st.integers(0, 1)))
def test_cross_entropy_is_that_of_torch(z, y) -> None:
    library = F.binary_cross_entropy_with_logits(
        torch.from_numpy(z), torch.from_numpy(y.astype(float))
    )
    ours = TRAINING["cross_entropy"](z, y)
    np.testing.assert_allclose(ours, float(library), rtol=0, atol=EXACT)


def two_weights(seed: int) -> tuple[Callable[..., Any], torch.Tensor, torch.Tensor]:
    """Random images of two numbers, given to the functions of the chapter."""
    random = np.random.default_rng(seed)
    x, y = random.normal(size=(12, 2)) * [3, 1], np.repeat([0.0, 1.0], 6)
    for name in ("slope", "descend", "adamw"):
        TRAINING[name].__globals__.update(x=x, y=y)
    return TRAINING["slope"], torch.from_numpy(x), torch.from_numpy(y)


@pytest.mark.parametrize("seed", range(5))
def test_the_slope_is_that_of_autograd(seed: int) -> None:
    slope, x, y = two_weights(seed)
    w = np.random.default_rng(seed).normal(size=2)
    leaf = torch.tensor(w, requires_grad=True)
    F.binary_cross_entropy_with_logits(x @ leaf, y).backward()
    np.testing.assert_allclose(slope(w), leaf.grad, rtol=0, atol=EXACT)


@untimed
@given(
    shape=st.tuples(*[st.integers(3, 6)] * 2),
    k=st.tuples(*[st.integers(1, 3)] * 2),
    label=st.integers(0, 1),
    seed=st.integers(0, 999),
)
def test_back_propagation_by_hand_is_that_of_autograd(shape, k, label, seed) -> None:
    random = np.random.default_rng(seed)
    image, kernel, bias = random.normal(size=shape), random.normal(size=k), 0.3
    loss, *slopes = TRAINING["forward_and_back"](image, kernel, bias, label)
    leaves = [torch.tensor(v, requires_grad=True, dtype=torch.double)
              for v in (kernel, bias, image)]  # fmt: skip
    weight, offset, picture = leaves
    summed = F.conv2d(picture[None, None], weight[None, None], offset[None])
    truth = torch.tensor(float(label), dtype=torch.double)
    value = F.binary_cross_entropy_with_logits(summed.relu().mean(), truth)
    value.backward()
    np.testing.assert_allclose(loss, value.item(), rtol=0, atol=EXACT)
    for ours, leaf in zip(slopes, leaves, strict=True):
        np.testing.assert_allclose(ours, leaf.grad, rtol=0, atol=EXACT)


OPTIMISERS = {
    "SGD": (0.05, lambda w: torch.optim.SGD(w, lr=0.05)),
    "momentum": (0.05, lambda w: torch.optim.SGD(w, lr=0.05, momentum=0.9)),
    "Adam": (0.3, lambda w: torch.optim.Adam(w, lr=0.3)),
    "AdamW": (0.3, lambda w: torch.optim.AdamW(w, lr=0.3, weight_decay=0.2)),
}


@pytest.mark.parametrize("rule", OPTIMISERS)
def test_steps_are_those_of_the_optimisers_of_torch(rule: str) -> None:
    rate, build = OPTIMISERS[rule]
    for seed in range(3):
        _, x, y = two_weights(seed)
        leaf = torch.tensor([1.0, -3.0], dtype=torch.double, requires_grad=True)
        optimizer = build([leaf])
        for _ in range(40):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(x @ leaf, y).backward()
            optimizer.step()
        ours = (
            TRAINING["adamw"]((1, -3), rate, 0.2, 40)
            if rule == "AdamW"
            else TRAINING["descend"](rule, (1, -3), rate, 40)[-1]
        )
        np.testing.assert_allclose(ours, leaf.detach(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (1, 2, 6, 6)])
def test_normalisations_are_those_of_torch(shape: tuple[int, ...]) -> None:
    a = 3 + 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for axes, library in (
        ((0, 2, 3), nn.BatchNorm2d(shape[1])),
        ((2, 3), nn.InstanceNorm2d(shape[1])),
    ):
        ours = TRAINING["normalise"](a, axes)
        torch.testing.assert_close(ours, library(a), rtol=0, atol=SINGLE)


def test_first_weights_of_our_size_are_those_of_torch() -> None:
    ours = TRAINING["sizes"](1.0, depth=6, channels=32)
    torch.manual_seed(0)
    image, library = torch.randn(2, 32, 8, 8), []
    for _ in range(6):
        weight = torch.empty(32, 32, 3, 3)
        nn.init.kaiming_normal_(weight, nonlinearity="relu")
        image = F.pad(image, (1, 1, 1, 1), mode="circular")
        image = F.conv2d(image, weight).relu()
        library.append(float(image.square().mean().sqrt()))
    np.testing.assert_allclose(ours, library, rtol=0, atol=SINGLE)


class Halves(torch.utils.data.Dataset[dict[str, Any]]):
    """Images that are brighter on one side; keys are pairs as the package asks."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(11, 1, 8, 8, generator=generator)
        self.images[::2, :, :, :4] += 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        _, index = key
        label = torch.tensor(float(index % 2 == 0))
        return {"image": self.images[index], "label": label, "image_id": str(index)}


def test_the_written_loop_is_the_packaged_one(tmp_path: Path) -> None:
    def loss_of(network, batch, done=0.0):
        logits = network(batch["image"])[:, 0]
        return F.binary_cross_entropy_with_logits(logits, batch["label"])

    def check(network):
        return {
            "size": sum(float(p.detach().abs().sum()) for p in network.parameters())
        }

    def fresh() -> nn.Module:
        torch.manual_seed(2)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Flatten(), nn.Linear(144, 1),
        )  # fmt: skip

    rate, epochs, batch = 1e-2, 3, 4
    loop, learn = TRAINING["loop"], Halves()
    loop.__globals__.update(
        RATE=rate, EPOCHS=epochs, BATCH=batch, learn=learn, check=check, loss_of=loss_of
    )
    ours, theirs = fresh(), fresh()
    log = loop(ours)
    rows = training.fit(
        theirs, learn, loss=loss_of, validate=check, out=tmp_path / "run",
        epochs=epochs, seed=0, batch_size=batch, learning_rate=rate, weight_decay=0.01,
        best_by="size", lowest=True, settings={}, workers=0, progress=False,
        accelerator="cpu", precision="32-true",
    )  # fmt: skip
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=SINGLE)
    for mine, packaged in zip(log, rows, strict=True):
        assert mine["loss"] == pytest.approx(packaged["loss"], abs=SINGLE)
        assert mine["size"] == pytest.approx(packaged["size"], abs=1e-3)


@untimed
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 5))
def test_early_stopping_waits_as_long_as_the_schedule_of_torch(
    losses, patience: int
) -> None:
    # ReduceLROnPlateau lowers the rate after the same wait; it counts one epoch more.
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=patience - 1, threshold=0
    )
    library = len(losses) - 1
    for epoch, loss in enumerate(losses):
        schedule.step(loss)
        if optimizer.param_groups[0]["lr"] < 1:
            library = epoch
            break
    assert TRAINING["stopped"](losses, patience) == library


# --------------------------------------------------------------------------- evaluation


@st.composite
def judged(draw) -> tuple[np.ndarray, np.ndarray]:
    """Labels of both kinds, and scores with ties."""
    n = draw(st.integers(4, 30))
    labels = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 1)))
    assume(0 < labels.sum() < n)
    scores = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 20))) / 20
    return labels, scores


@untimed
@given(judged(), st.integers(0, 20))
def test_the_four_boxes_are_those_of_scikit_learn(cases, step: int) -> None:
    labels, scores = cases
    found, alarms, missed, left = EVALUATION["four_counts"](labels, scores, step / 20)
    library = sklearn.metrics.confusion_matrix(labels, scores >= step / 20)
    assert [[left, alarms], [missed, found]] == library.tolist()


@untimed
@given(judged(), st.integers(0, 20))
def test_five_rates_are_those_of_scikit_learn(cases, step: int) -> None:
    labels, scores = cases
    called = scores >= step / 20
    assume(0 < called.sum() < len(called))
    counts = EVALUATION["four_counts"](labels, scores, step / 20)
    library = {
        "sensitivity": sklearn.metrics.recall_score(labels, called),
        "specificity": sklearn.metrics.recall_score(labels, called, pos_label=0),
        "PPV": sklearn.metrics.precision_score(labels, called),
        "NPV": sklearn.metrics.precision_score(labels, called, pos_label=0),
        "accuracy": sklearn.metrics.accuracy_score(labels, called),
    }
    assert EVALUATION["five_rates"](*counts) == pytest.approx(library, abs=EXACT)


@untimed
@given(st.lists(st.integers(0, 1), min_size=2, max_size=30), st.integers(0, 999))
def test_the_staircase_is_the_roc_curve_of_scikit_learn(labels, seed: int) -> None:
    truth = np.array(labels)
    assume(0 < truth.sum() < len(truth))
    scores = np.random.default_rng(seed).permutation(len(truth)) / len(truth)
    right, up = EVALUATION["staircase"](truth, scores)
    library = sklearn.metrics.roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose([right, up], library[:2], rtol=0, atol=EXACT)
    area = np.sum(np.diff(right) * up[1:])
    wins = np.mean(scores[truth == 1][:, None] > scores[truth == 0])
    for one in (area, wins):
        expected = sklearn.metrics.roc_auc_score(truth, scores)
        assert one == pytest.approx(expected, abs=EXACT)


@untimed
@given(judged())
def test_the_brier_score_is_that_of_scikit_learn(cases) -> None:
    library = sklearn.metrics.brier_score_loss(*cases)
    assert EVALUATION["brier"](*cases) == pytest.approx(library, abs=EXACT)


@untimed
@given(judged(), st.floats(0.01, 0.99))
def test_precision_and_recall_are_those_of_scikit_learn(cases, prevalence) -> None:
    labels, scores = cases
    _, sensitivity, specificity = metrics.roc_points(labels, scores)
    curve = EVALUATION["precision_recall"](sensitivity, specificity, prevalence)
    mean = EVALUATION["average_precision"](curve, sensitivity)
    share = labels.mean()
    weights = np.where(labels, prevalence / share, (1 - prevalence) / (1 - share))
    library = sklearn.metrics.average_precision_score(
        labels, scores, sample_weight=weights
    )
    assert mean == pytest.approx(library, abs=EXACT)
    precision, recall = metrics.precision_recall(labels, scores, prevalence)
    np.testing.assert_allclose(curve, precision, rtol=0, atol=EXACT)
    np.testing.assert_allclose(sensitivity[1:], recall, rtol=0, atol=EXACT)


@untimed
@given(
    st.floats(0.01, 1), st.floats(0, 0.99), st.floats(0.001, 0.999),
)  # fmt: skip
def test_odds_after_an_answer_are_the_theorem_of_bayes(sens, spec, prevalence) -> None:
    hits, alarms = sens * prevalence, (1 - spec) * (1 - prevalence)
    ours = EVALUATION["after_positive"](sens, spec, prevalence)
    assert ours == pytest.approx(hits / (hits + alarms), abs=EXACT)


def masks() -> st.SearchStrategy:
    return hnp.arrays(bool, (7, 9)).filter(lambda mask: mask.any())


@untimed
@given(masks(), masks())
def test_overlap_and_distance_are_those_of_monai_and_scikit_learn(a, b) -> None:
    dice = EVALUATION["dice"](a, b)
    library = sklearn.metrics.f1_score(a.ravel(), b.ravel())
    assert dice == pytest.approx(library, abs=EXACT)
    library = sklearn.metrics.jaccard_score(a.ravel(), b.ravel())
    assert EVALUATION["jaccard_of"](dice) == pytest.approx(library, abs=EXACT)
    tensors = [torch.from_numpy(mask)[None, None] for mask in (a, b)]
    for percent in (95, 100):
        library = compute_hausdorff_distance(
            *tensors, include_background=True, percentile=percent
        )
        ours = EVALUATION["hausdorff"](a, b, percent)
        assert ours == pytest.approx(float(library), abs=SINGLE)


@untimed
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_of_wilson_is_that_of_scipy(share: tuple[int, int]) -> None:
    library = stats.binomtest(*share).proportion_ci(method="wilson")
    np.testing.assert_allclose(EVALUATION["wilson"](*share), library, rtol=0, atol=1e-6)


def test_drawing_patients_by_hand_gives_the_packaged_interval() -> None:
    random = np.random.default_rng(1)
    owner = np.repeat(np.arange(60), random.integers(1, 5, 60))
    hit = random.random(60)[owner] > 0.4
    means = [hit[EVALUATION["draw"](owner, random)].mean() for _ in range(3000)]
    library = metrics.bootstrap(lambda index: hit[index].mean(), owner, draws=3000)
    ends = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(ends, [library.low, library.high], rtol=0, atol=0.02)


@untimed
@given(judged(), st.integers(1, 12))
def test_the_calibration_error_is_the_packaged_one(cases, bins: int) -> None:
    labels, scores = cases
    ours = EVALUATION["calibration_error"](labels, scores, bins)
    library = metrics.expected_calibration_error(labels, scores, bins)
    assert ours == pytest.approx(library, abs=EXACT)


def test_a_probability_is_carried_over_as_a_new_intercept_would() -> None:
    # A logistic model learned elsewhere differs in the logit of the prevalence alone.
    logit, here, there = np.linspace(-6, 6, 25), 0.4, 0.03
    shifted = logit + np.log(there / (1 - there)) - np.log(here / (1 - here))
    ours = EVALUATION["move"](1 / (1 + np.exp(-logit)), here, there)
    np.testing.assert_allclose(ours, 1 / (1 + np.exp(-shifted)), rtol=0, atol=EXACT)


P_VALUES = hnp.arrays(float, st.integers(1, 6), elements=st.floats(0.001, 1))


@untimed
@given(P_VALUES, st.sampled_from((0.01, 0.05, 0.2)))
def test_bonferroni_selects_what_scikit_learn_selects(p, level: float) -> None:
    library = SelectFwe(lambda *_: (-p, p), alpha=level)
    selected = library.fit(np.zeros((2, len(p))), [0, 1]).get_support()
    ours = EVALUATION["bonferroni"](p)
    np.testing.assert_array_equal(ours < level, selected)
    assert ours.max() <= 1


@untimed
@given(P_VALUES)
def test_holm_closes_bonferroni(p) -> None:
    # Marcus et al. 1976: p of a question is the largest of all sets that hold it.
    closed = [
        max(
            min(1.0, len(some) * min(p[k] for k in some))
            for size in range(1, len(p) + 1)
            for some in itertools.combinations(range(len(p)), size)
            if one in some
        )
        for one in range(len(p))
    ]
    np.testing.assert_allclose(EVALUATION["holm"](p), closed, rtol=0, atol=EXACT)


@untimed
@given(P_VALUES)
def test_benjamini_and_hochberg_are_those_of_scipy(p) -> None:
    library = stats.false_discovery_control(p)
    np.testing.assert_allclose(
        EVALUATION["benjamini_hochberg"](p), library, rtol=0, atol=EXACT
    )
