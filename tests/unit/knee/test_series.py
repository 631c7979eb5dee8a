"""The three series of an exam: where their slices lie, what tissue is bright in them."""

import copy

import numpy as np
import pytest
import torch

from medimg_utils.knee import series
from medimg_utils.knee.findings import Finding, paint
from medimg_utils.knee.phantom import load_knee
from medimg_utils.knee.series import (
    PLANES,
    SIZE,
    SLICES,
    random_patient,
    random_scanner,
    random_slices,
    render,
    to_grey,
)
from medimg_utils.knee.voxels import GRID, Code


def scan(plane, *findings, seed=0, canvas=None):
    """One series of an average knee 1; the same seed gives the same patient."""
    random = np.random.default_rng([1, seed])
    patient = random_patient(("knee1",), ("average",), random)
    scanner = random_scanner(random)
    knee = load_knee("knee1", "average")
    painted = canvas or paint(knee, findings, np.random.default_rng([2, seed]))
    return render(painted, patient, scanner, plane, np.random.default_rng([3, seed]))


def frame(plane, side, seed=0):
    return series._random_frame(plane, side, 1.0, np.random.default_rng(seed))


# --- the profile of a slice -----------------------------------------------------------


@pytest.mark.parametrize("flank", [0.2, 0.5, 1.0])
def test_thin_slices_of_equal_signal_fill_a_profile_with_linear_flanks(flank):
    borders = series.thin_slices(torch.linspace(0, 1, 2001), flank)
    middles, widths = (borders[1:] + borders[:-1]) / 2, borders.diff()
    height = 1 / 2000 / widths  # each excites alike
    wanted = (((1 + flank) / 2 - middles.abs()) / flank).clamp(max=1)
    assert height[10:-10] == pytest.approx(wanted[10:-10].numpy(), abs=0.03)
    # a box of 1 blurred by a box of the flank: variances add
    assert float((middles**2).mean()) == pytest.approx((1 + flank**2) / 12, rel=1e-3)
    assert float(borders[-1] - borders[0]) == pytest.approx(1 + flank)


def test_all_pixels_together_see_the_whole_profile_of_a_slice():
    """A wall of light in front of which slices are moved: what shines is their profile."""
    frame = series._random_frame("axial", "left", 1.0, np.random.default_rng(0))
    places, away = series._thin_places(frame)
    seen = ((places[:, None, None, None] + away) / frame.thickness).flatten()
    for at in (-0.7, -0.5, -0.3, 0.0, 0.5, 0.6):
        share = ((seen - at).abs() < 0.02).float().mean() / 0.04
        wanted = min((0.75 - abs(at)) / 0.5, 1.0)
        assert float(share) == pytest.approx(wanted, abs=0.04), at


# --- where slices lie -----------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_slices_run_as_in_the_release(side):
    """x lateral, y front, z up: coronal from back to front, axial from above."""
    assert frame("coronal", side).through[1] > 0.9
    assert frame("axial", side).through[2] < -0.9
    for plane in ("coronal", "sagittal"):
        assert frame(plane, side).down[2] < -0.9  # feet below
    assert frame("axial", side).down[1] < -0.9  # the front above
    assert frame("sagittal", side).right[1] < -0.9  # the front on the left


def test_left_and_right_knees_are_mirrored():
    """The patient's right is on the left of coronal and axial pictures."""
    for plane in ("coronal", "axial"):
        right, left = frame(plane, "right"), frame(plane, "left")
        assert right.right[0] < -0.9 < 0.9 < left.right[0]
        torch.testing.assert_close(right.positions, left.positions)


@pytest.mark.parametrize("plane", PLANES)
def test_numbers_of_slices_are_those_of_the_release(plane):
    random = np.random.default_rng(0)
    drawn = [random_slices(plane, random) for _ in range(2000)]
    assert min(drawn) >= SLICES[plane][0]
    assert max(drawn) <= SLICES[plane][-1]
    assert np.median(drawn) == pytest.approx(SLICES[plane][3], abs=1)


def test_dither_is_even():
    dither = series._dither()
    assert dither.shape == (series._THIN, 1, SIZE, SIZE)
    assert float(dither.min()) >= -0.5
    assert float(dither.max()) < 0.5
    counts = torch.histc(dither, 10, -0.5, 0.5) / dither.numel()
    torch.testing.assert_close(counts, torch.full((10,), 0.1), atol=0.002, rtol=0)
    blocks = dither.view(series._THIN, 32, 8, 32, 8).mean((2, 4))
    assert float(blocks.abs().max()) < 0.12  # even in every 8 x 8 pixels


# --- contrast -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grey():
    """Median grey value of tissues in each plane, in the middle one of three patients.

    In one of ten so much fat escapes its suppression that marrow outshines muscle.
    """
    knee = load_knee("knee1", "average")
    groups = {
        "fat": [Code.FAT],
        "muscle": [Code.MUSCLE],
        "marrow": [Code.FEMUR, Code.TIBIA],
        "cartilage": [Code.FEMORAL_CARTILAGE],
        "fluid": [Code.FLUID],
        "tendon": [Code.TENDON, Code.PCL],
        "air": [Code.AIR],
    }
    medians = {(plane, name): [] for plane in PLANES for name in groups}
    for seed in (0, 3, 4):
        canvas = paint(
            knee,
            [Finding("abnormal", "effusion", 0.9)],
            np.random.default_rng([2, seed]),
        )
        shows = [c for c, m in canvas.materials.items() if m.shows == 1]
        members = groups | {"fluid": groups["fluid"] + shows}
        for plane in PLANES:
            volume, masks = scan_with_masks(canvas, members, plane, seed)
            for name, where in masks.items():
                assert where.any(), name
                medians[plane, name].append(np.median(volume[where]))
    return {key: float(np.median(values)) for key, values in medians.items()}


def scan_with_masks(canvas, groups, plane, seed):
    """A series, and the pixels that lie wholly in each group of codes."""
    kept, shares = series._sample, []
    table = torch.zeros(256, len(groups))
    for column, codes in enumerate(groups.values()):
        table[codes, column] = 1.0

    def sample(canvas, patient, frame, properties, generator):
        same = copy.deepcopy(generator)  # so that both look at the same places
        shares.append(kept(canvas, patient, frame, table, same)[0])
        return kept(canvas, patient, frame, properties, generator)

    series._sample = sample
    try:
        found = scan(plane, seed=seed, canvas=canvas)
    finally:
        series._sample = kept
    (share,) = shares
    masks = {n: (s > 0.99).numpy() for n, s in zip(groups, share, strict=True)}
    return found.volume, masks


def test_fluid_is_bright_and_fat_dark_with_fat_suppression(grey):
    for plane in ("sagittal", "axial"):
        order = [grey[plane, n] for n in ("fat", "muscle", "cartilage", "fluid")]
        assert order == sorted(order), plane
        assert grey[plane, "fluid"] > 1.4 * grey[plane, "muscle"]
        assert grey[plane, "marrow"] < 0.85 * grey[plane, "muscle"]
        assert grey[plane, "tendon"] < 0.7 * grey[plane, "muscle"]


def test_fat_and_marrow_are_bright_and_fluid_dark_in_t1(grey):
    order = [grey["coronal", n] for n in ("fluid", "muscle", "marrow", "fat")]
    assert grey["coronal", "muscle"] < 0.5 * grey["coronal", "marrow"]
    assert order[2:] == sorted(order[2:])
    assert grey["coronal", "fluid"] < grey["coronal", "marrow"]
    assert grey["coronal", "tendon"] < grey["coronal", "muscle"]


def test_air_is_dark(grey):
    assert all(grey[plane, "air"] < 25 for plane in PLANES)


def test_findings_do_not_move_the_grey_values():
    """A leak: were the whole picture brighter, no network had to look at the lesion."""
    for plane in PLANES:
        plain = scan(plane, Finding("", "ligament", 0.3), seed=4)
        torn = scan(
            plane,
            Finding("acl", "complete", 0.9),
            Finding("meniscus", "complex", 0.9, "medial"),
            seed=4,
        )
        assert plain.volume.shape == torn.volume.shape
        for q in (0.25, 0.5, 0.75, 0.9):
            assert abs(np.quantile(plain.volume, q) - np.quantile(torn.volume, q)) <= 2
        changed = np.abs(plain.volume.astype(int) - torn.volume).max(0) > 40
        assert changed.mean() < 0.15


def test_lesions_are_marked_where_the_picture_changes():
    plain = scan("sagittal", Finding("", "ligament", 0.0), seed=6)
    torn = scan("sagittal", Finding("acl", "complete", 0.9), seed=6)
    mask = torn.lesions["acl"]
    assert not plain.lesions
    assert (torn.lesions["abnormal"] >= mask).all()  # a tear is an abnormality
    change = np.abs(torn.volume.astype(float) - plain.volume)
    assert change[mask].mean() > 3 * change[~mask].mean()


# --- grey values ----------------------------------------------------------------------


def test_grey_values_rise_with_the_signal_and_do_not_depend_on_its_unit():
    signal = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0))
    limb = signal > 0.2
    first = to_grey(signal, limb, "axial", np.random.default_rng(0))
    assert first.dtype == np.uint8
    order = np.argsort(signal.numpy(), axis=None)
    assert (np.diff(first.ravel()[order].astype(int)) >= 0).all()
    again = to_grey(4096 * signal, limb, "axial", np.random.default_rng(0))
    assert np.abs(first.astype(int) - again).max() <= 1


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_picture_is_no_accident(value):
    flat = torch.full((2, 8, 8), value)
    for limb in (flat > 2, flat >= 0):
        grey = to_grey(flat, limb, "coronal", np.random.default_rng(0))
        assert np.ptp(grey) == 0


def test_patients_and_scanners_vary():
    random = np.random.default_rng(0)
    patients = [
        random_patient(("knee1", "knee2"), ("lean",), random) for _ in range(60)
    ]
    scanners = [random_scanner(random) for _ in range(200)]
    assert {p.anatomy for p in patients} == {"knee1", "knee2"}
    assert {p.side for p in patients} == {"left", "right"}
    assert 14 <= min(p.age for p in patients) < max(p.age for p in patients) <= 84
    at_3 = np.mean([s.field == 3.0 for s in scanners])
    assert at_3 == pytest.approx(0.566, abs=0.12)
    corner = torch.tensor([GRID.low, (0.0, 0.0, 0.0)])
    moved = [p.deformation.pull(corner) for p in patients[:5]]
    assert len({round(float(m[0, 0]), 3) for m in moved}) == 5
