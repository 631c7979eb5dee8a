"""What lies on or in the patient and is not tissue: tubes, wires, metal, the letter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from medimg_utils.physics.xray import blur, splat
from medimg_utils.pneumothorax.phantom import RIGHT
from medimg_utils.pneumothorax.view import View

_WORDS = ("AP", "PA", "ERECT", "PORTABLE", "SUPINE", "SEMI-UPRIGHT", "MOBILE", "08:41")
#: Points (x, z) in film millimetres, through which a curve runs.
Knots = list[tuple[float, float]]


def device_paths(view: View) -> Tensor:
    """Line integral ``(size, size)`` of attenuation in tubes, wires and metal."""
    total = torch.zeros(view.size, view.size)
    draw = _Draw(view)
    for stream, (device, shapes) in enumerate(_SHAPES.items(), start=100):
        if device in view.technique.devices:
            generator = view.generator(stream)  # of its own: it moves nothing else
            u = torch.rand(12, generator=generator).tolist()
            for layer in shapes(draw, u, generator):
                total = total + layer
    return total


def _side(u: float) -> float:
    """Sign of x on the side that is drawn: right or left with equal chance."""
    return 1.0 if u < 0.5 else -1.0


def _drain(draw: _Draw, u: list[float], _: torch.Generator) -> Iterator[Tensor]:
    """A tube that enters between the ribs and runs up to the apex."""
    half, side = draw.view.lung_width / 2, _side(u[0])
    if draw.view.technique.drain_side is not None:
        side = 1.0 if draw.view.technique.drain_side == RIGHT else -1.0
    entry = (side * (half + 45), -110 - 70 * u[1])
    bend = (side * half * (0.85 - 0.2 * u[2]), -80 - 40 * u[3])
    tip = (side * half * (0.3 + 0.35 * u[4]), -15 - 60 * u[5])
    yield draw.tube([entry, bend, tip], 4.0 + 2.5 * u[6], 0.30)


def _line(draw: _Draw, u: list[float], _: torch.Generator) -> Iterator[Tensor]:
    """A central venous line; with some, a tube in the trachea or the gullet."""
    side = _side(u[0])
    start = (side * (30 + 60 * u[1]), 45 + 10 * u[2])
    vein = (side * (25 + 20 * u[3]), -20 - 10 * u[4])
    tip = (12 + 8 * u[5], -75 - 45 * u[6])
    yield draw.wire([start, vein, (14.0, -45.0), tip], 1.0, 0.35)
    if u[7] < 0.4:
        along_the_midline = [
            (2 * u[8], 70.0),
            (-2 + 4 * u[9], 0.0),
            (3 * u[10], -40.0 - 20 * u[11]),
        ]
        yield draw.tube(along_the_midline, 5.5, 0.10)


def _leads(draw: _Draw, u: list[float], generator: torch.Generator) -> Iterator[Tensor]:
    """Two to four electrodes with their cables."""
    half = draw.view.lung_width / 2
    for _ in range(2 + int(3 * u[1])):
        v = torch.rand(8, generator=generator).tolist()
        snap = ((v[0] - 0.5) * 1.7 * half, -20 - 210 * v[1])
        away = ((v[2] - 0.5) * 3 * half, -300 + 380 * v[3])
        between = (
            (snap[0] + away[0]) / 2 + 60 * (v[4] - 0.5),
            (snap[1] + away[1]) / 2 + 60 * (v[5] - 0.5),
        )
        yield draw.wire([snap, between, away], 0.7, 0.8)
        yield draw.disc(snap, 5.0 + 2 * v[6], 0.12)
        yield draw.disc(snap, 2.0, 1.2)


def _pacemaker(draw: _Draw, u: list[float], _: torch.Generator) -> Iterator[Tensor]:
    """A box under the clavicle and a wire into the right ventricle."""
    half, side = draw.view.lung_width / 2, _side(u[0])
    box = (side * half * 0.62, -35 - 10 * u[1])
    yield draw.disc(box, 22 + 4 * u[2], 3.0)
    vein, atrium = (side * 25, -20.0), (10.0, -80.0)
    tip = (-30 - 15 * u[3], -165 - 15 * u[4])
    yield draw.wire([box, vein, atrium, tip], 0.9, 1.2)


_SHAPES: dict[str, Callable[..., Iterator[Tensor]]] = {
    "drain": _drain,
    "line": _line,
    "leads": _leads,
    "pacemaker": _pacemaker,
}


@dataclass(frozen=True)
class _Draw:
    """Draws in film millimetres (x right, z up, from the top of the lungs).

    Each shape is a line integral of attenuation, ``(size, size)``.
    """

    view: View

    def _pixels(self, points: Tensor) -> Tensor:
        x, z = self.view.film_mm()
        row = (float(z[0, 0]) - points[:, 1]) / self.view.pixel_mm
        column = (float(x[0, 0]) - points[:, 0]) / self.view.pixel_mm
        return torch.stack([row, column], dim=-1)

    def _curve(self, knots: Knots) -> tuple[Tensor, Tensor]:
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

    def wire(self, knots: Knots, radius: float, height: float) -> Tensor:
        """A solid wire: ``height`` is the line integral across its middle."""
        points, normals = self._curve(knots)
        step = 0.3 * self.view.pixel_mm
        offsets = torch.arange(-radius, radius + step / 2, step)
        weight = height * (1 - (offsets / (radius + step)) ** 2).clamp(min=0).sqrt()
        return self._stroke(points, normals, offsets, weight * 0.2 * 0.3)

    def tube(self, knots: Knots, radius: float, height: float) -> Tensor:
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
        """A flat disc: ``height`` is its line integral."""
        x, z = self.view.film_mm()
        d = ((x - centre[0]) ** 2 + (z - centre[1]) ** 2).sqrt()
        return height * torch.sigmoid((radius - d) / (0.4 * self.view.pixel_mm))


def add_markers(view: View, grey: Tensor) -> Tensor:
    """Add side letter and collimator to a film ``(size, size)`` of greys in [0, 1].

    ``grey`` may be written to.
    """
    u = torch.rand(12, generator=view.generator(8)).tolist()
    if not view.patient.mirrored:  # letters would read backwards
        if "marker" in view.technique.devices:
            _stamp_letter(grey, u[:5])
        if "words" in view.technique.devices:
            _stamp_words(grey, view.generator(11))
    if "shutter" in view.technique.devices:
        grey = _shut(grey, u[5:])
    return grey


def _stamp_letter(grey: Tensor, u: list[float]) -> None:
    """Stamp the side letter of lead into an upper corner, in place."""
    size = len(grey)
    right = u[0] < 0.5
    height = max(8, int(size * (0.03 + 0.02 * u[1])))
    stamp = _letters("R" if right else "L", height, 20 * (u[2] - 0.5))
    row = int(size * (0.03 + 0.12 * u[3]))
    column = int(size * (0.03 + 0.07 * u[4]))
    if not right:  # the patient's left is on the right of the film
        column = size - column - stamp.shape[1]
    _press(grey, stamp, row, column)


def _stamp_words(grey: Tensor, generator: torch.Generator) -> None:
    """One to three lines on how the film was taken, in a corner, in place."""
    size = len(grey)
    u = torch.rand(8, generator=generator).tolist()
    height = max(6, int(size * (0.014 + 0.02 * u[0])))
    row = int(size * (0.01 + 0.08 * u[1] if u[2] < 0.6 else 0.8 + 0.1 * u[1]))
    for share in u[5 : 5 + 1 + int(3 * u[4])]:
        stamp = (0.6 + 0.4 * u[4]) * _letters(_WORDS[int(share * len(_WORDS))], height)
        column = int(size * 0.05 * u[1])
        if u[3] < 0.5:
            column = size - column - stamp.shape[1]
        _press(grey, stamp, row, column)
        row += int(1.2 * height)


def _letters(text: str, height: int, degrees: float = 0.0) -> Tensor:
    """Text as grey values in [0, 1], with a margin, turned by some degrees."""
    font = ImageFont.load_default(size=height)
    wide = max(2 * height, int(font.getlength(text)) + height)
    letters = Image.new("L", (wide, 2 * height))
    ImageDraw.Draw(letters).text((height // 2, height // 3), text, fill=255, font=font)
    letters = letters.rotate(degrees, resample=Image.Resampling.BILINEAR)
    return torch.from_numpy(np.asarray(letters, np.float32) / 255)


def _press(grey: Tensor, stamp: Tensor, row: int, column: int) -> None:
    """Brighten a film by a stamp whose upper left corner lies at a place, in place."""
    column = max(0, column)
    patch = grey[row : row + len(stamp), column : column + stamp.shape[1]]
    patch.copy_(torch.maximum(patch, stamp[: patch.shape[0], : patch.shape[1]]))


def _shut(grey: Tensor, u: list[float]) -> Tensor:
    """Cover what lies outside the collimator, a little turned, dark or (rarely) bright."""
    size = len(grey)
    i = torch.arange(size) / size - 0.5
    angle = math.radians(3 * (u[0] - 0.5))
    across = i[None, :] * math.cos(angle) + i[:, None] * math.sin(angle)
    along = i[:, None] * math.cos(angle) - i[None, :] * math.sin(angle)
    left, right, top, bottom = (0.5 - 0.09 * v * v for v in u[1:5])
    shut = (across < -left) | (across > right) | (along < -top) | (along > bottom)
    return torch.where(shut, torch.tensor(0.02 if u[5] < 0.85 else 0.97), grey)
