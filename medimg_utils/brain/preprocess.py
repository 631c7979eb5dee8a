"""From four MR volumes to the network's five channels, and back to the scanner's grid.

    four volumes, arbitrary units
      │ z-score over the brain, robust against outliers; background stays 0
      │ cuboid box around the brain
      │ averaged to the network's voxel size, where that is larger
      ▼
    (4, D, H, W) ──► (5, D, H, W) with T1ce − T1

(D, H, W) are the axes of a volume turned to the orientation RAS: D grows to the patient's
right, H to the front, W to the top. Voxel sizes are in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medimg_utils.errors import InputError

MODALITIES = ("t1", "t1ce", "t2", "flair")  # the order of the channels
FENCE = 8.0  # interquartile ranges beyond the quartiles where no tissue is


class IntensityError(InputError):
    """A volume's values are not those of a brain without skull on a background of 0."""


Box = tuple[slice, slice, slice]


# ----------------------------------------------------------------------------- intensities


def standardise(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    r"""z-score over the voxels that are not 0; the background stays 0.

    $z = (\min(\max(x, l), u) - \mu) / \sigma$ with mean and standard deviation of the
    limited values. Some real FLAIR volumes hold single voxels of 32767, which would press
    all tissue together. So the limits l and u are the percentiles 0.1 and 99.9 of those
    values that lie within eight interquartile ranges of the quartiles.

    Args:
        volume: (D, H, W) arbitrary units.

    Returns:
        (D, H, W) float32 z-scores.

    Raises:
        IntensityError: there is no background, no brain, or no contrast in it.
    """
    brain = volume != 0
    inside = volume[brain]
    share = inside.size / volume.size
    if not inside.size:
        raise IntensityError(
            "all voxels are 0: there is no brain in it. Copy the file anew."
        )
    if share > 0.95:
        raise IntensityError(
            f"{share:.0%} of the voxels are not 0, but the background of a brain without "
            "skull is 0. Give the volume of the release as it is, not standardised."
        )
    first, third = np.percentile(inside, [25, 75])
    reach = FENCE * (third - first) or np.inf  # half of the brain may hold one value
    tissue = inside[(inside >= first - reach) & (inside <= third + reach)]
    inside = np.clip(inside, *np.percentile(tissue, [0.1, 99.9]))
    spread = float(inside.std(dtype=np.float64))
    if not spread > 0:
        raise IntensityError("all voxels of the brain are equal: there is no contrast.")
    out = np.zeros(volume.shape, np.float32)
    out[brain] = (inside - inside.mean(dtype=np.float64)) / spread
    return out


def five_channels(channels: Tensor, scale: float = 1.0) -> Tensor:
    """T1, T1ce, T1ce − T1, T2, FLAIR: what both networks see.

    Where the contrast agent leaked into tissue, T1ce is brighter than T1. The difference
    shows that directly. It is taken between z-scores, because two series of one exam can
    differ in gain.

    Args:
        channels: (4, D, H, W) z-scores in the order of `MODALITIES`.
        scale: standard deviation of the difference over the brain; the channel is divided
            by it. Its mean is 0 by construction.

    >>> five_channels(torch.tensor([1.0, 3.0, 0.0, 5.0]).reshape(4, 1, 1, 1)).flatten()
    tensor([1., 3., 2., 0., 5.])
    """
    t1, t1ce, t2, flair = channels
    return torch.stack([t1, t1ce, (t1ce - t1) / scale, t2, flair])


# --------------------------------------------------------------------------------- geometry


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """The smallest cuboid that holds all of a mask, first and last plane included.

    >>> bounding_box(np.pad(np.ones((2, 1, 3), bool), 1))
    (slice(1, 3, None), slice(1, 2, None), slice(1, 4, None))
    """
    if not mask.any():
        raise ValueError("an empty mask has no box.")
    sides = []
    for axis in range(3):
        others = tuple(k for k in range(3) if k != axis)
        found = np.flatnonzero(mask.any(axis=others))
        # The published code takes [first:last] and so loses the last plane.
        sides.append(slice(int(found[0]), int(found[-1]) + 1))
    return sides[0], sides[1], sides[2]


def axis_weights(n_in: int, n_out: int, step: float) -> NDArray[np.float32]:
    """(n_out, n_in) matrix that resamples one axis.

    Output voxel i lies at [i, i + 1) · step in units of input voxels, both axes start at
    the same edge. With `step` >= 1 it is the mean over that stretch, where the part
    outside the input counts as 0. With a smaller step it is linear interpolation between
    voxel centres, constant beyond the outermost ones.

    >>> axis_weights(4, 2, 2.0).tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    place = np.arange(n_out)[:, None]
    source = np.arange(n_in)[None]
    if step >= 1:
        overlap = np.minimum((place + 1) * step, source + 1) - np.maximum(
            place * step, source
        )
        return (np.clip(overlap, 0, None) / step).astype(np.float32)
    center = np.clip((place + 0.5) * step - 0.5, 0, n_in - 1)
    return np.clip(1 - np.abs(center - source), 0, None).astype(np.float32)


def resample(
    volume: NDArray[np.floating], shape: Sequence[int], steps: Sequence[float]
) -> NDArray[np.float32]:
    """Resample the last three axes; see `axis_weights`.

    Args:
        volume: (..., D, H, W).
        shape: of the result's last three axes.
        steps: of the result, in voxels of the input.
    """
    out = torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32))
    for axis, (size, step) in enumerate(zip(shape, steps, strict=True), start=-3):
        if step == 1 and size == out.shape[axis]:
            continue
        weights = torch.from_numpy(axis_weights(out.shape[axis], size, step))
        out = (out.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return out.contiguous().numpy()


class Grid(NamedTuple):
    """How the network's voxels lie in the scanner's.

    Attributes:
        shape: (D, H, W) of the whole volume.
        box: around the brain, in voxels of the volume.
        steps: side of a network voxel in voxels of the volume, along each axis.
        spacing: of the volume in mm.
    """

    shape: tuple[int, int, int]
    box: Box
    steps: tuple[float, float, float]
    spacing: tuple[float, float, float]

    @property
    def box_shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the box in voxels of the volume."""
        first, second, third = (side.stop - side.start for side in self.box)
        return first, second, third

    @property
    def network_shape(self) -> tuple[int, int, int]:
        """(D, H, W) of the box in voxels of the network."""
        first, second, third = (
            # rounded first: 1.2 / 0.6 must not become one voxel more than 2
            int(np.ceil(round(size / step, 6)))
            for size, step in zip(self.box_shape, self.steps, strict=True)
        )
        return first, second, third

    def to_network(self, volume: NDArray[np.floating]) -> NDArray[np.float32]:
        """(..., D, H, W) of the volume → the box in network voxels."""
        boxed = volume[(..., *self.box)]
        return resample(boxed, self.network_shape, self.steps)

    def to_box(self, volume: NDArray[np.floating]) -> NDArray[np.float32]:
        """(..., d, h, w) in network voxels → the box in voxels of the volume."""
        back = [1 / step for step in self.steps]
        return resample(volume, self.box_shape, back)

    def to_volume(self, box: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(D, H, W) of the box → the whole volume, 0 outside."""
        out = np.zeros(self.shape, box.dtype)
        out[self.box] = box
        return out


@dataclass(frozen=True, eq=False)
class Prepared:
    """One case as the networks see it.

    Attributes:
        channels: (4, D, H, W) float16 z-scores, in network voxels.
        scale: standard deviation of T1ce − T1 over the brain.
        grid: the way back.
        target: (3, D, H, W) uint8 share of core, oedema and enhancing tumour in each
            voxel, 255 = all of it; None where there is no truth.
    """

    channels: NDArray[np.float16]
    scale: float
    grid: Grid
    target: NDArray[np.uint8] | None = None

    def image(self) -> Tensor:
        """(5, D, H, W) float32 of the whole brain."""
        channels = torch.from_numpy(self.channels.astype(np.float32))
        return five_channels(channels, self.scale)


def prepare(
    images: NDArray[np.float32],
    spacing: tuple[float, float, float],
    voxel: float,
    labels: NDArray[np.uint8] | None = None,
) -> Prepared:
    """Standardise four volumes, cut the brain out and bring it to the network's voxels.

    Args:
        images: (4, D, H, W) in the order of `MODALITIES`, oriented RAS.
        spacing: of the volumes in mm.
        voxel: side of the network's voxels in mm. A side that is within 1 % of the
            volume's own leaves the volume as it is.
        labels: (D, H, W) 0 background, 1 core, 2 oedema, 3 enhancing; None without truth.

    Raises:
        IntensityError: names the modality.
    """
    channels = np.empty_like(images, dtype=np.float32)
    for place, name in enumerate(MODALITIES):
        try:
            channels[place] = standardise(images[place])
        except IntensityError as error:
            raise IntensityError(f"{name}: {error}") from error
    brain = (images != 0).any(axis=0)
    difference = (channels[1] - channels[0])[brain]
    first, second, third = (
        1.0 if abs(voxel / size - 1) < 0.01 else voxel / size for size in spacing
    )
    shape = (images.shape[1], images.shape[2], images.shape[3])
    grid = Grid(shape, bounding_box(brain), (first, second, third), spacing)
    target = None
    if labels is not None:
        shares = np.stack([labels[grid.box] == label for label in (1, 2, 3)])
        small = resample(shares, grid.network_shape, grid.steps)
        target = np.round(small * 255).astype(np.uint8)
    return Prepared(
        channels=grid.to_network(channels).astype(np.float16),
        scale=max(float(difference.std(dtype=np.float64)), 1e-3),
        grid=grid,
        target=target,
    )


def cut(volume: Tensor, start: Sequence[int], size: Sequence[int]) -> Tensor:
    """(C, *size) from `start` on; what lies outside the volume is 0.

    >>> cut(torch.ones(1, 2, 2, 2), (-1, 0, 0), (3, 2, 2)).sum()
    tensor(8.)
    """
    out = volume.new_zeros((volume.shape[0], *size))
    here, there = [], []
    for first, length, limit in zip(start, size, volume.shape[1:], strict=True):
        low, high = max(first, 0), min(first + length, limit)
        if high <= low:
            return out
        here.append(slice(low, high))
        there.append(slice(low - first, high - first))
    out[(slice(None), *there)] = volume[(slice(None), *here)]
    return out


# ----------------------------------------------------------------------------- augmentation


def augment(
    channels: Tensor, target: Tensor, strength: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Swap left and right every second time; change contrast and noise of each modality.

    z-scores of the same tissue differ from scanner to scanner by 0.2 to 0.3, and not in
    proportion. All applies to the brain alone: the background stays 0.

    Args:
        channels: (4, D, H, W) z-scores.
        target: (C, d, h, w).
        strength: 0 gives both back as they are; at 1, gains lie in 0.8 to 1.2, offsets in
            ±0.2, a bend of the grey scale of up to 0.08 (z² − 1) is added, and noise with
            a standard deviation of up to 0.2.
        generator: decides.
    """
    if strength == 0:
        return channels, target
    flip, *rest = torch.rand(17, generator=generator).tolist()
    if flip < 0.5:
        channels, target = channels.flip(1), target.flip(1)
    gain, offset, bend, noise = torch.tensor(rest).reshape(4, 4, 1, 1, 1) * strength
    middle = strength / 2
    brain = (channels != 0).any(dim=0).numpy()
    if not brain.any():
        return channels, target
    box = (slice(None), *bounding_box(brain))  # most of a patch can lie outside
    before = channels[box]
    grey = before * (1 + 0.4 * (gain - middle)) + 0.4 * (offset - middle)
    grey += 0.16 * (bend - middle) * (before.clamp(-3, 3).square() - 1)
    grey += 0.2 * noise * torch.randn(before.shape, generator=generator)
    out = channels.clone()
    out[box] = torch.where(before == 0, before, grey)
    return out, target
