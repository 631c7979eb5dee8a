"""From a series of any size and scale to the network's input.

Bien et al. 2018 resize slices to 256 × 256 and standardise grey values (see
`standardise`). Their code then cuts the middle 224 × 224 out, which the paper does not
say, subtracts 58.09 and divides by 49.73.

Augmentation is drawn **once per exam**: all slices turn, shift and flip together. The
paper draws a rotation of ±25°, a shift of ±25 pixels and, every second time, a
left-right flip. A fault often seen is to draw anew for each slice: the network then
meets knees that fall apart between slices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from medimg_utils.errors import InputError
from medimg_utils.geometry import Geometry
from medimg_utils.knee.standardise import Standardiser

MEAN, SPREAD = 58.09, 49.73  # of grey values, in the authors' code
#: Degrees and zoom in which a trained network may be asked about an exam.
VIEWS = ((0.0, 1.0), (0.0, 0.88), (0.0, 1.13), (7.0, 1.0), (-7.0, 1.0))


def prepare(
    volume: NDArray[Any], standardiser: Standardiser, size: int = 256
) -> tuple[NDArray[np.uint8], Geometry]:
    """A series as the data set gives it: standardised, square, 8 bit.

    Training, evaluation and prediction all start from here, so they see the same
    picture.

    Args:
        volume: (S, H, W) grey values in any unit.
        standardiser: of this kind of series, learned on training exams.
        size: side of the square slices.

    Returns:
        (S, size, size) uint8, and the geometry that leads back.

    Raises:
        StandardiseError: the volume shows nothing.
    """
    geometry = Geometry((volume.shape[1], volume.shape[2]), size)
    standard = standardiser(volume, np.uint8)
    if volume.shape[1:] == (size, size):
        return standard, geometry
    square = geometry.to_square(torch.from_numpy(standard))
    return square.round().clamp(0, 255).to(torch.uint8).numpy(), geometry


def to_network(slices: Tensor) -> Tensor:
    """Grey levels 0 to 255 → roughly zero mean and unit spread."""
    return (slices.float() - MEAN) / SPREAD


def middle(slices: Tensor, side: int) -> Tensor:
    """(..., H, W) → (..., side, side): cut the middle out.

    >>> middle(torch.arange(25).reshape(5, 5), 3).tolist()
    [[6, 7, 8], [11, 12, 13], [16, 17, 18]]
    """
    height, width = slices.shape[-2:]
    if min(height, width) < side:
        raise InputError(
            f"{side} pixels cannot be cut out of slices of {height} × {width}."
        )
    top, left = (height - side) // 2, (width - side) // 2
    return slices[..., top : top + side, left : left + side]


def views(slices: Tensor, crop: int, count: int) -> Iterator[Tensor]:
    """An exam in the first of `VIEWS`: as it lies, smaller, larger, turned either way.

    Args:
        slices: (S, H, W) uint8.
        crop: side of the square that is cut out of the middle.
        count: how many views, 1 to 5.

    Yields:
        (S, crop, crop) uint8.

    Raises:
        InputError: there are not so many views.

    >>> len(list(views(torch.zeros(20, 256, 256, dtype=torch.uint8), 224, 3)))
    3
    """
    if not 1 <= count <= len(VIEWS):
        raise InputError(
            f"{count} views were asked for; there are 1 to {len(VIEWS)} of an exam."
        )
    yield middle(slices, crop)
    for degrees, zoom in VIEWS[1:count]:
        posed = pose(slices, crop, degrees, (0.0, 0.0), False, zoom)
        yield posed.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True)
class Augment:
    """One random pose and rendering for all slices of an exam, and the crop.

    Attributes:
        crop: side of the square that is cut out of the middle.
        rotation: degrees, drawn from ± this.
        shift: pixels along each axis, drawn from ± this.
        flip: probability of a left-right flip.
        rendering: strength of random grey curve, sharpness and noise; 0 leaves the
            grey values as they are, like the paper.
        slices: share of the slices that is kept, spread over the series; 1 keeps all,
            like the paper.
        zoom: the picture is enlarged or made smaller by up to this share.

    >>> augment = Augment(crop=224, rotation=25, shift=25, flip=0.5)
    >>> random = torch.Generator().manual_seed(0)
    >>> augment(torch.zeros(20, 256, 256, dtype=torch.uint8), random).shape
    torch.Size([20, 224, 224])
    """

    crop: int
    rotation: float = 0.0
    shift: float = 0.0
    flip: float = 0.0
    rendering: float = 0.0
    slices: float = 1.0
    zoom: float = 0.0

    @classmethod
    def none(cls, crop: int) -> Augment:
        """The middle alone: for exams that choose the epoch."""
        return cls(crop)

    def __call__(self, slices: Tensor, random: torch.Generator) -> Tensor:
        """(S, H, W) uint8 → (S, crop, crop) uint8; every choice comes from `random`.

        Where `slices` is below 1, fewer come back.
        """
        return self.with_places(slices, slices[:, None, :0, :0], random)[0]

    def with_places(
        self, slices: Tensor, places: Tensor, random: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The same for slices and for masks (S, D, H, W) that are posed like them.

        Returns:
            The slices, and (S, D, crop, crop) float32, the share of each pixel that lay
            in the mask; empty masks stay empty.
        """
        if self.slices < 1:
            kept = some_slices(len(slices), self.slices, random)
            slices, places = slices[kept], places[kept]
        turn, right, down, flip, size = torch.rand(5, generator=random).tolist()
        angle = (2 * turn - 1) * self.rotation
        offset = ((2 * right - 1) * self.shift, (2 * down - 1) * self.shift)
        if self.rendering:
            table = grey_curve(self.rendering, random)
            slices = torch.from_numpy(np.take(table, slices.numpy(), mode="clip"))
        zoom = (1 + self.zoom) ** (2 * size - 1)
        mirrored = flip < self.flip
        moved = bool(angle or any(offset) or mirrored or self.zoom)

        def placed(images: Tensor) -> Tensor:
            if moved:
                return pose(images, self.crop, angle, offset, mirrored, zoom)
            return middle(images, self.crop)

        slices = placed(slices)
        if places.numel():
            places = placed(places.flatten(0, 1)).unflatten(0, places.shape[:2])
        if self.rendering:
            slices = sharpness_and_noise(slices.float(), self.rendering, random)
        return slices.round().clamp(0, 255).to(torch.uint8), places.float()


def some_slices(count: int, share: float, random: torch.Generator) -> Tensor:
    """Indices of about a share of the slices, one from each of equally long stretches.

    >>> some_slices(30, 0.5, torch.Generator().manual_seed(0)).diff().max() <= 3
    tensor(True)
    """
    kept = max(1, round(count * share))
    place = torch.arange(kept) + torch.rand(kept, generator=random)
    return (place * (count / kept)).long().clamp(max=count - 1).unique()


def pose(
    slices: Tensor,
    crop: int,
    degrees: float,
    offset: tuple[float, float],
    flip: bool,
    zoom: float = 1.0,
) -> Tensor:
    """Turn, shift, flip, zoom all slices alike and cut the middle out, in one resampling.

    Args:
        slices: (S, H, W).
        crop: side of the result.
        degrees: clockwise.
        offset: pixels to the right and down, after the turn.
        flip: mirror left and right, last.
        zoom: above 1 enlarges, around the middle of the slices.

    Returns:
        (S, crop, crop) float32, bilinear; 0 where nothing was.
    """
    height, width = slices.shape[-2:]
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    # Grid sampling asks where each new pixel comes from, with the image from -1 to 1.
    axis = torch.arange(crop, dtype=torch.float32) - (crop - 1) / 2
    down, right = torch.meshgrid(axis, -axis if flip else axis, indexing="ij")
    right, down = (right - offset[0]) / zoom, (down - offset[1]) / zoom
    grid = torch.stack(
        [
            (cosine * right + sine * down) * 2 / width,
            (cosine * down - sine * right) * 2 / height,
        ],
        dim=-1,
    )
    found = F.grid_sample(
        slices[None].float(), grid[None], mode="bilinear", align_corners=False
    )
    return found[0]


def grey_curve(strength: float, random: torch.Generator) -> NDArray[np.uint8]:
    """(256,) a random rising curve of grey values: six steps of random height."""
    steps = torch.rand(6, generator=random).mul(2).sub(1).mul(0.5 * strength).exp()
    knots = np.append(0.0, steps.cumsum(0).numpy()) / float(steps.sum()) * 255
    return np.interp(np.arange(256), np.linspace(0, 255, 7), knots).astype(np.uint8)


def sharpness_and_noise(
    slices: Tensor, strength: float, random: torch.Generator
) -> Tensor:
    """(S, H, W): x + a (x - mean of 3 × 3 pixels), a > 0 sharpens; then fine grain."""
    amount, grain = torch.rand(2, generator=random).tolist()
    around = F.avg_pool2d(slices[:, None], 3, stride=1, padding=1)[:, 0]
    slices = slices + (2 * amount - 1) * 0.8 * strength * (slices - around)
    noise = torch.randn(slices.shape, generator=random)
    return slices + noise * (6 * grain * strength)
