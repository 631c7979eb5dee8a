"""From a painted knee to the three series of an exam: sagittal, coronal and axial.

Each series has its own sequence, field of view, slices and accidents; the patient's shape
and the scanner are those of the exam.  Slices are averages of thin ones (partial volume),
sampled in the patient, whose smooth deformation leads back to the prepared anatomy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medimg_utils.knee.findings import Canvas
from medimg_utils.knee.texture import load_textures
from medimg_utils.knee.voxels import GRID, Code
from medimg_utils.physics import mr
from medimg_utils.physics.deform import Deformation, random_deformation, rotation

PLANES = ("axial", "coronal", "sagittal")
#: Rows and columns of every slice.
SIZE = 256
#: Slices of the real series at the 0, 5, 25, 50, 75, 95 and 100 % quantile; ends and
#: medians are those of the release, what lies between is our choice.
SLICES = {
    "sagittal": (17, 22, 26, 29, 34, 42, 52),
    "coronal": (17, 21, 25, 29, 34, 43, 61),
    "axial": (17, 24, 28, 32, 37, 45, 61),
}
_LEVELS = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
#: Thin slices that one slice is the mean of.
_THIN = 5
#: Width of each of the two flanks of a slice's profile, relative to its nominal thickness:
#: a pulse of finite length excites no box.  Our choice.
_FLANK = 0.5
#: Lattice per slice on which the deformation is evaluated.
_LATTICE = 17


@dataclass(frozen=True)
class Patient:
    """Who is scanned.

    Attributes:
        anatomy, habitus: of the prepared knee.
        side: ``"left"`` or ``"right"``.
        age: in years.
        deformation: from the patient to the prepared knee, mm.
    """

    anatomy: str
    habitus: str
    side: str
    age: float
    deformation: Deformation


@dataclass(frozen=True)
class Scanner:
    """What the series of an exam have in common.

    Attributes:
        field: in tesla.
        noise: standard deviation relative to the signal of muscle.
        fat_suppression: share of the fat's signal that is suppressed.
        transfer: share of muscle's signal that a fast spin echo loses to magnetisation
            transfer, see :data:`_TRANSFER`.
        coils: ``(N, 3)`` centres of the receive loops in mm.
        correction: how much of the coils' inhomogeneity the scanner takes out, 0 to 1.
        flow: share of the signal of blood that slow flow in veins leaves.
        relaxation: factors on PD, T1 and T2 of each tissue, of this patient and
            scanner.
    """

    field: float
    noise: float
    fat_suppression: float
    transfer: float
    coils: Tensor
    correction: float
    flow: float
    relaxation: Mapping[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Series:
    """A rendered series.

    Attributes:
        volume: ``(S, 256, 256)`` uint8.
        lesions: for each diagnosis ``(S, 256, 256)`` bool; absent where there is none.
        spacing: between slices, and of the pixels, in mm.
        accidents: of this series, e.g. ``"motion"``.
    """

    volume: NDArray[np.uint8]
    lesions: dict[str, NDArray[np.bool_]]
    spacing: tuple[float, float]
    accidents: tuple[str, ...]


def random_patient(
    anatomies: tuple[str, ...], habitus: tuple[str, ...], generator: np.random.Generator
) -> Patient:
    """Anatomy, side, age, size and shape of a patient."""
    size = generator.normal(1.0, 0.05)
    scale = [
        float(np.clip(size * generator.normal(1, 0.035), 0.86, 1.14)) for _ in range(3)
    ]
    low = torch.tensor(GRID.low)
    high = low + (torch.tensor(GRID.shape) - 1) * GRID.spacing
    # from the size of a meniscus to that of a bone
    knot = float(generator.uniform(18, 40))
    deformation = random_deformation(
        low,
        high,
        scale=(scale[0], scale[1], scale[2]),
        degrees=(
            float(generator.normal(0, 3)),
            float(generator.normal(0, 2)),
            float(generator.normal(0, 3)),
        ),
        bend_mm=knot * float(generator.uniform(0.03, 0.11)),
        knot_mm=knot,
        generator=_torch_generator(generator),
    )
    return Patient(
        anatomy=str(generator.choice(anatomies)),
        habitus=str(generator.choice(habitus)),
        side=str(generator.choice(["left", "right"])),
        age=float(np.clip(generator.normal(40, 16), 14, 84)),
        deformation=deformation,
    )


def random_scanner(generator: np.random.Generator) -> Scanner:
    """A scanner of the release: 57 % at 3 T."""
    field = 3.0 if generator.random() < 0.566 else 1.5
    count = 8
    angle = 2 * math.pi * (torch.arange(count) + generator.random()) / count
    ring = float(generator.uniform(78, 92))
    z = torch.tensor([12.0, -12.0]).repeat(count // 2) + float(generator.normal(2, 6))
    coils = torch.stack([ring * angle.cos(), ring * angle.sin() - 4, z], dim=1)
    relaxation = {
        name: tuple(float(v) for v in np.exp(generator.normal(0, (0.03, 0.06, 0.08))))
        for name in mr.TISSUES
    }
    return Scanner(
        field=field,
        noise=float(generator.uniform(0.02, 0.05) * (1.0 if field == 3.0 else 1.3)),
        fat_suppression=float(generator.uniform(0.93, 0.995)),
        transfer=float(generator.uniform(0.1, 0.4)),
        coils=coils,
        correction=float(generator.uniform(0.1, 0.85)),
        flow=float(generator.uniform(0.1, 0.55)),
        relaxation=relaxation,  # type: ignore[arg-type]
    )


def _torch_generator(generator: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(generator.integers(2**62)))


def random_slices(plane: str, generator: np.random.Generator) -> int:
    """Number of slices, distributed as in the release and independent of all else."""
    quantiles = SLICES[plane]
    return round(float(np.interp(generator.random(), _LEVELS, quantiles)))


def random_sequence(
    plane: str, scanner: Scanner, generator: np.random.Generator
) -> mr.Sequence:
    """Times of one series: sagittal T2 and axial PD fat-suppressed, coronal T1."""
    uniform = generator.uniform
    if plane == "coronal":
        return mr.Sequence(tr=float(uniform(500, 800)), te=float(uniform(9, 18)))
    te = float(uniform(40, 66) if plane == "sagittal" else uniform(24, 40))
    tr = float(uniform(3200, 5200) if plane == "sagittal" else uniform(2600, 4200))
    return mr.Sequence(
        tr=tr,
        te=te,
        train=float(uniform(60, 110)),
        fat_suppression=scanner.fat_suppression,
    )


# --- where the pixels lie -------------------------------------------------------------

#: Field of view in mm: mean, standard deviation, least and most.
_VIEW = {
    "sagittal": (138.0, 9.0, 118.0, 165.0),
    "coronal": (144.0, 10.0, 122.0, 172.0),
    "axial": (128.0, 9.0, 110.0, 155.0),
}
#: Extent of a series across its slices in mm: mean and standard deviation.
_COVERED = {"sagittal": (92.0, 7.0), "coronal": (104.0, 9.0), "axial": (106.0, 11.0)}


@dataclass(frozen=True)
class _Frame:
    """Directions (rows down, columns right, slices) and middle of a series in mm."""

    down: Tensor
    right: Tensor
    through: Tensor
    middle: Tensor
    view: float
    positions: Tensor  # of the slices along ``through``
    thickness: float


def _random_frame(
    plane: str, side: str, size: float, generator: np.random.Generator
) -> _Frame:
    """``size`` is that of the knee, 1 on average: the field of view is fitted to it."""
    normal = generator.normal
    mean, spread, least, most = _VIEW[plane]
    view = float(np.clip(size * normal(mean, spread), least, most))
    slices = random_slices(plane, generator)
    covered = float(np.clip(size * normal(*_COVERED[plane]), 70, 140))
    gap = covered / slices
    # canonical: x lateral, y front, z up; the patient's right is lateral in a right knee
    right_to_left = torch.tensor([-1.0 if side == "right" else 1.0, 0, 0])
    front, up = torch.tensor([0.0, 1, 0]), torch.tensor([0.0, 0, 1])
    if plane == "sagittal":
        down, right, through = -up, -front, -right_to_left  # from left to right
        middle = (normal(0, 4), normal(2, 6), normal(5, 8))
        if generator.random() < 0.15:
            through = -through
    elif plane == "coronal":
        down, right, through = -up, right_to_left, front  # from the back to the front
        middle = (normal(0, 5), normal(0, 5), normal(4, 8))
    else:
        down, right, through = -front, right_to_left, -up  # from above downward
        middle = (normal(0, 5), normal(3, 5), normal(12, 7))
    tilt = rotation((float(normal(0, 5)), float(normal(0, 5)), float(normal(0, 6))))
    positions = (torch.arange(slices) - (slices - 1) / 2) * gap
    return _Frame(
        tilt @ down,
        tilt @ right,
        tilt @ through,
        torch.tensor(middle, dtype=torch.float32),
        view,
        positions,
        gap * float(generator.uniform(0.82, 1.0)),
    )


def _points(frame: _Frame, lattice: int, offsets: Tensor, shifts: Tensor) -> Tensor:
    """Points ``(S, J, lattice, lattice, 3)`` of thin slices in mm.

    ``offsets`` ``(J,)`` lie along the slice axis, ``shifts`` ``(J, 2)`` in the plane.
    """
    half = frame.view / 2 * (1 - 1 / SIZE)
    line = torch.linspace(-half, half, lattice)
    plane = line[:, None, None] * frame.down + line[None, :, None] * frame.right
    place = (frame.positions[:, None] + offsets)[..., None] * frame.through
    place = place + shifts[:, :1] * frame.down + shifts[:, 1:] * frame.right
    return frame.middle + place[:, :, None, None] + plane


def thin_slices(share: Tensor, flank: float = _FLANK) -> Tensor:
    """Where the signal of a slice comes from, whose profile has linear flanks.

    The profile is 1 in the middle, falls to 0 over ``flank`` and is one half at the edges of
    the nominal slice.  Shares that are evenly spread give thin slices of equal signal, close
    together where the profile is high.  Neighbours overlap in their flanks; that one slice
    takes signal from the next is not simulated.
    :func:`medimg_utils.physics.mr.slice_profile` has Gaussian flanks.

    Args:
        share: of the slice's signal that lies before the thin slice, 0 to 1.
        flank: width of a flank in nominal thicknesses, 0 (a box) to 1 (a triangle).

    Returns:
        Distances from the middle of the slice in nominal thicknesses.

    >>> share = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    >>> thin_slices(share, flank=0.0).tolist()
    [-0.5, -0.25, 0.0, 0.25, 0.5]
    >>> thin_slices(share, flank=0.5).tolist()
    [-0.75, -0.25, 0.0, 0.25, 0.75]
    """
    from_end = torch.minimum(share, 1 - share)
    steep = (1 + flank) / 2 - (2 * flank * from_end).sqrt()
    place = torch.where(from_end < flank / 2, steep, 0.5 - from_end)
    return torch.where(share < 0.5, -place, place)


def _dither() -> Tensor:
    """Offsets ``(J, 1, H, W)`` in thin slices, -0.5 to 0.5, other in each pixel.

    Thin slices at fixed places would draw contour lines where a surface lies nearly in
    the plane of the slice.  The sequence fills 0 to 1 evenly in every direction.
    """
    rows, columns = torch.arange(SIZE)[:, None], torch.arange(SIZE)[None, :]
    thin = torch.arange(_THIN)[:, None, None, None]
    value = 0.7548776662 * rows + 0.5698402910 * columns + 0.6180339887 * thin
    return value.frac() - 0.5


def _thin_places(frame: _Frame) -> tuple[Tensor, Tensor]:
    """Places of the thin slices along the slice axis in mm, from the slice's middle.

    Returns:
        ``(J,)``, and ``(J, 1, H, W)`` what each pixel is away from them.
    """
    share = (torch.arange(_THIN) + 0.5) / _THIN
    middles = thin_slices(share) * frame.thickness
    own = thin_slices(share[:, None, None, None] + _dither() / _THIN) * frame.thickness
    return middles, own - middles[:, None, None, None]


def _basis(size: int, lattice: int) -> Tensor:
    """Linear interpolation from a lattice to ``size`` pixels, ``(size, lattice)``."""
    place = torch.linspace(0, lattice - 1, size)
    return (1 - (place[:, None] - torch.arange(lattice)).abs()).clamp(min=0)


# --- rendering ------------------------------------------------------------------------


def render(
    canvas: Canvas,
    patient: Patient,
    scanner: Scanner,
    plane: str,
    generator: np.random.Generator,
    data_dir: Path | None = None,
) -> Series:
    """Scan one series of a painted knee."""
    size = float(canvas.knee.landmarks["scale"][:2].mean())
    frame = _random_frame(plane, patient.side, size, generator)
    sequence = random_sequence(plane, scanner, generator)
    noise = _torch_generator(generator)
    table = _signals(canvas, scanner, sequence)
    channels, bits = _sample(canvas, patient, frame, table, generator)
    limb = channels.sum(0) > 0
    image, accidents = _scan(
        channels, frame, plane, scanner, sequence, generator, noise, data_dir
    )
    names = {2: "acl", 4: "meniscus", 1: "abnormal"}
    lesions = {names[bit]: mask for bit, mask in bits.items() if mask.any()}
    volume = to_grey(image, limb, plane, generator)
    gap = float(frame.positions.diff().mean()) if len(frame.positions) > 1 else 0.0
    return Series(volume, lesions, (gap, frame.view / SIZE), accidents)


#: Share of the series, of those in which it can happen, that has an accident; our choice.
ACCIDENTS = {"pulsation": 0.35, "motion": 0.10, "fat suppression": 0.15}

#: Magnetisation transfer: the many refocusing pulses of a fast spin echo, off resonance
#: for the slices beside, saturate what exchanges with bound protons (Henkelman et al.
#: 2001, NMR Biomed 14:57).  Loss of signal, relative to that of muscle; our choice.
_TRANSFER = {
    "muscle": 1.0,
    "cartilage": 0.6,
    "meniscus": 0.8,
    "torn meniscus": 0.4,
    "ligament": 0.8,
    "tendon": 0.8,
    "skin": 0.8,
}

#: Channels of the sampled signal: water, fat, marrow and muscle (the last two textured).
_WATER, _FAT, _MARROW, _MUSCLE, _ARTERY = range(5)


def _signals(canvas: Canvas, scanner: Scanner, sequence: mr.Sequence) -> Tensor:
    """Signal of each code in each channel, ``(256, 5)``."""
    names = sorted({name for m in canvas.materials.values() for name, _ in m.mixture})
    tissues = []
    for name in names:
        base = mr.tissue(name, scanner.field)
        pd, t1, t2 = scanner.relaxation[name]
        tissues.append(
            mr.Tissue(min(base.pd * pd, 1.0), base.t1 * t1, base.t2 * t2, base.fat)
        )
    signal = dict(zip(names, sequence.of(tissues).tolist(), strict=True))
    if sequence.train:
        for name, share in _TRANSFER.items():
            if name in signal:
                signal[name] *= 1 - share * scanner.transfer
    table = torch.zeros(256, 5)
    for code, material in canvas.materials.items():
        for name, share in material.mixture:
            if material.texture == "marrow":
                channel = _MARROW
            elif material.texture == "muscle":
                channel = _MUSCLE
            else:
                channel = _FAT if mr.tissue(name, scanner.field).fat > 0.5 else _WATER
            table[code, channel] += share * signal[name]
    table[Code.VEIN, _WATER] = scanner.flow * signal["blood"]
    table[Code.ARTERY, _ARTERY] = signal["blood"]
    return table


def _sample(
    canvas: Canvas,
    patient: Patient,
    frame: _Frame,
    table: Tensor,
    generator: np.random.Generator,
) -> tuple[Tensor, dict[int, NDArray[np.bool_]]]:
    """Channels ``(C, S, H, W)`` and lesion masks, averaged over thin slices."""
    pixel = frame.view / SIZE
    offsets, dither = _thin_places(frame)
    # thin slices stand a fraction of a pixel apart, which softens the edges of voxels
    turn = 2 * math.pi * (torch.arange(_THIN) / _THIN + generator.random())
    shifts = 0.3 * pixel * torch.stack([turn.cos(), turn.sin()], dim=1)
    lattice = patient.deformation.pull(_points(frame, _LATTICE, offsets, shifts))
    lattice = (lattice - torch.tensor(GRID.low)) / GRID.spacing
    lattice = lattice.movedim(-1, 2)  # (S, J, 3, lattice, lattice)
    basis = _basis(SIZE, _LATTICE)
    codes = torch.from_numpy(canvas.codes).flatten()
    shape = GRID.shape
    weights = torch.from_numpy(
        np.array(
            [
                canvas.materials[c].shows if c in canvas.materials else 0
                for c in range(256)
            ],
            np.uint8,
        )
    )
    count = len(frame.positions)
    out = torch.zeros(table.shape[1], count, SIZE, SIZE)
    masks: dict[int, NDArray[np.bool_]] = {
        bit: np.zeros((count, SIZE, SIZE), bool) for bit in (1, 2, 4)
    }
    for s in range(count):
        place = basis @ lattice[s] @ basis.T  # (J, 3, H, W)
        step = (place[-1] - place[0]) / (offsets[-1] - offsets[0])
        index = place.addcmul_(dither, step).round_().int()
        ix = index[:, 0].clamp_(0, shape[0] - 1)
        iy = index[:, 1].clamp_(0, shape[1] - 1)
        iz = index[:, 2].clamp_(0, shape[2] - 1)
        flat = ix.mul_(shape[1]).add_(iy).mul_(shape[2]).add_(iz)
        found = codes.index_select(0, flat.flatten()).int()
        sampled = table.index_select(0, found).view(_THIN, SIZE, SIZE, -1).mean(0)
        out[:, s] = sampled.movedim(-1, 0)
        if int(found.max()) >= Code.FIRST_FREE:
            shown = weights.index_select(0, found).view(_THIN, SIZE, SIZE).numpy()
            for bit, mask in masks.items():
                mask[s] = ((shown & bit) > 0).sum(0) * 2 >= _THIN
    return out, masks


def _scan(
    channels: Tensor,
    frame: _Frame,
    plane: str,
    scanner: Scanner,
    sequence: mr.Sequence,
    generator: np.random.Generator,
    noise: torch.Generator,
    data_dir: Path | None,
) -> tuple[Tensor, tuple[str, ...]]:
    """Texture, coils, k-space, accidents and noise: ``(S, H, W)``, and what happened."""
    accidents: list[str] = []
    muscle = float(channels[_MUSCLE].max())
    water, fat, marrow, flesh, artery = channels
    suppressed = sequence.fat_suppression > 0
    count = len(frame.positions)
    textures = load_textures(data_dir)
    grain = _texture(textures["marrow"], count, generator, turn=True)
    marrow = marrow * (1 + (-0.9 if suppressed else 1.0) * grain)
    fibre = _texture(textures["muscle"], count, generator, turn=plane == "axial")
    flesh = flesh * (1 + (-0.6 if suppressed else 1.2) * fibre)  # fat between fibres
    fatty = fat + marrow
    if suppressed:
        fatty = fatty * _failure(frame, scanner, generator, accidents)
    else:
        bandwidth = float(generator.uniform(150, 320))
        shift = mr.fat_displacement(scanner.field, bandwidth)
        fatty = _displace(fatty, shift * (1 if generator.random() < 0.5 else -1))
    image = water + fatty + flesh
    image = image * _sensitivity(frame, scanner, generator, noise)
    if generator.random() < ACCIDENTS["pulsation"]:
        accidents.append("pulsation")
        vessels = artery * float(generator.uniform(0.3, 1.0))
        image = mr.add_ghosts(
            image,
            float(generator.uniform(15, 60)),
            float(generator.uniform(0.05, 0.25)),
            vessels,
            dim=-1 if plane == "axial" else -2,
        )
    if generator.random() < ACCIDENTS["motion"]:
        accidents.append("motion")
        image = mr.move(image, _restlessness(generator))
    kept = (
        int(SIZE * generator.uniform(0.72, 1.0)),
        int(SIZE * generator.uniform(0.85, 1.0)),
    )
    image = mr.limit_resolution(image, kept, apodise=float(generator.uniform(0.3, 0.9)))
    sigma = muscle * scanner.noise * float(generator.uniform(0.8, 1.25))
    if not suppressed:
        sigma *= 0.8
    return mr.rician_noise(image.clamp(min=0), sigma, noise), tuple(accidents)


def _texture(
    plates: NDArray[np.float32], count: int, generator: np.random.Generator, turn: bool
) -> Tensor:
    """A random plate for each slice, shifted, mirrored and perhaps turned."""
    out = np.empty((count, SIZE, SIZE), np.float32)
    for one in out:
        plate = plates[generator.integers(len(plates))]
        if turn and generator.random() < 0.5:
            plate = plate.T
        if generator.random() < 0.5:
            plate = plate[:, ::-1]
        shift = generator.integers(0, SIZE, 2)
        one[:] = np.roll(plate, (int(shift[0]), int(shift[1])), (0, 1))
    return torch.from_numpy(out)


def _failure(
    frame: _Frame,
    scanner: Scanner,
    generator: np.random.Generator,
    accidents: list[str],
) -> Tensor:
    """Factor on the fat's signal: 1, more where the suppression pulse misses the fat.

    It misses it far from the middle of the magnet, at the rim of the limb.
    """
    low = torch.linspace(-1, 1, SIZE)
    fat = mr.tissue("subcutaneous fat", scanner.field).fat
    left = 1 - fat * scanner.fat_suppression
    missed = float(generator.uniform(0.01, 0.05))
    if generator.random() < ACCIDENTS["fat suppression"]:
        accidents.append("fat suppression")
        missed = float(generator.uniform(0.08, 0.30))
    edge = generator.choice([-1.0, 1.0])
    rows, columns = low[:, None] * edge, low[None, :]
    off = ((rows - 0.55) / 0.45).clamp(min=0) ** 2 + 0.5 * columns.abs() ** 4
    return (1 + fat * missed * off.clamp(max=1.0) / left).expand(
        len(frame.positions), -1, -1
    )


def _displace(image: Tensor, shift: float) -> Tensor:
    """Shift along the columns by a fraction of pixels, linear."""
    whole = math.floor(shift)
    part = shift - whole
    return (1 - part) * image.roll(whole, -1) + part * image.roll(whole + 1, -1)


def _sensitivity(
    frame: _Frame,
    scanner: Scanner,
    generator: np.random.Generator,
    noise: torch.Generator,
) -> Tensor:
    """What the coils leave after the scanner's correction, ``(S, H, W)``, mean 1."""
    lattice = 9
    points = _points(frame, lattice, torch.zeros(1), torch.zeros(1, 2))[:, 0]
    coils = mr.surface_coils(points, scanner.coils, 45.0)
    coils = coils / coils.mean()
    strength = float(generator.uniform(0.03, 0.12))
    rest = mr.bias_field(tuple(coils.shape), strength, noise)
    coils = coils ** (1 - scanner.correction) * rest
    basis = _basis(SIZE, lattice)
    return basis @ coils @ basis.T


def _restlessness(generator: np.random.Generator) -> Tensor:
    """Displacements while the rows of k-space are acquired: a few small jumps."""
    track = np.zeros((SIZE, 2))
    for _ in range(int(generator.integers(1, 4))):
        start = int(generator.integers(0, SIZE))
        if abs(start - SIZE / 2) < 12:  # a jump there would ruin the series
            continue
        stop = SIZE if start > SIZE / 2 else start
        begin = start if start > SIZE / 2 else 0
        track[begin:stop] += generator.normal(0, 1.1, 2)
    return torch.from_numpy(track).float()


# --- grey values ----------------------------------------------------------------------

#: Quantile of the limb's signal that sets the scale, and the grey values that no signal
#: and the anchor are led to.  Chosen so that the quantiles of whole series lie near those
#: of real ones (5, 25, 50, 75 and 95 %: sagittal 11, 22, 44, 83, 154; coronal 3, 7, 28,
#: 96, 193; axial 5, 14, 44, 102, 186).  Nine tenths of a limb are neither fluid nor
#: lesion: findings do not move the scale.
_ANCHOR = 0.90
_GREY = {"sagittal": (9.0, 136.0), "coronal": (4.0, 180.0), "axial": (2.0, 174.0)}
#: Exponent of the scanner's curve: above 1 it darkens what is darker than the anchor.
_GAMMA = {"sagittal": 2.0, "coronal": 1.35, "axial": 1.35}


def to_grey(
    image: Tensor, limb: Tensor, plane: str, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Scale a volume to uint8 as the release does: one window a series.

    Args:
        image, limb: ``(S, H, W)`` signal and bool, what is not air.
        plane: of :data:`PLANES`.
    """
    inside = image[limb] if bool(limb.any()) else image.flatten()
    inside = inside[:: max(1, len(inside) // 100_000)]
    anchor = max(float(inside.quantile(_ANCHOR)), 1e-9)
    gamma = _GAMMA[plane] * float(np.exp(generator.normal(0, 0.10)))
    black, top = _GREY[plane]
    black *= float(generator.uniform(0.3, 1.7))
    top *= float(np.exp(generator.normal(0, 0.06)))
    grey = black + (top - black) * (image / anchor) ** gamma
    return grey.round_().clamp_(0, 255).to(torch.uint8).numpy()
