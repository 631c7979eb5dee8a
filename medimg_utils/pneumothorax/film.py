"""One chest radiograph: a patient of some build, a technique, devices, and the film.

:func:`render` goes the way of the X-rays.  Path lengths through soft tissue and bone are
projected from the chest (collapsed or not), then what CT cannot show is laid over them:
shoulder girdle in the pose of a standing patient, fine vessels, texture, devices.  Only
then come attenuation, scatter, noise and the display curve.  Each rate and range is a
field of :class:`Rates`, stated in one place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage as ndi
from torch import Tensor

from medimg_utils.physics.deform import (
    Deformation,
    random_deformation,
    rotation,
    smooth_noise,
)
from medimg_utils.physics.xray import (
    Geometry,
    blur,
    develop,
    expose,
    linear_attenuation,
    project_volume,
    splat,
)
from medimg_utils.pneumothorax.collapse import Cavity, Pneumothorax, carry, collapse
from medimg_utils.pneumothorax.phantom import COARSE, LEFT, RIGHT, SPACING, Bone, Chest

#: Smallest area of a mask as a share of the image; SIIM-ACR's 5 % quantile is 0.0013.
SMALLEST = 0.0008
_LOW = 96  # rows of the small film on which masks are searched
_RENDER = 512  # rows of the film on which volumes are projected


@dataclass(frozen=True)
class Rates:
    """How often and how strongly things vary.  All are our choice.

    ``drain`` is (without, with pneumothorax): drained patients dominate the positives of
    real collections, which a network may learn instead of the disease.
    """

    drain: tuple[float, float] = (0.06, 0.30)
    line: float = 0.25
    leads: float = 0.25
    pacemaker: float = 0.03
    marker: float = 0.75
    shutter: float = 0.45
    opacity: float = 0.35
    effusion: float = 0.15
    skin_fold: float = 0.06
    bedside: float = 0.40
    mirrored: float = 0.02


@dataclass(frozen=True)
class Patient:
    """A build: the anatomy it is made of and how it is deformed.

    Attributes
    ----------
    scale: of the chest along x, y, z.
    bend_mm: standard deviation of the smooth deformation.
    fat_mm: water-equivalent thickness of fat added around the chest.
    breast_mm: thickness of the breasts, 0 for none.
    girdle: scale of clavicles and scapulae.
    mirrored: left and right exchanged (situs inversus: far rarer in life).
    """

    anatomy: str
    sex: str
    age: int
    scale: tuple[float, float, float]
    bend_mm: float
    bend_seed: int
    fat_mm: float
    breast_mm: float
    girdle: float
    mirrored: bool


def random_patient(
    anatomies: tuple[str, ...], rates: Rates, generator: np.random.Generator
) -> Patient:
    """Draw a patient from one of the anatomies."""
    sex = "F" if generator.random() < 0.45 else "M"
    size = generator.normal(1.0 if sex == "M" else 0.94, 0.05)
    scale = tuple(
        float(size * (1 + generator.normal(0, s))) for s in (0.05, 0.06, 0.06)
    )
    return Patient(
        anatomy=str(generator.choice(anatomies)),
        sex=sex,
        age=int(np.clip(generator.normal(50, 18), 16, 92)),
        scale=(scale[0], scale[1], scale[2]),
        bend_mm=float(generator.uniform(3, 7)),
        bend_seed=int(generator.integers(2**31)),
        fat_mm=float(generator.gamma(2.0, 12.0)),
        breast_mm=float(generator.uniform(8, 40)) if sex == "F" else 0.0,
        girdle=float(generator.normal(1.0, 0.04)),
        mirrored=bool(generator.random() < rates.mirrored),
    )


@dataclass(frozen=True)
class Technique:
    """How one film of a patient was taken and displayed."""

    view: str
    degrees: tuple[float, float, float]
    energy: float
    lungs_share: float
    offset: tuple[float, float]
    shoulders: tuple[float, float, float]
    bone: float
    lung: float
    seed: int
    devices: tuple[str, ...]
    findings: tuple[str, ...]
    scatter_fraction: float
    photons: float
    blur_mm: float
    equalise: float
    equalise_mm: float
    sharpen: float
    sharpen_mm: float
    tone: tuple[float, float, float, float] = field(default=(0.01, 0.99, 1.0, 0.5))
    drain_side: int | None = None  # 0 right, 1 left; any where None


def random_technique(
    rates: Rates, collapsed: bool, generator: np.random.Generator
) -> Technique:
    """Draw view, pose, exposure and what lies on the patient.

    Only the rate of drains depends on the pneumothorax.
    """
    g = generator
    bedside = g.random() < rates.bedside
    devices = []
    if g.random() < rates.drain[int(collapsed)]:
        devices.append("drain")
    sick = 1.8 if bedside else 0.5  # devices and bedside films go together
    for name, rate in (("line", rates.line), ("leads", rates.leads)):
        if g.random() < min(1.0, rate * sick):
            devices.append(name)
    if g.random() < rates.pacemaker:
        devices.append("pacemaker")
    if g.random() < rates.marker:
        devices.append("marker")
    if g.random() < rates.shutter:
        devices.append("shutter")
    findings = []
    if g.random() < rates.opacity:
        findings.append("opacity")
    if g.random() < rates.effusion * sick:
        findings.append("effusion")
    if g.random() < rates.skin_fold * sick:
        findings.append("skin fold")
    turn = 4.0 if bedside else 2.0
    return Technique(
        view="AP" if bedside else "PA",
        degrees=(
            float(g.normal(0, 4)),
            float(g.normal(0, turn * 0.7)),
            float(g.normal(0, turn)),
        ),
        energy=float(g.uniform(48, 64)),
        lungs_share=float(g.uniform(0.66, 0.88)),
        offset=(float(g.normal(0, 10)), float(g.normal(0, 9))),
        shoulders=(
            float(g.uniform(0, 1)),
            float(g.normal(0, 1)),
            float(g.normal(0, 1)),
        ),
        bone=float(g.uniform(1.2, 2.4)),
        lung=float(g.uniform(1.1, 2.0)),
        seed=int(g.integers(2**31)),
        devices=tuple(devices),
        findings=tuple(findings),
        scatter_fraction=float(g.uniform(0.3, 0.65)),
        photons=float(10 ** g.uniform(5.2, 6.4)),
        blur_mm=float(g.uniform(0.12, 0.5)),
        equalise=float(g.uniform(0.25, 0.8)),
        equalise_mm=float(g.uniform(14, 50)),
        sharpen=float(g.uniform(0.1, 1.5)),
        sharpen_mm=float(g.uniform(1.2, 5.0)),
        tone=(
            float(g.uniform(0.0, 0.03)),
            float(g.uniform(0.965, 1.0)),
            float(g.uniform(0.7, 1.35)),
            float(g.uniform(0.2, 1.0)),
        ),
    )


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


@dataclass(frozen=True)
class View:
    """A patient before the film: geometry, pose and the projections that stay."""

    chest: Chest
    patient: Patient
    technique: Technique
    geometry: Geometry
    deformation: Deformation
    size: int

    @property
    def pixel_mm(self) -> float:
        """Pixel spacing at the film in mm."""
        return self.geometry.width / self.size

    def generator(self, stream: int) -> torch.Generator:
        """A generator of its own for each stage: a drain more moves nothing else."""
        return torch.Generator().manual_seed(self.technique.seed + 7919 * stream)

    def project(
        self, volume: Tensor, origin: Tensor, spacing: Tensor, rows: int
    ) -> Tensor:
        """Integrals ``(C, rows, rows)`` of a volume of the chest ``(C, X, Y, Z)``."""
        return project_volume(
            volume,
            origin,
            spacing,
            self.geometry,
            rows,
            rows,
            pull=self.deformation.pull,
            depth_scale=self.patient.scale[1],
        )

    def pixels(self, points: Tensor) -> Tensor:
        """Film position (row, column) of points of the undeformed chest, in mm."""
        return self.geometry.project(
            self.deformation.push(points), self.size, self.size
        )


def make_view(
    chest: Chest,
    patient: Patient,
    technique: Technique,
    size: int,
    tension: int | None = None,
) -> View:
    """Pose the patient before the film.

    ``tension`` is the side (0, 1) of a tension pneumothorax: it pushes the mediastinum
    away and its diaphragm down.
    """
    bend = torch.Generator().manual_seed(patient.bend_seed)
    deformation = random_deformation(
        chest.low,
        chest.high,
        scale=patient.scale,
        degrees=technique.degrees,
        bend_mm=patient.bend_mm,
        knot_mm=60.0,
        generator=bend,
    )
    low, high = chest.lungs[:, 0].amin(0), chest.lungs[:, 1].amax(0)
    corners = deformation.push(torch.stack([low, high]))
    width = float(corners[1, 0] - corners[0, 0]) / technique.lungs_share
    middle_x = float(corners[:, 0].mean()) + technique.offset[0]
    # the apices stand a little below the film's top
    top = float(corners[1, 2]) + 0.07 * width + technique.offset[1]
    front = technique.view == "PA"
    film_y = float(corners[1, 1] + 60) if front else float(corners[0, 1] - 60)
    sid = 1800.0 if front else 1050.0
    shrink = 1 - (float(corners[1, 1] - corners[0, 1]) / 2 + 60) / sid
    geometry = Geometry(
        view=technique.view,
        sid=sid,
        film_y=film_y,
        centre=(middle_x, top - width / 2),
        width=width / shrink,
        height=width / shrink,
    )
    if tension is not None:  # only now: the film stands where it stood
        deformation = replace(
            deformation, bend=_push_mediastinum(chest, deformation, tension)
        )
    return View(chest, patient, technique, geometry, deformation, size)


def _breathe(chest: Chest, factor: float) -> Chest:
    """Less air in the lungs, hence more density by a factor.

    CT is taken in the deepest breath the patient can hold; films, and those at the
    bedside above all, seldom are.
    """
    inside = (chest.depth / COARSE + 0.5).clamp(0, 1)
    fine = F.interpolate(inside[None, None], scale_factor=(2, 1, 2), mode="trilinear")[
        0, 0
    ]
    soft = chest.soft.clone()
    scanned = soft[:, :, soft.shape[2] - fine.shape[2] :]  # abdomen was added below
    aerated = ((0.6 - scanned) / 0.2).clamp(0, 1)  # not vessels, not the chest wall
    scanned *= 1 + (factor - 1) * fine * aerated
    return replace(chest, soft=soft)


def _push_mediastinum(chest: Chest, deformation: Deformation, side: int) -> Tensor:
    bend = deformation.bend.clone()
    axes = [
        torch.linspace(float(low), float(high), n)
        for low, high, n in zip(chest.low, chest.high, bend.shape[1:], strict=True)
    ]
    x, _, z = torch.meshgrid(*axes, indexing="ij")
    level = (z - chest.lungs[side, 0, 2]) / (
        chest.lungs[side, 1, 2] - chest.lungs[side, 0, 2]
    )
    away = -1.0 if side == RIGHT else 1.0
    middle = torch.exp(-0.5 * ((x - chest.midline) / 55) ** 2)
    lower = torch.exp(-0.5 * ((level - 0.4) / 0.35) ** 2)
    bend[0] -= away * 18 * middle * lower  # a pull map looks where tissue came from
    mine = torch.sigmoid((x - chest.midline) / 15 * (1 if side == RIGHT else -1))
    bend[2] += 14 * mine * torch.exp(-0.5 * ((level - 0.05) / 0.25) ** 2)
    return bend


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
    girdle: dict[str, Bone],
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
    bone = bone * _texture(view, 0.07, 1, fine_mm=0.6) + _girdle_path(view, girdle)
    soft = soft * _texture(view, 0.012, 2, fine_mm=0.6)
    bone = bone * technique.bone
    integral = linear_attenuation(soft, bone, technique.energy).clamp(min=0)
    metal = _devices(view)
    integral = integral + metal
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
    grey = _markers(view, grey)
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


def _grid(view: View) -> tuple[Tensor, Tensor]:
    """Film coordinates in mm from the middle of the lungs' top: x right, z up."""
    x, z = view.geometry.film_axes(view.size, view.size)
    low, high = view.chest.lungs[:, 0].amin(0), view.chest.lungs[:, 1].amax(0)
    middle = torch.stack(
        [torch.tensor([view.chest.midline, 0.0, 0.0]), (low + high) / 2]
    )
    middle[0, 1:] = torch.tensor([float((low + high)[1] / 2), float(high[2])])
    at = view.deformation.push(middle)
    shrink = float(view.geometry.shrink(at[0, 1]))
    cx, cz = view.geometry.centre
    x0 = cx + (float(at[0, 0]) - cx) / shrink
    z0 = cz + (float(at[0, 2]) - cz) / shrink
    return (x - x0)[None, :], (z - z0)[:, None]


def _lung_width(view: View) -> float:
    low, high = view.chest.lungs[:, 0, 0].min(), view.chest.lungs[:, 1, 0].max()
    return float(high - low) * view.patient.scale[0]


def _outer_shape(view: View, soft: Tensor, visible: Tensor) -> Tensor:
    """Arms down, neck free: cut the raised shoulders and give the trunk an outline."""
    x, z = _grid(view)
    s = view.technique.shoulders
    half = _lung_width(view) / 2
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
    x, z = _grid(view)
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
                    level
                    + 45 * ((x * side) / (_lung_width(view) / 2)).clamp(0, 1.2) ** 4
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


# --- shoulder girdle ------------------------------------------------------------------

#: Joints on the right girdle of the labelled CT, mm (found on its labels).
_STERNAL = torch.tensor([213.0, 236.0, 284.0])
_ACROMIAL = torch.tensor([301.0, 126.0, 330.0])
_GLENOID = torch.tensor([304.0, 148.0, 306.0])
_HEAD = torch.tensor([325.0, 163.0, 306.0])


def _girdle_path(view: View, girdle: dict[str, Bone]) -> Tensor:
    """Bone path of clavicles, scapulae and humeri, arms at rest, in mm g/cm3."""
    chest, technique = view.chest, view.technique
    generator = view.generator(6)
    bedside = technique.view == "AP"
    low, high = chest.lungs[:, 0].amin(0), chest.lungs[:, 1].amax(0)
    width = float(high[0] - low[0])
    # the bones of chest1, whose lungs are 252 mm wide, sized for this chest
    size = view.patient.girdle * width / 252 * 0.97
    shrug = technique.shoulders
    path = torch.zeros(view.size, view.size)
    for side, sign in ((RIGHT, 1.0), (LEFT, -1.0)):
        r = torch.randn(8, generator=generator)
        apex = float(chest.lungs[side, 1, 2])
        joint = torch.tensor(
            [
                chest.midline + sign * (21 + 2 * float(r[0])),
                float(low[1] + 0.86 * (high[1] - low[1])),
                apex - (20 if bedside else 30) + 5 * shrug[1] + 3 * float(r[1]),
            ]
        )
        # clavicle: nearly level, its outer end a little up and back
        rise = (16 if bedside else 12) + 9 * shrug[2] + 4 * float(r[2])
        back = (48 if bedside else 30) + 8 * float(r[3])
        direction = torch.tensor([1.0, -back / 130, rise / 130])
        axis = _ACROMIAL - _STERNAL
        turn = _align(axis, direction)
        place = _Placement(joint, sign, size)
        points = girdle["clavicle"].points
        at = place((points[:, :3] - _STERNAL) @ turn.T)
        end = turn @ axis
        # scapula: hangs at the outer end; rolled to the side when shoulders are forward
        swing = (26 + 6 * float(r[4])) if bedside else (4 + 9 * float(r[4]))
        roll = rotation((float(2 * r[5]), swing, -10.0 if bedside else 14.0))
        glenoid = end + torch.tensor([8.0, 6.0, -30.0])
        blade = girdle["scapula"].points
        at_blade = place((blade[:, :3] - _GLENOID) @ roll.T + glenoid)
        # humerus: the head in the socket, the shaft down and out
        drop = rotation((0.0, 165.0 + 8 * float(r[6]), 0.0))
        arm = girdle["humerus"].points
        head = glenoid + torch.tensor([20.0, 4.0, -4.0])
        at_arm = place((arm[:, :3] - _HEAD) @ drop.T + head)
        for where, bone in ((at, points), (at_blade, blade), (at_arm, arm)):
            weight = bone[:, 3] * size**3 / view.pixel_mm**2
            path = path + splat(view.pixels(where), weight, view.size, view.size)
    return blur(path, max(0.5, 0.55 / view.pixel_mm))


@dataclass(frozen=True)
class _Placement:
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


# --- devices --------------------------------------------------------------------------


def _devices(view: View) -> Tensor:
    """Line integral of tubes, wires and metal."""
    total = torch.zeros(view.size, view.size)
    x, z = _grid(view)
    origin = (float(x[0, 0]), float(z[0, 0]))
    draw = _Draw(view, origin)
    generator = view.generator(7)
    half = _lung_width(view) / 2
    for device in ("drain", "line", "leads", "pacemaker"):
        u = torch.rand(12, generator=generator).tolist()
        if device not in view.technique.devices:
            continue
        side = 1.0 if u[0] < 0.5 else -1.0
        if device == "drain":
            if view.technique.drain_side is not None:
                side = 1.0 if view.technique.drain_side == RIGHT else -1.0
            entry = (side * (half + 45), -110 - 70 * u[1])
            bend = (side * half * (0.85 - 0.2 * u[2]), -80 - 40 * u[3])
            tip = (side * half * (0.3 + 0.35 * u[4]), -15 - 60 * u[5])
            total = total + draw.tube([entry, bend, tip], 4.0 + 2.5 * u[6], 0.30)
        elif device == "line":
            start = (side * (30 + 60 * u[1]), 45 + 10 * u[2])
            vein = (side * (25 + 20 * u[3]), -20 - 10 * u[4])
            tip = (12 + 8 * u[5], -75 - 45 * u[6])
            total = total + draw.wire([start, vein, (14.0, -45.0), tip], 1.0, 0.35)
            if u[7] < 0.4:  # a tube in the trachea or the gullet runs along the midline
                points = [
                    (2 * u[8], 70.0),
                    (-2 + 4 * u[9], 0.0),
                    (3 * u[10], -40.0 - 20 * u[11]),
                ]
                total = total + draw.tube(points, 5.5, 0.10)
        elif device == "leads":
            count = 2 + int(3 * u[1])
            for _ in range(count):
                v = torch.rand(8, generator=generator).tolist()
                snap = ((v[0] - 0.5) * 1.7 * half, -20 - 210 * v[1])
                away = ((v[2] - 0.5) * 3 * half, -300 + 380 * v[3])
                between = (
                    (snap[0] + away[0]) / 2 + 60 * (v[4] - 0.5),
                    (snap[1] + away[1]) / 2 + 60 * (v[5] - 0.5),
                )
                total = total + draw.wire([snap, between, away], 0.7, 0.8)
                total = total + draw.disc(snap, 5.0 + 2 * v[6], 0.12)
                total = total + draw.disc(snap, 2.0, 1.2)
        else:
            box = (side * half * 0.62, -35 - 10 * u[1])
            total = total + draw.disc(box, 22 + 4 * u[2], 3.0)
            wire = [
                box,
                (side * 25, -20.0),
                (10.0, -80.0),
                (-30 - 15 * u[3], -165 - 15 * u[4]),
            ]
            total = total + draw.wire(wire, 0.9, 1.2)
    return total


@dataclass(frozen=True)
class _Draw:
    """Draws in film millimetres (x right, z up, from the top of the lungs)."""

    view: View
    origin: tuple[float, float]

    def _pixels(self, points: Tensor) -> Tensor:
        row = (self.origin[1] - points[:, 1]) / self.view.pixel_mm
        column = (self.origin[0] - points[:, 0]) / self.view.pixel_mm
        return torch.stack([row, column], dim=-1)

    def _curve(self, knots: list[tuple[float, float]]) -> tuple[Tensor, Tensor]:
        """Points 0.2 pixel apart along a smooth curve, and the normals there."""
        p = torch.tensor(knots)
        p = torch.cat([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
        parts = []
        for i in range(1, len(p) - 2):  # Catmull-Rom spline
            t = torch.linspace(0, 1, 400)[:-1, None]
            a, b, c, d = p[i - 1], p[i], p[i + 1], p[i + 2]
            parts.append(
                0.5
                * (
                    2 * b
                    + (c - a) * t
                    + (2 * a - 5 * b + 4 * c - d) * t**2
                    + (3 * b - 3 * c + d - a) * t**3
                )
            )
        curve = torch.cat(parts)
        length = torch.cat(
            [torch.zeros(1), (curve[1:] - curve[:-1]).norm(dim=1).cumsum(0)]
        )
        count = int(length[-1] / (0.2 * self.view.pixel_mm)) + 2
        wanted = torch.linspace(0, float(length[-1]), count)
        right = torch.searchsorted(length, wanted).clamp(1, len(length) - 1)
        t = (wanted - length[right - 1]) / (length[right] - length[right - 1]).clamp(
            min=1e-6
        )
        even = curve[right - 1] + (curve[right] - curve[right - 1]) * t[:, None]
        tangent = torch.gradient(even, dim=0)[0]
        tangent = tangent / tangent.norm(dim=1, keepdim=True).clamp(min=1e-6)
        return even, torch.stack([-tangent[:, 1], tangent[:, 0]], dim=1)

    def _stroke(
        self, points: Tensor, normals: Tensor, offsets: Tensor, weight: Tensor
    ) -> Tensor:
        size = self.view.size
        spread = points[:, None] + normals[:, None] * offsets[None, :, None]
        weights = weight.expand(len(points), -1).reshape(-1)
        image = splat(self._pixels(spread.reshape(-1, 2)), weights, size, size)
        return blur(image, 0.5)

    def wire(
        self, knots: list[tuple[float, float]], radius: float, height: float
    ) -> Tensor:
        """A solid wire: ``height`` is the line integral across its middle."""
        points, normals = self._curve(knots)
        step = 0.3 * self.view.pixel_mm
        offsets = torch.arange(-radius, radius + step / 2, step)
        weight = height * (1 - (offsets / (radius + step)) ** 2).clamp(min=0).sqrt()
        return self._stroke(points, normals, offsets, weight * 0.2 * 0.3)

    def tube(
        self, knots: list[tuple[float, float]], radius: float, height: float
    ) -> Tensor:
        """A plastic tube: two edges and a radiopaque stripe."""
        points, normals = self._curve(knots)
        step = 0.3 * self.view.pixel_mm
        offsets = torch.arange(-radius, radius + step / 2, step)
        outer = (1 - (offsets / (radius + step)) ** 2).clamp(min=0).sqrt()
        inner = (1 - (offsets / (0.72 * radius)) ** 2).clamp(min=0).sqrt()
        stripe = torch.exp(-0.5 * ((offsets - 0.55 * radius) / 0.5) ** 2)
        weight = height * (outer - 0.72 * inner) + 1.6 * height * stripe
        return self._stroke(points, normals, offsets, weight * 0.2 * 0.3)

    def disc(self, centre: tuple[float, float], radius: float, height: float) -> Tensor:
        x, z = _grid(self.view)
        d = ((x - centre[0]) ** 2 + (z - centre[1]) ** 2).sqrt()
        return height * torch.sigmoid((radius - d) / (0.4 * self.view.pixel_mm))


def _markers(view: View, grey: Tensor) -> Tensor:
    """Side letter of lead, and the borders of the collimator."""
    generator = view.generator(8)
    u = torch.rand(12, generator=generator).tolist()
    size = view.size
    if "marker" in view.technique.devices and not view.patient.mirrored:
        right = u[0] < 0.5
        height = max(8, int(size * (0.03 + 0.02 * u[1])))
        letter = Image.new("L", (2 * height, 2 * height))
        font = ImageFont.load_default(size=height)
        text = "R" if right else "L"
        ImageDraw.Draw(letter).text(
            (height // 2, height // 3), text, fill=255, font=font
        )
        letter = letter.rotate(20 * (u[2] - 0.5), resample=Image.Resampling.BILINEAR)
        stamp = torch.from_numpy(np.asarray(letter, np.float32) / 255)
        row = int(size * (0.03 + 0.12 * u[3]))
        column = int(size * (0.03 + 0.07 * u[4]))
        if not right:  # the patient's left is on the right of the film
            column = size - column - 2 * height
        patch = grey[row : row + 2 * height, column : column + 2 * height]
        patch.copy_(torch.maximum(patch, stamp[: patch.shape[0], : patch.shape[1]]))
    if "shutter" in view.technique.devices:
        i = torch.arange(size) / size - 0.5
        angle = math.radians(3 * (u[5] - 0.5))
        across = i[None, :] * math.cos(angle) + i[:, None] * math.sin(angle)
        along = i[:, None] * math.cos(angle) - i[None, :] * math.sin(angle)
        left, right_, top, bottom = (0.5 - 0.09 * v * v for v in u[6:10])
        shut = (across < -left) | (across > right_) | (along < -top) | (along > bottom)
        grey = torch.where(shut, torch.tensor(0.02 if u[10] < 0.85 else 0.97), grey)
    return grey
