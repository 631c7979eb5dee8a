"""From relaxation times to an MR image: signal, fat, coil, slices, k-space and noise.

A tissue is its proton density and its relaxation times T1 and T2 (:data:`TISSUES`); a
pulse sequence turns them into signal (:class:`Sequence`).  Everything else stands between
that signal and the grey values of a picture: fat suppression, contrast agent, receive
coils, partial volume in a thick slice, the finite part of k-space that is acquired,
motion while it is, and noise.  Times are ms.  Tensors are ``float32`` on any device;
random numbers come from a generator on the device of the image.

Signal equations: Haacke et al., *Magnetic Resonance Imaging: Physical Principles and
Sequence Design*; Bernstein et al., *Handbook of MRI Pulse Sequences*.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from medimg_utils.errors import InputError

#: Frequency of the proton in MHz per tesla.
GYROMAGNETIC = 42.577
#: Chemical shift between water and the main peak of fat, parts per million.
FAT_SHIFT = 3.4


@dataclass(frozen=True)
class Tissue:
    """What a sequence needs to know of a tissue at one field strength.

    Attributes:
        pd: protons that can be seen, relative to water.
        t1, t2: relaxation times in ms.
        fat: share of the protons that belong to fat, 0 to 1.
        source: where T1 and T2 come from; ``pd`` and ``fat`` follow the share of water
            and fat in the tissue and are our choice.
    """

    pd: float
    t1: float
    t2: float
    fat: float = 0.0
    source: str = ""

    def __post_init__(self) -> None:
        if not (0 <= self.pd <= 1 and 0 <= self.fat <= 1):
            raise InputError(
                f"proton density {self.pd} and share of fat {self.fat} lie in 0 to 1"
            )
        if not (self.t1 > 0 and self.t2 > 0):
            raise InputError(f"T1 {self.t1} and T2 {self.t2} ms must be above 0")


_GOLD = "Gold et al. 2004, AJR 183:343"
_STANISZ = "Stanisz et al. 2005, Magn Reson Med 54:507"
_KWAN = "Kwan et al. 1999, IEEE Trans Med Imaging 18:1085 (BrainWeb)"
_WANSAPURA = "Wansapura et al. 1999, J Magn Reson Imaging 9:531"
_LIN = "T1 Lin et al. 2001, Proc ISMRM 9:1391; T2 as at 1.5 T"
_OURS = "our choice"
_UTE = "our choice; T2* by ultrashort echo time is 5 to 12 ms at 1.5 T"

#: Tissues by name and field strength in tesla.  What is called our choice was not taken
#: from one measurement: change it with :func:`dataclasses.replace`.
TISSUES: dict[str, dict[float, Tissue]] = {
    # knee
    "muscle": {
        1.5: Tissue(0.79, 1130, 35.3, 0.02, _GOLD),
        3.0: Tissue(0.79, 1420, 31.7, 0.02, _GOLD),
    },
    "cartilage": {
        1.5: Tissue(0.75, 1060, 42.1, 0.0, _GOLD),
        3.0: Tissue(0.75, 1240, 36.9, 0.0, _GOLD),
    },
    "synovial fluid": {
        1.5: Tissue(1.0, 2850, 1210, 0.0, _GOLD),
        3.0: Tissue(1.0, 3620, 767, 0.0, _GOLD),
    },
    "subcutaneous fat": {
        1.5: Tissue(0.92, 288, 165, 0.93, _GOLD),
        3.0: Tissue(0.92, 371, 133, 0.93, _GOLD),
    },
    "marrow": {
        1.5: Tissue(0.82, 288, 165, 0.90, _GOLD),
        3.0: Tissue(0.82, 365, 133, 0.90, _GOLD),
    },
    "marrow oedema": {
        1.5: Tissue(0.85, 1100, 75, 0.25, _OURS),
        3.0: Tissue(0.85, 1350, 68, 0.25, _OURS),
    },
    "meniscus": {
        1.5: Tissue(0.70, 850, 12, 0.0, _OURS),
        3.0: Tissue(0.70, 960, 11, 0.0, _OURS),
    },
    "torn meniscus": {  # what seeps into a tear is bound and relaxes fast
        1.5: Tissue(0.85, 480, 70, 0.0, _OURS),
        3.0: Tissue(0.85, 560, 62, 0.0, _OURS),
    },
    "ligament": {
        1.5: Tissue(0.65, 800, 11, 0.0, _UTE),
        3.0: Tissue(0.65, 900, 10, 0.0, _UTE),
    },
    "tendon": {
        1.5: Tissue(0.55, 620, 5, 0.0, _UTE),
        3.0: Tissue(0.55, 720, 4, 0.0, _UTE),
    },
    "cortical bone": {
        1.5: Tissue(0.20, 200, 0.5, 0.0, _OURS),
        3.0: Tissue(0.20, 223, 0.4, 0.0, _OURS),
    },
    "skin": {
        1.5: Tissue(0.70, 950, 28, 0.05, _OURS),
        3.0: Tissue(0.70, 1150, 25, 0.05, _OURS),
    },
    "blood": {
        1.5: Tissue(0.95, 1441, 290, 0.0, _STANISZ),
        3.0: Tissue(0.95, 1932, 275, 0.0, _STANISZ),
    },
    # brain
    "grey matter": {
        1.5: Tissue(0.86, 833, 83, 0.0, _KWAN),
        3.0: Tissue(0.86, 1331, 80, 0.0, f"T1 {_WANSAPURA}; T2 our choice"),
    },
    "white matter": {
        1.5: Tissue(0.77, 500, 70, 0.0, _KWAN),
        3.0: Tissue(0.77, 832, 66, 0.0, f"T1 {_WANSAPURA}; T2 our choice"),
    },
    "cerebrospinal fluid": {
        1.5: Tissue(1.0, 4200, 2000, 0.0, "our choice, near that of water"),
        3.0: Tissue(1.0, 4163, 2000, 0.0, _LIN),
    },
    "brain oedema": {
        1.5: Tissue(0.92, 1150, 150, 0.0, _OURS),
        3.0: Tissue(0.92, 1550, 140, 0.0, _OURS),
    },
    "glioma": {
        1.5: Tissue(0.90, 1200, 130, 0.0, _OURS),
        3.0: Tissue(0.90, 1600, 120, 0.0, _OURS),
    },
    "necrosis": {
        1.5: Tissue(0.95, 2000, 350, 0.0, _OURS),
        3.0: Tissue(0.95, 2400, 320, 0.0, _OURS),
    },
}


def tissue(name: str, field: float) -> Tissue:
    """A tissue of :data:`TISSUES` at 1.5 or 3 T.

    >>> tissue("muscle", 3.0).t2
    31.7

    Raises:
        InputError: unknown tissue or field strength.
    """
    if name not in TISSUES:
        raise InputError(f"unknown tissue {name!r}: use one of {', '.join(TISSUES)}")
    if field not in TISSUES[name]:
        known = " or ".join(f"{f:g}" for f in TISSUES[name])
        raise InputError(f"{name} has no values at {field} T: use {known} T")
    return TISSUES[name][field]


# --- signal ---------------------------------------------------------------------------


def spin_echo(pd: Tensor, t1: Tensor, t2: Tensor, tr: float, te: float) -> Tensor:
    """Signal of a 90-180 degree spin echo, ``0`` to ``pd``.

    ``pd (1 - 2 exp(-(TR - TE/2) / T1) + exp(-TR / T1)) exp(-TE / T2)``: the refocusing
    pulse at TE/2 inverts what had recovered until then.

    Args:
        pd, t1, t2: of one shape, or shapes that broadcast; relative, ms, ms.
        tr, te: repetition and echo time in ms.
    """
    _check_times(tr, te)
    recovered = 1 - 2 * torch.exp(-(tr - te / 2) / t1) + torch.exp(-tr / t1)
    return pd * recovered * torch.exp(-te / t2)


def fast_spin_echo(
    pd: Tensor, t1: Tensor, t2: Tensor, tr: float, te: float, train: float
) -> Tensor:
    """Signal of a fast (turbo) spin echo.

    The refocusing pulses keep the longitudinal magnetisation near zero during the echo
    train, so that it recovers only from the end of the train on:
    ``pd (1 - exp(-(TR - train) / T1)) exp(-TE / T2)``.

    Args:
        pd, t1, t2: relative, ms, ms.
        tr, te: repetition time, and echo time of the centre of k-space, in ms.
        train: from excitation to the last echo, in ms (echoes times their spacing).
    """
    _check_times(tr, te)
    if not 0 <= train < tr:
        raise InputError(f"an echo train of {train} ms does not fit into TR {tr} ms")
    return pd * -torch.expm1(-(tr - train) / t1) * torch.exp(-te / t2)


def inversion_recovery(
    pd: Tensor,
    t1: Tensor,
    t2: Tensor,
    tr: float,
    te: float,
    ti: float,
    train: float = 0.0,
    efficiency: float = 1.0,
) -> Tensor:
    """Magnitude of an inversion-recovery (fast) spin echo; FLAIR with a long TI.

    Before the inversion ``M = 1 - exp(-(TR - TI - train) / T1)`` has recovered, at the
    excitation there is ``1 - (1 + efficiency M) exp(-TI / T1)``.  For a perfect
    inversion that is ``1 - 2 exp(-TI/T1) + exp(-(TR - train)/T1)``.

    Args:
        pd, t1, t2: relative, ms, ms.
        tr, te, ti: repetition, echo and inversion time in ms.
        train: length of the echo train in ms; 0 for a single echo.
        efficiency: of the inversion pulse; 1 turns all magnetisation over.
    """
    _check_times(tr, te)
    if not (ti >= 0 and ti + train < tr):
        raise InputError(f"TI {ti} and train {train} ms do not fit into TR {tr} ms")
    before = -torch.expm1(-(tr - ti - train) / t1)
    ready = 1 - (1 + efficiency * before) * torch.exp(-ti / t1)
    return pd * ready.abs() * torch.exp(-te / t2)


def null_time(t1: float, tr: float, train: float = 0.0) -> float:
    """Inversion time in ms at which a tissue of this T1 gives no signal.

    ``T1 ln(2 / (1 + exp(-(TR - train) / T1)))``; T1 ln 2 if TR is long.

    >>> round(null_time(4163.0, 9000.0))
    2432
    """
    return t1 * math.log(2 / (1 + math.exp(-(tr - train) / t1)))


def gradient_echo(
    pd: Tensor, t1: Tensor, t2_star: Tensor, tr: float, te: float, flip: float
) -> Tensor:
    """Signal of a spoiled gradient echo (Ernst and Anderson 1966).

    ``pd sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE / T2*)`` with ``E1 = exp(-TR / T1)``.

    Args:
        pd, t1, t2_star: relative, ms, ms.
        tr, te: ms.
        flip: angle in degrees; the signal is largest at the Ernst angle, arccos(E1).
    """
    _check_times(tr, te)
    angle = math.radians(flip)
    e1 = torch.exp(-tr / t1)
    steady = math.sin(angle) * (1 - e1) / (1 - math.cos(angle) * e1)
    return pd * steady * torch.exp(-te / t2_star)


def _check_times(tr: float, te: float) -> None:
    if not 0 <= te < tr:
        raise InputError(f"TE {te} ms must lie between 0 and TR {tr} ms")


@dataclass(frozen=True)
class Sequence:
    """A pulse sequence with its times in ms.

    ``ti`` makes it an inversion recovery, ``flip`` a spoiled gradient echo, ``train`` a
    fast spin echo; with none of them it is a spin echo.

    Attributes:
        tr, te: repetition and (effective) echo time.
        train: length of the echo train.
        ti: inversion time.
        flip: angle of a gradient echo in degrees.
        fat_suppression: share of the signal of fat that is taken away, 0 to 1.
    """

    tr: float
    te: float
    train: float = 0.0
    ti: float | None = None
    flip: float | None = None
    fat_suppression: float = 0.0

    def signal(
        self, pd: Tensor, t1: Tensor, t2: Tensor, fat: Tensor | float = 0.0
    ) -> Tensor:
        """Signal of tissues; for a gradient echo ``t2`` is T2*."""
        if self.flip is not None:
            full = gradient_echo(pd, t1, t2, self.tr, self.te, self.flip)
        elif self.ti is not None:
            full = inversion_recovery(pd, t1, t2, self.tr, self.te, self.ti, self.train)
        elif self.train:
            full = fast_spin_echo(pd, t1, t2, self.tr, self.te, self.train)
        else:
            full = spin_echo(pd, t1, t2, self.tr, self.te)
        return suppress_fat(full, fat, self.fat_suppression)

    def of(
        self, tissues: SequenceOf[Tissue], device: torch.device | None = None
    ) -> Tensor:
        """Signal ``(N,)`` of tissues, to look up a label map with.

        >>> t1_weighted = Sequence(tr=600, te=15)
        >>> fat, fluid = t1_weighted.of(
        ...     [tissue("subcutaneous fat", 1.5), tissue("synovial fluid", 1.5)]
        ... ).tolist()
        >>> fat > 3 * fluid
        True
        """
        rows = [(t.pd, t.t1, t.t2, t.fat) for t in tissues]
        return self.signal(*torch.tensor(rows, device=device).T)


def suppress_fat(
    signal: Tensor, fat: Tensor | float, efficiency: Tensor | float
) -> Tensor:
    """What spectral fat suppression leaves: ``signal (1 - fat efficiency)``.

    ``efficiency`` may be a map: where the field is inhomogeneous, at the rim of the
    limb and near metal, the pulse misses the fat.
    """
    return signal * (1 - fat * efficiency)


def enhance(
    t1: Tensor,
    t2: Tensor,
    concentration: Tensor | float,
    r1: float = 4.5,
    r2: float = 5.5,
) -> tuple[Tensor, Tensor]:
    """T1 and T2 in ms with a gadolinium contrast agent.

    ``1/T1' = 1/T1 + r1 c``, and likewise for T2.

    Args:
        t1, t2: without the agent, in ms.
        concentration: in mmol/l; broadcasts.  About 0.1 to 1 in enhancing tumour.
        r1, r2: relaxivities in l/(mmol s); gadoterate and gadopentetate have about 3 to
            5 and 4 to 6 in blood plasma at 1.5 and 3 T (Rohrer et al. 2005, Invest
            Radiol 40:715).

    >>> t1, _ = enhance(torch.tensor(1000.0), torch.tensor(100.0), 1.0, r1=4.0)
    >>> round(float(t1), 3)
    200.0
    """
    per_ms = torch.as_tensor(concentration, device=t1.device) / 1000
    return 1 / (1 / t1 + r1 * per_ms), 1 / (1 / t2 + r2 * per_ms)


# --- fields: what the receive coil and the magnet do ----------------------------------


def smooth_field(
    shape: SequenceOf[int], knots: SequenceOf[int], generator: torch.Generator
) -> Tensor:
    """Gaussian random field ``shape``, cubic B-spline of white noise at ``knots``.

    Twice differentiable, so neither boxes nor creases of the lattice show.  The mean
    variance is 1; the wanted standard deviation is a factor.

    Args:
        shape: of the field, any number of axes.
        knots: number of spans along each axis; a structure is about a span wide.
        generator: its device is that of the field.
    """
    field = torch.randn(
        [n + 3 for n in knots], generator=generator, device=generator.device
    )
    for axis, (size, spans) in enumerate(zip(shape, knots, strict=True)):
        basis = _spline_basis(size, spans, generator.device)
        # of independent knots the variances add, weighted by the squared basis
        basis = basis / basis.square().sum(1).mean().sqrt()
        field = torch.movedim(
            torch.tensordot(basis, field, dims=([1], [axis])), 0, axis
        )
    return field


def _spline_basis(size: int, spans: int, device: torch.device) -> Tensor:
    """Uniform cubic B-splines at ``size`` points over ``spans`` spans: (size, spans + 3).

    Rows sum to 1.
    """
    x = torch.linspace(0, spans, size, device=device) if size > 1 else torch.zeros(1)
    start = x.floor().clamp(max=spans - 1)
    t = x - start
    weights = torch.stack(
        [
            (1 - t) ** 3,
            3 * t**3 - 6 * t**2 + 4,
            -3 * t**3 + 3 * t**2 + 3 * t + 1,
            t**3,
        ],
        dim=1,
    )
    basis = torch.zeros(size, spans + 3, device=device)
    columns = start.long()[:, None] + torch.arange(4, device=device)
    return basis.scatter_(1, columns, weights / 6)


def bias_field(
    shape: SequenceOf[int],
    strength: float,
    generator: torch.Generator,
    knots: SequenceOf[int] | None = None,
) -> Tensor:
    """Smooth multiplicative inhomogeneity with geometric mean 1.

    Args:
        shape: of the volume.
        strength: standard deviation of its logarithm; 0.1 to 0.3 is usual.
        generator: its device is that of the field.
        knots: spans along each axis, 2 by default.
    """
    field = smooth_field(shape, knots or [2] * len(shape), generator) * strength
    return torch.exp(field - field.mean())


def surface_coils(points: Tensor, centres: Tensor, radius: float) -> Tensor:
    """Sensitivity of an array of receive loops, combined as root of the sum of squares.

    Each loop falls off with the distance ``d`` from its centre as on its axis (law of
    Biot and Savart): ``radius^3 / (radius^2 + d^2)^(3/2)``, which is 1 at the centre.

    Args:
        points: ``(..., 3)`` in mm.
        centres: ``(N, 3)`` of the loops in mm.
        radius: of the loops in mm.

    Returns:
        Tensor ``(...)``.
    """
    total = torch.zeros(points.shape[:-1], device=points.device)
    for centre in centres.to(points):
        squared = (points - centre).square().sum(-1)
        total += (1 + squared / radius**2) ** -3
    return total.sqrt()


# --- slices and k-space ---------------------------------------------------------------


def slice_profile(offset: Tensor, thickness: float, edge: float = 0.0) -> Tensor:
    """Share of the signal at ``offset`` mm from the middle of a slice, 0 to 1.

    A box of ``thickness`` mm (full width at half maximum) whose flanks are Gaussian
    error functions of standard deviation ``edge`` mm; a real pulse has soft flanks.
    """
    if edge <= 0:
        return (offset.abs() <= thickness / 2).to(offset.dtype)
    low = (offset + thickness / 2) / (edge * math.sqrt(2))
    high = (offset - thickness / 2) / (edge * math.sqrt(2))
    return (torch.erf(low) - torch.erf(high)) / 2


def thick_slices(
    volume: Tensor,
    positions: Tensor,
    thickness: float,
    spacing: float = 1.0,
    edge: float = 0.0,
    dim: int = 0,
) -> Tensor:
    """Slices of a volume with partial volume: means weighted by the slice profile.

    Args:
        volume: any shape; voxel ``i`` along ``dim`` lies at ``i * spacing`` mm.
        positions: ``(S,)`` middles of the slices in mm.
        thickness, edge: see :func:`slice_profile`, mm.
        spacing: of the voxels along ``dim`` in mm.

    Returns:
        Tensor with ``S`` in place of ``dim``.  A slice that touches no voxel is an
        error.
    """
    z = torch.arange(volume.shape[dim], device=volume.device) * spacing
    offset = z[None] - positions.to(volume)[:, None]
    weight = slice_profile(offset, thickness, edge).to(volume)
    total = weight.sum(1, keepdim=True)
    if bool((total <= 1e-6).any()):
        raise InputError(
            f"slices of {thickness} mm at {positions.min():.1f} to "
            f"{positions.max():.1f} mm miss voxels at 0 to {float(z[-1]):.1f} mm "
            f"spaced by {spacing} mm"
        )
    out = torch.tensordot(weight / total, volume, dims=([1], [dim]))
    return torch.movedim(out, 0, dim)


def limit_resolution(
    image: Tensor, matrix: tuple[int, int], apodise: float = 0.0
) -> Tensor:
    """Keep the part of k-space that a scan of ``matrix`` samples; zero-fill the rest.

    The picture keeps its size and its mean and loses detail; sharp edges ring (Gibbs).
    Real scanners soften the ringing with a window over k-space.

    Args:
        image: ``(..., H, W)``, real or complex.
        matrix: acquired rows and columns; what is not smaller than the picture is kept
            whole.
        apodise: share of the kept radius over which a cosine window falls to zero, 0 to
            1.

    Returns:
        Tensor of the same shape and kind.
    """
    height, width = image.shape[-2:]
    rows = _window(height, matrix[0], apodise, image.device)
    columns = _window(width, matrix[1], apodise, image.device)
    if not image.is_complex():
        half = columns[: width // 2 + 1]
        spectrum = torch.fft.rfft2(image) * rows[:, None] * half
        return torch.fft.irfft2(spectrum, s=(height, width))
    return torch.fft.ifft2(torch.fft.fft2(image) * rows[:, None] * columns)


def _window(size: int, kept: int, apodise: float, device: torch.device) -> Tensor:
    """Weights of the ``size`` frequencies in FFT order when ``kept`` are acquired."""
    radius = torch.fft.fftfreq(size, 1 / size, device=device).abs()
    edge = min(kept, size) / 2
    inside = (radius <= edge).float()
    if apodise <= 0:
        return inside
    start = edge * (1 - apodise)
    fall = ((radius - start) / (edge - start)).clamp(0, 1)
    return inside * torch.cos(fall * math.pi / 2).square()


def add_ghosts(
    image: Tensor,
    shift: float,
    amplitude: float,
    source: Tensor | None = None,
    dim: int = -2,
) -> Tensor:
    """Ghosts of a source that changes periodically while k-space is acquired.

    Each line of k-space is multiplied by ``1 + 2 amplitude cos(2 pi shift n / N)``, which
    adds a copy of relative height ``amplitude`` at ``+shift`` and ``-shift`` pixels
    along the phase-encoding axis, wrapped around.  Arteries, breathing and an unsteady
    patient do that.

    Args:
        image: ``(..., H, W)``, real.
        shift: pixels; N/2 gives the one ghost of alternating lines.
        amplitude: of each ghost, relative to its source.
        source: what pulsates (an artery), of the shape of ``image``; all by default.
        dim: the phase-encoding axis.

    Returns:
        Tensor of that shape: magnitude.
    """
    source = image if source is None else source
    size = image.shape[dim]
    n = torch.fft.fftfreq(size, 1 / size, device=image.device)
    wave = 2 * amplitude * torch.cos(2 * math.pi * shift * n / size)
    view = [1] * image.ndim
    view[dim] = size
    ghosts = torch.fft.ifft(torch.fft.fft(source, dim=dim) * wave.view(view), dim=dim)
    return (image + ghosts).abs()


def move(image: Tensor, displacement: Tensor) -> Tensor:
    """A patient who shifts in the plane while k-space is acquired row by row.

    Each row of k-space sees the anatomy displaced: by the Fourier shift theorem it has
    another phase.  A constant displacement only shifts the picture; a jump blurs it and
    makes ghosts along the rows' axis (phase encoding).

    Args:
        image: ``(..., H, W)``, real.
        displacement: ``(H, 2)`` in pixels (down, right) while the row of k-space of
            that place, from the most negative to the most positive frequency, is
            acquired.

    Returns:
        Tensor of that shape: magnitude.
    """
    height, width = image.shape[-2:]
    if displacement.shape != (height, 2):
        raise InputError(
            f"displacements have shape {tuple(displacement.shape)}; one (down, right) for "
            f"each of the {height} rows is needed"
        )
    rows = torch.fft.fftfreq(height, device=image.device)[:, None]
    columns = torch.fft.fftfreq(width, device=image.device)[None, :]
    moved = torch.fft.ifftshift(displacement.to(image), dim=0)
    turn = rows * moved[:, :1] + columns * moved[:, 1:]
    phase = torch.polar(torch.ones_like(turn), -2 * math.pi * turn)
    return torch.fft.ifft2(torch.fft.fft2(image) * phase).abs()


def fat_displacement(field: float, bandwidth: float) -> float:
    """Pixels by which fat is displaced along the frequency-encoding axis.

    Args:
        field: in tesla.
        bandwidth: of the receiver in Hz per pixel.

    >>> round(fat_displacement(3.0, 217.0), 1)
    2.0
    """
    return FAT_SHIFT * GYROMAGNETIC * field / bandwidth


# --- noise ----------------------------------------------------------------------------


def rician_noise(signal: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    """Magnitude of a signal with complex Gaussian noise (Gudbjartsson and Patz 1995).

    Where the signal is far above ``sigma`` the noise is Gaussian; in air it has mean
    ``sigma sqrt(pi / 2)`` and standard deviation ``sigma sqrt(2 - pi / 2)``.

    Args:
        signal: any shape, not negative.
        sigma: standard deviation of each channel, unit of the signal.
    """
    shape = (2, *signal.shape)
    noise = torch.randn(shape, generator=generator, device=signal.device) * sigma
    return torch.hypot(signal + noise[0], noise[1])
