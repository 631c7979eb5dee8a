import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from medimg_utils.knee.standardise import (
    GreyCurve,
    Histogram,
    StandardiseError,
    Standardiser,
)


def tissue(seed: int, gain: float = 1.0, dtype: type = np.uint16) -> np.ndarray:
    """Background and three tissues, as a scanner of another gain shows them."""
    random = np.random.default_rng(seed)
    mean = random.choice([3.0, 60.0, 110.0, 200.0], (6, 40, 40), p=[0.4, 0.3, 0.2, 0.1])
    signal = np.hypot(mean + 6 * random.standard_normal(mean.shape), 3)
    return np.rint(gain * signal).astype(dtype)


TRAINING = [tissue(seed, gain) for seed, gain in enumerate([0.5, 1, 2, 4])]
LEARNED = Standardiser.fit(TRAINING)
INTEGERS = [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64]


# -------------------------------------------------------------------------- histograms


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(INTEGERS).flatmap(
        lambda kind: hnp.arrays(
            kind,
            hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
            elements={"min_value": -100, "max_value": 100}
            if np.dtype(kind).kind == "i"
            else {"max_value": 200},
        )
    )
)
def test_percentiles_of_the_histogram_are_those_of_the_voxels(volume):
    counted = Histogram.of(volume)
    wanted = [0, 1, 12.5, 50, 77, 99, 100]
    np.testing.assert_allclose(
        counted.percentiles(wanted),
        np.percentile(volume.astype(float), wanted),  # int8 would overflow in it
        atol=1e-9,
    )
    bright = volume[volume > volume.astype(float).mean()].astype(float)
    above = counted.above_mean()
    assert above.counts.sum() == bright.size
    if bright.size:
        np.testing.assert_allclose(
            above.percentiles(wanted), np.percentile(bright, wanted), atol=1e-9
        )


def test_a_range_that_is_too_wide_is_not_counted():
    assert Histogram.of(np.array([0, 2**16])) is None
    assert Histogram.of(np.array([7, 2**16 + 6])).counts.size == 2**16


# ------------------------------------------------------------------------- grey curves


def test_a_curve_goes_through_its_points_and_on():
    curve = GreyCurve([10, 20, 40], [0, 100, 110])
    assert curve([10, 20, 40]).tolist() == [0, 100, 110]
    assert curve([0, 15, 30, 60]).tolist() == [-100, 50, 105, 120]


def test_equal_landmarks_are_a_jump():
    curve = GreyCurve([0, 0, 0, 10, 10], [0, 3, 6, 20, 30])
    assert curve([-1, 0, 5, 9, 10, 11]).tolist() == [-1.4, 6, 13, 18.6, 30, 31.4]
    back = curve.inverse()
    assert back([0, 3, 6, 25]).tolist() == [0, 0, 0, 10]
    with pytest.raises(StandardiseError, match="one shade"):
        GreyCurve([4, 4, 4], [1, 2, 3])
    with pytest.raises(StandardiseError, match="do not rise"):
        GreyCurve([1, 3, 2], [1, 2, 3])


@settings(deadline=None, max_examples=100)
@given(hnp.arrays(np.uint8, (3, 7, 5)), st.booleans())
def test_the_map_is_monotone_and_can_be_undone(volume, foreground):
    learned = Standardiser.fit(TRAINING, foreground=foreground)
    try:
        curve = learned.curve(volume)
    except StandardiseError:  # one shade
        return
    levels = np.arange(-50, 400)
    assert (np.diff(curve(levels)) > 0).all()
    np.testing.assert_allclose(curve.inverse()(curve(levels)), levels, atol=1e-7)


# --------------------------------------------------------------------- standardisation


def test_scale_and_gain_no_longer_matter():
    """One anatomy from scanners of other gain and number type looks the same."""
    floats = Standardiser.fit([volume.astype(np.float32) for volume in TRAINING])
    assert floats.landmarks == pytest.approx(LEARNED.landmarks, abs=1e-3)
    reference = LEARNED(tissue(9, 1, np.float64))
    for gain in (0.25, 3.0, 100.0):
        other = LEARNED(gain * tissue(9, 1, np.float64))
        np.testing.assert_allclose(other, reference, atol=1e-3)
    again = LEARNED(tissue(9, 8, np.uint16))
    assert np.abs(again - reference).max() < 1.5  # rounding of the scanner


def test_tissues_of_scanners_come_together():
    """Before, the same tissue differs by the gain; after, by a few grey levels."""
    volumes = [tissue(seed, gain) for seed, gain in ((20, 0.7), (21, 1.3), (22, 5.0))]
    before = [float(np.percentile(volume, 60)) for volume in volumes]
    after = [float(np.percentile(LEARNED(volume), 60)) for volume in volumes]
    assert max(before) > 5 * min(before)
    assert np.ptp(after) < 0.05 * max(after)


def test_landmarks_fall_on_the_standard_ones():
    volume = tissue(11, 2.5, np.float64)
    standard = LEARNED(volume.astype(np.float64))
    bright = volume > volume.mean()
    np.testing.assert_allclose(
        np.percentile(standard[bright], LEARNED.percentiles),
        LEARNED.landmarks,
        atol=0.01,
    )
    assert LEARNED.landmarks[-1] == pytest.approx(230)
    np.testing.assert_allclose(LEARNED(np.array([0.0, 1, 2, 3, 50]))[0], 0, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32])
@pytest.mark.parametrize("foreground", [True, False])
def test_the_table_gives_what_the_curve_gives(dtype, foreground):
    learned = Standardiser.fit(TRAINING, foreground=foreground)
    volume = tissue(12, 0.9, np.int64)
    if np.dtype(dtype).kind == "i":
        volume = volume - 100  # below zero
    volume = volume.astype(dtype)
    found = learned(volume)
    assert found.dtype == np.float32
    assert found.shape == volume.shape
    np.testing.assert_allclose(found, learned.curve(volume)(volume), atol=1e-4)
    small = learned(volume, np.uint8)
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(small, np.clip(np.rint(found), 0, 255))
    np.testing.assert_allclose(
        found, learned(volume.astype(np.float64)), atol=1e-4
    )  # counted or sorted


def test_only_what_is_learned_on_counts():
    """A volume does not change the landmarks by being standardised."""
    before = LEARNED.landmarks
    LEARNED(tissue(50, 40.0))
    assert LEARNED.landmarks == before
    assert LEARNED.volumes == 4
    other = Standardiser.fit([*TRAINING, tissue(50, 40.0) ** 2 // 50])
    assert other.landmarks != before


# ------------------------------------------------------------------------------- TorchIO


def test_torchio_learns_and_applies_the_same(tmp_path):
    """The same standard histogram and the same volumes, to float32 rounding.

    TorchIO takes landmarks of all voxels, and the scale 0 to 100.
    """
    import nibabel as nib
    import torchio

    paths = []
    for number, volume in enumerate(TRAINING):
        paths.append(tmp_path / f"{number}.nii")
        nib.save(nib.Nifti1Image(volume.astype(np.int32), np.eye(4)), paths[-1])
    theirs = torchio.HistogramStandardization.train(paths, progress=False)
    ours = Standardiser.fit(TRAINING, foreground=False, scale=(0, 100))
    used = [0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12]  # it learns quartiles, but leaves them
    np.testing.assert_allclose(theirs[used], ours.landmarks, rtol=1e-5)
    transform = torchio.HistogramStandardization({"exam": theirs})
    # The last one has a background so even that several percentiles are equal.
    for volume in (tissue(30, 0.8), tissue(31, 3.0), tissue(32, 0.1)):
        image = torchio.ScalarImage(
            tensor=torch.from_numpy(volume.astype(np.int32))[None]
        )
        expected = transform(torchio.Subject(exam=image)).exam.data[0].numpy()
        np.testing.assert_allclose(ours(volume), expected, atol=2e-4)


def test_torchio_agrees_on_the_foreground_too():
    import torchio

    transform = torchio.HistogramStandardization(
        {"exam": np.interp(np.arange(13), [0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12],
                           LEARNED.landmarks)},
        masking_method=lambda x: x > x.mean(),
    )  # fmt: skip
    volume = tissue(32, 1.7, np.int32)
    image = torchio.ScalarImage(
        tensor=torch.from_numpy(volume.astype(np.float32))[None]
    )
    expected = transform(torchio.Subject(exam=image)).exam.data[0].numpy()
    bright = volume > np.percentile(volume[volume > volume.mean()], 1)
    np.testing.assert_allclose(LEARNED(volume)[bright], expected[bright], atol=1e-3)


# ---------------------------------------------------------------------- files and errors


def test_landmarks_survive_the_file(tmp_path):
    path = tmp_path / "sagittal.json"
    LEARNED.save(path)
    assert Standardiser.load(path) == LEARNED
    stored = json.loads(path.read_text())
    assert stored["landmarks"] == list(LEARNED.landmarks)
    assert stored["volumes"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "no landmarks"),
        ("[]", "no landmarks"),
        ("{}", "no landmarks"),
        ('{"percentiles": [1, 99], "landmarks": [5], "foreground": true, "volumes": 1}',
         "same length"),
        ('{"percentiles": [1, 99], "landmarks": [5, 4], "foreground": true, "volumes": 1}',
         "rising"),
        ('{"percentiles": [1, 990], "landmarks": [1, 2], "foreground": true, "volumes": 1}',
         "between 0 and 100"),
        ('{"percentiles": [1, 2], "landmarks": [1, NaN], "foreground": true, "volumes": 1}',
         "rising"),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(StandardiseError, match=message):
        Standardiser.load(path)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.zeros((0, 4, 4), np.uint8), "no voxel"),
        (np.full((2, 4, 4), 7, np.uint8), "all its voxels are 7"),
        (np.full((2, 4, 4), 7.5), "all its voxels are 7.5"),
        (np.array([1.0, np.nan, 2.0]), "1 of its 3 voxels are not finite"),
        (np.array(["a"]), "not numbers"),
        (np.array([1 + 2j, 3]), "not numbers"),
    ],
)
def test_volumes_that_show_nothing_are_refused(volume, message):
    with pytest.raises(StandardiseError, match=message):
        LEARNED(volume)
    with pytest.raises(StandardiseError, match=f"training volume 1: .*{message}"):
        Standardiser.fit([TRAINING[0], volume])


def test_learning_needs_a_volume():
    with pytest.raises(StandardiseError, match="none came"):
        Standardiser.fit([])
