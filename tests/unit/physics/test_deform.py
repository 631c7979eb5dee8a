"""Maps that must be inverse, rigid, exact or free of folds."""

import itertools
import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg_utils.physics.deform import (
    Deformation,
    random_deformation,
    rotation,
    sample,
    smooth_noise,
)

LOW = torch.zeros(3)
HIGH = torch.tensor([360.0, 250.0, 330.0])


def typical(seed, bend_mm=7.0, **changes):
    """A patient at the far end of what the simulation draws."""
    shape = {
        "scale": (1.08, 0.92, 1.05),
        "degrees": (5.0, -3.0, 4.0),
        "shift": (4.0, -2.0, 6.0),
        "bend_mm": bend_mm,
        "knot_mm": 60.0,
        "generator": torch.Generator().manual_seed(seed),
    }
    return random_deformation(LOW, HIGH, **(shape | changes))


def scattered(count, seed=0):
    random = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))
    return LOW + (HIGH - LOW) * random


# --- rotation -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "start", "end"),
    [
        # right-handed: about x, y goes to z; about y, z to x; about z, x to y
        ((90, 0, 0), (0, 1, 0), (0, 0, 1)),
        ((0, 90, 0), (0, 0, 1), (1, 0, 0)),
        ((0, 0, 90), (1, 0, 0), (0, 1, 0)),
        # first about x (y to z), then about y (z to x), then about z (x to y)
        ((90, 90, 90), (0, 1, 0), (0, 1, 0)),
        ((90, 0, 90), (0, 1, 0), (0, 0, 1)),
        ((0, 0, 30), (2, 0, 0), (math.sqrt(3), 1, 0)),
    ],
)
def test_rotations_by_hand(degrees, start, end):
    found = rotation(degrees) @ torch.tensor(start, dtype=torch.float32)
    torch.testing.assert_close(
        found, torch.tensor(end, dtype=torch.float32), atol=1e-6, rtol=0
    )


@given(st.tuples(*[st.floats(-180, 180)] * 3))
def test_rotations_keep_lengths_and_handedness(degrees):
    matrix = rotation(degrees)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(3), atol=1e-5, rtol=0)
    assert float(torch.linalg.det(matrix)) == pytest.approx(1, abs=1e-5)


# --- sampling -------------------------------------------------------------------------


@given(
    st.tuples(*[st.floats(-2, 2)] * 4),
    st.floats(0.5, 4),
    st.integers(0, 1000),
)
@settings(deadline=None, max_examples=40)
def test_sampling_is_exact_on_linear_functions(coefficients, spacing, seed):
    origin = torch.tensor([3.0, -7.0, 11.0])
    a = torch.tensor(coefficients)
    grid = torch.stack(
        torch.meshgrid(*(torch.arange(float(n)) for n in (5, 7, 6)), indexing="ij"), -1
    )
    volume = (origin + spacing * grid) @ a[:3] + a[3]
    inside = torch.rand(2, 9, 3, generator=torch.Generator().manual_seed(seed))
    points = origin + spacing * inside * torch.tensor([4.0, 6.0, 5.0])
    found = sample(volume[None], points, origin, spacing)
    assert found.shape == (1, 2, 9)
    torch.testing.assert_close(found[0], points @ a[:3] + a[3], atol=2e-3, rtol=1e-4)


def test_outside_is_the_border_value():
    volume = torch.arange(8.0).view(1, 2, 2, 2)
    corners = torch.tensor(
        [[-50.0, -50.0, -50.0], [50.0, 50.0, 50.0], [50.0, -50.0, 0.0]]
    )
    found = sample(volume, corners, torch.zeros(3), 1.0)
    assert found.tolist() == [[0.0, 7.0, 4.0]]


# --- deformation ----------------------------------------------------------------------


def plain(matrix, shift=(0.0, 0.0, 0.0)):
    return Deformation(
        matrix,
        (LOW + HIGH) / 2,
        torch.tensor(shift),
        torch.zeros(3, 4, 4, 4),
        LOW,
        HIGH,
    )


def test_without_pose_and_bend_nothing_moves():
    points = scattered(50)
    still = plain(torch.eye(3))
    torch.testing.assert_close(still.pull(points), points)
    torch.testing.assert_close(still.push(points), points)


def test_a_shifted_and_larger_patient_by_hand():
    centre = (LOW + HIGH) / 2
    larger = random_deformation(
        LOW,
        HIGH,
        scale=(2.0, 1.0, 1.0),
        degrees=(0.0, 0.0, 0.0),
        shift=(10.0, 0.0, 0.0),
        bend_mm=0.0,
        knot_mm=60.0,
        generator=torch.Generator(),
    )
    point = centre + torch.tensor([30.0, 5.0, -7.0])
    expected = centre + torch.tensor([2 * 30 + 10, 5.0, -7.0])
    torch.testing.assert_close(larger.push(point[None])[0], expected)
    torch.testing.assert_close(larger.pull(expected[None])[0], point)


@pytest.mark.parametrize("shape", [(2, 2, 2), (7, 5, 9), (24, 15, 27)])
def test_the_bend_is_what_pytorch_finds_in_the_volume(shape):
    generator = torch.Generator().manual_seed(shape[0])
    bent = replace(
        plain(torch.eye(3)), bend=10 * torch.randn(3, *shape, generator=generator)
    )
    outside = 0.2 * (HIGH - LOW)
    points = (
        LOW
        - outside
        + torch.rand(2, 500, 3, generator=generator) * (HIGH - LOW + 2 * outside)
    )
    corners = torch.cartesian_prod(*torch.stack([LOW, HIGH], 1))
    for some in (points, corners, points[:, :0]):
        grid = (some.reshape(1, 1, 1, -1, 3) - LOW) / (HIGH - LOW) * 2 - 1
        expected = F.grid_sample(
            bent.bend[None], grid.flip(-1), padding_mode="border", align_corners=True
        )
        found = bent.pull(some) - some
        expected = expected.view(3, -1).T.reshape(some.shape)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_push_turns_as_the_rotation_does():
    """The patient is turned by `degrees`; the pull map turns back."""
    turned = typical(
        0, 0.0, scale=(1.0, 1.0, 1.0), shift=(0.0, 0.0, 0.0), degrees=(0, 0, 90)
    )
    centre = (LOW + HIGH) / 2
    moved = turned.push((centre + torch.tensor([10.0, 0.0, 0.0]))[None])[0]
    torch.testing.assert_close(
        moved, centre + torch.tensor([0.0, 10.0, 0.0]), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("seed", range(6))
def test_push_is_the_inverse_of_pull(seed):
    patient, points = typical(seed), scattered(4000, seed)
    there_and_back = (patient.pull(patient.push(points, steps=12)) - points).norm(dim=1)
    assert there_and_back.max() < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_each_step_of_push_shrinks_the_error(seed):
    """By four or more on average, to a hundredth of a pixel after the default number.

    A pixel of a film of 512 is 0.7 mm; a few points in the steepest bends need more.
    """
    patient, points = typical(seed), scattered(4000, seed)
    errors = [
        (patient.pull(patient.push(points, steps=n)) - points).norm(dim=1)
        for n in range(6)
    ]
    for before, after in itertools.pairwise(errors):
        assert after.mean() < before.mean() / 3
    by_default = (patient.pull(patient.push(points)) - points).norm(dim=1)
    assert by_default.mean() < 1e-3
    assert by_default.quantile(0.99) < 0.007
    assert by_default.max() < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_typical_patients_do_not_fold(seed):
    patient, points = typical(seed), scattered(5000, seed)
    step = 0.25
    columns = [
        (patient.pull(points + step * e) - patient.pull(points - step * e)) / (2 * step)
        for e in torch.eye(3)
    ]
    volume = torch.linalg.det(torch.stack(columns, -1))
    assert volume.min() > 0.1
    scale = 1 / (1.08 * 0.92 * 1.05)
    assert float(volume.median()) == pytest.approx(scale, rel=0.15)


def test_a_bend_that_may_fold_is_refused():
    with pytest.raises(ValueError, match=r"may fold.*at most 12\.0 mm"):
        typical(0, 12.1)
    typical(0, 12.0)


def test_the_bend_has_the_wanted_size():
    bends = torch.stack([typical(seed).bend for seed in range(12)])
    assert float(bends[..., 0, 0, 0].std()) == pytest.approx(7.0, rel=0.3)  # a knot
    assert float(bends.std()) == pytest.approx(0.7 * 7.0, rel=0.1)
    assert abs(float(bends.mean())) < 0.7


# meta has no numbers, but its tensors do not mix with those of another device
@pytest.mark.parametrize("device", ["meta"] + ["cuda"] * torch.cuda.is_available())
def test_maps_run_on_the_device_of_their_points(device):
    patient = typical(0)
    there = Deformation(*(getattr(patient, f.name).to(device) for f in fields(patient)))
    points = scattered(50).to(device)
    for move in (there.pull, there.push):
        assert move(points).device.type == device
    if device == "cuda":
        drawn = random_deformation(
            LOW.to(device), HIGH.to(device), scale=(1.0, 1.0, 1.0), degrees=(1, 2, 3),
            bend_mm=5.0, knot_mm=60.0, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        assert drawn.push(points).device.type == device


def test_the_seed_decides():
    points = scattered(10)
    assert torch.equal(typical(4).pull(points), typical(4).pull(points))
    assert not torch.equal(typical(4).pull(points), typical(5).pull(points))


# --- noise ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "knots"), [((40, 50), (40, 50)), ((12, 14, 13), (12, 14, 13))]
)
def test_noise_has_unit_variance_at_its_knots(shape, knots):
    generator = torch.Generator().manual_seed(2)
    fields = torch.stack([smooth_noise(shape, knots, generator) for _ in range(8)])
    assert fields.shape[1:] == shape
    assert float(fields.std()) == pytest.approx(1, abs=0.05)
    assert abs(float(fields.mean())) < 0.05


def test_noise_is_smooth_between_its_knots():
    field = smooth_noise((90, 90), (4, 4), torch.Generator().manual_seed(0)).numpy()
    roughness = np.diff(field, 2, axis=0)
    assert abs(roughness).max() < 0.03 * np.ptp(field)
