"""Random bent lines on a film: folds, planes of fat, strands of hair."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Film coordinates x ``(1, W)`` and z ``(H, 1)`` in mm, as ``View.film_mm`` gives them.
Axes = tuple[Tensor, Tensor]
#: Path in mm at distances along and across a line, two tensors of one shape, in mm.
Profile = Callable[[Tensor, Tensor], Tensor]


class Dice:
    """Draws numbers from a generator."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def between(self, low: float, high: float) -> float:
        """Uniform."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def ratio(self, low: float, high: float) -> float:
        """Uniform in its logarithm."""
        return math.exp(self.between(math.log(low), math.log(high)))

    def normal(self, deviation: float) -> float:
        """Normal about 0."""
        return deviation * float(torch.randn((), generator=self.generator))

    def happens(self, rate: float) -> bool:
        """True at this rate."""
        return self.between(0, 1) < rate


@dataclass(frozen=True)
class Curve:
    """A bent line in film millimetres.

    Attributes:
        x, z: its middle (x to the patient's right, z up).
        angle: from the vertical in radians; the upper end leans to the patient's right.
        bend: curvature in 1/mm.
        length: from the middle to either end in mm; the ends fade.
    """

    x: float
    z: float
    angle: float
    bend: float
    length: float

    def draw(self, path: Tensor, at: Axes, profile: Profile, reach: float) -> None:
        """Add a profile to ``path`` ``(H, W)``, in place.

        ``reach`` is how far in mm the profile goes to either side: nothing is computed
        beyond.
        """
        x, z = at
        radius = 1.2 * self.length + reach + 0.5 * abs(self.bend) * self.length**2
        columns, rows = _within(x[0], self.x, radius), _within(z[:, 0], self.z, radius)
        dx, dz = x[:, columns] - self.x, z[rows] - self.z
        along = dx * math.sin(self.angle) + dz * math.cos(self.angle)
        across = dx * math.cos(self.angle) - dz * math.sin(self.angle)
        across = across - 0.5 * self.bend * along**2
        fade = torch.sigmoid((self.length - along.abs()) / (0.05 * self.length))
        path[rows, columns] += profile(along, across) * fade


def _within(axis: Tensor, centre: float, radius: float) -> slice:
    """Where a falling axis lies within a radius of a place."""
    first = int((axis > centre + radius).sum())
    return slice(first, max(first, int((axis >= centre - radius).sum())))


def ridge(height: float, width: float) -> Profile:
    """A soft band; ``width`` is its standard deviation in mm."""
    return lambda _, across: height * torch.exp(-0.5 * (across / width) ** 2)


def step(height: float, edge: float, fall: float, towards: float = 1.0) -> Profile:
    """A sharp edge, then a slow fall over ``fall`` mm to the side of sign ``towards``."""

    def profile(_: Tensor, across: Tensor) -> Tensor:
        beyond = across * towards
        slope = torch.exp(-beyond.clamp(min=0) / fall)
        return height * torch.sigmoid(beyond / edge) * slope

    return profile


def strand(height: float, width: float, pitch: float) -> Profile:
    """A round strand that is plaited: its thickness swells every ``pitch`` mm."""

    def profile(along: Tensor, across: Tensor) -> Tensor:
        swell = 1 + 0.35 * torch.cos(2 * math.pi * along / pitch + across / width)
        return height * swell * (1 - (across / width) ** 2).clamp(min=0).sqrt()

    return profile
