"""One chest radiograph: what the X-rays of a view meet, and the film they make.

:func:`render` goes the way of the X-rays.  Path lengths through soft tissue and bone are
projected from the chest (collapsed or not), then what CT cannot show is laid over them:
outline and fat of the body (:mod:`.body`), shoulder girdle in the pose of a standing
patient (:mod:`.girdle`), fine vessels, texture, findings (:mod:`.findings`), devices
(:mod:`.devices`).  Only then come attenuation, scatter, noise and the display
curve.  Patient and technique are drawn in :mod:`.technique`, and posed in :mod:`.view`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage as ndi
from torch import Tensor

from medimg_utils.physics.xray import blur, develop, expose, linear_attenuation
from medimg_utils.pneumothorax.body import shape_body
from medimg_utils.pneumothorax.collapse import Cavity, Pneumothorax, carry, collapse
from medimg_utils.pneumothorax.devices import add_markers, device_paths
from medimg_utils.pneumothorax.findings import breathe, finding_paths
from medimg_utils.pneumothorax.girdle import girdle_path
from medimg_utils.pneumothorax.phantom import COARSE, SPACING, Chest, Girdle
from medimg_utils.pneumothorax.view import View

#: Smallest area of a mask as a share of the image; SIIM-ACR's 5 % quantile is 0.0013.
SMALLEST = 0.0008
_LOW = 96  # rows of the small film on which masks are searched
_RENDER = 512  # rows of the film on which volumes are projected
_RIB = (
    10.0  # bone on the way through two ribs, mm g/cm3; the spine has several times that
)


@dataclass(frozen=True)
class Radiograph:
    """A rendered film.

    Attributes:
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
    opaque = _opaque(view, cavity, _LOW)
    low, high = 1.0, 140.0
    for _ in range(8):
        middle = math.sqrt(low * high)
        g = cavity.width(pattern, middle)
        area = float(_outline(view, cavity, g, _LOW, opaque).mean())
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


def _opaque(view: View, cavity: Cavity, rows: int) -> Tensor:
    """Path through what hides air, ``(rows, rows)`` in mm; no gap changes it."""
    hidden = _hidden(view.chest, cavity.slices) * (cavity.inside < 0)
    return _coarse_paths(view, hidden[None], cavity.origin, rows)[0]


def _coarse_paths(view: View, fields: Tensor, origin: Tensor, rows: int) -> Tensor:
    """Integrals ``(C, rows, rows)`` of fields on the coarse grid."""
    spacing = torch.full((3,), COARSE)
    return view.project(*_halve(fields, origin, spacing), rows)


def _outline(
    view: View, cavity: Cavity, g: Tensor, rows: int, opaque: Tensor | None = None
) -> Tensor:
    """Soft mask ``(rows, rows)``: air and no lung on the ray, nothing opaque before it.

    ``opaque`` is that of :func:`_opaque`, for those who try many gaps.
    """
    if opaque is None:
        opaque = _opaque(view, cavity, rows)
    shares = torch.stack(cavity.shares(g))
    gas, rest = _coarse_paths(view, shares, cavity.origin, rows)
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
    path, opaque = view.project(*_cavities(view.chest), rows)
    visible = torch.minimum((path - 3) / 4, (45.0 - opaque) / 8) + 0.5
    return visible.clamp(0, 1), path


@lru_cache(maxsize=4)
def _cavities(chest: Chest) -> tuple[Tensor, Tensor, Tensor]:
    """What :func:`lung_fields` projects: cavities of the lungs, and what hides them."""
    cavity = (chest.depth / COARSE + 0.5).clamp(0, 1)
    cavity[:, :, 0] = 0  # below the scan there is no lung
    hidden = _hidden(chest) * (chest.depth < 0)
    spacing = torch.full((3,), COARSE)
    return _halve(torch.stack([cavity, hidden]), chest.coarse_origin, spacing)


@lru_cache(maxsize=4)
def _bone(chest: Chest) -> Tensor:
    """The bones of a CT as :func:`render` projects them."""
    return _halve(chest.bone[None], chest.origin, torch.tensor(SPACING))[0]


# --- the film -------------------------------------------------------------------------


def render(
    view: View,
    girdles: tuple[Girdle, Girdle],
    gap: tuple[Cavity, Tensor] | None,
) -> Radiograph:
    """Make the film of a view, with the lung collapsed where ``gap`` is given.

    All else of the picture depends on the view alone, so the same view with and without
    a gap is a counterfactual pair.
    """
    technique, size = view.technique, view.size
    chest = breathe(view)
    soft_volume = chest.soft if gap is None else collapse(chest, *gap)
    rows = min(size, _RENDER)
    tissue, origin, spacing = _halve(
        soft_volume[None], chest.origin, torch.tensor(SPACING)
    )
    both = torch.cat([tissue, _bone(view.chest)])  # neither breath nor gap moves bone
    paths = view.project(both, origin, spacing, rows)
    soft, bone, visible, aerated = (
        _resize(layer, size) for layer in (*paths, *lung_fields(view, 256))
    )
    soft = soft + technique.vessels * _vessels(view, chest.vessels, gap)
    soft = shape_body(view, soft, visible)
    soft = soft + finding_paths(view, visible, aerated)
    bone = _crisp(view, bone)
    bone = (bone + girdle_path(view, girdles)) * technique.bone
    soft = soft * (1 + technique.fibres * _grain(view, 2, fine_mm=0.6))
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
        devices = tuple(d for d in devices if d not in ("marker", "words"))
    pixels, drawn, lungs = (layer.numpy() for layer in layers)
    return Radiograph(pixels, drawn, lungs, view.pixel_mm, devices)


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


def _vessels(view: View, vessels: Tensor, gap: tuple[Cavity, Tensor] | None) -> Tensor:
    """Path through vessels finer than the CT's voxels, in mm g/cm3."""
    points = vessels[:, :3]
    if gap is not None:
        mine = vessels[:, 4] == gap[0].side
        moved = points.clone()
        moved[mine] = carry(*gap, points[mine])
        points = moved
    path = view.path_of(points, vessels[:, 3])
    return blur(path, max(0.45, 0.35 / view.pixel_mm))


def _crisp(view: View, bone: Tensor) -> Tensor:
    """Sharpen the cortex of ribs, which the CT blurs, and add trabeculae.

    Less of both in the spine, where the noise of many layers would be sharpened.
    """
    fine = bone - blur(bone, 2.0 / view.pixel_mm)
    fine = torch.minimum(fine, 0.5 * bone)  # small calcifications stay what they are
    thin = 1 / (1 + (blur(bone, 7 / view.pixel_mm) / _RIB) ** 2)
    bone = bone + view.technique.rib_edges * fine * thin
    grain = view.technique.trabeculae * _grain(view, 1, fine_mm=0.7)
    return (bone * (1 + grain * thin)).clamp(min=0)


def _grain(view: View, stream: int, fine_mm: float) -> Tensor:
    """Noise of unit variance whose grains are about ``fine_mm`` wide."""
    generator = view.generator(10 + stream)
    noise = torch.randn(view.size, view.size, generator=generator)
    fine = fine_mm / view.pixel_mm
    band = blur(noise, max(fine, 0.5)) - blur(noise, max(3 * fine, 1.6))
    return band / band.std()
