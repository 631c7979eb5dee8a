"""What a CT with raised arms cannot show: the outline, arms at rest, planes of fat.

Dark planes of fat between the muscles of shoulder and axilla lie close to the lung and
look like air beside a pleural line.  Films with and without pneumothorax have them alike.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medimg_utils.physics.deform import smooth_noise
from medimg_utils.pneumothorax.curves import Axes, Curve, Dice, ridge, step
from medimg_utils.pneumothorax.view import View

_SIDES = (-1.0, 1.0)  # sign of x: the patient's left, then right


def shape_body(view: View, soft: Tensor, visible: Tensor) -> Tensor:
    """Lower the shoulders, free the neck, hang the arms, and part muscle from fat.

    Args:
        soft: ``(size, size)`` path through soft tissue of the chest, mm g/cm3.
        visible: lung fields in [0, 1].

    Returns:
        Tensor ``(size, size)``.
    """
    x, z = at = view.film_mm()
    dice = Dice(view.generator(4))
    fat = view.patient.fat_mm
    half = view.lung_width / 2 * view.magnification
    upper = _rounded(_below_shoulders(view, x, z, half, dice), 28.0)
    # nowhere thinner than ribs and skin over the lung
    wall = {s: _chest_wall(x, s, visible, half) for s in _SIDES}
    side = torch.zeros_like(soft)
    for sign in _SIDES:
        reach = wall[sign] + 8 + 0.7 * fat + 0.05 * (-z - 100).clamp(min=0)
        shoulder = torch.sigmoid((z + dice.between(70, 110)) / 20)
        reach = torch.lerp(reach, reach.clamp(min=1.3 * half), shoulder)
        side = torch.where(x * sign > 0, reach, side)
    lateral = _rounded(side - x.abs(), dice.between(16, 40))
    soft = soft * ((1 - visible) * upper * lateral + visible)
    # where the CT may hold only arm
    beyond = torch.sigmoid((x.abs() - half - 8) / 12)
    muscle = torch.sigmoid((z + 95) / 25) * torch.sigmoid((x.abs() - 0.7 * half) / 14)
    least = dice.between(20, 75) + dice.between(25, 70) * muscle
    soft = torch.maximum(soft, least * beyond * upper * lateral)
    soft = soft + fat * upper * lateral
    soft = torch.maximum(soft, _arms(view, x, z, half, dice) * upper * (1 - visible))
    soft = soft + _breasts(view, x, z, half, dice)
    planes = _planes(view, at, wall, dice)
    thick = (soft / 40).clamp(0, 1)  # no plane where there is hardly any tissue
    # over the lung they are seen through it, fainter
    soft = soft + planes * thick * (1 - 0.6 * visible)
    mottle = smooth_noise((view.size, view.size), (70, 70), dice.generator)
    return (soft * (1 + dice.ratio(0.002, 0.008) * mottle)).clamp(min=0)


def _below_shoulders(
    view: View, x: Tensor, z: Tensor, half: float, dice: Dice
) -> Tensor:
    """Depth in mm under the line from the neck over trapezius and shoulder."""
    s = view.technique.shoulders
    neck = 52 + 0.25 * view.patient.fat_mm + 4 * s[2]
    line = 62 + 5 * s[1] - (0.35 + 0.2 * s[0]) * (x.abs() - neck)
    outer = x.abs() - 1.28 * half + dice.between(-10, 15)
    line = line - 0.006 * outer.clamp(min=0) ** 2  # the deltoid is round
    return torch.where(x.abs() < neck, torch.tensor(200.0), line - z)


def _chest_wall(x: Tensor, sign: float, visible: Tensor, half: float) -> Tensor:
    """Distance ``(size, 1)`` in mm of the outer face of the ribs from the midline."""
    reach = torch.where(visible > 0.5, x * sign, torch.tensor(0.0)).amax(1)
    reach = torch.cummax(reach, 0).values + 14
    smooth = F.avg_pool1d(
        F.pad(reach[None, None], (12, 12), mode="replicate"), 25, stride=1
    )
    return torch.maximum(smooth[0, 0], torch.tensor(0.45 * half))[:, None]


def _arms(view: View, x: Tensor, z: Tensor, half: float, dice: Dice) -> Tensor:
    """Path through the upper arms, which hang down and a little away from the chest."""
    path = torch.zeros(view.size, view.size)
    for sign in _SIDES:
        away = dice.between(0.05, 0.6)
        centre = 1.28 * half + dice.normal(6) + away * (-45 - z).clamp(min=0)
        radius = 0.35 * half + 0.35 * view.patient.fat_mm + dice.normal(3)
        across = ((x * sign - centre) / radius).clamp(-1, 1)
        path = path + 2 * radius * (1 - across**2).sqrt() * (x * sign > 0)
    return path


def _breasts(view: View, x: Tensor, z: Tensor, half: float, dice: Dice) -> Tensor:
    path = torch.zeros(view.size, view.size)
    if not view.patient.breast_mm:
        return path
    drop = -175 + dice.normal(18)
    for sign in _SIDES:
        wide, tall = 62 + dice.normal(8), 62 + dice.normal(6)
        inside = 1 - ((x - sign * half * 0.62) / wide) ** 2 - ((z - drop) / tall) ** 2
        path = path + view.patient.breast_mm * inside.clamp(min=0) ** 0.75
    return path


def _planes(view: View, at: Axes, wall: dict[float, Tensor], dice: Dice) -> Tensor:
    """Fat (negative) and folds (positive) in mm of water, of both sides."""
    x, z = at
    path = torch.zeros(view.size, view.size)
    half = view.lung_width / 2 * view.magnification
    strength = view.technique.planes
    for sign in _SIDES:
        # between ribs, serratus and the shoulder blade: along the chest wall
        off = dice.between(2, 9)
        for _ in range(2):
            off += dice.between(2, 14)
            drift = dice.between(-0.02, 0.14)
            across = x * sign - wall[sign] - off - drift * (z + 60)
            low, high = dice.between(-210, -90), dice.between(-30, 10)
            ends = torch.sigmoid((z - low) / 9) * torch.sigmoid((high - z) / 9)
            width = dice.ratio(1.2, 5)
            band = torch.exp(-0.5 * (across / width) ** 2) * ends
            path = path - strength * dice.ratio(2, 13) * band
        # latissimus: muscle ends, and the fat under the skin begins
        across = x * sign - wall[sign] - dice.between(9, 24)
        ends = torch.sigmoid((-dice.between(60, 130) - z) / 12)
        path = path - strength * dice.ratio(2, 12) * ends * torch.sigmoid(across / 1.2)
        # between deltoid, pectoralis, biceps and triceps; under the clavicle
        for _ in range(3 + int(dice.between(0, 4))):
            plane = Curve(
                x=sign * (half + dice.between(-10, 75)),
                z=dice.between(-130, 25),
                angle=sign * (0.25 + dice.normal(0.5)),
                bend=dice.normal(0.006),
                length=dice.between(15, 60),
            )
            _draw_fat(path, at, plane, strength, dice)
        # beside the neck and above the clavicle
        for _ in range(2):
            plane = Curve(
                x=sign * dice.between(30, 0.9 * half),
                z=dice.between(5, 45),
                angle=-sign * dice.between(0.6, 1.4),
                bend=dice.normal(0.006),
                length=dice.between(20, 70),
            )
            _draw_fat(path, at, plane, strength, dice)
        # the fold of the axilla: skin and pectoralis run from the arm to the chest
        axilla = Curve(
            x=sign * half * dice.between(0.85, 1.1),
            z=dice.between(-120, -60),
            angle=sign * dice.between(0.2, 0.75),
            bend=dice.normal(0.004),
            length=dice.between(40, 80),
        )
        height = strength * dice.ratio(2, 14)
        profile = step(height, dice.between(0.5, 1.5), 28.0, towards=sign)
        axilla.draw(path, at, profile, 90.0)
    return path


def _draw_fat(
    path: Tensor, at: Axes, plane: Curve, strength: float, dice: Dice
) -> None:
    width = dice.ratio(0.9, 6)
    plane.draw(path, at, ridge(-strength * dice.ratio(2, 13), width), 3 * width)


def _rounded(depth: Tensor, radius: float) -> Tensor:
    """Share of full thickness at a depth in mm inside a rounded outline."""
    t = (depth / radius).clamp(0, 1)
    return (1 - (1 - t) ** 2).clamp(min=0).sqrt()
