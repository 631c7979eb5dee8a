"""Solid shapes on a voxel grid: distances, tubes along curves, closings and noise.

Distances are in mm, negative inside.  Points are ``(x, y, z)`` in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage as ndi
from scipy.interpolate import CubicSpline, PchipInterpolator

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """Cubic voxels: voxel ``i`` of an axis has its middle at ``low + i * spacing`` mm."""

    low: tuple[float, float, float]
    shape: tuple[int, int, int]
    spacing: float

    def axis(self, dim: int) -> Array:
        """Positions of the voxels along one axis in mm."""
        steps = np.arange(self.shape[dim], dtype=np.float32)
        return np.float32(self.low[dim]) + np.float32(self.spacing) * steps

    def axes(self) -> tuple[Array, Array, Array]:
        """x, y and z in mm, shaped to broadcast to the grid."""
        return (
            self.axis(0)[:, None, None],
            self.axis(1)[None, :, None],
            self.axis(2)[None, None, :],
        )

    def box(self, low: ArrayLike, high: ArrayLike) -> tuple[slice, slice, slice]:
        """Indices of the voxels between two corners in mm, cut at the grid's border."""
        first = np.ceil((np.asarray(low) - self.low) / self.spacing)
        last = np.floor((np.asarray(high) - self.low) / self.spacing) + 1
        first = np.clip(first, 0, self.shape).astype(int)
        last = np.clip(last, first, self.shape).astype(int)
        x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        return x, y, z

    def part(self, box: tuple[slice, slice, slice]) -> Grid:
        """The grid of a box."""
        x, y, z = (
            low + part.start * self.spacing
            for low, part in zip(self.low, box, strict=True)
        )
        a, b, c = (part.stop - part.start for part in box)
        return Grid((x, y, z), (a, b, c), self.spacing)

    def index(self, point: ArrayLike) -> tuple[int, int, int]:
        """The voxel at a point in mm, cut at the border."""
        where = np.round((np.asarray(point) - self.low) / self.spacing)
        a, b, c = np.clip(where, 0, np.array(self.shape) - 1).astype(int)
        return int(a), int(b), int(c)


def signed_distance(mask: NDArray[np.bool_], spacing: float) -> Array:
    """Distance in mm to the surface of a mask, negative inside.

    Exact to half a voxel; the surface lies between the voxels.
    """
    if not mask.any():
        return np.full(mask.shape, 1e3, np.float32)
    outside = ndi.distance_transform_edt(~mask)
    inside = ndi.distance_transform_edt(mask)
    return (
        (outside - inside) * spacing - np.sign(outside - inside) * spacing / 2
    ).astype(np.float32)


def closing(
    mask: NDArray[np.bool_], radius: float, spacing: float
) -> NDArray[np.bool_]:
    """Fill what a ball of ``radius`` mm cannot enter."""
    grown = ndi.distance_transform_edt(~mask) * spacing <= radius
    grown = np.pad(grown, 1, mode="edge")
    shrunk = ndi.distance_transform_edt(grown) * spacing > radius
    return shrunk[1:-1, 1:-1, 1:-1] | mask


def ramp(x: ArrayLike, start: float, end: float) -> Array:
    """0 before ``start``, 1 after ``end``, smooth between (3 t² - 2 t³)."""
    t = np.clip((np.asarray(x, np.float32) - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Curve:
    """A smooth curve through points, as a fine polyline.

    Attributes:
        points: ``(K, 3)`` in mm.
        tangents: ``(K, 3)`` unit vectors.
    """

    points: NDArray[np.float64]
    tangents: NDArray[np.float64]

    @classmethod
    def through(cls, points: ArrayLike, step: float = 1.0) -> Curve:
        """A cubic spline through ``(N, 3)`` points, sampled about every ``step`` mm."""
        points = np.asarray(points, float)
        length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))]
        count = max(2, int(length[-1] / step) + 1)
        t = np.linspace(0, length[-1], count)
        if len(points) == 2:
            fine = points[0] + (points[1] - points[0]) * (t / length[-1])[:, None]
        else:
            fine = CubicSpline(length, points)(t)
        tangents = np.gradient(fine, axis=0)
        tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
        return cls(fine, tangents)

    def at(self, s: float) -> NDArray[np.float64]:
        """The point at a share ``s`` of the way, 0 to 1."""
        place = s * (len(self.points) - 1)
        i = min(int(place), len(self.points) - 2)
        return self.points[i] + (place - i) * (self.points[i + 1] - self.points[i])

    @property
    def length(self) -> float:
        """In mm."""
        return float(np.linalg.norm(np.diff(self.points, axis=0), axis=1).sum())


@dataclass(frozen=True)
class Tube:
    """Voxels around a curve, in the coordinates of the curve.

    Attributes:
        box: of the grid, where the arrays lie.
        distance: to the surface of the tube in mm (approximate off the surface).
        along: share of the way along the nearest point of the curve, 0 to 1.
        radial: 0 on the curve, 1 on the surface.
        across: signed share of the half-width along the wide direction, -1 to 1.
    """

    box: tuple[slice, slice, slice]
    distance: Array
    along: Array
    radial: Array
    across: Array


def tube(
    grid: Grid,
    curve: Curve,
    wide: ArrayLike,
    thin: ArrayLike | None = None,
    direction: Sequence[float] = (1.0, 0.0, 0.0),
    margin: float = 2.0,
) -> Tube:
    """An elliptic tube around a curve.

    Args:
        grid: to lay it on.
        curve: its middle line.
        wide, thin: half-widths in mm along ``direction`` and across it: numbers, or
            ``(N,)`` values spread evenly along the curve.
        direction: of the wide side, made perpendicular to the curve at every point.
        margin: voxels up to so many mm outside are computed.
    """
    count = len(curve.points)
    a = spread(wide, count)
    b = a if thin is None else spread(thin, count)
    reach = float(max(a.max(), b.max())) + margin
    box = grid.box(curve.points.min(0) - reach, curve.points.max(0) + reach)
    part = grid.part(box)
    where = np.stack(np.broadcast_arrays(*part.axes()), axis=-1).reshape(-1, 3)
    nearest = _nearest(where, curve.points)
    offset = where - curve.points[nearest].astype(np.float32)
    u = (
        np.asarray(direction, float)
        - (curve.tangents @ np.asarray(direction, float))[:, None] * curve.tangents
    )
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    n = np.cross(curve.tangents, u)
    du = np.einsum("ij,ij->i", offset, u[nearest].astype(np.float32))
    dn = np.einsum("ij,ij->i", offset, n[nearest].astype(np.float32))
    dt = np.einsum("ij,ij->i", offset, curve.tangents[nearest].astype(np.float32))
    wa, wb = a[nearest].astype(np.float32), b[nearest].astype(np.float32)
    # beyond the ends the offset along the curve counts: the ends are round
    radial = np.sqrt((du / wa) ** 2 + (dn / wb) ** 2 + (dt / np.minimum(wa, wb)) ** 2)
    distance = (radial - 1) * np.minimum(wa, wb)
    fields = (distance, nearest / max(count - 1, 1), radial, du / wa)
    shaped = [np.asarray(f, np.float32).reshape(part.shape) for f in fields]
    return Tube(box, *shaped)


def _nearest(where: Array, points: NDArray[np.float64]) -> NDArray[np.intp]:
    """Index of the nearest of ``points`` for each of ``where``."""
    best = np.full(len(where), np.inf, np.float32)
    index = np.zeros(len(where), np.intp)
    for i, point in enumerate(points.astype(np.float32)):
        d = where[:, 0] - point[0]
        squared = d * d
        d = where[:, 1] - point[1]
        squared += d * d
        d = where[:, 2] - point[2]
        squared += d * d
        closer = squared < best
        best[closer] = squared[closer]
        index[closer] = i
    return index


def spread(values: ArrayLike, count: int) -> NDArray[np.float64]:
    """One number, or a few spread evenly, for each of ``count`` points."""
    values = np.atleast_1d(np.asarray(values, float))
    if len(values) == 1:
        return np.full(count, values[0])
    places = np.linspace(0, len(values) - 1, count)
    return np.interp(places, np.arange(len(values)), values)


@dataclass(frozen=True)
class Column:
    """A body along z with elliptic cross-sections, as muscles and vessels are.

    ``table`` has rows ``(z, x, y, half-width, half-depth, degrees)``; between them all
    is interpolated without overshoot, above and below there is nothing.
    """

    table: tuple[tuple[float, float, float, float, float, float], ...]

    def span(self) -> tuple[float, float]:
        """Lowest and highest z in mm."""
        z = [row[0] for row in self.table]
        return min(z), max(z)

    def distance(self, grid: Grid) -> tuple[slice, Array]:
        """Distance in mm, negative inside, for the slices along z that it crosses.

        Returns:
            slice, numpy.ndarray ``(X, Y, slices)``.
        """
        rows = np.array(sorted(self.table))
        z = grid.axis(2)
        inside = np.flatnonzero((z >= rows[0, 0]) & (z <= rows[-1, 0]))
        if not len(inside):
            return slice(0, 0), np.zeros((*grid.shape[:2], 0), np.float32)
        part = slice(int(inside[0]), int(inside[-1]) + 1)
        values = PchipInterpolator(rows[:, 0], rows[:, 1:])(z[part]).astype(np.float32)
        cx, cy, rx, ry, turn = values.T
        rx, ry = np.maximum(rx, 0.3), np.maximum(ry, 0.3)
        angle = np.deg2rad(turn)
        x, y, _ = grid.axes()
        dx, dy = x - cx, y - cy
        u = dx * np.cos(angle) + dy * np.sin(angle)
        v = dy * np.cos(angle) - dx * np.sin(angle)
        radial = np.sqrt((u / rx) ** 2 + (v / ry) ** 2)
        return part, ((radial - 1) * np.minimum(rx, ry)).astype(np.float32)


def rough(
    grid: Grid,
    scale: float | tuple[float, float, float],
    generator: np.random.Generator,
) -> Array:
    """Gaussian random field of unit variance whose structures are ``scale`` mm wide.

    White noise filtered by a Gaussian on a grid that is just fine enough, so that no
    boxes show; ``scale`` may differ along the axes.
    """
    sizes = np.broadcast_to(np.asarray(scale, float), 3)
    step = np.maximum(sizes / 2, grid.spacing)
    extent = (np.array(grid.shape) - 1) * grid.spacing
    coarse = np.maximum(np.ceil(extent / step).astype(int) + 1, 2)
    noise = generator.standard_normal(tuple(coarse + 8), dtype=np.float32)
    noise = ndi.gaussian_filter(noise, 1.0, mode="wrap", truncate=3.0)[4:-4, 4:-4, 4:-4]
    noise /= max(float(noise.std()), 1e-6)
    fine = F.interpolate(
        torch.from_numpy(np.ascontiguousarray(noise))[None, None],
        size=grid.shape,
        mode="trilinear",
        align_corners=True,
    )
    return fine[0, 0].numpy()
