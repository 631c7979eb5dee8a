"""Four MR images of a head: T1, T1 with contrast agent, T2 and FLAIR.

Signals follow from relaxation times by the equations of :mod:`medimg_utils.physics.mr`.
No two scanners agree: field strength, kind of sequence, times, thickness of the slices,
noise and shading are drawn anew for every patient, and every tissue's relaxation times
scatter a little.  A network that learns from such images cannot rely on one contrast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medimg_utils.brain.head import Grid, Head
from medimg_utils.physics.mr import (
    Sequence,
    Tissue,
    add_ghosts,
    bias_field,
    enhance,
    limit_resolution,
    null_time,
    rician_noise,
    tissue,
)

#: In the order of the BraTS files.
MODALITIES = ("flair", "t1", "t1ce", "t2")


@dataclass(frozen=True)
class Acquisition:
    """How one image is taken.

    Attributes:
        sequence: with its times.
        axis: across the slices: 0 sagittal, 1 coronal, 2 axial.
        thickness, distance: of the slices in mm, their middles apart; 1 and 1 is a
            volume scan.
        blur: standard deviation in mm of the blur in the plane.
        matrix: share of k-space that is acquired, 0 to 1; below 1, edges ring.
        noise: standard deviation relative to the mean of the brain.
        bias: strength of the shading, see :func:`medimg_utils.physics.mr.bias_field`.
        gamma: exponent of the grey values: what the chain behind the scanner does.
        level: grey value of the mean of the brain.
        shift: mm along each axis that registration leaves.
        ghost: height of ghosts; 0 is none.
        missing: share of the height of the brain, at its lower end (or, negative, its
            upper), that the scan left out.
        outliers: number of voxels with absurd values.
        flow: signal of flowing blood, relative to blood at rest.
        unsuppressed: signal of the rim of the brain, relative to the mean; FLAIR only.
        seed: of what is random in the image.
    """

    sequence: Sequence
    axis: int
    thickness: float
    distance: float
    blur: float
    matrix: float
    noise: float
    bias: float
    gamma: float
    level: float
    shift: tuple[float, float, float]
    ghost: float
    missing: float
    outliers: int
    flow: float
    unsuppressed: float
    seed: int


@dataclass(frozen=True)
class Protocol:
    """One examination: the scanner, the tissues in it, and four acquisitions.

    Attributes:
        field: 1.5 or 3 T.
        tissues: by name, with this patient's relaxation times.
        agent: concentration of the contrast agent in mmol/l, by where it is.
        water: how much water oedema holds; 1 is the tissue ``brain oedema`` of the
            table.
        acquisitions: by modality.
    """

    field: float
    tissues: dict[str, Tissue]
    agent: dict[str, float]
    water: float
    acquisitions: dict[str, Acquisition]


_NAMES = {
    "csf": "cerebrospinal fluid",
    "grey": "grey matter",
    "white": "white matter",
    "blood": "blood",
    "marrow": "marrow",
    "bone": "cortical bone",
    "oedema": "brain oedema",
    "glioma": "glioma",
    "necrosis": "necrosis",
}


def random_protocol(permeability: float, generator: np.random.Generator) -> Protocol:
    """Draw a scanner, its sequences, and the patient's relaxation times.

    Args:
        permeability: contrast agent in the enhancing tumour, mmol/l.
    """
    field = float(generator.choice([1.5, 3.0], p=[0.55, 0.45]))

    def scatter(base: Tissue, t1: float, t2: float, pd: float = 0.015) -> Tissue:
        return replace(
            base,
            t1=base.t1 * float(np.exp(generator.normal(0, t1))),
            t2=base.t2 * float(np.exp(generator.normal(0, t2))),
            pd=float(np.clip(base.pd * np.exp(generator.normal(0, pd)), 0, 1)),
        )

    spread = {
        "csf": (0.03, 0.2),
        "marrow": (0.1, 0.15),
        "bone": (0.1, 0.1),
        "glioma": (0.12, 0.15),
        "necrosis": (0.15, 0.25),
        "oedema": (0.08, 0.12),
    }
    tissues = {
        key: scatter(tissue(name, field), *spread.get(key, (0.05, 0.04)))
        for key, name in _NAMES.items()
    }
    grey = tissues["grey"]
    # measured T2 of white matter scatters upward of the table's
    white = tissues["white"] = replace(
        tissues["white"], t2=1.12 * tissues["white"].t2, pd=1.03 * tissues["white"].pd
    )
    glioma = tissues["glioma"]
    tissues["glioma"] = replace(glioma, t1=0.8 * glioma.t1, t2=0.84 * glioma.t2)
    necrosis = tissues["necrosis"]
    tissues["necrosis"] = replace(necrosis, t2=0.65 * necrosis.t2)
    tissues["nuclei"] = replace(grey, t1=0.85 * grey.t1, t2=0.95 * grey.t2)
    tissues["dura"] = scatter(Tissue(0.7, 0.9 * grey.t1, 35, 0), 0.1, 0.1)
    tissues["plexus"] = scatter(Tissue(0.9, 1.2 * grey.t1, 130, 0), 0.1, 0.1)
    # old blood: methaemoglobin shortens T1, haemosiderin T2
    tissues["clot"] = scatter(Tissue(0.9, 0.8 * white.t1, 60, 0), 0.15, 0.3)
    agent = {
        "tumour": permeability,
        "blood": float(generator.uniform(1.0, 2.5)),
        "dura": float(generator.uniform(0.2, 0.7)),
        "plexus": float(generator.uniform(0.5, 1.2)),
        "tissue": float(generator.uniform(0.01, 0.04)),
        "marrow": float(generator.uniform(0.05, 0.3)),
    }
    acquisitions = {
        name: _random_acquisition(name, field, tissues["csf"].t1, generator)
        for name in MODALITIES
    }
    if generator.random() < 0.6:  # the same sequence before and after the agent
        plain = acquisitions["t1"]
        acquisitions["t1ce"] = replace(
            acquisitions["t1ce"],
            sequence=plain.sequence,
            axis=plain.axis,
            thickness=plain.thickness,
            distance=plain.distance,
            blur=plain.blur,
            gamma=plain.gamma,
            level=plain.level * float(generator.uniform(0.9, 1.2)),
        )
    water = float(generator.uniform(0.5, 1.0))
    return Protocol(field, tissues, agent, water, acquisitions)


def _random_acquisition(
    name: str, field: float, csf_t1: float, generator: np.random.Generator
) -> Acquisition:
    u = generator.uniform
    flip = None
    if name in ("t1", "t1ce"):
        volume_scan = generator.random() < (0.35 if name == "t1" else 0.5)
        if volume_scan:
            sequence = Sequence(tr=u(15, 30), te=u(3, 6), flip=u(20, 32))
        else:
            sequence = Sequence(tr=u(430, 700), te=u(8, 17))
        flip = sequence.flip
    elif name == "t2":
        volume_scan = generator.random() < 0.1
        train = u(100, 180)
        sequence = Sequence(tr=u(2800, 6000), te=u(80, 115), train=train)
    else:
        volume_scan = generator.random() < 0.15
        tr, train = u(7500, 11000), u(120, 200)
        ti = null_time(csf_t1, tr, train) * u(0.88, 1.03)
        sequence = Sequence(tr=tr, te=u(95, 140), train=train, ti=ti)
    thickness = u(1.0, 1.5) if volume_scan else u(2.5, 6.0)
    gap = 0.0 if volume_scan else float(generator.choice([0.0, u(0.3, 1.5)]))
    return Acquisition(
        sequence=sequence,
        axis=int(generator.choice([2, 0, 1], p=[0.84, 0.12, 0.04])),
        thickness=thickness,
        distance=thickness + gap,
        blur=u(0.35, 0.75),
        matrix=float(generator.choice([1.0, u(0.6, 0.9)], p=[0.7, 0.3])),
        noise=float(np.exp(generator.normal(math.log(0.022), 0.45))),
        bias=float(u(0.03, 0.16) * (1.3 if field > 2 else 1.0)),
        gamma=float(np.exp(generator.normal(0, 0.13))),
        level=float(np.exp(generator.normal(math.log(300), 0.6))),
        shift=tuple(float(s) for s in generator.normal(0, 0.25, 3)),  # type: ignore[arg-type]
        ghost=float(generator.choice([0.0, u(0.01, 0.05)], p=[0.9, 0.1])),
        missing=_missing(generator),
        outliers=_outliers(generator) if name == "flair" else 0,
        flow=float(_flow(name, flip, generator)),
        unsuppressed=float(u(0.1, 0.8)) if name == "flair" else 0.0,
        seed=int(generator.integers(2**62)),
    )


def _missing(generator: np.random.Generator) -> float:
    """A scan in twenty stops too early, at the lower end or at the upper."""
    low, high = generator.uniform(0.03, 0.12), -generator.uniform(0.02, 0.06)
    return float(generator.choice([0.0, low, high], p=[0.95, 0.03, 0.02]))


def _outliers(generator: np.random.Generator) -> int:
    """Voxels with absurd values: some in one FLAIR volume of fourteen."""
    count = int(generator.integers(5, 200))
    return count if generator.random() < 0.07 else 0


def _flow(name: str, flip: float | None, generator: np.random.Generator) -> float:
    """Signal of flowing blood: it leaves a spin echo, and enters a gradient echo fresh."""
    if name == "t1ce":
        return generator.uniform(0.75, 1.0)
    if name == "t1":
        return generator.uniform(0.8, 1.3) if flip else generator.uniform(0.35, 0.9)
    return generator.uniform(0.1, 0.45)


# --- signal ---------------------------------------------------------------------------


def signal(head: Head, protocol: Protocol, name: str) -> Tensor:
    """Signal ``(N,)`` of the voxels of a head in one modality, before any image of it.

    Tissues mix by their shares: a voxel's signal is the sum of those of its parts.
    """
    acquisition = protocol.acquisitions[name]
    sequence, tissues = acquisition.sequence, protocol.tissues
    agent = protocol.agent if name == "t1ce" else dict.fromkeys(protocol.agent, 0.0)

    def of(key: str, concentration: Tensor | float = 0.0) -> Tensor:
        pd, t1, t2 = (
            torch.tensor(float(getattr(tissues[key], a))) for a in ("pd", "t1", "t2")
        )
        return sequence.signal(pd, *enhance(t1, t2, concentration))

    def wet(key: str, degree: Tensor) -> Tensor:
        """Signal of tissue that takes up water, looked up for its degree."""
        steps = torch.linspace(0, 1.5, 64)
        dry, oedema = tissues[key], tissues["oedema"]
        pd, t1, t2 = (
            a * (b / a) ** steps
            for a, b in (
                (getattr(dry, k), getattr(oedema, k)) for k in ("pd", "t1", "t2")
            )
        )
        table = sequence.signal(pd, *enhance(t1, t2, agent["tissue"]))
        place = (degree / 1.5 * 63).clamp(0, 62.999)
        low = place.long()
        return torch.lerp(table[low], table[low + 1], place - low)

    shares = head.tissues
    water = (protocol.water * head.oedema).maximum(head.lesions)
    ready = 1 + 0.02 * head.texture
    cortex = wet("grey", 0.7 * water)
    nuclei = wet("nuclei", 0.7 * water) * (1 - 0.3 * _iron(name) * head.iron)
    grey = torch.lerp(cortex, nuclei, head.deep)
    grey = grey * (1 + 0.02 * head.texture)
    csf = of("csf")
    # refocusing pulses on other slices saturate white matter by magnetisation transfer
    # to macromolecules, of which oedema has fewer in a volume
    transfer = 0.76 + 0.24 * water.clamp(max=1) if name == "flair" else 1.0
    mixed = (
        shares.csf * csf
        + shares.grey * grey
        + shares.white * wet("white", water) * ready * transfer
    )
    mean = mixed[head.brain].mean()
    if name == "flair":
        stirred = head.stir.clamp(min=0) * (0.3 + 0.7 * (head.tissues.at["hull"] < 20))
        spoiled = acquisition.unsuppressed * (head.rim + 0.35 * stirred)
        mixed = mixed + shares.csf * spoiled * mean

    def cover(under: Tensor, share: Tensor, over: Tensor) -> Tensor:
        return torch.lerp(under, over.expand_as(under), share)

    mixed = cover(mixed, head.plexus, of("plexus", agent["plexus"]))
    mixed = cover(mixed, head.dura, of("dura", agent["dura"]))
    mixed = cover(mixed, head.bone, of("bone"))
    mixed = cover(mixed, 0.8 * head.marrow, of("marrow", agent["marrow"]))
    mixed = cover(mixed, head.blood, of("blood", agent["blood"]) * acquisition.flow)

    tumour = torch.nonzero(head.core > 0.02)[:, 0]
    inner = _core_signal(head, protocol, sequence, name, tumour)
    mixed[tumour] = torch.lerp(mixed[tumour], inner, head.core[tumour].clamp(0, 1))
    return mixed.clamp(min=0)


def _iron(name: str) -> float:
    """How strongly iron darkens a modality."""
    return {"t2": 1.0, "flair": 0.8, "t1": 0.0, "t1ce": 0.0}[name]


def _core_signal(
    head: Head, protocol: Protocol, sequence: Sequence, name: str, where: Tensor
) -> Tensor:
    """Signal of the core: solid tumour to necrosis, old blood, contrast agent."""
    tissues = protocol.tissues
    liquid = head.liquid[where].clamp(0, 1)
    texture = head.texture[where]
    maps = []
    for key in ("pd", "t1", "t2"):
        solid, fluid = (float(getattr(tissues[k], key)) for k in ("glioma", "necrosis"))
        mixed = solid * (fluid / solid) ** liquid
        if key != "pd":
            clot = float(getattr(tissues["clot"], key))
            mixed = mixed ** (1 - head.clot[where]) * clot ** head.clot[where]
            mixed = mixed * torch.exp(0.06 * texture)
        maps.append(mixed)
    if name == "t1ce":
        enhancing = head.enhancing[where]
        amount = protocol.agent["tumour"] * enhancing * torch.exp(0.25 * texture)
        leak = protocol.agent["tissue"] * (1 - enhancing)
        maps[1], maps[2] = enhance(maps[1], maps[2], amount + leak)
    return sequence.signal(*maps)


# --- image ----------------------------------------------------------------------------


def take(head: Head, protocol: Protocol, name: str) -> NDArray[np.int16]:
    """One image of a head on the box of its grid ``(X, Y, Z)``, skull-stripped, int16."""
    acquisition = protocol.acquisitions[name]
    generator = torch.Generator().manual_seed(acquisition.seed + 1)
    values = signal(head, protocol, name)
    mean = values[head.brain].mean()
    volume = head.volume(values, outside=float(0.15 * mean)) / mean
    volume = volume * bias_field(volume.shape, acquisition.bias, generator)
    volume = _acquire(volume, acquisition, head.grid, generator)

    brain = head.volume(head.brain)
    volume = volume.clamp(min=0) ** acquisition.gamma
    volume = volume * (acquisition.level / volume[brain].mean())
    if acquisition.outliers:
        edge = torch.nonzero(head.brain & (head.rim > 0.5))[:, 0]
        pick = torch.randint(len(edge), (acquisition.outliers,), generator=generator)
        size = 3 + 60 * torch.rand(len(pick), generator=generator) ** 3
        flat = volume.view(-1)
        flat[head.index[edge[pick]]] *= size
    visible = brain & ~_left_out(brain, acquisition.missing)
    # 0 is background: what is seen is at least 1
    grey = volume.round().clamp(1, 32767)
    return torch.where(visible, grey, 0.0).numpy().astype(np.int16)


def _left_out(brain: Tensor, share: float) -> Tensor:
    """Planes at the lower end of the brain (or the upper, if negative) left out."""
    planes = torch.nonzero(brain.any(0).any(0))[:, 0]
    count = round(abs(share) * len(planes))
    out = torch.zeros_like(brain)
    if count:
        out[:, :, planes[:count] if share > 0 else planes[-count:]] = True
    return out


def _acquire(
    volume: Tensor, acquisition: Acquisition, grid: Grid, generator: torch.Generator
) -> Tensor:
    """Slices, blur, ghosts and noise of a scan, resampled to the grid."""
    spacing, axis = grid.spacing, acquisition.axis
    size = volume.shape[axis]
    shifts = list(acquisition.shift)
    plane = [d for d in range(3) if d != axis]
    for d in plane:
        sigma = max(acquisition.blur, 0.3 * spacing)
        volume = _along(
            volume, d, _blur(volume.shape[d], sigma / spacing, shifts[d] / spacing)
        )
    slices = max(round(size * spacing / acquisition.distance), 8)
    places = (torch.arange(slices) + 0.5) * (size / slices) - 0.5
    profile = _profile(size, places, acquisition.thickness / spacing)
    volume = torch.movedim(_along(volume, axis, profile), axis, 0).contiguous()
    if acquisition.matrix < 1 and spacing < 1.5:
        kept = [round(n * acquisition.matrix) for n in volume.shape[1:]]
        volume = limit_resolution(volume, (kept[0], kept[1]), apodise=0.35).clamp(min=0)
    if acquisition.ghost:
        volume = add_ghosts(volume, volume.shape[1] / 2.7, acquisition.ghost)
    # averaging over a voxel of the grid lowers the noise of small pixels
    volume = rician_noise(volume, acquisition.noise / spacing**0.5, generator)
    for d in (1, 2):
        volume = _along(volume, d, _blur(volume.shape[d], 0.45, 0.0))
    back = _between(size, places, shifts[axis] / spacing)
    return torch.movedim(_along(volume, 0, back), 0, axis).contiguous()


def _along(volume: Tensor, dim: int, weights: Tensor) -> Tensor:
    """Apply a matrix along one axis of a volume."""
    out = torch.tensordot(weights, volume, dims=([1], [dim]))
    return torch.movedim(out, 0, dim)


def _blur(size: int, sigma: float, shift: float) -> Tensor:
    """Gaussian averages, ``sigma`` and ``shift`` in voxels: (size, size), rows sum to 1."""
    x = torch.arange(size, dtype=torch.float32)
    weights = torch.exp(-0.5 * ((x[None] - x[:, None] + shift) / max(sigma, 0.2)) ** 2)
    return weights / weights.sum(1, keepdim=True)


def _profile(size: int, places: Tensor, thickness: float) -> Tensor:
    """Averages over slices ``thickness`` voxels thick with soft flanks: (S, size)."""
    offset = (torch.arange(size)[None] - places[:, None]).abs()
    weights = ((thickness / 2 + 0.5 - offset) / 1.0).clamp(0, 1)
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-6)


def _between(size: int, places: Tensor, shift: float) -> Tensor:
    """Linear interpolation between slices at ``places``, to ``size`` voxels."""
    x = torch.arange(size, dtype=torch.float32) - shift
    step = places[1] - places[0]
    at = ((x - places[0]) / step).clamp(0, len(places) - 1)
    return (1 - (at[:, None] - torch.arange(len(places))[None]).abs()).clamp(min=0)
