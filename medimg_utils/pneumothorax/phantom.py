"""A chest that can be posed: CT, pleural cavities, shoulder girdle and vessels.

:func:`load_chest` turns one CT of the anatomy registry into a :class:`Chest`, once, and
keeps it in the cache.  The collapse of a lung needs to know for every point how far it
lies from the chest wall; the film needs the shoulder girdle apart from the trunk,
because CT is taken with raised arms and radiographs are not.

Coordinates are mm in the scan: x grows to the patient's right, y to the front, z up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage as ndi
from scipy.spatial import ConvexHull, Delaunay
from torch import Tensor

from medimg_utils.errors import InputError
from medimg_utils.io import atomic_path
from medimg_utils.physics import anatomy
from medimg_utils.physics.xray import decompose
from medimg_utils.settings import get_settings
from medimg_utils.simulation import call_in_processes

ANATOMIES = ("chest1", "chest2", "chest3", "chest4")
#: Grid of the densities in mm.  Along y only the integral matters: planes are averaged.
SPACING = (1.25, 2.5, 1.25)
#: Grid of the distance fields in mm.
COARSE = 2.5
#: Version of the prepared files: raise it when this module changes what it writes.
VERSION = 4
RIGHT, LEFT = 0, 1
#: Slices of abdomen added below the scan.
_EXTRA = 48
#: Of these, so many in which gas fades away, and ribs end.
_FADE, _RIBS_END = 20, 16

#: CTs with contrast agent: what is compact and above this value (HU) is filled with it.
_IODINE = {"chest1": 130.0, "chest2": 190.0}
_BLOOD = 45.0  # HU
_MUSCLE = 40.0  # HU
#: Share by which fat attenuates less at 55 keV than its CT number says: there it has 5 %
#: less mass attenuation than water, and 2 % less at the energy of the CT scanner
#: (NIST, adipose tissue ICRU-44: 0.205 against 0.216 cm2/g, and 0.184 against 0.189).
_FAT_IS_LESS = 0.03

#: For each bone points ``(N, 4)``: x, y, z in mm and mass in g/cm3 mm3 of bone.
Girdle = dict[str, Tensor]
#: The CT whose bones are labelled, and their labels.
_LABELLED = ("chest1", "chest1-labels")
#: Labels of bones in the CT that has them.
_BONES = {"clavicle": 74, "scapula": 72, "humerus": 70, "left scapula": 71}


@dataclass(frozen=True, eq=False)
class Chest:
    """One prepared anatomy.

    Attributes:
        soft, bone: ``(X, Y, Z)`` densities in g/cm3 on a grid of :data:`SPACING`,
            without arms and shoulder girdle, without table, contrast agent taken out.
        origin: ``(3,)`` mm of voxel (0, 0, 0) of the densities.
        depth: ``(A, B, C)`` signed distance in mm to the surface of the nearer pleural
            cavity, positive inside, on a grid of :data:`COARSE`.
        side: 0 where the nearer cavity is the right one, 1 where the left.
        wall, base, medial: distances in mm to the chest wall, diaphragm and
            mediastinum.
        coarse_origin: ``(3,)`` mm of voxel (0, 0, 0) of these fields.
        lungs: for right and left the box ``(2, 3)`` of the cavity in mm (low, high).
        vessels: ``(N, 5)`` points of lung vessels too fine for the CT: x, y, z in mm,
            volume in mm3, side.
    """

    name: str
    soft: Tensor
    bone: Tensor
    origin: Tensor
    depth: Tensor
    side: Tensor
    wall: Tensor
    base: Tensor
    medial: Tensor
    coarse_origin: Tensor
    lungs: Tensor
    vessels: Tensor

    @property
    def low(self) -> Tensor:
        """Lowest corner of the volume in mm, ``(3,)``."""
        return self.origin

    @property
    def high(self) -> Tensor:
        """Highest corner of the volume in mm, ``(3,)``."""
        size = torch.tensor(self.soft.shape) - 1
        return self.origin + size * torch.tensor(SPACING)

    @property
    def midline(self) -> float:
        """x of the middle between the two lungs in mm."""
        return float((self.lungs[RIGHT, 0, 0] + self.lungs[LEFT, 1, 0]) / 2)

    def refine(
        self, fields: Tensor, part: tuple[slice, ...] = (slice(0, None),) * 3
    ) -> tuple[Tensor, tuple[slice, ...]]:
        """Interpolate fields of the coarse grid on the grid of the densities.

        Args:
            fields: ``(N, A, B, C)``.
            part: where they stand on the coarse grid; all of it by default.

        Returns:
            fine: Tensor ``(N, X, Y, Z)``.
            box: where it stands on the grid of the densities.
        """
        spacing = torch.tensor(SPACING)
        # along y both grids have one spacing, so each coronal plane is interpolated as an
        # image: in a third of the time
        x, y, z = (round(COARSE / step) for step in SPACING)
        assert y == 1
        fine = F.interpolate(
            fields.transpose(1, 2), scale_factor=(x, z), mode="bilinear"
        ).transpose(1, 2)
        # both grids are laid so that the edges of their voxels fall together
        corner = torch.tensor([float(s.start) for s in part]) - 0.5
        corner = self.coarse_origin + COARSE * corner
        first = ((corner - self.origin + spacing / 2) / spacing).round().int().tolist()
        box = tuple(
            slice(start, start + n)
            for start, n in zip(first, fine.shape[1:], strict=True)
        )
        return fine, box


def prepare(
    names: Iterable[str], data_dir: Path | None = None, workers: int | None = 1
) -> None:
    """Fetch and prepare chests and the shoulder girdle, unless they are in the cache.

    A chest takes about half a minute on one core and 1.5 GiB.

    Args:
        names: of :data:`ANATOMIES`.
        data_dir: where the anatomy is.
        workers: processes at most, one a CPU core where None.

    Raises:
        InputError: a name is not one of :data:`ANATOMIES`.
        AnatomyError: a CT cannot be fetched.
    """
    wanted = list(names)
    for name in wanted:
        if name not in ANATOMIES:
            raise InputError(
                f"unknown anatomy {name!r}: use one of {', '.join(ANATOMIES)}"
            )
    jobs = [
        (name, data_dir)
        for name in (*wanted, "girdle")
        if not _prepared_file(name, data_dir).exists()
    ]
    for name, _ in jobs:  # two processes must not fetch the same archive
        for source in _LABELLED if name in (*_LABELLED, "girdle") else (name,):
            anatomy.path(source, data_dir)
    call_in_processes(_prepare_and_save, jobs, workers)


@lru_cache(maxsize=4)
def load_chest(name: str, data_dir: Path | None = None) -> Chest:
    """The prepared chest ``name``; see :func:`prepare` for errors and cost."""
    prepare([name], data_dir)
    with np.load(_prepared_file(name, data_dir)) as stored:
        fields = {key: torch.from_numpy(stored[key]).float() for key in stored.files}
    return Chest(name=name, **fields)


@lru_cache(maxsize=1)
def load_girdle(data_dir: Path | None = None) -> tuple[Girdle, Girdle]:
    """Clavicle, scapula and humerus of the one CT that has labels of them.

    The CT is of a patient with raised arms; :mod:`.girdle` poses the bones anew.

    Returns:
        The right girdle, and the same with the other scapula: no two shoulders are
        alike. (The left clavicle and humerus reach beyond the scan.)
    """
    prepare([], data_dir)
    with np.load(_prepared_file("girdle", data_dir)) as stored:
        bones = {bone: torch.from_numpy(stored[bone]) for bone in _BONES}
    right = {bone: bones[bone] for bone in ("clavicle", "scapula", "humerus")}
    return right, right | {"scapula": bones["left scapula"]}


def _prepared_file(name: str, data_dir: Path | None) -> Path:
    root = (data_dir or get_settings().data) / "anatomy" / "prepared"
    return root / f"{name}-v{VERSION}.npz"


def _prepare_and_save(name: str, data_dir: Path | None) -> None:
    """Write the file of a chest, or of the girdle."""
    girdle = name == "girdle"
    arrays = _prepare_girdle(data_dir) if girdle else _prepare(name, data_dir)
    file = _prepared_file(name, data_dir)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as part, part.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)


# --- from CT to chest -----------------------------------------------------------------


@dataclass(frozen=True)
class _Regions:
    """What stands where in a CT at 2.5 mm: masks ``(A, B, C)``.

    ``lungs`` is 1 in the right pleural cavity and 2 in the left; ``floor`` is the part of
    the diaphragm that the scan does not show.
    """

    body: np.ndarray
    lungs: np.ndarray
    mediastinum: np.ndarray
    diaphragm: np.ndarray
    floor: np.ndarray


def _prepare(name: str, data_dir: Path | None) -> dict[str, np.ndarray]:
    volume, spacing = anatomy.read_volume(name, data_dir)
    volume = _fill_outside_view(np.clip(volume, -1000, 2000))
    size = tuple(np.round(np.array(volume.shape) * spacing / COARSE).astype(int))
    coarse = _resample(volume, size)
    fine = _resample(volume, tuple(2 * n for n in size))
    regions = _find_regions(coarse)
    _remove_girdle(fine, coarse, regions.lungs)
    if name in _IODINE:
        _remove_contrast(fine, _contrast_mask(name, coarse, regions, data_dir))
    _clean(fine, regions)
    boxes = [np.argwhere(regions.lungs == s + 1) for s in (RIGHT, LEFT)]
    return {
        **_densities(fine),
        **_distances(regions),
        "lungs": np.array(
            [[(b.min(0)) * COARSE, (b.max(0) + 1) * COARSE] for b in boxes], np.float32
        ),
        "vessels": _grow_vessels(regions.lungs, regions.mediastinum),
    }


def _find_regions(hu: np.ndarray) -> _Regions:
    body, lungs = _segment(hu)
    floor = _missing_diaphragm(lungs)
    lungs[floor] = 0
    mediastinum, diaphragm = _neighbours(lungs)
    return _Regions(body, lungs, mediastinum, diaphragm | floor, floor)


def _on_fine(mask: np.ndarray) -> np.ndarray:
    """A coarse mask on a grid of half the spacing, with a smooth boundary."""
    share = torch.from_numpy(mask.astype(np.float32))
    fine = F.interpolate(share[None, None], scale_factor=2, mode="trilinear")
    return np.asarray(fine[0, 0] > 0.5)


def _remove_girdle(fine: np.ndarray, coarse: np.ndarray, lungs: np.ndarray) -> None:
    """Make muscle of clavicles, scapulae and humeri, in place."""
    girdle = ndi.binary_dilation(_girdle_mask(coarse, lungs), iterations=2)
    fine[_on_fine(girdle) & (fine > _MUSCLE)] = _MUSCLE


def _contrast_mask(
    name: str, hu: np.ndarray, regions: _Regions, data_dir: Path | None
) -> np.ndarray:
    """Where a contrast agent may be: heart and vessels, and organs of the abdomen."""
    filled = _iodine_mask(hu, _IODINE[name], regions.lungs)
    if name == "chest1":  # its labels know the veins that lie at the apex
        labels, _ = anatomy.read_volume("chest1-labels", data_dir)
        labels = _nearest(labels, hu.shape)
        vessels = (labels >= 51) & (labels <= 68)
        filled |= ndi.binary_dilation(vessels, iterations=2) & (labels < 92)
    # what is left in the middle, and the organs under the diaphragm
    filled |= regions.mediastinum & ~_spine(regions.lungs)
    filled |= ndi.binary_erosion(regions.diaphragm, iterations=3)
    return filled


def _remove_contrast(fine: np.ndarray, mask: np.ndarray) -> None:
    """Make blood of what is brighter than blood in a coarse mask, in place."""
    filled = _on_fine(mask) & (fine > _BLOOD)
    fine[filled] = _BLOOD + 0.03 * (fine[filled] - _BLOOD)


def _clean(fine: np.ndarray, regions: _Regions) -> None:
    """No bone in the lungs, a diaphragm under each, nothing around the body; in place."""
    inside = _on_fine(regions.lungs > 0)
    fine[inside] = np.minimum(fine[inside], _BLOOD)
    floor = ndi.binary_dilation(regions.floor, iterations=2)
    fine[_on_fine(floor) & (fine < _MUSCLE)] = _MUSCLE
    fine[~_on_fine(ndi.binary_dilation(regions.body, iterations=1))] = -1000


def _densities(fine: np.ndarray) -> dict[str, np.ndarray]:
    """Soft tissue and bone on a grid of :data:`SPACING`, with abdomen below the scan."""
    soft, bone = (d.numpy() for d in decompose(torch.from_numpy(fine)))
    # fat attenuates less than water of its density, at the energy of a film more so
    fat = np.clip((0.985 - soft) / 0.05, 0, 1) * (soft > 0.8)
    soft = soft * (1 - _FAT_IS_LESS * fat)
    bone = _sharpen(_smooth_along(bone), np.full(3, COARSE / 2))
    soft, bone = ((d[:, 0::2] + d[:, 1::2]) / 2 for d in (soft, bone))
    soft, bone = _extend(soft, bone)
    below = -_EXTRA * SPACING[2]
    return {
        "soft": soft.astype(np.float16),
        "bone": bone.astype(np.float16),
        "origin": np.array(SPACING, np.float32) / 2
        + np.array([0, 0, below], np.float32),
    }


def _smooth_along(bone: np.ndarray) -> np.ndarray:
    """Join what thick slices cut: blur bone along itself, not across.

    Between slices 5 mm apart an oblique rib is a row of beads.  The direction of a rib is
    that in which the smoothed density changes least (the structure tensor's eigenvector
    of the smallest eigenvalue; Weickert 1999); where no direction stands out, as in a
    vertebra, nothing is blurred.
    """
    places = np.argwhere(ndi.binary_dilation(bone > 0.02, iterations=2))
    index = tuple(places.T)
    soft = ndi.gaussian_filter(bone, 3.0 / SPACING[0])
    gradient = np.gradient(soft)
    tensor = np.empty((len(places), 3, 3), np.float32)
    for i in range(3):
        for j in range(i, 3):
            product = ndi.gaussian_filter(gradient[i] * gradient[j], 4.0 / SPACING[0])
            tensor[:, i, j] = tensor[:, j, i] = product[index]
    size, direction = np.linalg.eigh(tensor)  # ascending
    clear = (size[:, 1] - size[:, 0]) / np.maximum(size[:, 1] + size[:, 0], 1e-12)
    level = np.clip(3 - 4 * abs(direction[:, 2, 0]), 0, 1)  # a rib is never upright
    length = 4.0 / SPACING[0] * np.clip(2 * clear - 0.4, 0, 1) * level
    total = np.zeros(len(places), np.float32)
    offsets = np.linspace(-2, 2, 9)
    weights = np.exp(-0.5 * offsets**2)
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        at = places + direction[:, :, 0] * (offset * length)[:, None]
        total += weight * ndi.map_coordinates(bone, at.T, order=1, mode="nearest")
    out = bone.copy()
    out[index] = total
    return out


def _sharpen(bone: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Undo some of the CT's blur: a rib is a thin shell, and shows as one on a film.

    Within slices only: along z it would make beads of ribs that cross thick slices.
    The mass of all bone stays.
    """
    blurred = ndi.gaussian_filter(bone, (1.2 / spacing[0], 1.2 / spacing[1], 0))
    sharp = np.maximum(2 * bone - blurred, 0) * (bone > 0.02)
    return np.asarray(sharp * (bone.sum() / max(sharp.sum(), 1e-6)))


def _distances(regions: _Regions) -> dict[str, np.ndarray]:
    """The distance fields of a :class:`Chest`."""
    outside = regions.lungs == 0
    depth = ndi.distance_transform_edt(~outside) - ndi.distance_transform_edt(outside)
    nearest = ndi.distance_transform_edt(
        outside, return_distances=False, return_indices=True
    )
    # slivers in a fissure or at the hilum are no wall for air to gather at
    wall = _largest(outside & ~regions.mediastinum & ~regions.diaphragm)
    to_wall, to_base, to_medial = (
        ndi.distance_transform_edt(~mask) * COARSE
        for mask in (wall, regions.diaphragm, regions.mediastinum)
    )
    return {
        # voxel centres lie half a voxel off the boundary on either side
        "depth": _smooth(depth * COARSE - np.sign(depth) * COARSE / 2, 0.7),
        "side": (regions.lungs[tuple(nearest)] - 1).astype(np.uint8),
        "wall": _smooth(to_wall - COARSE / 2, 0.8),
        "base": _smooth(to_base - COARSE / 2, 0.8),
        "medial": _smooth(to_medial, 1.0),
        "coarse_origin": np.full(3, COARSE / 2, np.float32),
    }


def _missing_diaphragm(lungs: np.ndarray, height_mm: float = 42.0) -> np.ndarray:
    """A dome under each lung that the lower end of the scan cuts off.

    Such a lung would end in a straight line on the film.
    """
    floor = np.zeros(lungs.shape, bool)
    x, y, z = np.indices(lungs.shape)
    for label in (1, 2):
        cut = lungs[:, :, :2] == label
        if not cut.any():
            continue
        voxels = np.argwhere(cut)
        middle, half = voxels.mean(0), np.ptp(voxels, axis=0) / 2 + 1
        r2 = ((x - middle[0]) / half[0]) ** 2 + ((y - middle[1]) / half[1]) ** 2
        dome = height_mm / COARSE * (1 - 0.8 * r2)
        floor |= (z < dome) & (lungs == label)
    return floor


def _extend(soft: np.ndarray, bone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add abdomen below the scan: its lowest part mirrored, without lung and with spine.

    A film reaches below where a chest CT ends, and no edge may show there.  Mirrored
    tissue continues without a step and keeps its texture; what holds gas is filled, and
    ribs, which would run upwards, end.
    """
    mirrored, spine = soft[:, :, _EXTRA - 1 :: -1], bone[:, :, _EXTRA - 1 :: -1]
    steps = np.arange(_EXTRA, 0, -1)  # below the scan
    inside = ndi.binary_opening(mirrored > 0.6, iterations=2)
    inside = np.stack(
        [ndi.binary_fill_holes(plane) for plane in np.moveaxis(inside, 2, 0)], axis=2
    )
    gas = ndi.gaussian_filter((inside & (mirrored < 0.8)).astype(np.float32), 1.0)
    fading = np.minimum(1.0, (2 * gas) * np.minimum(1.0, steps / _FADE))
    mirrored = mirrored * (1 - fading) + fading
    near = _near_spine(bone[:, :, : _EXTRA // 2])[:, :, None]
    ending = np.clip(1 - steps / _RIBS_END, 0, 1)
    spine = spine * (near + (1 - near) * ending)
    return (
        np.concatenate([mirrored, soft], axis=2),
        np.concatenate([spine, bone], axis=2),
    )


def _near_spine(bone: np.ndarray) -> np.ndarray:
    """(X, Y) weight 0 to 1 of the vertebral column in ``(X, Y, Z)`` bone."""
    mean = bone.mean(2)
    labels, count = ndi.label(ndi.gaussian_filter(mean, 1.5) > 0.05)
    if not count:
        return np.zeros_like(mean)
    masses = ndi.sum_labels(mean, labels, np.arange(1, count + 1))
    column = ndi.binary_dilation(labels == 1 + masses.argmax(), iterations=4)
    return ndi.gaussian_filter(column.astype(np.float32), 3.0)


def _smooth(field: np.ndarray, sigma: float) -> np.ndarray:
    return ndi.gaussian_filter(field, sigma).astype(np.float16)


def _resample(volume: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resample to another grid: anti-aliased where coarser, cubic where much finer."""
    factor = np.array(size) / np.array(volume.shape)
    sigma = np.where(factor < 1, 0.5 * (1 / factor - 1), 0)
    smooth = ndi.gaussian_filter(volume, sigma) if sigma.any() else volume
    order = 3 if (factor > 1.5).any() else 1
    out = ndi.zoom(smooth, factor, order=order, grid_mode=True, mode="nearest")
    return np.clip(out, -1000, 2000)


def _nearest(labels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Labels on another grid over the same box, by the nearest voxel."""
    index = [
        ((np.arange(m) + 0.5) * n / m).astype(int)
        for n, m in zip(labels.shape, shape, strict=True)
    ]
    return labels[np.ix_(*index)]


def _fill_outside_view(volume: np.ndarray) -> np.ndarray:
    """Continue a body that the round field of view of the scanner cut off."""
    nx, ny = volume.shape[:2]
    if abs(nx - ny) > 2:
        return volume  # a rectangular cut-out has no corners
    x, y = np.ogrid[:nx, :ny]
    outside = np.hypot(x - (nx - 1) / 2, y - (ny - 1) / 2) > 0.485 * nx
    nearest = ndi.distance_transform_edt(
        outside, return_distances=False, return_indices=True
    )
    continued = volume[nearest[0], nearest[1]]
    padding = outside[:, :, None] & (volume <= -1000) & (continued > -500)
    return np.where(padding, continued, volume)


def _segment(hu: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Body and lungs (1 right, 2 left) of a CT at 2.5 mm.

    Lungs are the largest air inside the body; trachea and main bronchi are found slice
    by slice from the top as small round air near the midline; the two lungs part when
    eroded.  Vessels are closed into the lungs: the result is the pleural cavities.
    """
    body = _largest(ndi.binary_opening(hu > -350, iterations=2))
    for k in range(body.shape[2]):
        body[:, :, k] = ndi.binary_fill_holes(body[:, :, k])
    air = _largest((hu < -420) & ndi.binary_erosion(body))
    airway = _airway(air)
    lung = ndi.binary_opening(air & ~ndi.binary_dilation(airway))
    seeds: list[np.ndarray] = []
    for erosion in range(8):
        eroded = ndi.binary_erosion(lung, iterations=erosion) if erosion else lung
        labels, count = ndi.label(eroded)
        sizes = np.bincount(labels.ravel())[1:]
        order = np.argsort(-sizes)
        if count > 1 and sizes[order[1]] > 0.4 * sizes[order[0]]:
            seeds = [labels == order[0] + 1, labels == order[1] + 1]
            break
    if not seeds:
        raise anatomy.AnatomyError("the two lungs of this CT could not be told apart")
    near = [ndi.distance_transform_edt(~seed) for seed in seeds]
    first = near[0] < near[1]
    x = np.arange(lung.shape[0])[:, None, None]
    first_is_right = (x * (lung & first)).sum() / (lung & first).sum() > (
        x * (lung & ~first)
    ).sum() / (lung & ~first).sum()
    right = first if first_is_right else ~first
    lungs = np.zeros(lung.shape, np.uint8)
    for label, half in ((1, right), (2, ~right)):
        cavity = np.pad(_largest(lung & half), 4)
        cavity = ndi.binary_closing(cavity, iterations=3)[4:-4, 4:-4, 4:-4]
        for k in range(cavity.shape[2]):
            cavity[:, :, k] = ndi.binary_fill_holes(cavity[:, :, k])
        lungs[cavity & (lungs == 0)] = label
    return body, lungs


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, _ = ndi.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return labels == sizes.argmax()


def _airway(air: np.ndarray) -> np.ndarray:
    middle = np.argwhere(air)[:, 0].mean()
    airway = np.zeros_like(air)
    previous: np.ndarray | None = None
    for k in range(int(np.argwhere(air)[:, 2].max()), -1, -1):
        labels, count = ndi.label(air[:, :, k])
        for i in range(1, count + 1):
            region = labels == i
            area = region.sum() * COARSE**2
            off = abs(ndi.center_of_mass(region)[0] - middle) * COARSE
            if previous is None:
                found = 60 < area < 900 and off < 20
            else:
                reach = ndi.binary_dilation(previous, iterations=2)
                found = area < 900 and off < 45 and bool((region & reach).any())
            if found:
                airway[:, :, k] |= region
        if airway[:, :, k].any():
            previous = airway[:, :, k]
    return airway


def _neighbours(lungs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What bounds the cavities: mediastinum (between them) and diaphragm (below them).

    In an axial slice the mediastinum is the convex hull of both lungs less the lungs.
    The diaphragm is what has lung above it in its column, up to the dome, which is where
    the column through the middle of the lung ends.  All else is chest wall.
    """
    hull = np.zeros(lungs.shape, bool)
    x, y = np.indices(lungs.shape[:2])
    grid = np.column_stack([x.ravel(), y.ravel()])
    for k in range(lungs.shape[2]):
        points = np.argwhere(lungs[:, :, k])
        if len(points) > 10 and np.ptp(points, axis=0).min() > 2:
            corners = points[ConvexHull(points).vertices]
            inside = Delaunay(corners).find_simplex(grid) >= 0
            hull[:, :, k] = inside.reshape(x.shape)
    between = hull & (lungs == 0)
    diaphragm = np.zeros(lungs.shape, bool)
    for label in (1, 2):
        lung = lungs == label
        widest = int(lung.sum((0, 1)).argmax())
        column = np.argwhere(lung[:, :, widest]).mean(0).astype(int)
        dome = int(np.argwhere(lung[column[0], column[1]])[:, 0].min())
        covered = np.flip(np.maximum.accumulate(np.flip(lung, 2), 2), 2) & (lungs == 0)
        covered[:, :, dome + 2 :] = False
        diaphragm |= covered
    # small hollows along the ribs are not diaphragm
    diaphragm = ndi.binary_opening(diaphragm, iterations=2)
    mediastinum = ndi.binary_opening(between & ~diaphragm, iterations=2)
    return mediastinum, diaphragm


def _girdle_mask(hu: np.ndarray, lungs: np.ndarray) -> np.ndarray:
    """Clavicles, scapulae and humeri: bone off the midline and farther out than ribs.

    On the labelled CT ribs lie within 12 mm of the lungs and the girdle outside that.
    """
    top = np.argwhere(lungs)[:, 2].max()
    middle = np.argwhere(lungs)[:, 0].mean()
    x = np.arange(hu.shape[0])[:, None, None]
    z = np.arange(hu.shape[2])[None, None, :]
    bone = (hu > 150) & (ndi.distance_transform_edt(lungs == 0) * COARSE > 12)
    return bone & (abs(x - middle) * COARSE > 24) & (z > top - 190 / COARSE)


def _spine(lungs: np.ndarray) -> np.ndarray:
    """A generous block around the spine: the back third of the chest near the midline."""
    cavity = np.argwhere(lungs)
    x = np.arange(lungs.shape[0])[:, None, None]
    y = np.arange(lungs.shape[1])[None, :, None]
    near = abs(x - cavity[:, 0].mean()) * COARSE < 30
    block = near & (y < np.quantile(cavity[:, 1], 0.35))
    return np.broadcast_to(block, lungs.shape)


def _iodine_mask(hu: np.ndarray, threshold: float, lungs: np.ndarray) -> np.ndarray:
    """Heart and great vessels filled with contrast agent: compact, bright, central."""
    cavity = np.argwhere(lungs)
    back, front = np.quantile(cavity[:, 1], [0.2, 0.97])
    x = np.arange(hu.shape[0])[:, None, None]
    y = np.arange(hu.shape[1])[None, :, None]
    off = abs(x - cavity[:, 0].mean()) * COARSE
    central = (off < 95) & (y > back) & (y < front)
    spine = _spine(lungs)
    compact = ndi.binary_opening((hu > threshold) & central & ~spine, iterations=2)
    labels, _ = ndi.label(compact)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    compact = np.isin(labels, np.flatnonzero(sizes > 150))
    return ndi.binary_dilation(compact, iterations=3) & ~spine


# --- vessels --------------------------------------------------------------------------


def _grow_vessels(
    lungs: np.ndarray, mediastinum: np.ndarray, tips: int = 1400
) -> np.ndarray:
    """Trees of vessels from each hilum to the periphery, finer than the CT shows.

    Each random target joins the tree at the node that costs least, distance to it plus
    a share of the way from it to the hilum (Cuntz et al. 2010): a low share gives short
    wires, a high one straight ones.  Radii follow Murray's law, the cube of the parent
    being the sum of the cubes of the children.

    Returns:
        numpy.ndarray ``(N, 5)``: x, y, z in mm, volume in mm3, side; about 3 points a
        mm.
    """
    generator = np.random.default_rng(7)
    out = []
    to_medial = ndi.distance_transform_edt(~mediastinum)
    for side in (RIGHT, LEFT):
        cavity = np.argwhere(lungs == side + 1)
        low, high = cavity.min(0), cavity.max(0)
        level = low[2] + 0.55 * (high[2] - low[2])
        score = to_medial[tuple(cavity.T)] + 0.5 * abs(cavity[:, 2] - level)
        score += 0.3 * abs(cavity[:, 1] - cavity[:, 1].mean())
        hilum = cavity[score.argmin()] * COARSE
        picks = generator.choice(len(cavity), tips, replace=False)
        targets = (cavity[picks] + generator.random((tips, 3))) * COARSE
        targets = targets[np.argsort(np.linalg.norm(targets - hilum, axis=1))]
        nodes, parents, path = [hilum], [0], [0.0]
        for target in targets:
            tree = np.array(nodes)
            gap = np.linalg.norm(tree - target, axis=1)
            best = int((gap + 0.45 * np.array(path)).argmin())
            steps = max(1, int(gap[best] / 12))
            for step in range(1, steps + 1):
                point = tree[best] + (target - tree[best]) * step / steps
                wobble = generator.normal(0, 0.6, 3) if step < steps else 0
                parents.append(best if step == 1 else len(nodes) - 1)
                path.append(path[best] + gap[best] * step / steps)
                nodes.append(point + wobble)
        cubes = np.zeros(len(nodes))
        children = np.bincount(parents[1:], minlength=len(nodes))
        for i in range(len(nodes) - 1, 0, -1):
            if children[i] == 0:
                cubes[i] += 0.42**3
            cubes[parents[i]] += cubes[i]
        radii = np.minimum(np.cbrt(cubes), 2.6)
        for i in range(1, len(nodes)):
            start, end = nodes[parents[i]], nodes[i]
            length = np.linalg.norm(end - start)
            count = 1 + 3 * int(length)
            t = generator.random((count, 1))
            points = start + (end - start) * t
            # a vessel is as wide as it is: points fill its cylinder
            points = points + generator.normal(0, radii[i] / 2, (count, 3))
            volume = np.full((count, 1), np.pi * radii[i] ** 2 * length / count)
            out.append(np.hstack([points, volume, np.full((count, 1), side)]))
    return np.concatenate(out).astype(np.float32)


# --- shoulder girdle ------------------------------------------------------------------


def _prepare_girdle(data_dir: Path | None) -> dict[str, np.ndarray]:
    """Bones of chest1's girdle: bone mass of each labelled voxel, as points.

    Voxels are split and jittered, so that their lattice does not show on the film.  The
    left scapula is mirrored and laid over the right one, so that their joints meet.
    """
    volume, spacing = anatomy.read_volume("chest1", data_dir)
    labels, _ = anatomy.read_volume("chest1-labels", data_dir)
    _, bone = decompose(torch.from_numpy(np.clip(volume, -1000, 2000)))
    density = _sharpen(bone.numpy(), spacing)
    generator = np.random.default_rng(5)
    out: dict[str, np.ndarray] = {}
    boxes = ndi.find_objects(labels.astype(np.uint8))
    for name, label in _BONES.items():
        box = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in boxes[label - 1])
        inside = ndi.binary_dilation(labels[box] == label)
        mass = density[box] * inside * spacing.prod()
        places = np.argwhere(mass > 0.02)
        masses = mass[tuple(places.T)]
        voxels = places + [s.start for s in box]
        parts = []
        for shift in (-0.25, 0.25):
            jitter = generator.uniform(-0.5, 0.5, voxels.shape) * (1, 1, 0.5)
            centre = (voxels + 0.5 + np.array([0, 0, shift]) + jitter) * spacing
            parts.append(np.column_stack([centre, masses / 2]))
        out[name] = np.concatenate(parts).astype(np.float32)
    left = out["left scapula"]
    left[:, 0] *= -1
    left[:, :3] += _middle(out["scapula"]) - _middle(left)
    return out


def _middle(points: np.ndarray) -> np.ndarray:
    """Centre of mass of points ``(N, 4)``."""
    return np.asarray(np.average(points[:, :3], axis=0, weights=points[:, 3]))
