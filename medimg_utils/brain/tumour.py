"""Gliomas that grow in a brain: reaction and diffusion, oedema, mass effect, sub-regions.

Tumour cells multiply and spread, ``dc/dt = div(D grad c) + rho c (1 - c)`` (Swanson et
al. 2000, Cell Prolif 33:317): ``D`` is five times as large in white as in grey matter and
zero in CSF; falx and tentorium let nothing pass.  What is kept of the growth is the time
at which the front arrives, whose level sets are tumours of any size.  Oedema spreads from
the core in the same way, but hardly into grey matter.

The core takes room.  Tissue flows away from where it expands and is taken up where CSF
can leave: a potential flow with the core as source and the CSF nearby as sink, tight at
the skull and hindered by falx and tentorium.  So ventricles and sulci beside the tumour
are pressed flat, and the midline shifts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage as ndi
from scipy.sparse import coo_array
from scipy.sparse.linalg import cg
from torch import Tensor

from medimg_utils.brain.phantom import (
    COARSE,
    LOCATIONS,
    LOW,
    Pose,
    Template,
    Tissues,
    coarse_points,
    sample_tissues,
)
from medimg_utils.physics.deform import sample
from medimg_utils.physics.mr import smooth_field

#: Labels of the BraTS releases until 2022.
NECROTIC, OEDEMA, ENHANCING = 1, 2, 4
#: Where gliomas start: relative frequency by location.  Frontal and temporal lobes lead
#: (Larjavaara et al. 2007, Neuro Oncol 9:319).
FREQUENCY = {
    "frontal lobe": 0.38,
    "temporal lobe": 0.28,
    "parietal lobe": 0.17,
    "occipital lobe": 0.06,
    "insula": 0.06,
    "deep nuclei": 0.03,
    "corpus callosum": 0.02,
}
#: mm²/unit of time in white and grey matter, for cells and for oedema; cells double
#: within about a unit.
_CELLS, _WATER = (6.0, 1.2), (8.0, 0.3)
#: Voxels ahead of the front that take part.
_FOOT = 10
#: Distance of the seed from the middle of the brain in mm: mean and standard deviation.
_SEED_DISTANCE = (44.0, 7.0)


@dataclass(frozen=True)
class Glioma:
    """What a tumour is to become.

    Attributes:
        grade: ``"HGG"`` or ``"LGG"``.
        pattern: ``"ring"`` enhances around a necrotic centre, ``"solid"`` in patches,
            ``"none"`` not or hardly.
        whole, core, enhancing: volumes in cm³: all labels, labels 1 and 4, label 4.
        foci: seeds that lie close together and give one lobed core.
        satellites: seeds further away.
        expansion: relative growth in volume of the tissue in the core: the mass effect.
        fluid: how liquid label 1 is, 0 (solid tumour) to 1 (cyst).
        bleeding: share of label 1 that holds old blood, 0 to 1.
        permeability: concentration of contrast agent in the enhancing part, mmol/l.
        seed: of place and shape.
    """

    grade: str
    pattern: str
    whole: float
    core: float
    enhancing: float
    foci: int
    satellites: int
    expansion: float
    fluid: float
    bleeding: float
    permeability: float
    seed: int


def random_glioma(grade: str, generator: np.random.Generator) -> Glioma:
    """Draw a tumour of a grade with the volumes that real cases have.

    Median volumes of 20 public cases: label 1 23.5, label 2 52, label 4 19, together
    116 cm³ (26 to 232).
    """
    high = grade == "HGG"
    whole = float(np.clip(np.exp(generator.normal(np.log(117), 0.5)), 24, 235))
    if high:
        share = np.clip(generator.normal(0.42, 0.15), 0.10, 0.80)
        pattern = str(generator.choice(["ring", "solid", "none"], p=[0.68, 0.26, 0.06]))
        rim = np.clip(generator.normal(0.54, 0.17), 0.10, 0.92)
    else:
        share = np.clip(generator.normal(0.52, 0.18), 0.15, 0.88)
        pattern = str(generator.choice(["ring", "solid", "none"], p=[0.06, 0.24, 0.70]))
        rim = np.clip(generator.normal(0.22, 0.12), 0.04, 0.6)
    if pattern == "none":
        rim = float(generator.choice([0.0, generator.uniform(0.005, 0.05)]))
    core = float(share * whole)
    return Glioma(
        grade=grade,
        pattern=pattern,
        whole=whole,
        core=core,
        enhancing=float(rim * core),
        foci=int(generator.choice([1, 2, 3], p=[0.5, 0.33, 0.17])),
        satellites=int(generator.choice([0, 1, 2], p=[0.86, 0.11, 0.03])),
        expansion=float(generator.uniform(0.2, 1.4) * (1.0 if high else 0.6)),
        fluid=float(generator.beta(2.0, 3.0) if high else generator.beta(1.2, 5)),
        bleeding=float(
            generator.choice([0, generator.uniform(0.05, 0.3)], p=[0.6, 0.4])
        )
        if high
        else 0.0,
        permeability=float(np.exp(generator.normal(np.log(0.23), 0.3))),
        seed=int(generator.integers(2**62)),
    )


# --- growth on the coarse grid --------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """How a tumour grew, on the coarse grid, after the tissue was displaced.

    Attributes:
        core, oedema: ``(A, B, C)`` mm to the front, positive inside; exact near it
            only.
        displacement: ``(3, A, B, C)`` in mm: where tissue went.
        location: name of the place of the first seed, from :data:`.phantom.LOCATIONS`.
        side: ``"right"`` or ``"left"``, of the first seed.
    """

    core: Tensor
    oedema: Tensor
    displacement: Tensor
    location: str
    side: str


def grow(template: Template, pose: Pose, glioma: Glioma) -> Growth:
    """Let a tumour grow in a brain, and push the tissue aside."""
    generator = torch.Generator().manual_seed(glioma.seed)
    random = np.random.default_rng(glioma.seed)
    mni = pose.pull.movedim(0, -1)
    tissues = sample_tissues(template, mni, pose.folds, COARSE)
    inside = (tissues.at["surface"] > 1) & (tissues.csf < 0.5)
    places = template.locate(mni)
    seeds = _seeds(tissues, places, glioma, random)

    def noise(spans: tuple[int, int, int], strength: float) -> Tensor:
        return torch.exp(strength * smooth_field(inside.shape, spans, generator))

    walls = _walls(tissues)
    cells = _diffusivity(tissues, inside, _CELLS)
    # the core expands by about this factor: grow less beforehand
    wanted = glioma.core / (1 + 0.5 * glioma.expansion)
    proliferation = noise((14, 17, 14), 0.5) * noise((7, 8, 7), 0.3)
    starts = [(_around(seed, inside), late * _radius(wanted)) for seed, late in seeds]
    core = spread(cells, walls, proliferation, starts, 1.5 * wanted)
    core_time = level(core, wanted)

    water = _diffusivity(tissues, inside, _WATER)
    permeable = noise((9, 11, 9), 0.45)
    every = [(core <= core_time, 0.0)]
    oedema = spread(water, walls, permeable, every, 1.25 * glioma.whole)

    displacement = push_aside(
        (core <= core_time).float() * glioma.expansion, tissues, walls
    )
    fields = torch.stack(
        [
            _front(core, core_time, inside),
            _front(oedema, level(oedema, glioma.whole), inside),
        ]
    )
    came = coarse_points() - displacement.movedim(0, -1)
    fields = sample(fields, came, LOW, COARSE)
    first = seeds[0][0]
    right = float(tissues.at["hemisphere"][first]) > 0
    return Growth(
        core=fields[0],
        oedema=fields[1],
        displacement=displacement,
        location=LOCATIONS[int(places[first])],
        side="right" if right else "left",
    )


def _radius(cm3: float) -> float:
    """Radius in mm of a ball of a volume."""
    return (3000 * cm3 / (4 * math.pi)) ** (1 / 3)


def _seeds(
    tissues: Tissues, places: Tensor, glioma: Glioma, random: np.random.Generator
) -> list[tuple[tuple[int, int, int], float]]:
    """Voxels to start from, and the delay of each as a share of the radius in time."""
    points = coarse_points()
    brain = tissues.at["surface"] > 0
    distance = (points - points[brain].mean(0)).norm(dim=-1)
    mean, deviation = _SEED_DISTANCE
    weight = torch.exp(-0.5 * ((distance - mean) / deviation) ** 2)
    frequency = torch.zeros(len(LOCATIONS))
    for name, share in FREQUENCY.items():
        label = LOCATIONS.index(name)
        here = weight * (places == label)
        frequency[label] = share / float(here.sum().clamp(min=1))
    fit = (tissues.white > 0.7) & (tissues.at["hull"] > 8) & (tissues.at["surface"] > 5)
    weight = weight * frequency[places] * fit
    first = _draw(weight, random)
    seeds = [(first, 0.0)]
    apart = (points - points[first]).norm(dim=-1)
    radius = _radius(glioma.core)
    fit &= (places > 0) & (places < LOCATIONS.index("brainstem"))
    fit &= tissues.at["cerebellum"] < 0.1
    soft = (tissues.csf < 0.2) & (tissues.at["surface"] > 4)
    soft &= tissues.at["cerebellum"] < 0.1
    for _ in range(glioma.foci - 1):
        near = torch.exp(-0.5 * ((apart - 0.8 * radius) / (0.2 * radius)) ** 2) * soft
        seeds.append((_draw(near, random), float(random.uniform(0, 0.15))))
    far = fit & (apart > 30) & (apart < 65)
    same = tissues.at["hemisphere"].sign() == tissues.at["hemisphere"][first].sign()
    for _ in range(glioma.satellites):
        place = _draw(far * torch.where(same, 1.0, 0.2), random)
        seeds.append((place, float(random.uniform(0.08, 0.16))))
    return seeds


def _around(seed: tuple[int, int, int], inside: Tensor) -> Tensor:
    """The voxel of a seed and its neighbours, where there is tissue."""
    mask = torch.zeros_like(inside)
    mask[tuple(slice(max(s - 1, 0), s + 2) for s in seed)] = True
    mask &= inside
    mask[seed] = True
    return mask


def _draw(weight: Tensor, random: np.random.Generator) -> tuple[int, int, int]:
    """A voxel drawn with probability proportional to its weight."""
    cumulative = np.cumsum(weight.double().numpy().ravel())
    index = np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")
    x, y, z = np.unravel_index(min(index, cumulative.size - 1), weight.shape)
    return int(x), int(y), int(z)


def _diffusivity(
    tissues: Tissues, inside: Tensor, rates: tuple[float, float]
) -> Tensor:
    white, grey = rates
    return inside * (1 - tissues.csf) * (white * tissues.white + grey * tissues.grey)


def _walls(tissues: Tissues) -> list[Tensor]:
    """For each axis, 0 where falx or tentorium stand between neighbours, else 1.

    The falx stands where neighbours lie in different hemispheres and dura is near; the
    tentorium likewise between cerebrum and cerebellum.
    """
    closed = []
    for axis in range(3):
        a, b = _neighbours(tissues.at["dura"], axis)
        dura = torch.minimum(a, b)
        wall = torch.zeros_like(dura, dtype=torch.bool)
        for name, middle, near in (("hemisphere", 0, 2.5), ("cerebellum", 0.5, 6)):
            c, d = _neighbours(tissues.at[name], axis)
            wall |= ((c > middle) != (d > middle)) & (dura < near)
        closed.append(wall)
    return [(~wall).float() for wall in closed]


def _neighbours(field: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Each voxel but the last along an axis, and the one after it."""
    size = field.shape[axis]
    return field.narrow(axis, 0, size - 1), field.narrow(axis, 1, size - 1)


def spread(
    diffusivity: Tensor,
    walls: list[Tensor],
    rate: Tensor,
    starts: list[tuple[Tensor, float]],
    volume: float,
) -> Tensor:
    """Solve the reaction-diffusion equation; when does the front arrive?

    Explicit steps on the coarse grid, in a box that follows the front.  Between voxels
    counts the harmonic mean of their diffusivities, so that nothing enters CSF.

    Args:
        diffusivity: ``(A, B, C)`` in mm²/unit of time, 0 where nothing can go.
        walls: for each axis the openness, 0 to 1, of the links to the next voxel.
        rate: ``(A, B, C)`` of proliferation, 1/unit of time.
        starts: masks to start from, and when: in mm that the front has gone in white
            matter.
        volume: in cm³; stop when the front encloses that, or cannot go on.

    Returns:
        Tensor ``(A, B, C)``: time at which ``c`` exceeds 0.4; infinite where it never
        does.
    """
    rate = rate * (diffusivity > 0)
    speed = 2 * math.sqrt(float(diffusivity.max()))
    links = []
    for axis in range(3):
        a, b = _neighbours(diffusivity, axis)
        links.append(2 * a * b / (a + b).clamp(min=1e-6) * walls[axis] / COARSE**2)
    step = 0.9 * COARSE**2 / (6 * float(diffusivity.max()))
    c = torch.zeros_like(diffusivity)
    arrival = torch.full_like(c, torch.inf)
    waiting = sorted(starts, key=lambda start: -start[1])
    wanted = volume * 1000 / COARSE**3
    low, high = [10**6] * 3, [0] * 3
    time, reached, idle = 0.0, 0, 0
    while reached < wanted and (waiting or idle < 80):
        while waiting and waiting[-1][1] <= time * speed:
            place = waiting.pop()[0] & (diffusivity > 0)
            reached += int((place & torch.isinf(arrival)).sum())
            c[place] = 1.0
            arrival[place] = arrival[place].clamp(max=time)
            where = torch.argwhere(place)
            low = [
                min(n, int(s)) for n, s in zip(low, where.min(0).values, strict=True)
            ]
            high = [
                max(n, int(s)) for n, s in zip(high, where.max(0).values, strict=True)
            ]
        # the thin foot of the front decides on its speed: leave room for it
        box = tuple(
            slice(max(a - _FOOT, 0), b + _FOOT + 1)
            for a, b in zip(low, high, strict=True)
        )
        here, before = c[box], c[box].clone()
        change = rate[box] * before * (1 - before)
        for axis in range(3):
            cut = [slice(s.start, s.stop) for s in box]
            a, b = _neighbours(before, axis)
            cut[axis] = slice(box[axis].start, box[axis].start + a.shape[axis])
            flow = links[axis][tuple(cut)] * (b - a)
            first, second = _neighbours(change, axis)
            first += flow
            second -= flow
        here += step * change
        time += step
        new = (here >= 0.4) & torch.isinf(arrival[box])
        count = int(new.sum())
        if count:
            passed = (0.4 - before[new]) / (here - before)[new].clamp(min=1e-6)
            arrival[box][new] = time - step * (1 - passed.clamp(0, 1))
            where = torch.argwhere(new) + torch.tensor([s.start for s in box])
            low = [
                min(n, int(s)) for n, s in zip(low, where.min(0).values, strict=True)
            ]
            high = [
                max(n, int(s)) for n, s in zip(high, where.max(0).values, strict=True)
            ]
        idle = 0 if count else idle + 1
        reached += count
    return arrival


def level(arrival: Tensor, volume: float) -> float:
    """The time at which a front enclosed a volume in cm³, or the last before."""
    times = arrival[torch.isfinite(arrival)].sort().values
    index = min(round(volume * 1000 / COARSE**3), len(times) - 1)
    return float(times[index])


def _front(arrival: Tensor, time: float, inside: Tensor) -> Tensor:
    """Distance to the front at a time, in mm: ``(time - arrival)`` times its speed.

    Where the front never came, the distance goes on growing away from where it did, and
    CSF, which it cannot enter, takes the value of the tissue beside it.
    """
    came = torch.isfinite(arrival)
    last = float(arrival[came].max())
    filled = torch.where(came, arrival, torch.tensor(last))
    away = ndi.distance_transform_edt((~came).numpy(), sampling=COARSE)
    known = came.numpy()
    nearest = ndi.distance_transform_edt(
        ~known, return_distances=False, return_indices=True
    )
    filled = filled[tuple(torch.from_numpy(i) for i in nearest)]
    steps = torch.gradient(filled, spacing=COARSE)
    slowness = torch.sqrt(sum(s**2 for s in steps))  # type: ignore[arg-type]
    slowness = F.avg_pool3d(slowness[None, None], 3, 1, 1)[0, 0]
    typical = float(slowness[came & (arrival > 0)].median())
    slowness = slowness.clamp(0.5 * typical, 3 * typical)
    distance = (time - filled) / slowness
    # tissue that was never reached lies outside; CSF beside the tumour may lie within
    most = torch.where(came, 15.0, torch.where(inside, 1.0, 7.0))
    penalty = torch.from_numpy(away).float() * torch.where(inside, 1.0, 0.5)
    return (torch.minimum(distance, most) - penalty).clamp(-15, 15)


def push_aside(source: Tensor, tissues: Tissues, walls: list[Tensor]) -> Tensor:
    """Displacement by a source, as a potential flow to the CSF nearby.

    ``u = -k grad(phi)`` with ``div(u) = source - sink`` and no flow through the skull.
    The sink is CSF, the nearer the more; it takes as much as the source gives, but no
    more than two thirds of itself, and the source is limited to that.

    Args:
        source: ``(A, B, C)`` relative growth in volume.

    Returns:
        Tensor ``(3, A, B, C)`` in mm.
    """
    coarser = 2 * COARSE
    brain = _pool((tissues.at["surface"] > -2.5).float()) > 0.5
    given = _pool(source) * brain
    fluid = _pool(tissues.csf * (tissues.at["surface"] > -2.5)) * brain
    middle = _middle(given)
    points = coarse_points()
    near = _pool(torch.exp(-((points - middle).norm(dim=-1) / 45)))
    wish = fluid * near
    total = float(given.sum())
    taken = torch.zeros_like(wish)
    scale = total / max(float(wish.sum()), 1e-6)
    for _ in range(20):  # water filling: what one place cannot take goes to the others
        taken = torch.minimum(wish * scale, 0.66 * fluid)
        scale = min(scale * total / max(float(taken.sum()), 1e-6), 1e9)
    given = given * min(1.0, float(taken.sum()) / max(total, 1e-6))
    taken = taken * float(given.sum()) / max(float(taken.sum()), 1e-6)
    conductance = [_pool_links(w, axis, brain) for axis, w in enumerate(walls)]
    potential = _solve(conductance, brain, (given - taken) * coarser**2)
    flow = torch.zeros(3, *brain.shape)
    for axis, link in enumerate(conductance):
        a, b = _neighbours(potential, axis)
        through = link * (a - b) / coarser
        first, second = _neighbours(flow[axis], axis)
        first += 0.5 * through
        second += 0.5 * through
    flow = _smooth(flow)
    up = F.interpolate(flow[None], scale_factor=2, mode="trilinear")[0]
    return up[(slice(None), *(slice(0, n) for n in source.shape))].contiguous()


def _middle(weight: Tensor) -> Tensor:
    """Centroid of a pooled field in mm."""
    axes = [
        low + torch.arange(n) * 2 * COARSE + COARSE / 2
        for low, n in zip(LOW, weight.shape, strict=True)
    ]
    total = weight.sum().clamp(min=1e-6)
    sums = [
        (weight.sum([d for d in range(3) if d != axis]) * values).sum() / total
        for axis, values in enumerate(axes)
    ]
    return torch.stack(sums)


def _pool(field: Tensor) -> Tensor:
    """Means over blocks of two voxels; an odd last plane stands alone."""
    return F.avg_pool3d(field[None, None], 2, ceil_mode=True, count_include_pad=False)[
        0, 0
    ]


def _pool_links(link: Tensor, axis: int, brain: Tensor) -> Tensor:
    """Openness between blocks: of the links that cross from one to the next."""
    count = brain.shape[axis] - 1
    crossing = link.index_select(axis, torch.arange(count) * 2 + 1)
    others = [d for d in range(3) if d != axis]
    kernel, stride = [1, 1, 1], [1, 1, 1]
    for d in others:
        kernel[d] = stride[d] = 2
    pooled = F.avg_pool3d(
        crossing[None, None],
        kernel,
        stride,
        ceil_mode=True,
        count_include_pad=False,
    )[0, 0]
    a, b = _neighbours(brain, axis)
    return (0.15 + 0.85 * pooled) * (a & b)


def _solve(conductance: list[Tensor], brain: Tensor, source: Tensor) -> Tensor:
    """Potential of a balanced source on the blocks of the brain, by conjugate gradients."""
    number = torch.full(brain.shape, -1, dtype=torch.long)
    count = int(brain.sum())
    number[brain] = torch.arange(count)
    rows, columns, values = [], [], []
    for axis, link in enumerate(conductance):
        a, b = _neighbours(number, axis)
        open_ = link > 0
        i, j, k = a[open_].numpy(), b[open_].numpy(), link[open_].double().numpy()
        rows += [i, j, i, j]
        columns += [j, i, i, j]
        values += [-k, -k, k, k]
    matrix = coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(count, count),
    ).tocsr()
    right = source[brain].double().numpy()
    right = right - right.mean()
    found, _ = cg(matrix, right, rtol=1e-4, maxiter=400)
    potential = torch.zeros(brain.shape)
    potential[brain] = torch.from_numpy(found - found.mean()).float()
    return potential


def _smooth(field: Tensor) -> Tensor:
    """Binomial filter over three blocks along each axis, for ``(C, A, B, C)``."""
    for axis in range(1, 4):
        padded = torch.cat(
            [field.narrow(axis, 0, 1), field, field.narrow(axis, -1, 1)], axis
        )
        size = field.shape[axis]
        field = 0.25 * (padded.narrow(axis, 0, size) + padded.narrow(axis, 2, size))
        field = field + 0.5 * padded.narrow(axis, 1, size)
    return field


# --- sub-regions on the fine grid -----------------------------------------------------


@dataclass(frozen=True)
class Lesion:
    """A tumour on the grid of the image, in a box of it.

    Attributes:
        box: slices of the box in the volume.
        label: ``(X, Y, Z)`` uint8: 0, 1 necrotic or not enhancing, 2 oedema, 4
            enhancing.
        core, enhancing, liquid, oedema, blood: ``(X, Y, Z)`` shares or degrees, 0 to 1:
            of core in the voxel; of the core: enhancing, liquid and filled with old
            blood; of oedema in the tissue.
    """

    box: tuple[slice, slice, slice]
    label: NDArray[np.uint8]
    core: Tensor
    enhancing: Tensor
    liquid: Tensor
    oedema: Tensor
    blood: Tensor


def compose(
    glioma: Glioma,
    fronts: tuple[Tensor, Tensor],
    tissues: Tissues,
    inside: Tensor,
    spacing: float,
) -> Lesion:
    """Sub-regions of a grown tumour, with the volumes that were wished for.

    Args:
        fronts: mm to the front of core and oedema, ``(X, Y, Z)``, positive inside.
        tissues: of the whole volume ``(X, Y, Z)``.
        inside: ``(X, Y, Z)`` bool, the voxels that will be seen.
        spacing: of the voxels in mm.
    """
    generator = torch.Generator().manual_seed(glioma.seed ^ 0x5EED)
    reach = (torch.maximum(*fronts) > -8) & inside
    box = _bounding_box(reach, margin=2)
    shape = tuple(s.stop - s.start for s in box)
    core_front, water_front = (front[box] for front in fronts)
    csf, grey, white = (t[box] for t in (tissues.csf, tissues.grey, tissues.white))
    inside = inside[box]

    def noise(size: float) -> Tensor:
        spans = [max(round(n * spacing / size), 1) for n in shape]
        return smooth_field(shape, spans, generator)

    voxel = spacing**3 / 1000
    front = core_front + 2.0 * noise(14) + 0.9 * noise(6) - 5 * (csf - 0.2).clamp(min=0)
    front = front + _offset(front, inside & (csf < 0.5), glioma.core / voxel)
    # a sulcus that the tumour has grown around is effaced; a ventricle is not
    effaced = (front > 2.5) & (tissues.at["ventricle"][box] < -1)
    solid = inside & ((csf < 0.5) | effaced)
    core = _without_islands((front > 0) & solid, 0.3 / voxel)

    depth = ndi.distance_transform_edt(core.numpy(), sampling=spacing)
    enhancing, soft = _enhancing(
        glioma, torch.from_numpy(depth).float() - spacing / 2, core, noise, voxel
    )

    front_water = water_front + 1.6 * noise(11) + 0.8 * noise(5) - 4.0 * grey
    open_ = inside & (csf < 0.5) & ~core
    left = glioma.whole / voxel - float(core.sum())
    front_water = front_water + _offset(front_water, open_, left)
    whole = _without_islands(((front_water > 0) & open_) | core, 0.5 / voxel)

    label = np.zeros(shape, np.uint8)
    label[whole.numpy()] = OEDEMA
    label[core.numpy()] = NECROTIC
    label[enhancing.numpy()] = ENHANCING

    share = torch.sigmoid(front / 0.6) * solid
    liquid = glioma.fluid + 0.3 * noise(7) + 0.04 * torch.from_numpy(depth).float()
    liquid = (liquid * (1 - soft)).clamp(0, 1) * share
    clots = noise(8)
    amount = torch.quantile(_some(clots[core]), 1 - glioma.bleeding)
    blood = 0.8 * torch.sigmoid((clots - amount) / 0.4) * share * (1 - 0.5 * soft)
    fade = 0.75 + 0.25 * torch.sigmoid((core_front + 12) / 6)
    degree = torch.sigmoid(front_water / 1.3) * fade * torch.exp(0.12 * noise(9))
    return Lesion(
        box=box,
        label=label,
        core=share,
        enhancing=(soft * share).clamp(0, 1),
        liquid=liquid,
        oedema=degree.clamp(0, 1.2) * (white + 0.45 * grey),
        blood=blood if glioma.bleeding else torch.zeros(shape),
    )


def _enhancing(
    glioma: Glioma,
    depth: Tensor,
    core: Tensor,
    noise: Callable[[float], Tensor],
    voxel: float,
) -> tuple[Tensor, Tensor]:
    """Where the barrier is broken: a mask of the wished volume, and its soft share.

    A ring is the outermost core, of a depth that varies along it, with gaps where the
    tumour does not enhance; a solid tumour enhances in patches.
    """
    thickness = torch.exp(0.45 * noise(13))
    small = noise(5)
    gaps = noise(17)
    if glioma.pattern == "ring":
        score = depth / thickness + 0.9 * small + 6 * (gaps - 1.3).clamp(min=0)
        width = 0.35
    else:
        score = 2 * gaps + 1.2 * thickness.log() / 0.45 + 0.8 * small + 0.1 * depth
        width = 0.2
    wanted = min(round(glioma.enhancing / voxel), int(core.sum()))
    if wanted < 1:
        return torch.zeros_like(core), torch.zeros_like(depth)
    limit = score[core].sort().values[wanted - 1]
    # nobody outlines a speck of 2 mm
    found = core & (score <= limit)
    mask = _without_islands(found, 0.03 / voxel)
    soft = torch.sigmoid((limit - score) / width)
    return mask, torch.where(found & ~mask, 0.3 * soft, soft)


def _some(values: Tensor) -> Tensor:
    """At most a million of the values: as many as `torch.quantile` takes."""
    return values[:: 1 + len(values) // 1_000_000]


def _offset(front: Tensor, allowed: Tensor, count: float) -> float:
    """What to add to a front so that it encloses a number of the allowed voxels."""
    values = front[allowed & (front > -12)].sort(descending=True).values
    if count < 1 or not len(values):
        return -100.0
    return -float(values[min(round(count), len(values)) - 1])


def _without_islands(mask: Tensor, smallest: float) -> Tensor:
    """A mask without components of fewer voxels than ``smallest``, its largest kept."""
    labels, count = ndi.label(mask.numpy())
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    keep = sizes >= min(smallest, sizes.max())
    keep[0] = False
    return torch.from_numpy(keep[labels])


def _bounding_box(mask: Tensor, margin: int) -> tuple[slice, slice, slice]:
    slices = []
    for axis in range(3):
        others = [d for d in range(3) if d != axis]
        found = torch.nonzero(mask.any(others[1]).any(others[0]))
        start = max(int(found.min()) - margin, 0)
        slices.append(
            slice(start, min(int(found.max()) + margin + 1, mask.shape[axis]))
        )
    return slices[0], slices[1], slices[2]
