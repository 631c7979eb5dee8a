"""A brain that can be deformed: tissues, ventricles, dura, vessels of the MNI template.

The template is the mean of 152 brains: its cortex is a blur of theirs.  Here it becomes
the one brain that it was blurred from, or rather any number of them.  A *cortical
potential*, white matter minus CSF, falls from the white matter through the cortex to the
sulci; its level sets are the two surfaces of the cortex.  Noise along the surface of the
brain, added to the potential, moves gyri and sulci, atrophy lowers it, and smooth
deformation on two scales does the rest.  So every patient has a cortex of their own, and
grey matter always lies between white matter and CSF.

:func:`load_template` prepares what is measured once; :func:`random_patient` draws a
person; :func:`pose` gives the pull map from the person to the template; and
:func:`sample_tissues` the tissues at any points.

Coordinates of the template are MNI mm; of a patient mm from the middle of the BraTS
field of view's brain.  Both grow to the right, to the front and up.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage as ndi
from torch import Tensor

from medimg_utils.io import atomic_path
from medimg_utils.physics import anatomy
from medimg_utils.physics.deform import rotation, sample
from medimg_utils.physics.mr import smooth_field
from medimg_utils.settings import get_settings

#: Version of the prepared file: raise it when this module changes what it writes.
VERSION = 3
#: MNI mm of the middle of the template brain, and of its voxel (0, 0, 0).
CENTRE = torch.tensor([0.0, -22.0, 9.7])
_ORIGIN = np.array([-80, -115, -72])
_SHAPE = (161, 197, 163)
#: Spacing of what is smooth: directions, locations, deformations, growth (mm).
COARSE = 2.5
#: Box of a patient in mm from the middle of the brain: low and high corner.
LOW, HIGH = torch.tensor([-82.5, -97.5, -82.5]), torch.tensor([82.5, 102.5, 82.5])

#: What is stored at 1 mm, and its largest absolute value.
CHANNELS = {
    "potential": 1.27,  # white matter − CSF, -1 to 1; lowered in the folds of the cortex
    "deep": 1.27,  # 1 in the deep nuclei and the brainstem, which have no cortex
    "deep white": 1.27,  # share of white matter there
    "deep csf": 1.27,  # share of CSF there
    "surface": 25.4,  # mm to the outer surface of the brain, positive inside
    "hull": 63.5,  # the same of the brain with its large clefts closed
    "ventricle": 25.4,  # mm to the wall of the ventricles, positive inside them
    "cerebellum": 1.27,  # 1 in the cerebellum
    "dura": 25.4,  # mm to falx and tentorium
    "sinus": 25.4,  # mm to the wall of a venous sinus, negative inside
    "artery": 25.4,  # mm to the wall of a large artery, negative inside
    "plexus": 1.27,  # 1 in the choroid plexus
    "iron": 1.27,  # 1 in nuclei that are rich in iron
    "hemisphere": 12.7,  # mm from the midline, positive on the right
}
#: Names of the location labels; 0 is outside.
LOCATIONS = (
    "outside",
    "frontal lobe",
    "parietal lobe",
    "temporal lobe",
    "occipital lobe",
    "insula",
    "deep nuclei",
    "corpus callosum",
    "brainstem",
    "cerebellum",
)


@dataclass(frozen=True)
class Template:
    """The prepared template.

    Attributes:
        fine: ``(C, X, Y, Z)`` on a grid of 1 mm, one channel for each of
            :data:`CHANNELS`.
        origin: ``(3,)`` MNI mm of voxel (0, 0, 0) of both grids.
        directions: ``(6, A, B, C)`` on a grid of :data:`COARSE`: normal and widening.
        locations: ``(A, B, C)`` indices into :data:`LOCATIONS` on that grid.
    """

    fine: Tensor
    origin: Tensor
    directions: Tensor
    locations: Tensor

    def at(self, points: Tensor, *names: str) -> dict[str, Tensor]:
        """Channels at MNI points ``(..., 3)``; the value of the border outside."""
        index = [list(CHANNELS).index(name) for name in names]
        values = sample(self.fine[index], points, self.origin, 1.0)
        return dict(zip(names, values, strict=True))

    def locate(self, points: Tensor) -> Tensor:
        """Index into :data:`LOCATIONS` of the nearest voxel, for points ``(..., 3)``."""
        index = ((points - self.origin) / COARSE).round().long()
        top = torch.tensor(self.locations.shape) - 1
        x, y, z = torch.minimum(index.clamp(min=0), top).unbind(-1)
        return self.locations[x, y, z]


def prepare(data_dir: Path | None = None) -> None:
    """Fetch and prepare the template, unless it is in the cache: a minute, 1.5 GiB.

    Raises:
        AnatomyError: the template cannot be fetched.
    """
    file = _prepared_file(data_dir)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = _prepare(data_dir)
        with atomic_path(file) as part, part.open("wb") as stream:
            np.savez_compressed(stream, allow_pickle=False, **arrays)


@lru_cache(maxsize=1)
def load_template(data_dir: Path | None = None) -> Template:
    """The prepared template; see :func:`prepare` for errors and cost."""
    prepare(data_dir)
    with np.load(_prepared_file(data_dir)) as stored:
        fine = torch.from_numpy(stored["fine"]).float()
        directions = torch.from_numpy(stored["directions"]).float()
        locations = torch.from_numpy(stored["locations"]).long()
    fine *= (torch.tensor(list(CHANNELS.values())) / 127)[:, None, None, None]
    origin = torch.from_numpy(_ORIGIN).float()
    return Template(fine, origin, directions, locations)


def _prepared_file(data_dir: Path | None) -> Path:
    root = (data_dir or get_settings().data) / "anatomy" / "prepared"
    return root / f"brain-v{VERSION}.npz"


# --- from the MNI maps to the template ------------------------------------------------

Volume = NDArray[np.float32]
Mask = NDArray[np.bool_]

#: Grey values of the T1 template: CSF, and cortex.
_CSF_T1, _CORTEX_T1 = 80.0, 166.0
#: Free edge of the falx and its base, (y, z) in MNI mm; outside of it lies the falx.
_FALX = [
    (75, -18),
    (64, -10),
    (55, 15),
    (33, 40),
    (5, 50),
    (-20, 44),
    (-40, 16),
    (-88, -12),
    (-125, -12),
    (-125, 110),
    (100, 110),
    (100, -18),
]
Line = list[tuple[float, float, float]]
#: Axes of large veins and arteries: points in MNI mm (x is mirrored) and radius.
_VEINS: list[tuple[Line, float]] = [
    ([(2, 2, 14), (2, -15, 18), (2, -30, 14), (0, -40, 6)], 1.3),  # internal cerebral
    ([(12, -12, -12), (15, -25, -8), (8, -36, 0), (0, -40, 5)], 1.2),  # basal vein
    ([(0, -38, 5), (0, -46, 6), (0, -66, -4), (0, -90, -11)], 1.9),  # straight sinus
]
_ARTERIES: list[tuple[Line, float]] = [
    ([(11, 4, -26), (13, 5, -19), (14, 4, -16)], 1.8),  # internal carotid
    ([(14, 4, -16), (26, 6, -18), (38, 6, -14), (43, 0, -6)], 1.1),  # middle cerebral
    ([(14, 4, -16), (4, 14, -13), (1.5, 28, -10), (1.5, 39, 4), (1.5, 30, 22)], 1.0),
    ([(14, 4, -17), (12, -8, -17), (8, -16, -17), (0, -16, -18)], 0.8),  # communicating
    ([(0, -16, -18), (0, -20, -28), (0, -22, -38), (5, -26, -52)], 1.6),  # basilar
    ([(0, -16, -18), (10, -18, -17), (20, -26, -12), (22, -38, -6)], 1.0),  # posterior
]
#: Choroid plexus of a lateral ventricle, and of the fourth.
_PLEXUS: list[Line] = [
    [(6, -5, 15), (12, -20, 19), (21, -36, 18), (26, -42, 10), (27, -34, -2)],
    [(0, -47, -34), (6, -46, -38)],
]
#: Pallidum, nigra, red and dentate nucleus: centre and half axes in MNI mm.
_IRON = [
    ((19, -5, -1), (5, 8, 5)),
    ((10, -17, -12), (4, 4, 3)),
    ((5, -20, -8), (3, 3, 3)),
    ((14, -58, -35), (6, 7, 4)),
]
#: From MNI mm to voxels of the masks on the SRI24 grid: scale and offset, by comparing
#: the middles of ventricles, thalamus and brain.
_SRI_SCALE = np.array([0.955, 0.92, 0.93])
_SRI_MIDDLE = np.array([120.2, 103.5, 76.3])


def _prepare(data_dir: Path | None) -> dict[str, np.ndarray]:
    crop = tuple(
        slice(o - c, o - c + n)
        for o, c, n in zip(_ORIGIN, (-98, -134, -72), _SHAPE, strict=True)
    )
    t1, grey, white = (
        anatomy.read_volume(f"mni-{name}", data_dir)[0][crop]
        for name in ("t1", "gm", "wm")
    )
    inside = _brain_mask(t1 > 0)
    grey, white = grey / 255, white / 255
    # the maps know too little CSF: what is dark on T1 is CSF too
    dark = np.clip((_CORTEX_T1 - t1) / (_CORTEX_T1 - _CSF_T1), 0, 1)
    csf = np.maximum(np.clip(1 - grey - white, 0, 1), dark)
    csf[~inside] = 1
    white = white * (1 - csf) / np.maximum(grey + white, 1e-3)

    axes = [
        np.arange(n, dtype=np.float32) + o for n, o in zip(_SHAPE, _ORIGIN, strict=True)
    ]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    surface = _signed_distance(inside)
    hull = ndi.gaussian_filter(_signed_distance(_close(inside, 9)), 2)
    parts = _parts(csf, white, inside, (x, y, z))
    cerebellum = ndi.gaussian_filter((parts == 1).astype(np.float32), 1)
    deep = _deep(parts, csf, (x, y, z))
    ventricles = _ventricles(csf, hull, (x, y, z))
    ventricle = ndi.gaussian_filter(_signed_distance(ventricles), 0.7)

    potential = white - csf
    # Between two banks of a sulcus the template shows cortex only: it is too thick.
    # What lies more than a cortex's thickness from white matter holds CSF.
    away = ndi.distance_transform_edt(potential < 0.3)
    away = ndi.gaussian_filter(away.astype(np.float32), 0.6)
    fold = 0.3 * np.clip(away - 2.6, 0, 3) * np.clip((hull - 4) / 4, 0, 1)
    potential = potential - fold * (1 - cerebellum) * (1 - deep)

    falx = _falx((x, y, z), inside)
    tentorium = _tentorium(parts, (x, y, z))
    dura = ndi.distance_transform_edt(~(falx | tentorium))
    # the falx lies on the plane x = 0 exactly
    dura = np.minimum(dura, ndi.distance_transform_edt(~tentorium))
    sinus = _sinuses(falx, tentorium, surface, (x, y, z))
    artery = _tubes(_ARTERIES, (x, y, z))
    plexus = np.zeros(_SHAPE, np.float32)
    for line in _PLEXUS:
        near = _tubes([(line, 0.0)], (x, y, z))
        plexus = np.maximum(plexus, np.clip(1.6 - near / 1.7, 0, 1))
    plexus *= np.clip(ventricle + 1.5, 0, 1)
    iron = np.zeros(_SHAPE, np.float32)
    for (a, b, c), (p, q, r) in _IRON:
        squared = ((np.abs(x) - a) / p) ** 2 + ((y - b) / q) ** 2 + ((z - c) / r) ** 2
        iron = np.maximum(iron, np.clip(1.5 - squared, 0, 1))

    channels = {
        "potential": potential,
        "deep": deep,
        "deep white": white,
        "deep csf": csf,
        "surface": ndi.gaussian_filter(surface, 0.5),
        "hull": hull,
        "ventricle": ventricle,
        "cerebellum": cerebellum,
        "dura": dura,
        "sinus": sinus,
        "artery": artery,
        "plexus": plexus,
        "iron": iron,
        "hemisphere": np.broadcast_to(x, _SHAPE),
    }
    fine = np.stack(
        [
            np.clip(np.round(channels[name] * (127 / top)), -127, 127).astype(np.int8)
            for name, top in CHANNELS.items()
        ]
    )
    normal = -np.stack(np.gradient(ndi.gaussian_filter(hull, 3)))
    normal /= np.maximum(np.sqrt((normal**2).sum(0)), 0.3)
    smooth = ndi.gaussian_filter(ventricle, 2)
    wall = -np.stack(np.gradient(smooth))
    wall /= np.maximum(np.sqrt((wall**2).sum(0)), 0.5)
    widening = wall * np.exp(-np.clip(-ventricle, 0, None) / 14)
    widening = np.stack([ndi.gaussian_filter(w, 1.5) for w in widening])
    every = [np.arange(0, n, COARSE) for n in _SHAPE]
    grid = np.stack(np.meshgrid(*every, indexing="ij"))
    coarse = [
        ndi.map_coordinates(d, grid, order=1, mode="nearest")
        for d in (*normal, *widening)
    ]
    return {
        "fine": fine,
        "directions": np.stack(coarse).astype(np.float16),
        "locations": _locations(grid, parts, inside, data_dir),
    }


def _brain_mask(found: Mask) -> Mask:
    """The template's mask without loose ends, with the cisterns that it leaves out."""
    opened = ndi.binary_opening(
        np.pad(found, 4), ndi.generate_binary_structure(3, 1), 3
    )
    labels, _ = ndi.label(opened)
    body = labels == 1 + np.bincount(labels.ravel())[1:].argmax()
    inside = ndi.binary_dilation(body, iterations=2)[4:-4, 4:-4, 4:-4] & found
    for k in range(inside.shape[2]):
        inside[:, :, k] = ndi.binary_fill_holes(inside[:, :, k])
    return inside


def _signed_distance(mask: Mask) -> Volume:
    """Distance in voxels to the boundary of a mask, positive inside."""
    inside, outside = (ndi.distance_transform_edt(m) for m in (mask, ~mask))
    return np.where(mask, inside - 0.5, 0.5 - outside).astype(np.float32)


def _close(mask: Mask, radius: int) -> Mask:
    """Fill clefts narrower than twice the radius."""
    padded = np.pad(mask, radius + 1)
    grown = ndi.distance_transform_edt(~padded) <= radius
    closed = ndi.distance_transform_edt(grown) > radius
    inner = slice(radius + 1, -radius - 1)
    return closed[inner, inner, inner] | mask


def _ellipsoid(
    axes: tuple[Volume, ...], centre: tuple[float, ...], half: tuple[float, ...]
) -> Volume:
    """Squared distance from the middle, 1 on the surface."""
    parts = zip(axes, centre, half, strict=True)
    return sum(((a - c) / h) ** 2 for a, c, h in parts)  # type: ignore[return-value]


def _parts(
    csf: Volume, white: Volume, inside: Mask, axes: tuple[Volume, ...]
) -> NDArray[np.int16]:
    """1 cerebellum, 2 cerebrum, 3 brainstem, by a watershed along the CSF between."""
    x, y, z = axes
    markers = np.zeros(csf.shape, np.int16)
    for side in (-1, 1):
        markers[_ellipsoid(axes, (side * 25, -65, -42), (12, 12, 8)) < 1] = 1
        markers[_ellipsoid(axes, (side * 30, -85, 0), (8, 8, 4)) < 1] = 2
        markers[_ellipsoid(axes, (side * 45, -60, -8), (6, 8, 3)) < 1] = 2
    markers[_ellipsoid(axes, (0, -55, -20), (5, 10, 8)) < 1] = 1
    markers[_ellipsoid(axes, (0, -30, -38), (8, 6, 16)) < 1] = 3
    markers[_ellipsoid(axes, (0, -22, -12), (6, 5, 6)) < 1] = 3
    compact = white > 0.8
    markers[compact & (z > 12)] = 2
    markers[compact & (np.abs(x) > 24) & (y > -38) & (z > -32)] = 2
    cost = ndi.gaussian_filter(csf, 0.6) + 0.35 * (1 - white)
    cost = (np.clip(cost / 1.4, 0, 1) * 255).astype(np.uint8)
    parts = ndi.watershed_ift(cost, markers)
    parts[~inside] = 0
    # CSF in front of the brainstem is on the way to nowhere and joins any part
    parts[(parts == 1) & ((y > -34) | (csf > 0.6) & (np.abs(x) < 6))] = 3
    return parts


def _deep(parts: NDArray[np.int16], csf: Volume, axes: tuple[Volume, ...]) -> Volume:
    """1 in basal ganglia, thalamus and brainstem, falling to 0 over a few mm."""
    x, y, z = axes
    nuclei = np.clip(2.6 - 2 * _ellipsoid(axes, (0, -4, 4), (36, 32, 17)), 0, 1)
    stem = (parts == 3) & (np.abs(x) < 22) & (y > -50) & (y < -6) & (z < 4)
    stem = ndi.binary_opening(stem & (csf < 0.4), iterations=2)
    stem_soft = ndi.gaussian_filter(stem.astype(np.float32), 1.5)
    return np.maximum(nuclei, stem_soft).astype(np.float32)


def _ventricles(csf: Volume, hull: Volume, axes: tuple[Volume, ...]) -> Mask:
    """CSF that hangs together with the lateral, third and fourth ventricle."""
    x, y, z = axes
    box = _ellipsoid(axes, (0, -18, 12), (46, 58, 34)) < 1
    box |= _ellipsoid(axes, (0, -42, -30), (14, 12, 18)) < 1
    # the cisterns behind the midbrain and below the brain are no ventricles
    cistern = (np.abs(x) < 26) & (y < -33) & (z > -22) & (z < 13)
    cistern &= ~((np.abs(x) > 13) & (z > 2))
    cistern |= (np.abs(x) < 9) & (y < -33) & (z >= 13) & (z < 30)
    below = (z < -8) & (y > -32)
    fluid = (csf > 0.5) & box & ~cistern & ~below & (hull > 14)
    labels, count = ndi.label(fluid)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.isin(labels, np.flatnonzero(sizes > 150))


def _falx(axes: tuple[Volume, ...], inside: Mask) -> Mask:
    """The sheet in the middle plane from the outer surface to its free edge."""
    from matplotlib.path import Path as Polygon

    x, y, z = axes
    plane = np.stack(np.meshgrid(y.ravel(), z.ravel(), indexing="ij"), -1)
    sheet = Polygon(_FALX).contains_points(plane.reshape(-1, 2))
    sheet = sheet.reshape(plane.shape[:2])
    # the surface dips between the hemispheres: bridge the dip
    near = ndi.binary_dilation(inside.any(0), iterations=5)
    return (np.abs(x) < 0.5) & (sheet & near)[None]


def _tentorium(parts: NDArray[np.int16], axes: tuple[Volume, ...]) -> Mask:
    """Where cerebellum and cerebrum touch, but for the notch of the brainstem."""
    x, y, z = axes
    below = ndi.binary_dilation(parts == 1)
    touching = below & (parts == 2)
    lateral = np.sqrt((x / 20) ** 2 + ((y + 30) / 22) ** 2)
    return touching & (z < 8) & (y < -28) & (lateral > 1)


def _tubes(
    tubes: list[tuple[Line, float]],
    axes: tuple[Volume, ...],
) -> Volume:
    """Distance in mm to the walls of tubes (axis and radius), on both sides."""
    x, y, z = axes
    near = np.full(np.broadcast_shapes(x.shape, y.shape, z.shape), 1e3, np.float32)
    for line, radius in tubes:
        for start, end in itertools.pairwise(line):
            a, b = np.array(start, np.float32), np.array(end, np.float32)
            along = b - a
            length = float(along @ along)
            p = (np.abs(x) - a[0], y - a[1], z - a[2])
            share = sum(q * k for q, k in zip(p, along, strict=True)) / length
            share = np.clip(share, 0, 1)
            gap = [q - share * k for q, k in zip(p, along, strict=True)]
            near = np.minimum(near, np.sqrt(sum(g**2 for g in gap)) - radius)
    return near


def _sinuses(
    falx: Mask, tentorium: Mask, surface: Volume, axes: tuple[Volume, ...]
) -> Volume:
    """Distance to the walls of the dural sinuses and the deep veins, negative inside.

    The superior sagittal sinus runs where the falx meets the skull, the transverse
    sinuses where the tentorium does; the deep veins are drawn.
    """
    _, y, z = axes
    rim = np.abs(surface) < 1.5
    # the sinus lies on the brain, in the dura
    outer = (surface < -0.5) & (surface > -3.5)
    sagittal = falx & outer & ((z > 5) | ((y < -60) & (z > -12)))
    transverse = tentorium & rim & (y < -42)
    transverse |= ndi.binary_dilation(tentorium, iterations=2) & rim & (y < -42)
    near = np.minimum(
        ndi.distance_transform_edt(~sagittal) - 3.2,
        ndi.distance_transform_edt(~transverse) - 2.2,
    )
    return np.minimum(near, _tubes(_VEINS, axes)).astype(np.float32)


def _locations(
    grid: NDArray[np.float64],
    parts: NDArray[np.int16],
    inside: Mask,
    data_dir: Path | None,
) -> NDArray[np.uint8]:
    """Indices into :data:`LOCATIONS` at voxels ``grid`` ``(3, A, B, C)``."""
    folder = anatomy.path("brain-lobes", data_dir)
    mni = grid + _ORIGIN[:, None, None, None]
    middle = CENTRE.numpy().astype(float)
    voxels = np.stack(
        [(mni[i] - middle[i]) * _SRI_SCALE[i] + _SRI_MIDDLE[i] for i in range(len(mni))]
    )
    found = np.zeros(grid.shape[1:], np.uint8)
    masks = (
        ("frontal_lobe", 1),
        ("parietal", 2),
        ("occipital", 4),
        ("temporal", 3),
        ("insula", 5),
        ("internal_capsule", 6),
        ("thalamus", 6),
        ("corpus_callosum", 7),
        ("brainstem", 8),
    )
    for name, label in masks:
        image = nib.as_closest_canonical(
            nib.Nifti1Image.from_filename(folder / f"{name}.nii.gz")
        )
        mask = np.asarray(image.dataobj, np.float32)
        found[ndi.map_coordinates(mask, voxels, order=1) > 0.5] = label
    index = tuple(grid.astype(int))
    found[parts[index] == 1] = 9
    found[(found == 9) & (parts[index] == 2)] = 0
    # what no mask names belongs to the nearest that is named
    known = found > 0
    nearest = ndi.distance_transform_edt(
        ~known, return_distances=False, return_indices=True
    )
    found = found[tuple(nearest)]
    found[~inside[index]] = 0
    return found


# --- patients -------------------------------------------------------------------------


@dataclass(frozen=True)
class Patient:
    """A person and what makes this brain differ from the template.

    Attributes:
        age: in years.
        sex: ``"F"`` or ``"M"``.
        scale: of the template along each axis.
        degrees: rotation about each axis; what registration to an atlas leaves.
        widening: mm by which the walls of the ventricles are moved outward.
        atrophy: added to the level at which cortex ends and CSF begins.
        folding: strength of the noise that moves gyri and sulci.
        lesions: load of age-related white-matter lesions, 0 to 1.
        seed: of the shape.
    """

    age: float
    sex: str
    scale: tuple[float, float, float]
    degrees: tuple[float, float, float]
    widening: float
    atrophy: float
    folding: float
    lesions: float
    seed: int


def random_patient(age: float, generator: np.random.Generator) -> Patient:
    """Draw the shape of a brain for a person of ``age`` years.

    Ventricles and sulci widen with age, white-matter lesions become more frequent; the
    scatter between people is larger than the trend.
    """
    size = np.clip(generator.normal(0.933, 0.026), 0.87, 0.99)
    old = max(age - 45, 0) / 30
    return Patient(
        age=age,
        sex=str(generator.choice(["F", "M"])),
        scale=tuple(float(s) for s in size * generator.normal(1, 0.014, 3)),  # type: ignore[arg-type]
        degrees=tuple(float(d) for d in generator.normal(0, (3.0, 1.5, 1.5))),  # type: ignore[arg-type]
        widening=float(np.clip(generator.normal(-0.4 + 1.1 * old, 0.9), -1.2, 4)),
        atrophy=float(np.clip(generator.normal(-0.02 + 0.06 * old, 0.05), -0.14, 0.2)),
        folding=float(generator.uniform(0.15, 0.3)),
        lesions=float(generator.beta(0.5 + old, 4)),
        seed=int(generator.integers(2**62)),
    )


def coarse_points() -> Tensor:
    """Grid of :data:`COARSE` over the box of a patient, ``(A, B, C, 3)`` in mm."""
    axes = [
        torch.arange(float(low), float(high) + COARSE / 2, COARSE)
        for low, high in zip(LOW, HIGH, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)


@dataclass(frozen=True)
class Pose:
    """Where each point of a patient lies in the template.

    Attributes:
        pull: ``(3, A, B, C)`` MNI mm on the grid of :func:`coarse_points`.
        folds: ``(A, B, C)`` what is added to the cortical potential there.
    """

    pull: Tensor
    folds: Tensor

    def moved(self, displacement: Tensor) -> Pose:
        """The pose after tissue moved: what is at ``p`` came from ``p - displacement``.

        Args:
            displacement: ``(3, A, B, C)`` in mm on the coarse grid.
        """
        points = coarse_points()
        fields = torch.cat([self.pull, self.folds[None]])
        fields[:3] -= points.movedim(-1, 0)
        came = points - displacement.movedim(0, -1)
        fields = sample(fields, came, LOW, COARSE)
        fields[:3] += came.movedim(-1, 0)
        return Pose(fields[:3], fields[3])


def pose(template: Template, patient: Patient) -> Pose:
    """The healthy brain of a patient: size, rotation, ventricles, bends, folds."""
    generator = torch.Generator().manual_seed(patient.seed)
    points = coarse_points()
    shape = points.shape[:3]
    matrix = torch.diag(1 / torch.tensor(patient.scale)) @ rotation(patient.degrees).T
    mni = points @ matrix.T + CENTRE
    # the skull is smooth: what bends on a small scale lies below it
    free = (template.at(mni, "hull")["hull"][..., None] / 12).clamp(0.15, 1)
    for spans, bend in (((4, 5, 4), 3.0), ((11, 13, 11), 1.9 * free)):
        moved = [smooth_field(shape, spans, generator) for _ in range(3)]
        mni = mni + torch.stack(moved, -1) * bend
    directions = sample(template.directions, mni, template.origin, COARSE)
    normal, widening = directions[:3].movedim(0, -1), directions[3:].movedim(0, -1)
    sides = smooth_field(shape, (3, 3, 3), generator)[..., None]
    mni = mni - widening * (patient.widening * (1 + 0.25 * sides))

    # gyri: noise on the surface, continued inward along the normal
    hull = template.at(mni, "hull")["hull"]
    onto = mni + normal * (0.8 * hull.clamp(-5, 25))[..., None]
    noise = smooth_field(shape, (30, 36, 30), generator)
    noise = noise - F.avg_pool3d(noise[None, None], 5, 1, 2)[0, 0]
    noise = noise / noise.std()
    onto = (onto - CENTRE) @ torch.linalg.inv(matrix).T
    noise = sample(noise[None], onto, LOW, COARSE)[0]
    shallow = torch.exp(-((hull.clamp(min=0) / 14) ** 2))
    widespread = smooth_field(shape, (6, 7, 6), generator) * 0.05
    folds = patient.folding * shallow * (noise - 0.2) + 0.1 * shallow + widespread
    folds = folds - patient.atrophy * torch.exp(-((hull.clamp(min=0) / 25) ** 2))
    return Pose(mni.movedim(-1, 0).contiguous(), folds)


# --- tissues --------------------------------------------------------------------------


def refine(coarse: Tensor, axes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Fields of the coarse grid on a fine one, by cubic convolution (Keys 1981).

    Args:
        coarse: ``(C, A, B, C)`` on the grid of :func:`coarse_points`.
        axes: coordinates of the fine grid along x, y and z in mm.

    Returns:
        Tensor ``(C, X, Y, Z)``.
    """
    for dim, (axis, low) in enumerate(zip(axes, LOW, strict=True), start=1):
        weights = _cubic((axis - low) / COARSE, coarse.shape[dim])
        coarse = torch.movedim(
            torch.tensordot(weights, coarse, dims=([1], [dim])), 0, dim
        )
    return coarse.contiguous()


def _cubic(positions: Tensor, size: int) -> Tensor:
    """Weights ``(N, size)`` of samples 0 ... size - 1 at ``positions``; rows sum to 1."""
    start = positions.floor().clamp(0, size - 2)
    t = (positions - start).clamp(0, 1)
    weights = torch.stack(
        [
            -0.5 * t**3 + t**2 - 0.5 * t,
            1.5 * t**3 - 2.5 * t**2 + 1,
            -1.5 * t**3 + 2 * t**2 + 0.5 * t,
            0.5 * t**3 - 0.5 * t**2,
        ],
        dim=1,
    )
    columns = (start.long()[:, None] + torch.arange(-1, 3)).clamp(0, size - 1)
    matrix = torch.zeros(len(positions), size)
    return matrix.scatter_add_(1, columns, weights)


@dataclass(frozen=True)
class Tissues:
    """Shares of tissue at some points; ``csf + grey + white`` is 1.

    Attributes:
        csf, grey, white: shares, ``(...)``.
        at: the channels of the template at these points, by name.
    """

    csf: Tensor
    grey: Tensor
    white: Tensor
    at: dict[str, Tensor]


#: Levels of the potential at the two surfaces of the cortex.
_WHITE_LEVEL, _CSF_LEVEL = 0.46, -0.27


def sample_tissues(
    template: Template, mni: Tensor, folds: Tensor, spacing: float
) -> Tissues:
    """Tissues at template points.

    Args:
        mni: ``(..., 3)`` in MNI mm.
        folds: ``(...)`` noise of the cortical potential.
        spacing: of the points in mm: how much of a boundary a voxel averages over.
    """
    at = template.at(mni, *CHANNELS)
    cortex = at["potential"] + folds * (1 - 0.6 * at["cerebellum"])
    # The potential changes by 0.25 a mm: its standard deviation in a voxel.  A sulcus is
    # thinner than a large voxel; a wider flank than that of 2 mm would fill it up.
    width = 0.045 * min(max(spacing, 0.8), 2.0)
    white = torch.sigmoid((cortex - _WHITE_LEVEL) / width)
    csf = torch.sigmoid((_CSF_LEVEL - cortex) / width)
    deep = at["deep"].clamp(0, 1)
    white = white + deep * (at["deep white"].clamp(0, 1) - white)
    csf = csf + deep * (torch.sigmoid((at["deep csf"] - 0.5) / 0.1) - csf)
    # the walls of the ventricles are sharp
    fluid = torch.sigmoid(at["ventricle"] / (0.4 * max(spacing, 0.8)))
    csf = torch.maximum(csf, fluid)
    white = torch.minimum(white, 1 - csf)
    return Tissues(csf, (1 - csf - white).clamp(min=0), white, at)
