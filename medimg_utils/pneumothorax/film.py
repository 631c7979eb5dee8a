"""One chest radiograph: what the X-rays of a view meet, and the film they make.

:func:`render` goes the way of the X-rays.  Path lengths through soft tissue and bone are
projected from the chest (collapsed or not), then what CT cannot show is laid over them:
shoulder girdle in the pose of a standing patient (:mod:`.girdle`), fine vessels, texture,
devices (:mod:`.devices`).  Only then come attenuation, scatter, noise and the display
curve.  Patient and technique are drawn in :mod:`.technique`, and posed in :mod:`.view`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage as ndi
from torch import Tensor

from medimg_utils.physics.deform import smooth_noise
from medimg_utils.physics.xray import blur, develop, expose, linear_attenuation, splat
from medimg_utils.pneumothorax.collapse import Cavity, Pneumothorax, carry, collapse
from medimg_utils.pneumothorax.devices import add_markers, device_paths
from medimg_utils.pneumothorax.girdle import girdle_path
from medimg_utils.pneumothorax.phantom import COARSE, SPACING, Chest
from medimg_utils.pneumothorax.view import View

#: Smallest area of a mask as a share of the image; SIIM-ACR's 5 % quantile is 0.0013.
SMALLEST = 0.0008
_LOW = 96  # rows of the small film on which masks are searched
_RENDER = 512  # rows of the film on which volumes are projected


@dataclass(frozen=True)
class Radiograph:
    """A rendered film.

    Attributes
    ----------
    pixels: ``(H, W)`` uint8, bright is dense.
    mask: ``(H, W)`` bool, the pneumothorax as a reader would outline it.
    pixel_mm: spacing at the film.
    lungs: ``(H, W)`` bool, lung fields not hidden by heart or diaphragm.
    devices: what was drawn on it, such as ``"drain"``.
    """

    pixels: np.ndarray
    mask: np.ndarray
    lungs: np.ndarray
    pixel_mm: float
    devices: tuple[str, ...]


# --- pneumothorax ---------------------------------------------------------------------


def fit_pneumothorax(view: View, wanted: Pneumothorax) -> tuple[Cavity, Tensor] | None:
    """Find the gap whose mask covers the wanted share of the film, by bisection.

    Returns None where no gap of this shape reaches half of it, or the smallest area
    that anybody would outline (:data:`SMALLEST`).
    """
    cavity = Cavity.of(
        view.chest,
        wanted.side,
        with_base=wanted.kind in ("basal", "complete", "tension"),
    )
    pattern = cavity.gap(wanted.kind, wanted.seed)
    low, high = 1.0, 140.0
    for _ in range(8):
        middle = math.sqrt(low * high)
        area = float(_outline(view, cavity, cavity.width(pattern, middle), _LOW).mean())
        if area < wanted.area:
            low = middle
        else:
            high = middle
    g = cavity.width(pattern, high)
    reached = float(outline(view, (cavity, g)).float().mean())
    if reached < max(0.5 * wanted.area, SMALLEST):
        return None
    return cavity, g


def outline(view: View, gap: tuple[Cavity, Tensor]) -> Tensor:
    """The pneumothorax as a reader would draw it, ``(size, size)`` bool."""
    return _tidy(_resize(_outline(view, *gap, rows=256), view.size) > 0.5)


def _outline(view: View, cavity: Cavity, g: Tensor, rows: int) -> Tensor:
    """Soft mask ``(rows, rows)``: air and no lung on the ray, nothing opaque before it."""
    air, lung = cavity.shares(g)
    hidden = _hidden(view.chest, cavity.slices) * (cavity.inside < 0)
    gas, rest, opaque = view.project(
        *_halve(
            torch.stack([air, lung, hidden]), cavity.origin, torch.full((3,), COARSE)
        ),
        rows,
    )
    score = torch.minimum((gas - 2.0) / 2, (0.25 * gas + 1.0 - rest) / 2)
    score = torch.minimum(score, (45.0 - opaque) / 8)
    return (score + 0.5).clamp(0, 1)


def _halve(
    volume: Tensor, origin: Tensor, spacing: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Average pairs of coronal planes: 5 mm along the ray are as good as 2.5.

    A ray 200 mm off the middle crosses 5 mm of depth within half a millimetre.
    """
    if volume.shape[2] % 2:
        volume = F.pad(volume, (0, 0, 0, 1), mode="constant")
    halved = (volume[:, :, 0::2] + volume[:, :, 1::2]) / 2
    shift = torch.tensor([0.0, float(spacing[1]) / 2, 0.0])
    return halved, origin + shift, spacing * torch.tensor([1.0, 2.0, 1.0])


def _hidden(chest: Chest, part: tuple[slice, ...] = (slice(None),)) -> Tensor:
    """1 where heart, great vessels, spine or what lies under the diaphragm stand."""
    return ((chest.base[part] < 1.0) | (chest.medial[part] < 1.5)).float()


def lung_fields(view: View, rows: int) -> tuple[Tensor, Tensor]:
    """Visible lung fields in [0, 1] and path through the cavities in mm, of both sides.

    Two tensors ``(rows, rows)``.
    """
    chest = view.chest
    cavity = (chest.depth / COARSE + 0.5).clamp(0, 1)
    cavity[:, :, 0] = 0  # below the scan there is no lung
    hidden = _hidden(chest) * (chest.depth < 0)
    path, opaque = view.project(
        *_halve(
            torch.stack([cavity, hidden]), chest.coarse_origin, torch.full((3,), COARSE)
        ),
        rows,
    )
    visible = torch.minimum((path - 3) / 4, (45.0 - opaque) / 8) + 0.5
    return visible.clamp(0, 1), path


# --- the film -------------------------------------------------------------------------


def render(
    view: View,
    girdle: dict[str, Tensor],
    gap: tuple[Cavity, Tensor] | None,
) -> Radiograph:
    """Make the film of a view, with the lung collapsed where ``gap`` is given.

    All else of the picture depends on the view alone, so the same view with and without
    a gap is a counterfactual pair.
    """
    technique, size = view.technique, view.size
    chest = _breathe(view.chest, technique.lung)
    soft_volume = chest.soft if gap is None else collapse(chest, *gap)
    rows = min(size, _RENDER)
    volume, origin, spacing = _halve(
        torch.stack([soft_volume, chest.bone]), chest.origin, torch.tensor(SPACING)
    )
    paths = view.project(volume, origin, spacing, rows)
    soft, bone, visible, aerated = (
        _resize(layer, size) for layer in (*paths, *lung_fields(view, 256))
    )
    soft = soft + _vessels(view, gap)
    soft = _outer_shape(view, soft, visible)
    soft = soft + _findings(view, visible, aerated)
    bone = bone * _texture(view, 0.07, 1, fine_mm=0.6) + girdle_path(view, girdle)
    soft = soft * _texture(view, 0.012, 2, fine_mm=0.6)
    bone = bone * technique.bone
    integral = linear_attenuation(soft, bone, technique.energy).clamp(min=0)
    integral = integral + device_paths(view)
    signal = expose(
        integral,
        scatter_fraction=technique.scatter_fraction,
        scatter_mm=30.0,
        photons=technique.photons,
        blur_mm=technique.blur_mm,
        pixel_mm=view.pixel_mm,
        generator=view.generator(3),
    )
    low, high, gamma, shoulder = technique.tone
    grey = develop(
        signal,
        equalise=technique.equalise,
        equalise_mm=technique.equalise_mm,
        sharpen=technique.sharpen,
        sharpen_mm=technique.sharpen_mm,
        pixel_mm=view.pixel_mm,
        low=low,
        high=high,
        gamma=gamma,
        shoulder=shoulder,
        region=integral > 0.8,
    )
    grey = add_markers(view, grey)
    mask = torch.zeros(size, size, dtype=torch.bool)
    if gap is not None:
        mask = outline(view, gap)
    devices = technique.devices
    layers = [(grey * 255).round().clamp(0, 255).byte(), mask, visible > 0.5]
    if view.patient.mirrored:
        layers = [layer.flip(1) for layer in layers]
        devices = tuple(d for d in devices if d != "marker")  # it would read backwards
    pixels, drawn, lungs = (layer.numpy() for layer in layers)
    return Radiograph(pixels, drawn, lungs, view.pixel_mm, devices)


def _breathe(chest: Chest, factor: float) -> Chest:
    """Less air in the lungs, hence more density by a factor.

    CT is taken in the deepest breath the patient can hold; films, and those at the
    bedside above all, seldom are.
    """
    inside = (chest.depth / COARSE + 0.5).clamp(0, 1)
    (fine,), box = chest.refine(inside[None])
    soft = chest.soft.clone()
    scanned = soft[box]
    aerated = ((0.6 - scanned) / 0.2).clamp(0, 1)  # not vessels, not the chest wall
    scanned *= 1 + (factor - 1) * fine * aerated
    return replace(chest, soft=soft)


def _tidy(mask: Tensor) -> Tensor:
    """Drop crumbs below a twentieth of the mask: no reader would draw them."""
    labels, _ = ndi.label(mask.numpy())
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return torch.from_numpy(np.isin(labels, np.flatnonzero(sizes > 0.05 * sizes.sum())))


def _resize(layer: Tensor, size: int) -> Tensor:
    if layer.shape[0] == size:
        return layer
    return F.interpolate(
        layer[None, None], size=(size, size), mode="bicubic", align_corners=False
    )[0, 0]


def _vessels(view: View, gap: tuple[Cavity, Tensor] | None) -> Tensor:
    """Path through vessels finer than the CT's voxels, in mm g/cm3."""
    vessels = view.chest.vessels
    points = vessels[:, :3]
    if gap is not None:
        mine = vessels[:, 4] == gap[0].side
        moved = points.clone()
        moved[mine] = carry(*gap, points[mine])
        points = moved
    path = splat(view.pixels(points), vessels[:, 3], view.size, view.size)
    path = path / view.pixel_mm**2  # mm3 over a pixel's mm2
    return blur(path, max(0.45, 0.35 / view.pixel_mm))


def _texture(view: View, strength: float, stream: int, fine_mm: float) -> Tensor:
    """Factor around 1: trabeculae, muscle fibres and fat at the film's resolution."""
    generator = view.generator(10 + stream)
    noise = torch.randn(view.size, view.size, generator=generator)
    fine = fine_mm / view.pixel_mm
    band = blur(noise, max(fine, 0.5)) - blur(noise, max(3 * fine, 1.6))
    return 1 + strength * band / band.std()


def _outer_shape(view: View, soft: Tensor, visible: Tensor) -> Tensor:
    """Arms down, neck free: cut the raised shoulders and give the trunk an outline."""
    x, z = view.film_mm()
    s = view.technique.shoulders
    half = view.lung_width / 2
    fat = view.patient.fat_mm
    # trapezius: from the neck down to the shoulder
    neck = 52 + 0.25 * fat + 4 * s[2]
    line = 62 + 5 * s[1] - (0.45 + 0.15 * s[0]) * (x.abs() - neck)
    depth_below = torch.where(x.abs() < neck, torch.tensor(200.0), line - z)
    upper = _rounded(depth_below, 28.0)
    # side of the trunk: behind the ribs come muscle and fat, and the upper arm
    wall = half + 24 + 0.7 * fat + 0.05 * (-z - 100).clamp(min=0)
    side = wall + (28 + 25 * s[0]) * torch.sigmoid((z + 75) / 22)
    # nowhere thinner than ribs and skin over the lung
    for sign in (-1.0, 1.0):
        reach = torch.where(visible > 0.5, x * sign, torch.tensor(0.0)).amax(1)
        reach = torch.cummax(reach, 0).values + 18 + 0.5 * fat
        side = torch.where(x * sign > 0, torch.maximum(side, reach[:, None]), side)
    lateral = _rounded(side - x.abs(), 22.0)
    keep = (1 - visible) * upper * lateral + visible
    soft = soft * keep
    beyond = torch.sigmoid((x.abs() - half - 8) / 12)  # where the CT may hold only arm
    muscle = torch.sigmoid((z + 95) / 25) * torch.sigmoid((x.abs() - 0.7 * half) / 14)
    soft = torch.maximum(soft, (70 + 45 * muscle) * beyond * upper * lateral)
    soft = soft + fat * upper * lateral
    if view.patient.breast_mm:
        generator = view.generator(4)
        wide = 62 + 8 * torch.randn(2, generator=generator)
        drop = -175 + 18 * torch.randn((), generator=generator)
        for sign, w in zip((-1, 1), wide, strict=True):
            cap = _ellipse(x, z, sign * half * 0.62, float(drop), float(w), 62) ** 1.5
            soft = soft + view.patient.breast_mm * cap
    return soft


def _rounded(depth: Tensor, radius: float) -> Tensor:
    """Share of full thickness at a depth in mm inside a rounded outline."""
    t = (depth / radius).clamp(0, 1)
    return (1 - (1 - t) ** 2).clamp(min=0).sqrt()


def _ellipse(x: Tensor, z: Tensor, cx: float, cz: float, a: float, b: float) -> Tensor:
    return (1 - ((x - cx) / a) ** 2 - ((z - cz) / b) ** 2).clamp(min=0).sqrt()


def _findings(view: View, visible: Tensor, aerated: Tensor) -> Tensor:
    """Other diseases, in mm of water: infiltrates, effusions, and a fold of skin."""
    path = torch.zeros(view.size, view.size)
    found = view.technique.findings
    generator = view.generator(5)
    x, z = view.film_mm()
    if "opacity" in found:
        noise = smooth_noise((view.size, view.size), (9, 9), generator)
        fine = smooth_noise((view.size, view.size), (40, 40), generator)
        cloud = (noise + 0.45 * fine - 0.6).clamp(min=0)
        path = path + 14 * cloud * blur(visible, 8 / view.pixel_mm)
    if "effusion" in found:
        for side in (-1.0, 1.0):
            u = torch.rand(3, generator=generator)
            if u[0] < 0.6:
                level = -200 + 70 * u[1]
                meniscus = (
                    level + 45 * ((x * side) / (view.lung_width / 2)).clamp(0, 1.2) ** 4
                )
                under = torch.sigmoid((meniscus - z) / 6) * (x * side > 0)
                path = path + (0.55 + 0.3 * u[2]) * under * aerated
    if "skin fold" in found:
        u = torch.rand(4, generator=generator)
        at = 1.0 if u[0] < 0.5 else -1.0
        edge = at * (55 + 45 * u[1] + (0.1 + 0.3 * u[2]) * (z + 120))
        outside = (x - edge) * at
        fold = torch.sigmoid(-outside / 0.8) * torch.exp(outside.clamp(max=0) / 35)
        reach = torch.sigmoid((z + 200) / 10) * torch.sigmoid((-20 - z) / 10)
        path = path + (7 + 11 * u[3]) * fold * reach
    return path
