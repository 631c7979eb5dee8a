import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg_utils.viewers import PlanesViewer, base

SHAPE = (10, 12, 6)


def volume() -> np.ndarray:
    return np.linspace(-3, 3, int(np.prod(SHAPE))).reshape(SHAPE)


def labels() -> np.ndarray:
    found = np.zeros(SHAPE, dtype=np.int16)
    found[2:5, 3:9, 1:3] = 1
    found[6, 3, 5] = 4
    return found


def unpack(data: bytes, shape: list[int]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(data), dtype=np.uint8).reshape(shape)


def test_voxels_and_labels_survive_the_way_to_the_browser() -> None:
    viewer = PlanesViewer(
        {"T1": volume(), "T2": -volume()},
        (1, 2, 3),
        labels=labels(),
        predicted=labels() // 4,
    )
    assert viewer.shape == list(SHAPE)
    assert viewer.extent == [10, 24, 18]
    stored = unpack(viewer.volume_data, [2, *SHAPE]) / 255
    for values, expected, (low, high) in zip(
        stored, (volume(), -volume()), viewer.ranges, strict=True
    ):
        shown = low + (high - low) * values
        worst = (high - low) * (1 / 126 + 1 / 510)
        assert np.abs(shown - np.clip(expected, low, high)).max() <= worst
    assert (unpack(viewer.label_data, list(SHAPE)) == labels()).all()
    assert (unpack(viewer.predicted_data, list(SHAPE)) == labels() // 4).all()
    assert viewer.label_values == [1, 4]


def test_names_of_labels_fall_back_to_their_values() -> None:
    viewer = PlanesViewer(
        {"T1": volume()},
        (1, 1, 1),
        labels=labels(),
        names={4: "enhancing", 2: "oedema"},
    )
    assert viewer.label_names == ["label 1", "oedema", "enhancing"]
    assert len(set(viewer.colours)) == 3


def test_a_class_keeps_its_colour_where_another_is_missing() -> None:
    names = {1: "core", 2: "oedema", 4: "enhancing"}
    some = PlanesViewer(
        {"T1": volume()}, (1, 1, 1), labels=4 * labels() // 4, names=names
    )
    none = PlanesViewer({"T1": volume()}, (1, 1, 1), labels=0 * labels(), names=names)
    assert some.label_values == none.label_values == [1, 2, 4]
    assert some.colours == none.colours


def test_background_around_is_cut_off() -> None:
    scan = np.full((40, 50, 30), -1.0)
    scan[5:25, 10:40, 3:13] = np.random.default_rng(0).uniform(0, 1, (20, 30, 10))
    found = np.zeros(scan.shape)
    found[30, 20, 8] = 1
    viewer = PlanesViewer({"T1": scan}, (1, 1, 1), labels=found)
    assert viewer.origin == [5, 10, 3]
    assert viewer.shape == [26, 30, 10]
    assert viewer.voxel() == (30, 20, 8)
    assert unpack(viewer.label_data, viewer.shape).sum() == 1


def test_voxels_become_nearly_cubic_when_they_are_shrunk() -> None:
    viewer = PlanesViewer({"T1": np.ones((60, 60, 10))}, (1, 1, 6), max_side=30)
    assert viewer.shape == [30, 30, 10]
    assert viewer.steps == [2, 2, 1]
    assert viewer.extent == [60, 60, 60]


@settings(max_examples=20, deadline=None)
@given(start=st.tuples(st.integers(0, 39), st.integers(0, 47), st.integers(0, 23)))
def test_the_crosshair_begins_within_a_stored_voxel_of_the_start(start: tuple) -> None:
    viewer = PlanesViewer(
        {"T1": np.ones((40, 48, 24))}, (1, 1, 1), start=start, max_side=20
    )
    off = np.abs(np.subtract(viewer.voxel(), start))
    assert (off <= np.array(viewer.steps) / 2 + 1).all()
    exact = PlanesViewer({"T1": np.ones((40, 48, 24))}, (1, 1, 1), start=start)
    assert exact.voxel() == start


def test_the_crosshair_begins_inside_a_hollow_label() -> None:
    ring = np.zeros((21, 21, 21), dtype=bool)
    ring[2:19, 2:19, 10] = True
    ring[5:16, 5:16, 10] = False
    viewer = PlanesViewer({"T1": np.ones(ring.shape)}, (1, 1, 1), labels=ring)
    assert ring[viewer.voxel()]


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    data=st.data(),
)
def test_resampling_keeps_the_mean(shape: tuple, data: st.DataObject) -> None:
    smaller = [data.draw(st.integers(1, n)) for n in shape]
    values = np.random.default_rng(1).normal(size=shape)
    small = base.resample(values, smaller)
    assert small.shape == tuple(smaller)
    assert small.mean() == pytest.approx(values.mean())
    assert values.min() - 1e-9 <= small.min() <= small.max() <= values.max() + 1e-9


def test_resampling_by_a_whole_factor_is_the_mean_of_blocks() -> None:
    values = np.random.default_rng(2).normal(size=(8, 6, 4))
    blocks = values.reshape(4, 2, 2, 3, 2, 2).mean(axis=(1, 3, 5))
    assert np.allclose(base.resample(values, (4, 2, 2)), blocks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"labels": np.zeros((10, 12))},
            r"labels has shape \(10, 12\), expected \(X, Y, Z\)",
        ),
        ({"labels": np.zeros((10, 12, 7))}, r"labels has shape \(10, 12, 7\)"),
        ({"predicted": np.full(SHAPE, 0.5)}, "whole numbers from 0 to 255"),
        ({"predicted": np.full(SHAPE, -1)}, "-1 to -1"),
        ({"labels": np.full(SHAPE, 300)}, "300 to 300"),
        ({"spacing": (1, 1)}, "three sizes in mm"),
        ({"spacing": (1, 0, 1)}, "above 0"),
        ({"spacing": (1, float("nan"), 1)}, "above 0"),
        ({"start": (10, 0, 0)}, r"start is \(10, 0, 0\), expected a voxel"),
        ({"start": (0, 0)}, "expected a voxel"),
        ({"start": (0, 0.5, 0)}, "expected a voxel"),
        ({"opacity": 1.1}, "opacity is 1.1"),
        ({"volumes": {}}, "volumes is empty"),
        (
            {"volumes": {"T1": np.zeros(SHAPE), "T2": np.zeros((2, 2, 2))}},
            "volume 'T2'",
        ),
        ({"volumes": {"T1": np.full(SHAPE, np.inf)}}, "720 NaN or infinite"),
    ],
)
def test_wrong_input_is_refused(options: dict, message: str) -> None:
    options = {"volumes": {"T1": volume()}, "spacing": (1, 1, 1), **options}
    with pytest.raises(ValueError, match=message):
        PlanesViewer(**options)


def test_the_still_picture_follows_crosshair_and_labels() -> None:
    viewer = PlanesViewer({"T1": volume()}, (1, 1, 3), labels=labels(), title="A box")
    data, metadata = viewer._repr_mimebundle_()
    assert metadata["image/png"]["alt"].startswith("A box: an axial")
    seen = {data["image/png"]}
    viewer.shown_labels = "none"
    seen.add(viewer._repr_mimebundle_()[0]["image/png"])
    viewer.place = [0, 0, 0]
    seen.add(viewer._repr_mimebundle_()[0]["image/png"])
    assert len(seen) == 3


def test_the_still_picture_of_both_label_maps_holds_more_outlines() -> None:
    viewer = PlanesViewer(
        {"T1": volume()}, (1, 1, 3), labels=labels(), predicted=labels()
    )

    def outlines(shown: str) -> int:
        viewer.shown_labels = shown
        return sum(len(axes.collections) for axes in viewer.still().axes)

    counts = {name: outlines(name) for name in ("none", "true", "predicted", "both")}
    assert counts["none"] == 0 < counts["true"] == counts["predicted"]
    assert counts["both"] == counts["true"] + counts["predicted"]
