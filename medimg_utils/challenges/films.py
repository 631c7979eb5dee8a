"""Small films, each with and without a chest drain: the data of the black box.

The films are those of the lab run of the first use case, shrunk until a CPU trains on
them in a minute.  A drain is laid over the finished film (:func:`lay_drain`), so each film
exists twice and the two differ by the drain alone.  Any correlation of drain and disease
can then be made by choosing which of the two a network gets to see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage as ndi

from medimg_utils.errors import InputError
from medimg_utils.io import read_image
from medimg_utils.pneumothorax.dataset import Record, read_release
from medimg_utils.pneumothorax.preprocess import prepare, prepare_mask
from medimg_utils.release import read_truth
from medimg_utils.training import stable_seed

#: Rows and columns of the small films.
SIDE = 96


@dataclass(frozen=True, eq=False)
class Rows:
    """Arrays with a row for each film."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    lesions: NDArray[np.bool_]
    drains: NDArray[Any]
    patients: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.images)

    def part(self, chosen: NDArray[Any] | slice) -> Self:
        """Those films that are chosen, by a mask, by a slice or by their numbers."""
        return replace(
            self,
            **{item.name: getattr(self, item.name)[chosen] for item in fields(self)},
        )


class Films(Rows):
    """Films, each without and with a drain.

    Attributes:
        images: ``(N, 2, S, S)`` uint8, standardised; the second axis says whether there
            is a drain.
        labels: ``(N,)`` 1 with pneumothorax.
        lesions: ``(N, S, S)`` bool, the pneumothorax.
        drains: ``(N, S, S)`` bool, where the second picture shows the drain.
        patients: ``(N,)``; films of one patient never part.
    """


def read_films(release: Path, *, twins: bool = False, smallest: float = 0.0) -> Films:
    """Read a simulated release as small films, without those that have a drain already.

    Args:
        release: in the layout of SIIM-ACR, with ``simulation-truth.csv``.
        twins: only films with pneumothorax and their twins without; else all films.
        smallest: films with a smaller pneumothorax (share of the film) are left out,
            and their twins.

    Raises:
        InputError: the release does not say which films show a drain, or none is left.
    """
    truth = release / "simulation-truth.csv"
    if not truth.is_file():
        raise InputError(
            f"{truth} is missing: which films show a drain must be known. Give a simulated "
            "release."
        )
    rows = read_truth(truth, "ImageId")
    small = {
        name
        for name, row in rows.items()
        if row["kind"] and float(row["area"]) < smallest
    }
    wanted = [
        name
        for name, row in rows.items()
        if row["drain"] == "0"
        and not small & {name, row["pair"]}
        and (row["pair"] or not twins)
    ]
    records = {record.image_id: record for record in read_release(release)}
    if not wanted:
        raise InputError(f"{release} holds no film without a drain.")
    return stack([records[name] for name in wanted])


def stack(records: Sequence[Record], side: int = SIDE) -> Films:
    """Read films, lay a drain over each, and shrink both; see :class:`Films`.

    The drain goes to the side of the pneumothorax, and to any side without one.
    """
    images, lesions, drains = [], [], []
    for record in records:
        pixels = read_image(record.path).pixels
        lesion = record.mask((pixels.shape[0], pixels.shape[1]))
        random = np.random.default_rng(
            stable_seed(*record.image_id.encode())  # the same film, the same drain
        )
        columns = np.nonzero(lesion.any(axis=0))[0]
        right = random.random() < 0.5
        if columns.size:
            right = columns.mean() > lesion.shape[1] / 2
        drained, drain = lay_drain(pixels, right, random)
        images.append([prepare(film, side)[0] for film in (pixels, drained)])
        lesions.append(prepare_mask(lesion, side) >= 64)
        drains.append(prepare_mask(drain, side) >= 64)
    return Films(
        np.array(images),
        np.array([record.label for record in records]),
        np.array(lesions),
        np.array(drains),
        np.array([record.patient for record in records]),
    )


def lay_drain(
    pixels: NDArray[np.floating], right: bool, random: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Lay a chest drain over a finished film.

    A tube of plastic, brighter at both walls, with a stripe that stops X-rays.  It enters
    between the ribs and runs up toward the apex.

    Args:
        pixels: ``(H, W)`` in [0, 1], bright is dense.
        right: on the right of the picture, which is the patient's left.
        random: draws its course.

    Returns:
        The film with the drain, and where the drain is, both ``(H, W)``.

    >>> film, drain = lay_drain(np.zeros((64, 64)), True, np.random.default_rng(0))
    >>> bool(film[drain].mean() > film[~drain].mean()), bool(drain[:, :32].any())
    (True, False)
    """
    height, width = pixels.shape
    u = random.random(8)
    sign = 1 if right else -1
    knots = np.array(
        [
            [0.5 + sign * (0.42 + 0.06 * u[0]), 0.50 + 0.20 * u[1]],
            [0.5 + sign * (0.32 + 0.06 * u[2]), 0.36 + 0.12 * u[3]],
            [0.5 + sign * (0.14 + 0.10 * u[4]), 0.16 + 0.14 * u[5]],
        ]
    ) * (width, height)
    t = np.linspace(0, 1, 100)[:, None]
    curve = (1 - t) ** 2 * knots[0] + 2 * t * (1 - t) * knots[1] + t**2 * knots[2]
    radius = width * (0.008 + 0.004 * u[6])
    # distances are needed near the tube alone
    low = np.maximum(curve.min(axis=0) - 3 * radius, 0).astype(int)
    high = np.ceil(curve.max(axis=0) + 3 * radius).astype(int)
    drawn = Image.new("1", tuple((high - low).tolist()))
    ImageDraw.Draw(drawn).line([tuple(p) for p in (curve - low).tolist()], fill=1)
    near = ndi.distance_transform_edt(~np.asarray(drawn))
    box = slice(low[1], high[1]), slice(low[0], high[0])
    away = np.full(pixels.shape, np.inf)
    away[box] = near[: away[box].shape[0], : away[box].shape[1]]
    wall = np.exp(-0.5 * ((away - radius) / (0.3 * radius)) ** 2)
    stripe = np.exp(-0.5 * (away / (0.3 * radius)) ** 2)
    bright = (0.10 + 0.10 * u[7]) * (wall + 0.5 * (away < radius) + 1.5 * stripe)
    film = np.clip(pixels + bright, 0, 1).astype(np.float32)
    return film, np.asarray(away <= 1.5 * radius)
