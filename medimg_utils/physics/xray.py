"""From attenuation to a radiograph: projection, scatter, noise and the detector.

The Beer-Lambert law says that a ray which crosses matter with linear attenuation
coefficient mu (1/mm) keeps the share exp(-integral of mu along the ray) of its photons.
Everything else in this file is what stands between that law and the grey values of a
film: geometry, scatter, photon noise, blur, and the curve of the detector.
Tensors are ``float32`` on any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Mass attenuation coefficients (cm2/g) at 40, 50, 60, 80, 100 keV.
#: Source: NIST, X-Ray Mass Attenuation Coefficients (Hubbell and Seltzer), liquid water
#: and cortical bone (ICRU-44).
_ENERGIES = (40.0, 50.0, 60.0, 80.0, 100.0)
_WATER = (0.2683, 0.2269, 0.2059, 0.1837, 0.1707)
_BONE = (0.6655, 0.4242, 0.3148, 0.2229, 0.1855)
_BONE_DENSITY = 1.92  # g/cm3
#: Effective energy of a 120 kVp CT scanner, at which its HU are calibrated.
CT_ENERGY = 75.0
#: Above this value (HU) a voxel is taken as a mixture of soft tissue and bone.
_SOFT_TISSUE_HU = 80.0


def mass_attenuation(material: str, energy: float) -> float:
    """Mass attenuation coefficient in cm2/g of ``"water"`` or ``"bone"`` at keV.

    Log-log interpolation of the NIST table, 40 to 100 keV.

    >>> round(mass_attenuation("water", 60), 4)
    0.2059
    """
    table = {"water": _WATER, "bone": _BONE}[material]
    if not _ENERGIES[0] <= energy <= _ENERGIES[-1]:
        raise ValueError(f"effective energy {energy} keV is outside 40 to 100 keV")
    for low, high, a, b in zip(
        _ENERGIES, _ENERGIES[1:], table, table[1:], strict=False
    ):
        if energy <= high:
            t = math.log(energy / low) / math.log(high / low)
            return a * (b / a) ** t
    raise AssertionError("unreachable: the energy was checked above")


def decompose(hu: Tensor) -> tuple[Tensor, Tensor]:
    """Split CT values into two materials: densities of soft tissue and of bone.

    Up to 80 HU a voxel is water of another density; what lies above is cortical bone
    that displaces the water it stands in.  The attenuation of the two at any energy
    then needs only :func:`linear_attenuation`; projected apart, they are what a
    dual-energy radiograph shows.

    Args:
        hu: Tensor of any shape, in HU.

    Returns:
        soft, bone: Tensors of that shape, g/cm3.

    >>> [round(float(d), 2) for d in decompose(torch.tensor(-1000.0))]
    [0.0, 0.0]
    """
    soft = 1 + hu.clamp(-1000, _SOFT_TISSUE_HU) / 1000
    # HU that 1 g/cm3 of bone adds at the energy of the CT scanner, less the water
    added = mass_attenuation("bone", CT_ENERGY) / mass_attenuation("water", CT_ENERGY)
    added = 1000 * (added - 1 / _BONE_DENSITY)
    bone = (hu - _SOFT_TISSUE_HU).clamp(min=0) / added
    return soft - bone / _BONE_DENSITY, bone


def linear_attenuation(soft: Tensor, bone: Tensor, energy: float = 65.0) -> Tensor:
    """Linear attenuation coefficient in 1/mm of two densities in g/cm3.

    Given integrals of the densities along rays (g/cm3 mm), it gives line integrals.
    Bone attenuates the more above water the lower the energy is: that is why ribs stand
    out on a film of 70 kVp and fade at 120 kVp.

    Args:
        soft, bone: Tensors of one shape, from :func:`decompose`.
        energy: effective energy of the beam in keV (about 55 at 90 kVp, 65 at 120 kVp).
    """
    water = mass_attenuation("water", energy) / 10
    return water * soft + mass_attenuation("bone", energy) / 10 * bone


@dataclass(frozen=True)
class Geometry:
    """A beam and a film.

    Coordinates are those of the patient in mm: x to the right, y to the front, z up.
    The film stands at the chest (``view="PA"``) or at the back (``"AP"``); the focus is
    ``sid`` mm away from the film, on the other side.  ``sid=inf`` is a parallel beam.

    Attributes:
        view: ``"PA"`` or ``"AP"``.
        sid: source-to-image distance in mm; 1800 for a standing PA film, 1000 at the
            bedside.
        film_y: y of the film in mm.
        centre: (x, z) of the central ray in mm.
        width, height: of the film in mm.
    """

    view: str
    sid: float
    film_y: float
    centre: tuple[float, float]
    width: float
    height: float

    def __post_init__(self) -> None:
        if self.view not in ("PA", "AP"):
            raise ValueError(f"view {self.view!r}: a chest film is 'PA' or 'AP'")

    def shrink(self, y: Tensor) -> Tensor:
        """Size of the beam at depth ``y`` as a share of its size at the film.

        The reciprocal is the magnification of what lies there.
        """
        distance = (self.film_y - y) if self.view == "PA" else (y - self.film_y)
        return 1 - distance / self.sid

    def film_axes(
        self, rows: int, columns: int, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """x of the columns and z of the rows on the film in mm (pixel centres)."""
        i = torch.arange(columns, device=device)
        j = torch.arange(rows, device=device)
        x = self.centre[0] + self.width * (0.5 - (i + 0.5) / columns)
        z = self.centre[1] + self.height * (0.5 - (j + 0.5) / rows)
        return x, z

    def project(self, points: Tensor, rows: int, columns: int) -> Tensor:
        """Film position ``(N, 2)`` as (row, column) in pixels of points ``(N, 3)`` in mm."""
        shrink = self.shrink(points[:, 1])
        x = (points[:, 0] - self.centre[0]) / shrink
        z = (points[:, 2] - self.centre[1]) / shrink
        column = columns * (0.5 - x / self.width) - 0.5
        row = rows * (0.5 - z / self.height) - 0.5
        return torch.stack([row, column], dim=-1)


def project_volume(
    volume: Tensor,
    origin: Tensor,
    spacing: Tensor,
    geometry: Geometry,
    rows: int,
    columns: int,
    *,
    pull: Callable[[Tensor], Tensor] | None = None,
    depth_scale: float = 1.0,
    depth_centre: float | None = None,
    lattice: int = 24,
    planes_at_once: int = 8,
) -> Tensor:
    """Integrals of a volume along the rays from the focus to each pixel of the film.

    The rays of a chest film run nearly along y, so each coronal plane of the volume is
    warped to the film on its own (its magnification, and the patient's ``pull`` map)
    and the warped planes are added: the shear-warp factorisation (Lacroute and Levoy
    1994).  Displacement along y only moves matter along its ray and is left out of the
    warp; its mean is in ``depth_scale``.

    Args:
        volume: ``(C, X, Y, Z)``.
        origin: ``(3,)`` mm of voxel (0, 0, 0).
        spacing: ``(3,)`` mm.
        pull: map of points ``(..., 3)`` in mm of the patient to points of the volume.
            It is evaluated on ``lattice`` x ``lattice`` points a plane and
            interpolated.
        depth_scale: patient's size along y over the volume's.
        depth_centre: y in mm that the scaling leaves where it is; the middle of the
            volume by default.  Parts of one patient need one centre.

    Returns:
        Tensor ``(C, rows, columns)``, unit of the volume times mm.
    """
    channels, nx, ny, nz = volume.shape
    device = volume.device
    spacing = spacing.to(device)
    y_volume = origin[1].to(device) + spacing[1] * torch.arange(ny, device=device)
    fixed = y_volume.mean() if depth_centre is None else depth_centre
    y_patient = fixed + (y_volume - fixed) * depth_scale
    x, z = geometry.film_axes(lattice, lattice, device)
    # the outer lattice points stand on the outer pixels: interpolation needs no more
    reach = lattice / (lattice - 1)
    x_reach, z_reach = (reach * (1 - 1 / n) for n in (columns, rows))
    x = geometry.centre[0] + (x - geometry.centre[0]) * x_reach
    z = geometry.centre[1] + (z - geometry.centre[1]) * z_reach
    # products of matrices take a quarter of the time of `F.interpolate`
    to_rows, to_columns = (_interpolation(lattice, n, device) for n in (rows, columns))
    planes = volume.permute(2, 0, 3, 1)  # (Y, C, Z, X)
    out = torch.zeros(channels, rows, columns, device=device)
    # empty planes before and behind the body add nothing
    first = next((k for k in range(ny) if volume[:, :, k].any()), ny)
    stop = next((k for k in range(ny, first, -1) if volume[:, :, k - 1].any()), ny)
    for start in range(first, stop, planes_at_once):
        some = slice(start, min(start + planes_at_once, stop))
        y = y_patient[some, None, None]
        shrink = geometry.shrink(y)
        px = geometry.centre[0] + (x[None, None, :] - geometry.centre[0]) * shrink
        pz = geometry.centre[1] + (z[None, :, None] - geometry.centre[1]) * shrink
        shape = (len(y), lattice, lattice)
        points = torch.stack(
            [px.expand(shape), y.expand(shape), pz.expand(shape)], dim=-1
        )
        if pull is not None:
            points = pull(points)
        gx = (points[..., 0] - origin[0]) / (spacing[0] * (nx - 1)) * 2 - 1
        gz = (points[..., 2] - origin[2]) / (spacing[2] * (nz - 1)) * 2 - 1
        grid = to_rows @ torch.stack([gx, gz], dim=1) @ to_columns.T
        # in memory, too, neighbours on the film are neighbours
        warped = F.grid_sample(
            planes[some].contiguous(),
            grid.permute(0, 2, 3, 1),
            padding_mode="border",
            align_corners=True,
        )
        out += warped.sum(0)
    return out * (spacing[1] * depth_scale)


def _interpolation(old: int, new: int, device: torch.device) -> Tensor:
    """Matrix ``(new, old)`` that interpolates between points from end to end."""
    return F.interpolate(
        torch.eye(old, device=device)[None], size=new, mode="linear", align_corners=True
    )[0].T


def splat(position: Tensor, weight: Tensor, rows: int, columns: int) -> Tensor:
    """Add weighted points to an image, each shared by its four nearest pixels.

    The projection of small things that a voxel grid would smear: vessels, tubes, the
    voxels of a single bone.  The sum of the image is the sum of the weights inside it.

    Args:
        position: ``(N, 2)`` (row, column) in pixels.
        weight: ``(N,)``.

    Returns:
        Tensor ``(rows, columns)``.
    """
    base = position.floor()
    fraction = position - base
    base = base.long()
    image = torch.zeros(rows * columns, dtype=weight.dtype, device=weight.device)
    for dr in (0, 1):
        for dc in (0, 1):
            r, c = base[:, 0] + dr, base[:, 1] + dc
            share = (fraction[:, 0] if dr else 1 - fraction[:, 0]) * (
                fraction[:, 1] if dc else 1 - fraction[:, 1]
            )
            inside = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
            index = torch.where(inside, r * columns + c, image.numel())  # one bin more
            shares = torch.bincount(index, weight * share, minlength=image.numel() + 1)
            image += shares[:-1]
    return image.view(rows, columns)


def blur(image: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of ``(H, W)`` with ``sigma`` in pixels, edges replicated.

    Large blurs run on a reduced image: a smooth result needs no fine grid.  The blur of
    a mirror image is the mirror image of the blur.
    """
    if sigma <= 0.05:
        return image
    height, width = image.shape
    # odd, so that equal margins on both sides make any size a multiple of it
    factor = max(1, int(sigma // 6) // 2 * 2 + 1)
    small = image[None, None]
    left, top = (-n * ((factor + 1) // 2) % factor for n in (width, height))
    if factor > 1:
        margins = (left, left, top, top)
        small = F.avg_pool2d(F.pad(small, margins, mode="replicate"), factor)
    s = sigma / factor
    radius = min(int(3 * s + 1), min(small.shape[-2:]) - 1)
    x = torch.arange(-radius, radius + 1, device=image.device, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (x / s) ** 2)
    kernel = kernel / kernel.sum()
    small = F.pad(small, (radius, radius, radius, radius), mode="replicate")
    small = convolve(convolve(small, kernel, -1), kernel, -2)
    if factor > 1:
        small = F.interpolate(
            small, scale_factor=factor, mode="bicubic", align_corners=False
        )
    return small[0, 0, top : top + height, left : left + width]


def convolve(image: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Convolve along one axis without padding, by sums of shifted views.

    With one channel this takes half the time of `torch.nn.functional.conv2d`.

    Args:
        image: ``(..., H, W)``.
        kernel: ``(K,)``, symmetric.
        axis: gets shorter by K - 1.
    """
    length = image.shape[axis] - len(kernel) + 1
    total = torch.zeros_like(image.narrow(axis, 0, length))
    for start, weight in enumerate(kernel.tolist()):
        total.add_(image.narrow(axis, start, length), alpha=weight)
    return total


def expose(
    integral: Tensor,
    *,
    scatter_fraction: float,
    scatter_mm: float,
    photons: float,
    blur_mm: float,
    pixel_mm: float,
    generator: torch.Generator,
) -> Tensor:
    """Detector signal of a film from its line integrals of attenuation.

    Primary photons follow Beer-Lambert; scattered ones are a broad blur of them, added
    so that they make up ``scatter_fraction`` of all; noise is that of ``photons`` per
    mm2 of unattenuated beam, blurred a little by the detector.

    Args:
        integral: ``(H, W)``, dimensionless.
        scatter_fraction: share of the signal that is scatter (0.3 with a good grid, 0.6
            without, mean over the film).
        scatter_mm: standard deviation of the scatter blur.
        photons: detected photons per mm2 in the open beam.
        blur_mm: standard deviation of the detector's blur.
        pixel_mm: pixel spacing at the film.
        generator: one of the CPU, so that a seed means the same film everywhere.

    Returns:
        Tensor ``(H, W)``: signal relative to the open beam, positive.
    """
    primary = torch.exp(-integral)
    inside = integral > 0.3  # scatter arises in the patient
    scatter = blur(primary * inside, scatter_mm / pixel_mm)
    level = primary[inside].mean() if bool(inside.any()) else primary.mean()
    mean_scatter = scatter[inside].mean() if bool(inside.any()) else scatter.mean()
    wanted = level * scatter_fraction / (1 - scatter_fraction)
    signal = primary + scatter * (wanted / mean_scatter.clamp(min=1e-9))
    count = signal * photons * pixel_mm**2
    noise = torch.randn(signal.shape, generator=generator).to(signal.device)
    noisy = count + noise * count.clamp(min=0).sqrt()
    noisy = blur(noisy / (photons * pixel_mm**2), blur_mm / pixel_mm)
    return noisy.clamp(min=1e-7)


def develop(
    signal: Tensor,
    *,
    equalise: float,
    equalise_mm: float,
    sharpen: float,
    sharpen_mm: float,
    pixel_mm: float,
    low: float,
    high: float,
    gamma: float,
    shoulder: float,
    region: Tensor | None = None,
) -> Tensor:
    """Grey values in [0, 1] (bright is dense) of a detector signal.

    A digital system shows the logarithm of its signal.  It first lowers the contrast of
    the large (``equalise``: lung against mediastinum) and lifts that of the small
    (``sharpen``), then maps what lies between two percentiles of the picture through a
    curve with a soft toe and shoulder, so that nothing in the lungs is cut off.

    Args:
        signal: ``(H, W)`` positive.
        equalise, sharpen: strengths, 0 for none.
        low, high: percentiles (0 to 1) of the region that become dark and bright.
        gamma: exponent of the curve (below 1 brightens).
        shoulder: 0 for a straight line with clipped ends, 1 for a sigmoid.
        region: ``(H, W)`` bool, where percentiles are taken; all by default.
    """
    density = -torch.log(signal)
    if equalise:
        density = density - equalise * blur(density, equalise_mm / pixel_mm)
    if sharpen:
        density = density + sharpen * (density - blur(density, sharpen_mm / pixel_mm))
    values = density[region] if region is not None else density.flatten()
    values = values[:: max(1, len(values) // 20000)].sort().values
    dark = values[int(low * (len(values) - 1))]
    bright = values[int(high * (len(values) - 1))]
    t = (density - dark) / (bright - dark).clamp(min=1e-6)
    straight = t.clamp(0, 1)
    curve = torch.sigmoid(5 * (t - 0.5))
    ends = torch.sigmoid(torch.tensor([-2.5, 2.5]))
    curve = ((curve - ends[0]) / (ends[1] - ends[0]) * 0.88 + 0.06).clamp(0, 1)
    grey = (1 - shoulder) * straight + shoulder * curve
    return grey.clamp(min=0) ** gamma
