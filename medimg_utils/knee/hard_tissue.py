"""What a label map knows: bones, cartilage and, in one of three, menisci.

Labels are brought to one grid and one side, cleaned and smoothed, and shafts go on
beyond the scan.  A label map without menisci gets made ones, one without a fibula too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi
from scipy.interpolate import PchipInterpolator

from medimg_utils.knee.shapes import Array, Column, ramp, signed_distance
from medimg_utils.knee.voxels import COARSE, GRID
from medimg_utils.physics import anatomy

_LABELS = {
    "femoral cartilage": 1,
    "medial tibial cartilage": 2,
    "lateral tibial cartilage": 3,
    "patellar cartilage": 4,
    "femur": 5,
    "tibia": 6,
    "patella": 7,
    "fibula": 8,
    "lateral meniscus": 9,
    "medial meniscus": 10,
}
#: Width and depth of a tibia (mm) for which tables of this package were drawn.
_WIDTH, _DEPTH = 76.0, 52.0


@dataclass(frozen=True)
class Meniscus:
    """Where each voxel of a meniscus lies in it.

    Attributes:
        voxels: ``(N, 3)`` indices on :data:`GRID`.
        angle: 0 at the anterior root, 1 at the posterior root.
        radius: 0 at the free edge, 1 at the periphery.
        height: 0 at the tibial surface, 1 at the femoral one.
        thickness: of the meniscus at that place in mm.
    """

    voxels: NDArray[np.int16]
    angle: Array
    radius: Array
    height: Array
    thickness: Array


@dataclass(frozen=True)
class HardTissue:
    """Bones, cartilage and menisci of a label map on :data:`GRID`."""

    masks: dict[str, NDArray[np.bool_]]
    distance: Array  # to the nearest bone, mm; 8 far from it
    menisci: dict[str, Meniscus]
    width: float  # of the tibia over that of the tables
    depth: float
    cover: Array  # distance to bone and cartilage on the coarse grid


def label_map(name: str) -> str:
    """Name of an anatomy's label map in the registry."""
    return name.replace("knee", "knee-labels")


def read_hard_tissue(name: str, data_dir: Path | None) -> HardTissue:
    """Bones, cartilage and menisci of an anatomy: half a minute on one core.

    Args:
        name: ``"knee1"`` to ``"knee3"``.
        data_dir: where the anatomy is; ``MEDIMG_DATA`` by default.
    """
    labels, spacing = anatomy.read_volume(label_map(name), data_dir)
    medial, lateral = (
        np.argwhere(labels == _LABELS[f"{side} tibial cartilage"]).mean(0) * spacing
        for side in ("medial", "lateral")
    )
    if medial[0] > lateral[0]:  # a left knee
        labels = labels[::-1]
        for point in (medial, lateral):
            point[0] = (labels.shape[0] - 1) * spacing[0] - point[0]
    origin = (medial + lateral) / 2
    masks = {
        key: _on_grid(labels == value, spacing, origin, 1.0 if 5 <= value <= 8 else 0.4)
        for key, value in _LABELS.items()
        if bool((labels == value).any())
    }
    for bone in ("femur", "tibia", "patella"):
        masks[bone] = _clean(masks[bone])
    level = GRID.axis(2)
    top = (labels.shape[2] - 1) * spacing[2] - origin[2]
    _extend(masks["femur"], int(np.searchsorted(level, top - 1.5)), +1)
    for bone in ("tibia", "fibula"):
        if bone in masks:
            _extend(masks[bone], int(np.searchsorted(level, -origin[2] + 1.5)), -1)
    plateau = (
        np.argwhere(masks["tibia"][:, :, GRID.index((0, 0, -9))[2]]) * GRID.spacing
    )
    width, depth = np.ptp(plateau, axis=0) / (_WIDTH, _DEPTH)
    if "fibula" not in masks:
        masks["fibula"] = _make_fibula(masks["tibia"], float(width), float(depth))
    for bone in ("tibia", "patella", "fibula"):
        masks[bone] &= ~masks["femur"]
    for key in _LABELS:
        if "cartilage" in key:
            for bone in ("femur", "tibia", "patella"):
                masks[key] &= ~masks[bone]
    menisci = {}
    for side in ("medial", "lateral"):
        known = masks.pop(f"{side} meniscus", None)
        shape = make_meniscus(masks, side) if known is None else known
        menisci[side] = _meniscus_coordinates(shape, masks, side)
        masks[f"{side} meniscus"] = np.zeros(GRID.shape, bool)
        masks[f"{side} meniscus"][tuple(menisci[side].voxels.T)] = True
    bones = masks["femur"] | masks["tibia"] | masks["patella"] | masks["fibula"]
    solid = bones.copy()
    for key in _LABELS:
        if "cartilage" in key or "meniscus" in key:
            solid |= masks[key]
    return HardTissue(
        masks,
        _bone_distance(masks),
        menisci,
        float(width),
        float(depth),
        signed_distance(solid[::2, ::2, ::2], COARSE.spacing),
    )


def _on_grid(
    mask: NDArray[np.bool_], spacing: NDArray, origin: NDArray, sigma: float
) -> NDArray[np.bool_]:
    """A label on :data:`GRID`, its staircase smoothed with ``sigma`` mm."""
    inside = np.argwhere(mask)
    low = np.maximum(inside.min(0) - 4, 0)
    high = np.minimum(inside.max(0) + 5, mask.shape)
    crop = mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
    soft = ndi.gaussian_filter(crop.astype(np.float32), sigma / spacing, mode="nearest")
    corner = low * spacing - origin
    box = GRID.box(corner, corner + (np.array(crop.shape) - 1) * spacing)
    part = GRID.part(box)
    out = np.zeros(GRID.shape, bool)
    out[box] = (
        ndi.affine_transform(
            soft,
            GRID.spacing / spacing,
            (np.array(part.low) - corner) / spacing,
            part.shape,
            order=1,
            mode="nearest",
        )
        > 0.5
    )
    return out


def _clean(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """One piece without holes and without the thin spikes of a hasty annotation."""
    box = _around(mask, 6)
    crop = np.pad(mask[box], 8, mode="edge")
    crop = np.stack([ndi.binary_fill_holes(s) for s in np.moveaxis(crop, 2, 0)], axis=2)
    half = crop[::2, ::2, ::2]  # a millimetre is fine enough to tell spikes from bone
    half = ndi.distance_transform_edt(~half) <= 1.5  # closing
    half = ndi.distance_transform_edt(half) > 1.5
    core = ndi.distance_transform_edt(half) > 2  # opening
    pieces, count = ndi.label(core)
    if count > 1:
        core = pieces == 1 + np.argmax(
            ndi.sum_labels(core, pieces, range(1, count + 1))
        )
    wide = ndi.distance_transform_edt(~core) <= 3.2
    wide = wide.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    a, b, c = crop.shape
    out = np.zeros_like(mask)
    out[box] = (crop & wide[:a, :b, :c])[8:-8, 8:-8, 8:-8]
    return out


def _around(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice, slice]:
    """The box of a mask, ``margin`` voxels wider."""
    x, y, z = (
        slice(max(int(a.start) - margin, 0), int(a.stop) + margin)
        for a in ndi.find_objects(mask.astype(np.uint8))[0]
    )
    return x, y, z


def _bone_distance(masks: dict[str, NDArray[np.bool_]]) -> Array:
    """Distance to the nearest surface of a bone in mm, negative inside; 8 far from it.

    Smoothed: the distance between voxels has terraces, which would show where a slice
    runs along a bone.
    """
    out = np.full(GRID.shape, 8.0, np.float32)
    for bone in ("femur", "tibia", "patella", "fibula"):
        box = _around(masks[bone], 10)
        near = ndi.gaussian_filter(signed_distance(masks[bone][box], GRID.spacing), 1.4)
        out[box] = np.minimum(out[box], near)
    return out


def _extend(mask: NDArray[np.bool_], edge: int, way: int) -> None:
    """Continue a shaft beyond the slice ``edge``, up or down, in place.

    The last cross-section goes on along the direction of the last 15 mm and narrows
    slowly.
    """

    def centre(k: int) -> NDArray:
        return np.argwhere(mask[:, :, k]).mean(0)

    step = int(15 / GRID.spacing)
    slope = (centre(edge) - centre(edge - way * step)) / step
    shape = signed_distance(mask[:, :, edge], GRID.spacing)
    thick = -float(shape.min())
    k = edge + way
    while 0 <= k < mask.shape[2]:
        n = abs(k - edge)
        moved = ndi.shift(shape, slope * n, order=1, mode="nearest")
        narrow = min(0.1 * n * GRID.spacing, max(thick - 10.0, 0.0))
        mask[:, :, k] = moved < -narrow
        k += way


def _make_fibula(
    tibia: NDArray[np.bool_], width: float, depth: float
) -> NDArray[np.bool_]:
    """A fibula for a label map that lacks one: head behind and beside the plateau."""
    head = Column(
        (
            (-7.0, 33 * width, -19 * depth, 1.0, 1.0, 0),
            (-9.0, 33 * width, -19 * depth, 6.0, 6.5, 20),
            (-16.0, 33 * width, -19 * depth, 11.0, 9.5, 20),
            (-24.0, 32 * width, -20 * depth, 10.0, 8.0, 10),
            (-36.0, 30 * width, -21 * depth, 7.0, 6.0, 0),
            (-60.0, 28 * width, -21 * depth, 6.0, 6.0, 0),
            (-90.0, 28 * width, -20 * depth, 6.5, 6.5, 0),
        )
    )
    part, distance = head.distance(GRID)
    fibula = np.zeros(GRID.shape, bool)
    fibula[:, :, part] = distance < 0
    near = GRID.box((0, -60, -90), (60, 20, 0))
    fibula[near] &= ndi.distance_transform_edt(~tibia[near]) > 2.5
    return fibula


# --- menisci --------------------------------------------------------------------------

#: Width of a meniscus in mm from its anterior to its posterior root, and its height.
_MENISCUS_WIDTH = {
    "medial": (6.0, 8.5, 9.0, 9.5, 13.5, 10.0),
    "lateral": (8.0, 10.5, 10.5, 10.5, 11.0, 8.0),
}
_MENISCUS_HEIGHT = 6.5
#: Angle in degrees between the direction away from the notch and each root.
_MENISCUS_REACH = {"medial": (125.0, 128.0), "lateral": (140.0, 148.0)}


def _compartment(
    masks: dict[str, NDArray[np.bool_]], side: str
) -> tuple[NDArray[np.float64], float]:
    """Middle ``(x, y)`` of a tibial compartment in mm, and the sign of x away from it."""
    footprint = masks[f"{side} tibial cartilage"].any(2)
    x, y = np.nonzero(footprint)
    middle = np.array([GRID.axis(0)[x].mean(), GRID.axis(1)[y].mean()])
    return middle, 1.0 if side == "lateral" else -1.0


def _polar(
    middle: NDArray[np.float64], away: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distance to the middle and angle for each (x, y) of the grid.

    The angle is 0 away from the notch, negative toward the front, in degrees.
    """
    dx = (GRID.axis(0) - middle[0])[:, None] * away
    dy = (GRID.axis(1) - middle[1])[None, :]
    return np.hypot(dx, dy), np.rad2deg(np.arctan2(-dy, dx))


def make_meniscus(masks: dict[str, NDArray[np.bool_]], side: str) -> NDArray[np.bool_]:
    """A meniscus for a label map without one: the wedge between the cartilages.

    Seen from above it is a crescent along the rim of the tibial compartment; its
    underside lies on the tibia, its upper side follows the femur, and where both are far
    apart its height falls linearly to the free edge.

    Args:
        masks: ``"femur"``, ``"tibia"`` and the cartilages on :data:`GRID`.
        side: ``"medial"`` or ``"lateral"``.
    """
    middle, away = _compartment(masks, side)
    distance, angle = _polar(middle, away)
    level = GRID.axis(2)
    low, high = GRID.index((0, 0, -12))[2], GRID.index((0, 0, 22))[2]
    tibial = masks["tibia"] | masks[f"{side} tibial cartilage"]
    femoral = masks["femur"] | masks["femoral cartilage"]
    band, above = tibial[:, :, low:high], femoral[:, :, low:high]
    ground = np.where(
        band.any(2),
        level[low:high][band.shape[2] - 1 - band[:, :, ::-1].argmax(2)],
        -99,
    )
    roof = np.where(above.any(2), level[low:high][above.argmax(2)], 99.0)
    # the rim of the plateau in this compartment, as a smooth function of the angle
    plateau = (ground > -7) & (away * (GRID.axis(0)[:, None] - middle[0]) > -16)
    rim = np.zeros(72)
    sector = ((angle + 180) // 5).astype(int) % 72
    for k in range(72):
        there = distance[plateau & (sector == k)]
        rim[k] = np.quantile(there, 0.985) if there.size else 0
    rim = ndi.gaussian_filter1d(rim, 1.5, mode="wrap")
    front, back = _MENISCUS_REACH[side]
    share = (angle + front) / (front + back)
    width = PchipInterpolator(np.linspace(0, 1, 6), _MENISCUS_WIDTH[side])(
        np.clip(share, 0, 1)
    )
    outer = np.interp(angle, np.arange(-177.5, 180, 5), rim, period=360)
    # the horns leave the rim and run to the middle of the tibia
    outer = np.minimum(outer, 26 - 9 * ramp(np.abs(share - 0.5), 0.32, 0.5)) + 0.8
    radius = (distance - (outer - width)) / width
    crescent = (share >= 0) & (share <= 1) & (radius >= 0) & (radius <= 1)
    # the ground under the part that reaches over the rim goes on level
    floor = ndi.grey_closing(np.where(ground > -8, ground, -8), size=(9, 9))
    floor = np.where(ground > -7, ground, np.maximum(floor - 0.5, -3.0))
    ceiling = np.minimum(roof - 0.6, floor + 1.0 + (_MENISCUS_HEIGHT - 1) * radius)
    z = level[None, None, low:high]
    out = np.zeros(GRID.shape, bool)
    out[:, :, low:high] = (
        crescent[:, :, None] & (z > floor[:, :, None] + 0.3) & (z < ceiling[:, :, None])
    )
    out &= ~(tibial | femoral)
    box = GRID.box((-50, -40, -12), (50, 45, 22))
    soft = ndi.gaussian_filter(out[box].astype(np.float32), 0.8)
    smooth = np.zeros_like(out)
    smooth[box] = (soft > 0.5) & ~(tibial | femoral)[box]
    return smooth


def _meniscus_coordinates(
    mask: NDArray[np.bool_], masks: dict[str, NDArray[np.bool_]], side: str
) -> Meniscus:
    middle, away = _compartment(masks, side)
    distance, angle = _polar(middle, away)
    voxels = np.argwhere(mask)
    turn = angle[voxels[:, 0], voxels[:, 1]]
    first, last = np.quantile(turn, [0.002, 0.998])
    share = np.clip((turn - first) / (last - first), 0, 1)
    flat = mask.any(2)
    rho = distance[voxels[:, 0], voxels[:, 1]]
    inner, outer = np.zeros(61), np.zeros(61)
    flat_share = (angle - first) / (last - first)
    for k in range(61):
        there = distance[flat & (np.abs(flat_share - k / 60) < 1 / 50)]
        inner[k], outer[k] = np.quantile(there, [0.03, 0.97]) if there.size else (0, 1)
    inner, outer = (
        ndi.gaussian_filter1d(v, 1.2, mode="nearest") for v in (inner, outer)
    )
    where = share * 60
    near = np.interp(where, np.arange(61), inner)
    far = np.interp(where, np.arange(61), outer)
    radius = np.clip((rho - near) / np.maximum(far - near, 1), 0, 1)
    level = np.arange(GRID.shape[2])
    bottom = np.where(mask, level, 10**4).min(2)[voxels[:, 0], voxels[:, 1]]
    top = np.where(mask, level, -1).max(2)[voxels[:, 0], voxels[:, 1]]
    height = (voxels[:, 2] - bottom + 0.5) / (top - bottom + 1)
    return Meniscus(
        voxels.astype(np.int16),
        share.astype(np.float32),
        radius.astype(np.float32),
        height.astype(np.float32),
        ((top - bottom + 1) * GRID.spacing).astype(np.float32),
    )
