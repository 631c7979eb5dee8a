"""Smooth random deformation and pose of a volume.

Every map here is a *pull* map: it says for a point of the new patient where in the
original scan to look.  Pull maps compose without holes, and sampling along X-rays
deforms and projects in one step.  All is torch, and maps run on the device of their
points.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def rotation(degrees: tuple[float, float, float]) -> Tensor:
    """Rotation matrix ``(3, 3)`` about x, then y, then z (right-handed, degrees)."""
    a, b, c = (torch.deg2rad(torch.tensor(float(d))) for d in degrees)
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    x = torch.stack([one, zero, zero, zero, a.cos(), -a.sin(), zero, a.sin(), a.cos()])
    y = torch.stack([b.cos(), zero, b.sin(), zero, one, zero, -b.sin(), zero, b.cos()])
    z = torch.stack([c.cos(), -c.sin(), zero, c.sin(), c.cos(), zero, zero, zero, one])
    return z.view(3, 3) @ y.view(3, 3) @ x.view(3, 3)


def sample(volume: Tensor, points: Tensor, origin: Tensor, spacing: float) -> Tensor:
    """Trilinear value of a volume at points in mm; the border value outside.

    Args:
        volume: ``(C, X, Y, Z)``.
        points: ``(..., 3)`` as (x, y, z) in mm.
        origin: ``(3,)`` mm of voxel (0, 0, 0).
        spacing: isotropic, in mm.

    Returns:
        Tensor ``(C, ...)``.
    """
    shape = torch.tensor(volume.shape[1:], device=points.device)
    grid = (points - origin.to(points)) * (2 / (spacing * (shape - 1))) - 1
    flat = grid.reshape(1, 1, 1, -1, 3).flip(-1)  # grid_sample wants (z, y, x)
    out = F.grid_sample(
        volume[None], flat, mode="bilinear", padding_mode="border", align_corners=True
    )
    return out.view(volume.shape[0], *points.shape[:-1])


@dataclass(frozen=True)
class Deformation:
    """Pull map of one patient: pose and scale about a centre, then smooth bending.

    ``pull(p) = centre + matrix @ (p - centre - shift) + bend(p)``, in mm.

    Attributes:
        matrix: ``(3, 3)``, inverse of the patient's rotation, shear and scale.
        centre, shift: ``(3,)`` in mm.
        bend: ``(3, A, B, C)`` displacements in mm on a coarse grid over the box
            ``low`` to ``high`` (mm), two points or more along each axis, interpolated
            between.
    """

    matrix: Tensor
    centre: Tensor
    shift: Tensor
    bend: Tensor
    low: Tensor
    high: Tensor

    def pull(self, points: Tensor) -> Tensor:
        """Where in the original to look for each of ``points`` ``(..., 3)`` in mm."""
        moved = (points - self.centre - self.shift) @ self.matrix.T + self.centre
        return moved + self._bend(points)

    def push(self, points: Tensor, steps: int = 8) -> Tensor:
        """Where points of the original lie in the patient: the inverse of :meth:`pull`.

        Fixed-point iteration; a bend that changes by a tenth of a millimetre per
        millimetre leaves a tenth of the error at each step.  Eight steps leave 0.01 mm.
        """
        inverse = torch.linalg.inv(self.matrix)
        start = (points - self.centre) @ inverse.T + self.centre + self.shift
        moved = start
        for _ in range(steps):
            moved = start - self._bend(moved) @ inverse.T
        return moved

    def _bend(self, points: Tensor) -> Tensor:
        # PyTorch samples volumes point by point but images eight points at once: the
        # sheets of equal z lie side by side in one image, and two of them are mixed
        parts, nx, ny, nz = self.bend.shape
        sheets = self.bend.transpose(2, 3).reshape(1, parts, nx, nz * ny)
        last = torch.tensor([nx, ny, nz], device=points.device) - 1
        share = (points.reshape(-1, 3) - self.low) / (self.high - self.low)
        x, y, z = (share.clamp_(0, 1) * last).T
        below = z.floor().clamp_(max=nz - 2)
        row = x * (2 / (nx - 1)) - 1
        column = torch.stack([below * ny + y, (below + 1) * ny + y])
        column = column * (2 / (nz * ny - 1)) - 1
        out = F.grid_sample(
            sheets,
            torch.stack([column, row.expand(2, -1)], -1)[None],
            padding_mode="border",
            align_corners=True,
        )
        lower, upper = out[0].unbind(1)
        return torch.lerp(lower, upper, z - below).T.reshape(points.shape)


def smooth_noise(
    shape: tuple[int, ...], knots: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    """Random field ``shape`` of unit variance at its knots, smooth between them.

    White noise on a coarse lattice is filtered by a Gaussian of one knot, so that no
    box shapes of the lattice show, and interpolated (cubic in 2-D, linear in 3-D).
    The generator is one of the CPU, and so is the field.
    """
    coarse = torch.randn([1, 1, *(k + 4 for k in knots)], generator=generator)
    kernel = torch.tensor([0.1065, 0.7870, 0.1065])
    for axis in range(len(knots)):
        view = [1, 1] + [1] * len(knots)
        view[2 + axis] = 3
        pad = [0, 0] * len(knots)
        pad[2 * (len(knots) - 1 - axis)] = pad[2 * (len(knots) - 1 - axis) + 1] = 1
        convolve = F.conv2d if len(knots) == 2 else F.conv3d
        coarse = convolve(F.pad(coarse, pad, mode="replicate"), kernel.view(view))
    coarse = coarse / (0.787**2 + 2 * 0.1065**2) ** (len(knots) / 2)
    mode = "bicubic" if len(knots) == 2 else "trilinear"
    crop = tuple(slice(2, 2 + k) for k in knots)
    return F.interpolate(
        coarse[(..., *crop)], size=shape, mode=mode, align_corners=True
    )[0, 0]


def random_deformation(
    low: Tensor,
    high: Tensor,
    *,
    scale: tuple[float, float, float],
    degrees: tuple[float, float, float],
    slope: float = 0.0,
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0),
    bend_mm: float,
    knot_mm: float,
    generator: torch.Generator,
) -> Deformation:
    """A patient of another size, pose and shape, over the box ``low`` to ``high`` (mm).

    ``slope`` is by how many mm a patient's front is lifted for each mm that it lies before
    the back: ribs run down to the front, steeply in some and nearly level in others.
    ``bend_mm`` is the standard deviation of the displacement at the knots (about 0.7 of
    it is left on average over the space between them) and ``knot_mm`` the length over
    which it changes.  The generator is one of the CPU, so that a seed means the same
    patient everywhere; the map is on the device of the box.  A bend of more than a
    fifth of its knot could fold tissue onto itself, and is refused.
    """
    if bend_mm > 0.2 * knot_mm:
        raise ValueError(
            f"a bend of {bend_mm} mm over knots of {knot_mm} mm may fold the anatomy; "
            f"use at most {0.2 * knot_mm:.1f} mm"
        )
    size = ((high - low) / knot_mm).round().int().clamp(min=2)
    knots = (int(size[0]) + 1, int(size[1]) + 1, int(size[2]) + 1)
    fine = (3 * knots[0], 3 * knots[1], 3 * knots[2])
    bend = torch.stack(
        [smooth_noise(fine, knots, generator) * bend_mm for _ in range(3)]
    )
    shear = torch.eye(3)
    shear[2, 1] = -slope
    matrix = torch.diag(1 / torch.tensor(scale)) @ shear @ rotation(degrees).T
    device = low.device
    return Deformation(
        matrix.to(device),
        (low + high) / 2,
        torch.tensor(shift, device=device),
        bend.to(device),
        low.clone(),
        high.clone(),
    )
