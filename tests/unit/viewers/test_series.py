import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg_utils.viewers import SeriesViewer, base

SHAPES = {
    "sagittal T2": (5, 24, 20),
    "coronal T1": (7, 16, 16),
    "axial PD": (4, 12, 18),
}


def stacks() -> dict[str, np.ndarray]:
    return {
        name: np.linspace(-50, 200, int(np.prod(shape))).reshape(shape)
        for name, shape in SHAPES.items()
    }


def unpack(data: bytes) -> np.ndarray:
    return np.frombuffer(zlib.decompress(data), dtype=np.uint8)


def test_slices_survive_the_way_to_the_browser() -> None:
    viewer = SeriesViewer(stacks())
    flat, start = unpack(viewer.stack_data), 0
    for k, stack in enumerate(stacks().values()):
        assert viewer.shapes[k] == [*stack.shape, *stack.shape[1:]]
        low, high = viewer.ranges[k]
        part = flat[start : start + stack.size].reshape(stack.shape)
        shown = low + (high - low) * part / 255
        # Half of one of the 63 steps, and half of one of the 255.
        worst = (high - low) * (1 / 126 + 1 / 510)
        assert np.abs(shown - np.clip(stack, low, high)).max() <= worst
        start += stack.size
    assert start == flat.size


def test_one_outlier_does_not_make_the_rest_black() -> None:
    stack = np.linspace(0, 100, 20 * 32 * 32).reshape(20, 32, 32)
    stack[3, 4, 5] = 32767
    low, high = SeriesViewer({"FLAIR": stack}).ranges[0]
    assert (low, high) == pytest.approx((0, 100), abs=0.2)


def test_a_constant_series_can_be_shown() -> None:
    assert SeriesViewer({"empty": np.full((2, 4, 4), 7.0)}).ranges == [[7.0, 8.0]]


@settings(max_examples=20, deadline=None)
@given(
    place=st.tuples(st.integers(0, 4), st.integers(0, 23), st.integers(0, 19)),
    top=st.floats(0.2, 1),
)
def test_the_viewer_begins_at_the_hottest_slice(place: tuple, top: float) -> None:
    heat = np.full((5, 24, 20), 0.1)
    heat[place] = top
    viewer = SeriesViewer(stacks(), heat={"sagittal T2": heat})
    assert viewer.hottest("sagittal T2") == place
    assert viewer.slices == [place[0], 3, 2]
    assert viewer.peaks[0][place[0]] == pytest.approx(top, abs=0.003)
    assert viewer.peaks[1:] == [[], []]


def test_heat_is_kept_small_and_keeps_its_mean() -> None:
    heat = np.random.default_rng(0).uniform(size=(3, 160, 120))
    viewer = SeriesViewer({"knee": np.ones((3, 160, 120))}, heat={"knee": heat})
    assert viewer.heat_shapes == [[40, 30]]
    kept = unpack(viewer.heat_data).reshape(3, 40, 30) / 255
    expected = heat.reshape(3, 40, 4, 30, 4).mean(axis=(2, 4))
    assert np.abs(kept - expected).max() < 0.006


def test_a_thin_lesion_stays_in_a_shrunk_slice() -> None:
    lesion = np.zeros((3, 128, 128), dtype=bool)
    lesion[1, 30, 20:60] = True
    viewer = SeriesViewer(
        {"knee": np.ones(lesion.shape)}, mask={"knee": lesion}, max_side=64
    )
    kept = unpack(viewer.mask_data).reshape(3, 64, 64)
    assert kept[1, 15, 10:30].all()
    assert kept.sum() == 20
    assert viewer.slices == [1]


def test_only_the_series_that_have_a_lesion_send_one() -> None:
    lesion = np.zeros(SHAPES["axial PD"])
    viewer = SeriesViewer(stacks(), mask={"axial PD": lesion}, start={"axial PD": 3})
    assert viewer.with_mask == [False, False, True]
    assert viewer.slices == [2, 3, 3]
    assert unpack(viewer.mask_data).size == lesion.size
    assert viewer.heat_data == b""
    with pytest.raises(ValueError, match="without heat"):
        viewer.hottest("axial PD")


def test_planes_come_from_the_names() -> None:
    stack = np.ones((2, 4, 4))
    names = ["Sagittal", "coronal T1", "axial-pd", "localiser", "parasagittal"]
    viewer = SeriesViewer(dict.fromkeys(names, stack))
    assert viewer.planes == ["sagittal", "coronal", "axial", "", ""]


def test_three_noisy_series_stay_small() -> None:
    noise = np.random.default_rng(0).normal(100, 12, size=(3, 30, 160, 160))
    names = ["sagittal", "coronal", "axial"]
    maps = np.linspace(0, 1, noise[0].size).reshape(noise[0].shape)
    viewer = SeriesViewer(
        dict(zip(names, noise, strict=True)),
        heat=dict.fromkeys(names, maps),
        max_side=160,
    )
    # White noise without any dark ground is the worst there is.
    assert 4 / 3 * sum(map(len, (viewer.stack_data, viewer.heat_data))) < 2.5e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"heat": {"PD": np.zeros((4, 12, 18))}},
            "heat names 'PD', expected.*'axial PD'",
        ),
        ({"mask": {"axial PD": np.zeros((4, 12))}}, r"mask 'axial PD' has shape"),
        ({"mask": {"axial PD": np.full((4, 12, 18), 3)}}, "only 0 and 1"),
        ({"heat": {"axial PD": np.full((4, 12, 18), 3)}}, "sigmoid"),
        ({"start": {"axial PD": 4}}, "is 4, expected a whole number from 0 to 3"),
        ({"start": {"axial PD": -1}}, "is -1"),
        ({"start": {"axial PD": 1.5}}, "is 1.5"),
        ({"opacity": 2}, "opacity is 2"),
        ({"covered": 0}, "covered is 0"),
    ],
)
def test_wrong_input_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeriesViewer(stacks(), **options)


def test_stacks_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="stacks is empty"):
        SeriesViewer({})
    with pytest.raises(ValueError, match=r"stack 'one' has shape \(4, 4\)"):
        SeriesViewer({"one": np.zeros((4, 4))})
    with pytest.raises(ValueError, match="1 NaN"):
        SeriesViewer({"one": np.array([[[np.nan, 1.0]]])})


def test_the_still_picture_follows_the_slices() -> None:
    viewer = SeriesViewer(stacks(), title="A knee")
    data, metadata = viewer._repr_mimebundle_()
    assert metadata["image/png"]["alt"].startswith("A knee: slices of the series")
    shown = [axes.get_title() for axes in viewer.still().axes]
    assert [title.split()[-1] for title in shown] == [str(k + 1) for k in viewer.slices]
    viewer.slices = [0, 0, 0]
    assert viewer._repr_mimebundle_()[0]["image/png"] != data["image/png"]


def test_greys_are_64_and_span_the_range() -> None:
    greys = base.to_greys(np.linspace(0, 1, 1000), 0, 1)
    assert len(np.unique(greys)) == 64
    assert (greys.min(), greys.max()) == (0, 255)
