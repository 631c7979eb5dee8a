import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medimg_utils.challenges import planning
from medimg_utils.challenges.planning import Fingerprint
from medimg_utils.errors import InputError


def known(cases, spacing, shape, classes) -> Fingerprint:
    return Fingerprint(cases, spacing, spacing, shape, classes)


@pytest.mark.parametrize(
    ("found", "patch", "batch"),
    [
        # Plans that users of the public code posted (its issues 2251 and 2227), and
        # those of its authors for the Medical Segmentation Decathlon.
        (known(50, (1.0, 1.0), (2848, 4288), 2), (1024, 1536), 2),
        (known(50, (2.3566, 1.8411, 1.8411), (177, 217, 217), 2), (128, 128, 128), 2),
        (known(131, (1.0, 0.7676, 0.7676), (482, 512, 512), 3), (128, 128, 128), 2),
        (known(484, (1.0, 1.0, 1.0), (138, 170, 138), 4), (128, 128, 128), 2),
        (known(32, (3.6, 0.62, 0.62), (20, 320, 319), 3), (20, 320, 256), 2),
    ],
)
def test_plans_are_those_of_the_public_code(found, patch, batch) -> None:
    decided = planning.plan(found)
    assert decided.patch == patch
    assert decided.batch == batch


def test_small_images_are_seen_whole_and_fill_the_batch() -> None:
    decided = planning.plan(known(208, (1.0, 1.0, 1.0), (36, 50, 35), 3))
    assert decided.patch == (40, 56, 40)
    assert decided.pools == (3, 3, 3)
    assert decided.batch > 2
    assert not decided.cascade


def test_few_images_keep_the_batch_small() -> None:
    many = planning.plan(known(500, (1.0, 1.0), (256, 256), 2))
    few = planning.plan(known(60, (1.0, 1.0), (256, 256), 2))
    assert few.patch == many.patch == (256, 256)
    assert few.batch == 3  # a twentieth of 60 images
    assert many.batch > 12


def test_thick_slices_are_not_averaged_further() -> None:
    found = Fingerprint(20, (10.0, 1.5, 1.5), (5.0, 1.4, 1.4), (9, 200, 220), 4)
    assert planning.target_spacing(found) == (5.0, 1.5, 1.5)
    # never finer than within the slices
    thin = Fingerprint(20, (10.0, 1.5, 1.5), (0.5, 1.4, 1.4), (9, 200, 220), 4)
    assert planning.target_spacing(thin) == (1.5, 1.5, 1.5)
    # as many voxels as across: not one of thick slices
    deep = Fingerprint(20, (10.0, 1.5, 1.5), (5.0, 1.4, 1.4), (90, 200, 220), 4)
    assert planning.target_spacing(deep) == (10.0, 1.5, 1.5)


@settings(max_examples=60, deadline=None)
@given(
    spacing=st.lists(st.floats(0.2, 6), min_size=2, max_size=3),
    sides=st.lists(st.integers(8, 300), min_size=3, max_size=3),
)
def test_every_plan_fits_and_can_be_pooled(spacing, sides) -> None:
    shape = tuple(sides[: len(spacing)])
    found = known(100, tuple(spacing), shape, 3)
    decided = planning.plan(found)
    d = len(spacing)
    values = planning.feature_values(decided.patch, decided.strides, 3)
    room = planning.BUDGET[d] * planning.REFERENCE_BATCH[d]
    assert values * planning.LEAST_BATCH <= room
    assert decided.batch == 2 or values * (decided.batch - 0.5) <= room
    for side, pools in zip(decided.patch, decided.pools, strict=True):
        assert side % 2**pools == 0
        assert pools == 0 or side / 2**pools >= planning.SMALLEST
    assert len(decided.channels) == len(decided.strides)


def test_the_memory_is_that_of_a_network() -> None:
    """Count what a network of the plan's strides really computes."""
    strides, patch, classes = ((1, 1), (2, 2), (1, 2)), (16, 32), 3
    channels = planning.channels_of(strides)
    counted = 0

    def keep(x: torch.Tensor) -> torch.Tensor:
        nonlocal counted
        counted += x.numel()
        return x

    x, skips = torch.zeros(1, 1, *patch), []
    for stride, width in zip(strides, channels, strict=True):
        x = keep(nn.Conv2d(x.shape[1], width, 3, stride, padding=1)(x))
        x = keep(nn.Conv2d(width, width, 3, padding=1)(x))
        skips.append(x)
    skips.pop()
    for stride, width in zip(strides[:0:-1], channels[-2::-1], strict=True):
        x = keep(nn.ConvTranspose2d(x.shape[1], width, stride, stride)(x))
        x = torch.cat([x, skips.pop()], dim=1)
        x = keep(nn.Conv2d(2 * width, width, 3, padding=1)(x))
        x = keep(nn.Conv2d(width, width, 3, padding=1)(x))
    keep(nn.Conv2d(width, classes, 1)(x))
    assert planning.feature_values(patch, strides, classes) == counted


def test_voxels_become_cubes_before_slices_are_pooled() -> None:
    strides = planning.topology((4.0, 1.0, 1.0), (32, 128, 128))
    spacing = np.array([4.0, 1.0, 1.0])
    for stride in strides:
        if stride[0] == 2:
            assert spacing[1] > spacing[0] / 2
        spacing *= stride


def test_a_fingerprint_holds_medians() -> None:
    found = planning.fingerprint(
        [[3, 1, 1], [4, 1, 1], [5, 1, 2]], [[20, 100, 90]] * 3, classes=2
    )
    assert found.cases == 3
    assert found.spacing == (4, 1, 1)
    assert found.finest == pytest.approx((3.2, 1, 1))
    twice = found.at((2, 1, 1))
    assert twice.shape == (40, 100, 90)
    assert twice.spacing == twice.finest == (2, 1, 1)


@pytest.mark.parametrize(
    ("spacings", "shapes", "message"),
    [
        ([[1, 1]], [[9, 9, 9]], "alike"),
        ([[1]], [[9]], "alike"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "positive spacing"),
        ([[0, 1, 1]], [[9, 9, 9]], "positive spacing"),
        ([[np.nan, 1, 1]], [[9, 9, 9]], "positive spacing"),
        ([[1, 1, 1]], [[9, 0, 9]], "without voxels"),
    ],
)
def test_wrong_input_is_refused(spacings, shapes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        planning.fingerprint(spacings, shapes, classes=2)
