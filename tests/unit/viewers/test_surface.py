import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg_utils.viewers import SurfaceViewer
from medimg_utils.viewers.surface import MAX_CORNERS, Mesh, project, rasterise, surface


def ball(radius: float = 12, side: int = 31) -> np.ndarray:
    x, y, z = np.mgrid[:side, :side, :side] - side // 2
    return x**2 + y**2 + z**2 < radius**2


def unpack(viewer: SurfaceViewer) -> list[Mesh]:
    """Read the meshes as the browser does."""
    data = np.frombuffer(zlib.decompress(viewer.mesh_data), dtype=np.uint8)
    meshes = []
    for corners, triangles in viewer.counts:
        count = 3 * (corners + triangles)
        part, data = data[: 2 * count], data[2 * count :]
        numbers = part[:count].astype(np.uint16) + 256 * part[count:].astype(np.uint16)
        numbers = numbers.reshape(-1, 3)
        steps = np.cumsum(numbers[:corners], axis=0, dtype=np.uint16)
        places = np.array(viewer.low) + viewer.span * (steps / 65535)
        meshes.append(
            Mesh(
                places,
                np.cumsum(numbers[corners:], axis=0, dtype=np.uint16).astype(int),
            )
        )
    assert data.size == 0
    return meshes


def test_surfaces_survive_the_way_to_the_browser() -> None:
    labels = np.where(ball(6), 1, np.where(ball(10), 4, 0))
    names = {1: "core", 2: "oedema", 4: "rim"}
    viewer = SurfaceViewer(labels, (1, 1, 2), names=names, brain=ball(14))
    assert viewer.names == ["core", "oedema", "rim"]
    assert viewer.shown == [True, False, True, True]
    for found, sent in zip(unpack(viewer), viewer._meshes, strict=True):
        if sent is None:
            assert len(found.corners) == len(found.triangles) == 0
            continue
        assert (found.triangles == sent.triangles).all()
        error = np.abs(found.corners - sent.corners).max()
        assert error <= viewer.span / 65535


def test_a_ball_has_the_volume_and_the_radius_of_a_ball() -> None:
    mesh = surface(ball(), (1, 1, 1), cells=40)
    assert mesh.volume() == pytest.approx(ball().sum(), rel=0.03)
    middle = mesh.corners.mean(axis=0)
    assert middle == pytest.approx([15.5, 15.5, 15.5], abs=0.05)
    distances = np.linalg.norm(mesh.corners - middle, axis=1)
    assert distances == pytest.approx(11.8, abs=0.7)
    outward = (mesh.corners - middle) / distances[:, None]
    assert (mesh.normals() * outward).sum(axis=1).min() > 0.85


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    spacing=st.tuples(*[st.floats(0.5, 4)] * 3),
    cells=st.integers(5, 30),
)
def test_every_surface_is_closed_and_faces_outward(seed, spacing, cells) -> None:
    mask = np.random.default_rng(seed).uniform(size=(6, 5, 7)) > 0.7
    mesh = surface(mask, spacing, cells=cells)
    edges = Counter(
        (int(a), int(b))
        for triangle in mesh.triangles
        for a, b in zip(triangle, np.roll(triangle, -1), strict=True)
    )
    # Each edge is passed once in each direction.
    assert all(edges[b, a] == count for (a, b), count in edges.items())
    assert mesh.volume() > 0


def test_a_single_voxel_has_a_surface_at_its_place() -> None:
    mask = np.zeros((9, 9, 9), dtype=bool)
    mask[2, 5, 7] = True
    mesh = surface(mask, (1, 2, 3), cells=40)
    low, high = mesh.corners.min(axis=0), mesh.corners.max(axis=0)
    assert (low + high) / 2 == pytest.approx([2.5, 11, 22.5], abs=0.01)
    assert (high - low < [2, 4, 6]).all()
    assert (high - low > [0.5, 1, 1.5]).all()


def test_proportions_follow_the_spacing() -> None:
    mesh = surface(ball(), (1, 2, 0.5), cells=40)
    extent = np.ptp(mesh.corners, axis=0)
    assert extent == pytest.approx([23, 46, 11.5], rel=0.06)


def test_a_rugged_surface_is_made_coarser_until_it_is_small() -> None:
    noise = np.random.default_rng(0).uniform(size=(64, 64, 64)) > 0.5
    assert 500 < len(surface(noise, (1, 1, 1), cells=52).corners) <= MAX_CORNERS


def test_rugged_surfaces_stay_within_400_kilobytes() -> None:
    labels = np.random.default_rng(0).choice(
        [0, 1, 2, 4], (48, 48, 48), p=[0.7, 0.1, 0.1, 0.1]
    )
    names = {1: "core", 2: "oedema", 4: "rim"}
    viewer = SurfaceViewer(labels, (1, 1, 1), names=names, brain=ball(23, 48))
    picture = viewer._repr_mimebundle_()[0]["image/png"]
    assert 4 / 3 * len(viewer.mesh_data) + len(picture) < 400_000


def test_an_empty_mask_has_no_surface() -> None:
    assert surface(np.zeros((4, 4, 4), dtype=bool), (1, 1, 1), cells=10) is None


@settings(max_examples=20, deadline=None)
@given(turn=st.floats(-180, 180), tilt=st.floats(-90, 90))
def test_the_view_is_a_rotation(turn: float, tilt: float) -> None:
    matrix = project(np.eye(3), turn, tilt)
    assert matrix @ matrix.T == pytest.approx(np.eye(3), abs=1e-9)
    assert np.linalg.det(matrix) == pytest.approx(1)


@pytest.mark.parametrize(
    ("turn", "tilt", "nearest"),
    [(0, 0, (0, 1, 0)), (90, 0, (1, 0, 0)), (-90, 0, (-1, 0, 0)), (30, 90, (0, 0, 1))],
)
def test_the_view_shows_the_side_that_it_names(turn, tilt, nearest) -> None:
    assert project(np.array([nearest]), turn, tilt)[0] == pytest.approx([0, 0, 1])


def test_the_picture_of_a_ball_is_a_disc() -> None:
    mesh = surface(ball(), (1, 1, 1), cells=40)
    middle = np.full(3, 15.5)
    view = rasterise(mesh, middle, 25, -40, 220, 12)
    area = np.isfinite(view.depth).sum() / (220 / 2.2 / 12) ** 2
    assert area == pytest.approx(np.pi * 11.9**2, rel=0.03)
    assert view.depth[110, 110] == pytest.approx(11.8, abs=0.5)
    assert view.facing[110, 110] > 0.97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"names": {}},
            "labels holds 1, expected only 0 and the labels that names has",
        ),
        ({"labels": np.zeros((31, 31, 31)), "brain": None}, "nothing to show"),
        ({"labels": np.full((31, 31, 31), np.nan)}, "29791 NaN"),
        ({"labels": np.zeros((31, 31))}, r"expected \(X, Y, Z\)"),
        ({"brain": np.zeros((3, 3, 3))}, r"brain has shape \(3, 3, 3\)"),
        ({"brain": np.full((31, 31, 31), 2)}, "only 0 and 1"),
        ({"spacing": (1, -1, 1)}, "above 0"),
        ({"turn": 200}, "turn is 200, expected degrees from -180 to 180"),
        ({"tilt": float("nan")}, "tilt is nan"),
        ({"opacity": 2}, "opacity is 2"),
    ],
)
def test_wrong_input_is_refused(options: dict, message: str) -> None:
    given_ = {"labels": ball(), "spacing": (1, 1, 1), "names": {1: "a ball"}}
    with pytest.raises(ValueError, match=message):
        SurfaceViewer(**{**given_, **options})


def test_a_brain_without_a_tumour_can_be_shown() -> None:
    none = np.zeros((31, 31, 31))
    viewer = SurfaceViewer(none, (1, 1, 1), names={1: "core"}, brain=ball())
    assert viewer.volumes() == {"core": 0}
    assert viewer.shown == [False, True]


def test_the_still_picture_follows_the_angles_and_the_choice() -> None:
    viewer = SurfaceViewer(ball(), (1, 1, 3), names={1: "a ball"}, brain=ball(14))
    seen = {viewer._repr_mimebundle_()[0]["image/png"]}
    viewer.tilt = 80
    seen.add(viewer._repr_mimebundle_()[0]["image/png"])
    viewer.shown = [True, False]
    seen.add(viewer._repr_mimebundle_()[0]["image/png"])
    viewer.shown = [False, False]
    seen.add(viewer._repr_mimebundle_()[0]["image/png"])
    assert len(seen) == 4
