"""Surfaces of a tumour's classes in a translucent brain, to be turned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import ndimage
from skimage import measure

from medimg_utils import plotting
from medimg_utils.viewers import base

#: Cells along the longest side of the grid, to begin with; and the most corners of a
#: mesh: a surface that is too rugged is drawn on a coarser grid.
CELLS = {"class": 52, "brain": 44}
MAX_CORNERS = 5500
GREY = "#c8ccd4"  # of the brain
LIGHT = np.array([-0.35, 0.5, 0.79])  # from the left, above and behind the viewer


@dataclass(frozen=True)
class Mesh:
    """A closed surface.

    Attributes:
        corners: (V, 3) in mm, towards the patient's right, front and top.
        triangles: (F, 3) numbers of corners, anticlockwise as seen from outside.
    """

    corners: npt.NDArray[np.float64]
    triangles: npt.NDArray[np.int64]

    def normals(self) -> npt.NDArray[np.float64]:
        """A normal (V, 3) for each corner: the mean of its triangles', by area."""
        a, b, c = np.moveaxis(self.corners[self.triangles], 1, 0)
        flat = np.cross(b - a, c - a)
        sums = np.stack(
            [
                np.bincount(
                    self.triangles.ravel(), np.repeat(axis, 3), len(self.corners)
                )
                for axis in flat.T
            ],
            axis=1,
        )
        return sums / (np.linalg.norm(sums, axis=1, keepdims=True) + 1e-12)

    def volume(self) -> float:
        """Volume inside in mm³, by the divergence theorem."""
        a, b, c = np.moveaxis(self.corners[self.triangles], 1, 0)
        return float((a * np.cross(b, c)).sum() / 6)


class SurfaceViewer(base.Viewer):
    """Show the surfaces of a tumour's classes within the translucent brain.

    The reader turns them by drag, arrow keys, sliders or buttons and switches classes
    on and off. The surfaces are computed here, on a coarse grid; they are drawn in the
    browser on a plain canvas, so the viewer needs neither a kernel nor a graphics card.

    Args:
        labels: label map (X, Y, Z) of whole numbers, in the order right, anterior,
            superior; 0 is background.
        spacing: size of a voxel along these axes in mm.
        names: what the labels mean, such as ``{1: "necrotic core"}``. Every label
            needs a name.
        brain: mask (X, Y, Z) of the brain, zeros and ones.
        turn: angle in degrees; 0 shows the front, 90 the patient's right.
        tilt: angle in degrees; 90 shows the top.
        opacity: of the classes, between 0 and 1.
        title: heading of the viewer.
        alt: description of the picture for those who cannot see it.

    Raises:
        ValueError: shapes that differ, a spacing that is not positive, labels that are
            no whole numbers or have no name, nothing to show.

    >>> import numpy as np
    >>> x, y, z = np.mgrid[-20:21, -20:21, -20:21]
    >>> ball = x**2 + y**2 + z**2 < 15**2
    >>> viewer = SurfaceViewer(ball, (1, 1, 1), names={1: "a ball"})
    >>> {name: round(volume, 1) for name, volume in viewer.volumes().items()}
    {'a ball': 14.0}
    """

    _esm = base.javascript("surface.js")

    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    colours = traitlets.List(traitlets.Unicode()).tag(sync=True)
    class_volumes = traitlets.List(traitlets.Float()).tag(sync=True)
    # For each surface, the classes and then the brain: corners and triangles.
    counts = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    mesh_data = traitlets.Bytes().tag(sync=True)
    low = traitlets.List(traitlets.Float()).tag(sync=True)
    span = traitlets.Float().tag(sync=True)
    shown = traitlets.List(traitlets.Bool()).tag(sync=True)
    turn = traitlets.Float().tag(sync=True)
    tilt = traitlets.Float().tag(sync=True)
    opacity = traitlets.Float().tag(sync=True)
    brain_opacity = traitlets.Float(0.3).tag(sync=True)

    def __init__(
        self,
        labels: npt.ArrayLike,
        spacing: Sequence[float] | npt.NDArray[np.floating],
        *,
        names: Mapping[int, str],
        brain: npt.ArrayLike | None = None,
        turn: float = 40,
        tilt: float = 20,
        opacity: float = 0.7,
        title: str = "",
        alt: str = "",
    ) -> None:
        found = base.check_labels("labels", labels)
        sizes = base.check_spacing(spacing)
        unnamed = sorted(set(base.values_of(found)) - {0, *names})
        if unnamed:
            raise ValueError(
                f"labels holds {', '.join(map(str, unnamed))}, expected only 0 and the "
                f"labels that names has: {', '.join(map(str, sorted(names)))}"
            )
        for name, angle, limit in (("turn", turn, 180), ("tilt", tilt, 90)):
            if not -limit <= angle <= limit:
                raise ValueError(
                    f"{name} is {angle}, expected degrees from {-limit} to {limit}"
                )
        meanings = base.name_labels(names, [found])
        meshes = [
            surface(found == value, sizes, cells=CELLS["class"]) for value in meanings
        ]
        whole = None
        if brain is not None:
            inside = base.check_mask("brain", brain, found.shape)
            whole = surface(inside, sizes, cells=CELLS["brain"])
        if not any((*meshes, whole)):
            raise ValueError("labels and brain are empty: there is nothing to show")
        self._meshes = [*meshes, whole]
        corners = np.concatenate([m.corners for m in self._meshes if m])
        low, span = corners.min(axis=0), float(np.ptp(corners, axis=0).max())
        self._middle = low + np.ptp(corners, axis=0) / 2
        self._radius = float(np.linalg.norm(corners - self._middle, axis=1).max())
        voxel = float(np.prod(sizes)) / 1000
        super().__init__(
            names=list(meanings.values()),
            colours=plotting.label_colours(len(meanings)),
            class_volumes=[int((found == v).sum()) * voxel for v in meanings],
            counts=[
                [len(m.corners), len(m.triangles)] if m else [0, 0]
                for m in self._meshes
            ],
            mesh_data=base.pack_all([_encode(m, low, span) for m in self._meshes if m]),
            low=low.tolist(),
            span=span,
            shown=[m is not None for m in self._meshes],
            turn=float(turn),
            tilt=float(tilt),
            opacity=base.check_fraction("opacity", opacity),
            **base.heading(
                title, alt, "Surfaces", f": {', '.join(meanings.values())}."
            ),
        )

    def volumes(self) -> dict[str, float]:
        """Volume of each class in cm³, counted in voxels."""
        return dict(zip(self.names, self.class_volumes, strict=True))

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        size = 280
        drawn = {
            k: rasterise(mesh, self._middle, self.turn, self.tilt, size, self._radius)
            for k, (mesh, shown) in enumerate(
                zip(self._meshes, self.shown, strict=True)
            )
            if mesh is not None and shown
        }
        picture = np.zeros((size, size, 3))
        depths = np.array([view.depth for view in drawn.values()])
        for rank in np.argsort(depths, axis=0):  # the farthest first
            for place, (k, view) in enumerate(drawn.items()):
                here = (rank == place) & np.isfinite(view.depth)
                is_brain = k == len(self.names)
                alpha = np.full(here.sum(), self.opacity)
                if is_brain:
                    rim = (1 - view.facing[here]) ** 2
                    alpha = np.minimum(1, self.brain_opacity * (0.7 + 3 * rim))
                colour = np.array(to_rgb(GREY if is_brain else self.colours[k]))
                lit = (0.35 + 0.7 * view.light[here, None]) * colour
                cover = alpha**2 if is_brain else alpha
                picture[here] *= 1 - cover[:, None]
                picture[here] += alpha[:, None] * lit
        figure = Figure(figsize=(5, 5))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(np.clip(picture, 0, 1))
        axes.set_axis_off()
        plotting.label_legend(axes, self.names, self.colours)
        return figure


@dataclass(frozen=True)
class View:
    """The nearest points of a surface in each pixel (H, W) of a picture.

    Attributes:
        depth: towards the viewer in mm; minus infinity where nothing is.
        facing: how much the surface faces the viewer, 0 to 1.
        light: how much it faces the light, 0 to 1.
    """

    depth: npt.NDArray[np.float64]
    facing: npt.NDArray[np.float64]
    light: npt.NDArray[np.float64]


def rasterise(
    mesh: Mesh,
    middle: npt.NDArray[np.float64],
    turn: float,
    tilt: float,
    size: int,
    radius: float,
) -> View:
    """Draw ``mesh`` into ``size`` by ``size`` pixels; its ``radius`` in mm just fits."""
    per_mm = size / 2.2 / radius
    seen = project(mesh.corners - middle, turn, tilt)
    normals = project(mesh.normals(), turn, tilt)
    known = np.column_stack([seen, normals[:, 2], normals @ LIGHT])[mesh.triangles]
    sides = known[:, 1:, :2] - known[:, :1, :2]
    known = known[np.linalg.det(sides) > 0]  # the others are seen from inside
    # A lattice of points in each triangle, closer than the pixels are.
    n = 1 + int(1.2 * per_mm * np.ptp(known[:, :, :2], axis=1).max(initial=0))
    shares = [(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)]
    points = (np.array(shares) / n @ known).reshape(-1, 5)
    points = points[np.argsort(points[:, 2])]  # the nearest is written last
    columns = np.rint(size / 2 + per_mm * points[:, 0]).astype(int)
    rows = np.rint(size / 2 - per_mm * points[:, 1]).astype(int)
    view = View(*np.full((3, size, size), -np.inf))
    view.depth[rows, columns] = points[:, 2]
    view.facing[rows, columns] = np.clip(points[:, 3], 0, 1)
    view.light[rows, columns] = np.clip(points[:, 4], 0, 1)
    return view


def project(
    points: npt.NDArray[np.float64], turn: float, tilt: float
) -> npt.NDArray[np.float64]:
    """Turn ``points`` (N, 3) in mm into the view: to the right, upward, to the viewer.

    >>> front, right, top = [0.0, 1, 0], [1.0, 0, 0], [0.0, 0, 1]
    >>> project(np.array([front, right, top]), 0, 0).round().tolist()
    [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    """
    x, y, z = np.asarray(points, dtype=float).T
    a, b = np.radians(turn), np.radians(tilt)
    near = y * np.cos(a) + x * np.sin(a)
    across = y * np.sin(a) - x * np.cos(a)
    up = z * np.cos(b) - near * np.sin(b)
    return np.column_stack([across, up, near * np.cos(b) + z * np.sin(b)])


def surface(
    mask: npt.NDArray[np.bool_], spacing: Sequence[float], *, cells: int
) -> Mesh | None:
    """The surface of ``mask`` (X, Y, Z), smoothed; nothing if it is empty.

    Args:
        mask: what lies inside.
        spacing: size of a voxel in mm.
        cells: of the grid along the longest side of the mask; fewer where the surface
            would have more than 5500 corners.

    Returns:
        Corners in mm; the middle of voxel (0, 0, 0) lies at half its size.
    """
    if not mask.any():
        return None
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    inside = mask[box]
    size = np.asarray(spacing)
    extent = np.array(inside.shape) * size
    while True:
        step = extent.max() / cells
        shape = np.minimum(inside.shape, np.ceil(extent / step)).astype(int)
        cell = extent / shape
        share = np.pad(base.resample(inside, shape.tolist()), 2)
        smooth = ndimage.gaussian_filter(share, 0.7)
        # A thin structure may nowhere fill half a cell.
        level = 0.5 * min(1.0, float(smooth.max()))
        corners, triangles, _, _ = measure.marching_cubes(
            smooth, level, spacing=tuple(cell), gradient_direction="ascent"
        )
        if len(corners) <= MAX_CORNERS:
            break
        cells = int(cells * min(0.95, (MAX_CORNERS / len(corners)) ** 0.5))
    start = np.array([part.start for part in box]) * size
    mesh = Mesh(corners - 1.5 * cell + start, triangles.astype(np.int64))
    if mesh.volume() < 0:
        mesh = Mesh(mesh.corners, mesh.triangles[:, ::-1])
    return mesh


def _encode(
    mesh: Mesh, low: npt.NDArray[np.float64], span: float
) -> npt.NDArray[np.uint8]:
    """Corners in 65535 steps of ``span``, then triangles; all as differences.

    Neighbours in the list are neighbours in space: their differences pack well. The
    lower bytes of all numbers come first, then the upper ones.
    """
    corners = np.rint((mesh.corners - low) / span * 65535).astype(np.int64)
    parts = [
        np.diff(part, axis=0, prepend=0).ravel() for part in (corners, mesh.triangles)
    ]
    numbers = np.concatenate(parts).astype(np.uint16)
    return np.concatenate([numbers & 255, numbers >> 8]).astype(np.uint8)
