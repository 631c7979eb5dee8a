"""A pneumothorax in 3-D: air enters the pleural space and the lung falls away.

The model needs one number for each point of a pleural cavity: ``s``, its distance to the
chest wall.  Air fills the cavity wherever ``s`` is below a gap ``g`` that varies slowly
from place to place; the lung that was there is pushed along the wall's normal toward the
mediastinum, to which it stays attached.  A point at depth ``s`` of the collapsed lung
shows what stood at

    s' = (s - g) S / (S - g)

before, where ``S`` is the thickness of the lung there.  Vessels move with it.  The same
tissue in less room is denser: in proportion to ``S / (S - g) - 1``, by a factor that
keeps the lung's mass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medimg_utils.physics.deform import sample, smooth_noise
from medimg_utils.pneumothorax.phantom import COARSE, LEFT, RIGHT, SPACING, Chest

#: Kinds of pneumothorax and how often each is drawn.  Our choice: most are apical or
#: apicolateral in upright patients; basal air is seen in supine ones.
KINDS = {
    "apical": 0.36,
    "apicolateral": 0.28,
    "basal": 0.10,
    "loculated": 0.08,
    "several": 0.06,
    "complete": 0.08,
    "tension": 0.04,
}
#: Share of the local lung thickness that can be lost: the hilum holds the rest.
_MOST = 0.88
_PLEURA_MM = 1.0  # visceral pleura
_ROUND_MM = 9.0  # radius of the lung's lower edge where it leaves the diaphragm
_PLEURA_BLUR = 0.9  # mm, so that the thin sheet survives the grid


@dataclass(frozen=True)
class Pneumothorax:
    """What to collapse.

    Attributes:
        side: 0 right, 1 left.
        kind: one of :data:`KINDS`.
        seed: of the gap's shape.
        area: wanted mask area as a share of the image.
    """

    side: int
    kind: str
    seed: int
    area: float


@dataclass(frozen=True)
class Cavity:
    """The pleural cavity of one side, cut out of a chest on the coarse grid.

    Fields ``(A, B, C)`` in mm; ``slices`` says where they stand in the chest's fields.
    """

    side: int
    slices: tuple[slice, slice, slice]
    origin: Tensor
    inside: Tensor
    wall: Tensor
    thickness: Tensor
    normal: Tensor

    @classmethod
    def of(cls, chest: Chest, side: int, *, with_base: bool) -> Cavity:
        """Cut out one side; ``with_base`` lets the lung fall from the diaphragm too."""
        low, high = chest.lungs[side]
        start = ((low - chest.coarse_origin) / COARSE).floor().int() - 3
        stop = ((high - chest.coarse_origin) / COARSE).ceil().int() + 4
        x, y, z = (
            slice(max(0, int(a)), min(n, int(b)))
            for a, b, n in zip(start, stop, chest.depth.shape, strict=True)
        )
        slices = (x, y, z)
        wall = chest.wall[slices]
        if with_base:
            # a smooth minimum: a lung's edge is round where two surfaces meet
            both = torch.stack([wall, chest.base[slices]])
            wall = -_ROUND_MM * torch.logsumexp(-both / _ROUND_MM, 0)
            wall = torch.minimum(wall.clamp(min=0), both.amin(0))
        mine = chest.side[slices] == side
        inside = torch.where(mine, chest.depth[slices], torch.tensor(-9.0))
        smooth = F.avg_pool3d(wall[None, None], 5, stride=1, padding=2)[0, 0]
        gradient = torch.stack(torch.gradient(smooth, spacing=COARSE))
        # so long that a step of one mm changes the distance by one mm, also at an edge
        normal = -gradient / gradient.square().sum(0).clamp(min=0.3)
        return cls(
            side=side,
            slices=slices,
            origin=chest.coarse_origin
            + COARSE * torch.tensor([s.start for s in slices]),
            inside=inside,
            wall=wall,
            thickness=wall + chest.medial[slices],
            normal=normal,
        )

    def gap(self, kind: str, seed: int) -> Tensor:
        """Relative width of the air gap, between 0 and about 1, ``(A, B, C)``."""
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float) -> float:
            return low + (high - low) * float(torch.rand((), generator=generator))

        shape = self.wall.shape
        u, v, w = torch.meshgrid(
            *(torch.linspace(0, 1, n) for n in shape), indexing="ij"
        )
        if self.side == LEFT:
            u = 1 - u  # u grows from the mediastinum to the side
        room = self.inside > 0
        levels = torch.linspace(0, 1, shape[2])[room.any(0).any(0)]
        top, bottom = float(levels.max()), float(levels.min())
        h = (w - bottom) / (top - bottom)  # height in the cavity: 0 base, 1 apex

        def bump(at: tuple[float, float, float], width_mm: float) -> Tensor:
            size = torch.tensor(shape) * COARSE
            d2 = sum(
                ((axis - a) * float(n)) ** 2
                for axis, a, n in zip((u, v, h), at, size, strict=True)
            )
            return torch.exp(-0.5 * torch.as_tensor(d2) / width_mm**2)

        def apical(start: float, soft: float) -> Tensor:
            return torch.sigmoid((h - start) / soft)

        if kind == "apical":
            pattern = apical(uniform(0.72, 0.9), uniform(0.05, 0.09))
            pattern = pattern * (1 + uniform(-0.2, 0.4) * u)
        elif kind == "apicolateral":
            pattern = apical(uniform(0.35, 0.7), uniform(0.08, 0.16)) * (
                0.45 + 0.75 * u
            )
        elif kind == "basal":
            pattern = torch.sigmoid((uniform(0.2, 0.4) - h) / 0.07) * (0.3 + u)
        elif kind == "loculated":
            pattern = bump(
                (uniform(0.7, 1.0), uniform(0.3, 0.7), uniform(0.25, 0.9)),
                uniform(18, 38),
            )
        elif kind == "several":
            pattern = apical(uniform(0.75, 0.88), 0.06)
            for _ in range(1 + int(uniform(0, 2))):
                at = (uniform(0.75, 1.0), uniform(0.3, 0.7), uniform(0.1, 0.65))
                pattern = pattern + uniform(0.5, 1) * bump(at, uniform(15, 30))
        elif kind in ("complete", "tension"):
            pattern = 0.55 + uniform(0, 0.3) * h + uniform(0, 0.3) * u
        else:
            raise ValueError(f"unknown kind {kind!r}: use one of {', '.join(KINDS)}")
        knots = (3, 3, 4)
        rough = smooth_noise(tuple(shape), knots, generator)
        return pattern * (1 + 0.25 * rough).clamp(0.2, 2)

    def width(self, pattern: Tensor, amplitude: float) -> Tensor:
        """The gap ``g`` in mm: the pattern scaled, held below the lung's thickness."""
        most = _MOST * self.thickness.clamp(min=1)
        # a fringe of a millimetre everywhere is no pneumothorax
        g = (amplitude * pattern - 1.0).clamp(min=0)
        return most * (1 - torch.exp(-g / most))

    def shares(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Share of each voxel that is gap, and that is lung: two ``(A, B, C)``."""
        inside = (self.inside / COARSE + 0.5).clamp(0, 1)
        air = ((g - self.wall) / COARSE + 0.5).clamp(0, 1) * (g > 0.5)
        return inside * air, inside * (1 - air)


def collapse(chest: Chest, cavity: Cavity, g: Tensor) -> Tensor:
    """Soft-tissue density of the chest with that lung collapsed.

    Args:
        g: gap in mm, ``(A, B, C)`` on the cavity's grid.

    Returns:
        Tensor ``(X, Y, Z)`` in g/cm3, a new one; bone is not changed.
    """
    coarse = [cavity.inside, cavity.wall, g, cavity.thickness, *cavity.normal]
    fine, box = chest.refine(torch.stack(coarse), cavity.slices)
    inside, s, gap, thickness, *normal = fine
    spacing = torch.tensor(SPACING)
    axes = [
        chest.origin[i] + spacing[i] * torch.arange(box[i].start, box[i].stop)
        for i in range(3)
    ]
    here = (inside / 1.25 + 0.5).clamp(0, 1)
    open_ = (gap > 0.5).float()
    air = ((gap - s) / 0.8 + 0.5).clamp(0, 1) * open_
    squeeze = thickness / (thickness - gap).clamp(min=1.0)
    depth = (s - gap).clamp(min=0) * squeeze
    shift = (s - depth).clamp(min=0)
    # only what moves is sampled anew: the rest of the lung stays where it is
    moved = (shift > 0.2) & (here > 0) & (air < 1)
    places = moved.nonzero(as_tuple=True)
    points = torch.stack([axis[at] for axis, at in zip(axes, places, strict=True)], -1)
    inward = torch.stack([part[places] for part in normal], -1)
    source = points + shift[places][:, None] * inward
    old = chest.soft[box]
    tissue = old.clone()
    tissue[places] = _sample_anisotropic(chest.soft, source, chest.origin, spacing)
    tissue = tissue.clamp(max=1.05)
    # squeezed into a shell, a wide vessel would be drawn as a ring: it is left to the
    # vessels that :func:`carry` moves
    tissue = torch.lerp(
        tissue, _parenchyma(old, here), ((squeeze - 1.3) / 1.2).clamp(0, 1)
    )
    extra = torch.where(tissue < 0.5, tissue * (squeeze.clamp(max=4) - 1), 0.0)
    # layers also narrow toward the hilum: the share that keeps the lung's mass
    room = here * open_ * (1 - air)
    lost = (here * open_ * old).sum() - (room * tissue).sum()
    share = (lost / (room * extra).sum().clamp(min=1e-6)).clamp(0, 5)
    tissue = (tissue + share * extra).clamp(max=1.05)
    line = torch.exp(-0.5 * ((s - gap) / _PLEURA_BLUR) ** 2) * (gap > 1.5)
    tissue = tissue * (1 - air) + line * _PLEURA_MM / (_PLEURA_BLUR * 2.507)
    soft = chest.soft.clone()
    soft[box] = here * tissue * open_ + old * (1 - here * open_)
    return soft


def _parenchyma(soft: Tensor, inside: Tensor) -> Tensor:
    """Mean density of the lung within about 12 mm, ``(X, Y, Z)``, vessels left out."""
    weight = inside * ((0.6 - soft) / 0.2).clamp(0, 1)
    both = torch.stack([soft * weight, weight])[None]
    both = F.avg_pool3d(both, (4, 2, 4), ceil_mode=True)  # cubes of 5 mm
    both = F.avg_pool3d(both, 3, stride=1, padding=1)
    mean = both[:, :1] / both[:, 1:].clamp(min=1e-3)
    fine = F.interpolate(mean, scale_factor=(4, 2, 4), mode="trilinear")[0, 0]
    return fine[tuple(slice(n) for n in soft.shape)]  # the last cubes may reach beyond


def carry(cavity: Cavity, g: Tensor, points: Tensor) -> Tensor:
    """Where points of the healthy lung, ``(N, 3)`` in mm, lie in the collapsed one."""
    fields = torch.cat([torch.stack([cavity.wall, g, cavity.thickness]), cavity.normal])
    s, gap, thickness, *_ = sample(fields, points, cavity.origin, COARSE)
    deeper = gap + s * (thickness - gap) / thickness.clamp(min=1.0)
    for _ in range(3):  # the normal turns on the way: look again where one has come to
        s, _, _, *normal = sample(fields, points, cavity.origin, COARSE)
        points = points - (deeper - s).clamp(min=0)[:, None] * torch.stack(normal, -1)
    return points


def random_pneumothorax(area: float, generator: np.random.Generator) -> Pneumothorax:
    """A side (the right a little more often, as in life) and a kind that fits the area."""
    kinds = dict(KINDS)
    if area > 0.02:  # a small pocket cannot cover that much
        for kind in ("apical", "loculated", "basal", "several"):
            kinds[kind] *= 0.15
    if area < 0.012:
        kinds["complete"] = kinds["tension"] = 0.0
    weights = np.array(list(kinds.values()))
    return Pneumothorax(
        side=RIGHT if generator.random() < 0.54 else LEFT,
        kind=str(generator.choice(list(kinds), p=weights / weights.sum())),
        seed=int(generator.integers(2**31)),
        area=area,
    )


def _sample_anisotropic(
    volume: Tensor, points: Tensor, origin: Tensor, spacing: Tensor
) -> Tensor:
    """Trilinear value of ``(X, Y, Z)`` at ``(N, 3)`` mm."""
    scaled = (points - origin) / spacing
    return sample(volume[None], scaled, torch.zeros(3), 1.0)[0]
