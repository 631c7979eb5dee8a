"""What else a film shows: other diseases, folds of skin, hair and clothes.

Several of them look like a pneumothorax on purpose: a fold of skin has a sharp edge, a
bulla and an emphysematous apex are dark, a companion shadow is a thin bright line at the
apex.  Films with and without pneumothorax have them at the same rates.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medimg_utils.physics.deform import sample, smooth_noise
from medimg_utils.physics.xray import blur
from medimg_utils.pneumothorax.curves import Axes, Curve, Dice, step, strand
from medimg_utils.pneumothorax.phantom import COARSE, LEFT, RIGHT, SPACING, Chest
from medimg_utils.pneumothorax.view import View


def breathe(view: View) -> Chest:
    """The chest of a view with less air in its lungs, and with holes in sick ones.

    CT is taken in the deepest breath the patient can hold; films, and those at the
    bedside above all, seldom are.  Emphysema empties the apices, a bulla is a bubble
    with a thin wall.
    """
    chest, found = view.chest, view.technique.findings
    low, high = chest.lungs[:, 0].amin(0), chest.lungs[:, 1].amax(0)
    first = ((low - chest.coarse_origin) / COARSE).floor().int().clamp(min=0).tolist()
    last = ((high - chest.coarse_origin) / COARSE).ceil().int() + 1
    part = tuple(slice(a, int(b)) for a, b in zip(first, last, strict=True))
    depth = chest.depth[part]
    density = torch.full_like(depth, view.technique.lung)
    if "emphysema" in found:
        level = (part[2].start + torch.arange(depth.shape[2])) * COARSE - low[2]
        level = level / (high[2] - low[2])
        dice = Dice(view.generator(9))
        start, soft = dice.between(0.5, 0.85), dice.between(0.04, 0.12)
        lost = dice.between(0.25, 0.6) * torch.sigmoid((level - start) / soft)
        density = 1 + (density - 1) * (1 - lost) - 0.5 * lost
    inside = (depth / COARSE + 0.5).clamp(0, 1)
    (weight,), box = chest.refine((inside * (density - 1))[None], part)
    soft_tissue = chest.soft.clone()
    lungs = soft_tissue[box]
    # not vessels, not the chest wall
    lungs *= 1 + weight * ((0.6 - lungs) / 0.2).clamp(0, 1)
    vessels = chest.vessels
    if "bulla" in found:
        vessels = _bulla(chest, soft_tissue, Dice(view.generator(10)))
    return replace(chest, soft=soft_tissue, vessels=vessels)


def _bulla(chest: Chest, soft: Tensor, dice: Dice) -> Tensor:
    """Put a bubble into an upper lobe; ``soft`` is written to, and vessels returned."""
    side = RIGHT if dice.happens(0.5) else LEFT
    low, high = chest.lungs[side]
    level = low[2] + dice.between(0.6, 0.9) * (high[2] - low[2])
    k = int((level - chest.coarse_origin[2]) / COARSE)
    room = (chest.depth[:, :, k] > 6) & (chest.side[:, :, k] == side)
    places = torch.argwhere(room)
    if not len(places):
        return chest.vessels
    i, j = places[int(dice.between(0, len(places) - 1e-3))].tolist()
    centre = chest.coarse_origin + COARSE * torch.tensor([i, j, k])
    radius = dice.between(9, 30)
    spacing = torch.tensor(SPACING)
    first = ((centre - radius - 3 - chest.origin) / spacing).floor().int().clamp(min=0)
    last = ((centre + radius + 3 - chest.origin) / spacing).ceil().int() + 1
    box = tuple(
        slice(int(a), min(int(b), n))
        for a, b, n in zip(first, last, soft.shape, strict=True)
    )
    axes = [
        chest.origin[n]
        + spacing[n] * torch.arange(box[n].start, box[n].stop)
        - centre[n]
        for n in range(3)
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    to_wall = points.norm(dim=-1) - radius
    depth = sample(chest.depth[None], points + centre, chest.coarse_origin, COARSE)[0]
    tissue = soft[box]
    lung = ((0.6 - tissue) / 0.2).clamp(0, 1) * (depth / COARSE + 0.5).clamp(0, 1)
    air = torch.sigmoid(-to_wall / 0.5) * lung
    wall = torch.exp(-0.5 * (to_wall / 0.8) ** 2) * lung
    soft[box] = tissue * (1 - 0.92 * air) + dice.between(0.1, 0.45) * wall
    gone = (chest.vessels[:, :3] - centre).norm(dim=1) < radius
    return torch.where(
        gone[:, None], chest.vessels * torch.tensor([1.0, 1, 1, 0, 1]), chest.vessels
    )


def finding_paths(view: View, visible: Tensor, aerated: Tensor) -> Tensor:
    """Path in mm of water through what lies over the lungs, ``(size, size)``.

    Args:
        visible: lung fields in [0, 1].
        aerated: path through the pleural cavities in mm.
    """
    path = torch.zeros(view.size, view.size)
    at = view.film_mm()
    for stream, (name, draw) in enumerate(_DRAW.items(), start=200):
        if name in view.technique.findings:
            draw(view, path, at, visible, aerated, Dice(view.generator(stream)))
    return path


def _opacity(
    view: View, path: Tensor, at: Axes, visible: Tensor, aerated: Tensor, dice: Dice
) -> None:
    """Patchy infiltrates."""
    shape = (view.size, view.size)
    cloud = smooth_noise(shape, (9, 9), dice.generator)
    cloud = cloud + 0.45 * smooth_noise(shape, (40, 40), dice.generator)
    path += 14 * (cloud - 0.6).clamp(min=0) * blur(visible, 8 / view.pixel_mm)


def _effusion(
    view: View, path: Tensor, at: Axes, visible: Tensor, aerated: Tensor, dice: Dice
) -> None:
    """Fluid that rises along the chest wall, on one side or both."""
    x, z = at
    for side in (-1.0, 1.0):
        share, level = dice.between(0.55, 0.85), dice.between(-200, -130)
        if dice.happens(0.6):
            out = ((x * side) / (view.lung_width / 2)).clamp(0, 1.2)
            under = torch.sigmoid((level + 45 * out**4 - z) / 6) * (x * side > 0)
            path += share * under * aerated


def _skin_fold(
    view: View, path: Tensor, at: Axes, visible: Tensor, aerated: Tensor, dice: Dice
) -> None:
    """One or two folds, dense up to a sharp edge that crosses the lung."""
    for _ in range(1 + dice.happens(0.4)):
        side = 1.0 if dice.happens(0.5) else -1.0
        fold = Curve(
            x=side * dice.between(45, 110),
            z=dice.between(-170, -70),
            angle=-side * dice.between(-0.2, 0.5),
            bend=dice.normal(0.003),
            length=dice.between(50, 110),
        )
        profile = step(dice.between(5, 18), dice.between(0.4, 1), 35.0, towards=-side)
        fold.draw(path, at, profile, 110.0)


def _companion(
    view: View, path: Tensor, at: Axes, visible: Tensor, aerated: Tensor, dice: Dice
) -> None:
    """Soft tissue along the first ribs: a thin bright line inside the apex."""
    _, z = at
    deep = dice.between(14, 34)
    rim = torch.sigmoid((deep - aerated) / 4) * visible
    path += dice.between(1.5, 5) * rim * torch.sigmoid((z + dice.between(25, 60)) / 8)


def _hair(
    view: View, path: Tensor, at: Axes, visible: Tensor, aerated: Tensor, dice: Dice
) -> None:
    """Plaited strands that hang from the neck over the upper lungs."""
    for _ in range(1 + int(dice.between(0, 3))):
        length = dice.between(35, 75)
        braid = Curve(
            x=dice.between(-85, 85),
            z=60 - length,
            angle=dice.normal(0.2),
            bend=dice.normal(0.004),
            length=length,
        )
        width = dice.between(3, 9)
        braid.draw(
            path, at, strand(dice.between(1.5, 5), width, 2.6 * width), 1.2 * width
        )


def _clothes(
    view: View, path: Tensor, at: Axes, visible: Tensor, aerated: Tensor, dice: Dice
) -> None:
    """Folds of a gown or a sheet: long faint edges anywhere."""
    for _ in range(2 + int(dice.between(0, 4))):
        fold = Curve(
            x=dice.between(-160, 160),
            z=dice.between(-250, 20),
            angle=dice.normal(0.7),
            bend=dice.normal(0.002),
            length=dice.between(60, 170),
        )
        towards = 1.0 if dice.happens(0.5) else -1.0
        profile = step(dice.ratio(0.6, 3.5), 0.6, dice.between(4, 40), towards)
        fold.draw(path, at, profile, 100.0)


_DRAW = {
    "opacity": _opacity,
    "effusion": _effusion,
    "skin fold": _skin_fold,
    "companion shadow": _companion,
    "hair": _hair,
    "clothes": _clothes,
}
