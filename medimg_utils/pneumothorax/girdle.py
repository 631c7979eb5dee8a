"""The shoulder girdle in the pose of a standing or lying patient.

CT is taken with raised arms, so its clavicles, scapulae and humeri are cut out of the
chest (:mod:`.phantom`) and put back here, arms at rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medimg_utils.physics.deform import rotation
from medimg_utils.physics.xray import blur
from medimg_utils.pneumothorax.phantom import LEFT, RIGHT, Girdle
from medimg_utils.pneumothorax.view import View

#: Joints on the right girdle of the labelled CT, mm (found on its labels).
_STERNAL = torch.tensor([213.0, 236.0, 284.0])
_ACROMIAL = torch.tensor([301.0, 126.0, 330.0])
_GLENOID = torch.tensor([304.0, 148.0, 306.0])
_HEAD = torch.tensor([325.0, 163.0, 306.0])
_CORTEX = 1.4  # g/cm3 of bone in the cortex of a shaft


def girdle_path(view: View, girdles: tuple[Girdle, Girdle]) -> Tensor:
    """Bone on the way through clavicles, scapulae and humeri of both sides.

    Args:
        girdles: points of right bones, from :func:`~.phantom.load_girdle`; the patient
            has one of the two.

    Returns:
        Tensor ``(size, size)`` in mm g/cm3.
    """
    pose, build = view.generator(6), torch.Generator()
    build.manual_seed(view.patient.bend_seed)
    shape = torch.randn(4, generator=build)  # the same on all films, left and right
    path = torch.zeros(view.size, view.size)
    for side in (RIGHT, LEFT):
        chance = torch.randn(8, generator=pose)
        girdle = girdles[view.patient.shoulder]
        posed = _pose(view, girdle, side, chance, shape)
        path = path + view.path_of(posed.points, posed.mass) + _shaft(view, posed)
    return blur(path, max(0.5, 0.5 / view.pixel_mm))


@dataclass(frozen=True)
class _Posed:
    """The girdle of one side, in mm of the undeformed chest.

    Attributes:
        points, mass: ``(N, 3)`` and ``(N,)`` g/cm3 mm3 of clavicle, scapula, head of
            humerus.
        head, elbow: ends ``(3,)`` of the humerus.
        size: of the bones over those of the labelled CT.
    """

    points: Tensor
    mass: Tensor
    head: Tensor
    elbow: Tensor
    size: float


def _pose(
    view: View, girdle: Girdle, side: int, chance: Tensor, shape: Tensor
) -> _Posed:
    """Put the bones of one side where they stand when the arms hang.

    ``chance`` holds 8 normal deviates by which poses differ, ``shape`` 4 by which bones
    do.
    """
    chest, technique = view.chest, view.technique
    bedside = technique.view == "AP"
    low, high = chest.lungs[:, 0].amin(0), chest.lungs[:, 1].amax(0)
    width = float(high[0] - low[0])
    # the bones of chest1, whose lungs are 252 mm wide, sized for this chest
    size = view.patient.girdle * width / 252 * 0.92
    sign = 1.0 if side == RIGHT else -1.0
    shrug, r = technique.shoulders, chance
    apex = float(chest.lungs[side, 1, 2])
    joint = torch.tensor(
        [
            chest.midline + sign * (21 + 2 * float(r[0])),
            float(low[1] + 0.86 * (high[1] - low[1])),
            apex - (24 if bedside else 36) + 6 * shrug[1] + 4 * float(r[1]),
        ]
    )
    place = _Placement(joint, sign, size, technique.stretch)
    # clavicle: nearly level, its outer end a little up and back
    rise = (16 if bedside else 20) + 10 * shrug[2] + 4 * float(r[2])
    back = (48 if bedside else 30) + 8 * float(r[3])
    axis = _ACROMIAL - _STERNAL
    turn = _align(axis, torch.tensor([1.0, -back / 130, rise / 130]))
    clavicle = girdle["clavicle"]
    at_clavicle = place(_swing(clavicle[:, :3] - _STERNAL, float(shape[0])) @ turn.T)
    # scapula: hangs at the outer end; rolled to the side when shoulders are forward
    swing = (26 + 6 * float(r[4])) if bedside else (4 + 9 * float(r[4]))
    turned = -10.0 if bedside else 7 + 7 * float(r[7])
    roll = rotation((float(2 * r[5]), swing, turned))
    glenoid = turn @ axis + torch.tensor([-4.0, 4.0, -30.0])
    scapula = girdle["scapula"]
    blade = (scapula[:, :3] - _GLENOID) * (1 + 0.07 * shape[1:])
    at_scapula = place(blade @ roll.T + glenoid)
    # humerus: the head in the socket, the shaft down and out
    drop = rotation((0.0, 165.0 + 8 * float(r[6]), 0.0))
    humerus = girdle["humerus"]
    head = glenoid + torch.tensor([20.0, 4.0, -4.0])
    at_humerus = place((humerus[:, :3] - _HEAD) @ drop.T + head)
    down = torch.tensor([0.25 + 0.15 * float(r[6]), 0.0, -1.0])
    ends = place(torch.stack([head, head + 280 * down / down.norm()]))
    mass = (
        torch.cat([clavicle[:, 3], scapula[:, 3], humerus[:, 3]])
        * size**3
        / technique.stretch
    )
    points = torch.cat([at_clavicle, at_scapula, at_humerus])
    return _Posed(points, mass, ends[0], ends[1], size)


def _shaft(view: View, posed: _Posed) -> Tensor:
    """Path through the shaft of a humerus, a tube: no CT with raised arms shows it."""
    ends = view.deformation.push(torch.stack([posed.head, posed.elbow]))
    mm = view.pixel_mm * float(view.geometry.shrink(ends[0, 1]))  # of a pixel, there
    start, stop = view.geometry.project(ends, view.size, view.size) * mm
    row = torch.arange(view.size)[:, None] * mm - start[0]
    column = torch.arange(view.size)[None, :] * mm - start[1]
    length = (stop - start).norm()
    down, out = (stop - start) / length
    along = row * down + column * out
    across = (row * out - column * down).abs()
    wider = 1 + 0.6 * torch.exp(-(along - 15).clamp(min=0) / 12)  # toward the head
    outer, inner = (
        ((radius * posed.size * wider) ** 2 - across**2).clamp(min=0).sqrt()
        for radius in (11.0, 7.0)
    )
    ends_softly = torch.sigmoid((along - 18) / 3) * torch.sigmoid((length - along) / 3)
    return 2 * _CORTEX * (outer - 0.85 * inner) * ends_softly


def _swing(clavicle: Tensor, chance: float) -> Tensor:
    """Deepen or flatten the S of a clavicle, whose inner end lies at the origin."""
    along = clavicle[:, 0] / (_ACROMIAL - _STERNAL)[0]
    lift = 4 * chance * torch.sin(torch.pi * along.clamp(0, 1))
    return clavicle + torch.stack([0 * lift, lift, 0.5 * lift], dim=1)


@dataclass(frozen=True)
class _Placement:
    """Puts points about a joint, in mm of the right side, to one side of the chest."""

    joint: Tensor
    sign: float
    size: float
    stretch: float

    def __call__(self, points: Tensor) -> Tensor:
        # the film will stretch the chest, not these bones
        axes = torch.tensor([self.sign, 1.0, 1 / self.stretch])
        return self.joint + points * self.size * axes


def _align(source: Tensor, target: Tensor) -> Tensor:
    """Smallest rotation ``(3, 3)`` that turns one direction into another."""
    a, b = source / source.norm(), target / target.norm()
    v = torch.linalg.cross(a, b)
    k = torch.tensor([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])
    return torch.eye(3) + k + k @ k / (1 + a @ b)
