"""Bringing images of any shape into a square, and maps of the square back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from medimg_utils.errors import InputError


@dataclass(frozen=True)
class Geometry:
    """How images of `shape` = (H, W) lie in the square of `size` pixels.

    >>> import torch
    >>> square = Geometry((100, 60), 480).to_square(torch.ones(100, 60))
    >>> square.shape, bool(square[:, 0].any()), bool(square[:, 240].all())
    (torch.Size([480, 480]), False, True)
    """

    shape: tuple[int, int]
    size: int

    @property
    def side(self) -> int:
        """Side of the padded square before it is rescaled."""
        return max(self.shape)

    @property
    def offset(self) -> tuple[int, int]:
        """(rows, columns) of padding above and to the left."""
        return (self.side - self.shape[0]) // 2, (self.side - self.shape[1]) // 2

    def to_square(self, pixels: Tensor) -> Tensor:
        """(..., H, W) → (..., size, size): pad with 0 to a square, rescale.

        Antialiasing is a mean over the area that each new pixel covers, so that sums
        (the area of a mask) are kept.
        """
        if tuple(pixels.shape[-2:]) != self.shape:
            raise InputError(
                f"an array of {self.shape} was expected, not {tuple(pixels.shape)}."
            )
        top, left = self.offset
        bottom, right = (
            self.side - self.shape[0] - top,
            self.side - self.shape[1] - left,
        )
        return _resize(F.pad(pixels.float(), (left, right, top, bottom)), self.size)

    def restore(self, square: Tensor) -> Tensor:
        """(..., size, size) → (..., H, W): rescale back, cut the padding off."""
        top, left = self.offset
        large = _resize(square.float(), self.side)
        return large[..., top : top + self.shape[0], left : left + self.shape[1]]


def _resize(image: Tensor, size: int) -> Tensor:
    """(..., S, S) → (..., size, size), bilinear, antialiased."""
    if image.shape[-1] == size:
        return image
    layers = image.reshape(1, -1, *image.shape[-2:])
    resized = F.interpolate(
        layers, size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    return resized.reshape(*image.shape[:-2], size, size)
