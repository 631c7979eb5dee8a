"""The shoulder girdle in the pose of a standing or lying patient.

CT is taken with raised arms, so its clavicles, scapulae and humeri are cut out of the
chest (:mod:`.phantom`) and put back here, arms at rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medimg_utils.physics.deform import rotation
from medimg_utils.physics.xray import blur, splat
from medimg_utils.pneumothorax.phantom import LEFT, RIGHT
from medimg_utils.pneumothorax.view import View

#: Joints on the right girdle of the labelled CT, mm (found on its labels).
_STERNAL = torch.tensor([213.0, 236.0, 284.0])
_ACROMIAL = torch.tensor([301.0, 126.0, 330.0])
_GLENOID = torch.tensor([304.0, 148.0, 306.0])
_HEAD = torch.tensor([325.0, 163.0, 306.0])


def girdle_path(view: View, girdle: dict[str, Tensor]) -> Tensor:
    """Bone on the way through clavicles, scapulae and humeri of both sides.

    Parameters
    ----------
    girdle: points of the right bones, from :func:`~.phantom.load_girdle`.

    Returns
    -------
    Tensor ``(size, size)`` in mm g/cm3.
    """
    generator = view.generator(6)
    path = torch.zeros(view.size, view.size)
    for side in (RIGHT, LEFT):
        chance = torch.randn(8, generator=generator)
        for points, mass in _pose(view, girdle, side, chance):
            weight = mass / view.pixel_mm**2
            path = path + splat(view.pixels(points), weight, view.size, view.size)
    return blur(path, max(0.5, 0.55 / view.pixel_mm))


def _pose(
    view: View, girdle: dict[str, Tensor], side: int, chance: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Points ``(N, 3)`` in mm and bone mass ``(N,)`` of each bone of one side.

    ``chance`` holds 8 normal deviates, by which shoulders differ.
    """
    chest, technique = view.chest, view.technique
    bedside = technique.view == "AP"
    low, high = chest.lungs[:, 0].amin(0), chest.lungs[:, 1].amax(0)
    width = float(high[0] - low[0])
    # the bones of chest1, whose lungs are 252 mm wide, sized for this chest
    size = view.patient.girdle * width / 252 * 0.97
    sign = 1.0 if side == RIGHT else -1.0
    shrug, r = technique.shoulders, chance
    apex = float(chest.lungs[side, 1, 2])
    joint = torch.tensor(
        [
            chest.midline + sign * (21 + 2 * float(r[0])),
            float(low[1] + 0.86 * (high[1] - low[1])),
            apex - (20 if bedside else 30) + 5 * shrug[1] + 3 * float(r[1]),
        ]
    )
    place = _Placement(joint, sign, size)
    # clavicle: nearly level, its outer end a little up and back
    rise = (16 if bedside else 12) + 9 * shrug[2] + 4 * float(r[2])
    back = (48 if bedside else 30) + 8 * float(r[3])
    axis = _ACROMIAL - _STERNAL
    turn = _align(axis, torch.tensor([1.0, -back / 130, rise / 130]))
    clavicle = girdle["clavicle"]
    at_clavicle = place((clavicle[:, :3] - _STERNAL) @ turn.T)
    # scapula: hangs at the outer end; rolled to the side when shoulders are forward
    swing = (26 + 6 * float(r[4])) if bedside else (4 + 9 * float(r[4]))
    roll = rotation((float(2 * r[5]), swing, -10.0 if bedside else 14.0))
    glenoid = turn @ axis + torch.tensor([8.0, 6.0, -30.0])
    scapula = girdle["scapula"]
    at_scapula = place((scapula[:, :3] - _GLENOID) @ roll.T + glenoid)
    # humerus: the head in the socket, the shaft down and out
    drop = rotation((0.0, 165.0 + 8 * float(r[6]), 0.0))
    humerus = girdle["humerus"]
    head = glenoid + torch.tensor([20.0, 4.0, -4.0])
    at_humerus = place((humerus[:, :3] - _HEAD) @ drop.T + head)
    return [
        (at_clavicle, clavicle[:, 3] * size**3),
        (at_scapula, scapula[:, 3] * size**3),
        (at_humerus, humerus[:, 3] * size**3),
    ]


@dataclass(frozen=True)
class _Placement:
    """Puts points about a joint, in mm of the right side, to one side of the chest."""

    joint: Tensor
    sign: float
    size: float

    def __call__(self, points: Tensor) -> Tensor:
        return self.joint + points * self.size * torch.tensor([self.sign, 1.0, 1.0])


def _align(source: Tensor, target: Tensor) -> Tensor:
    """Smallest rotation ``(3, 3)`` that turns one direction into another."""
    a, b = source / source.norm(), target / target.norm()
    v = torch.linalg.cross(a, b)
    k = torch.tensor([[0.0, -v[2], v[1]], [v[2], 0.0, -v[0]], [-v[1], v[0], 0.0]])
    return torch.eye(3) + k + k @ k / (1 + a @ b)
