"""Small simulated films of which each is taken four times: the data of the black box.

A patient stands before the film once, and four pictures are made: with and without
pneumothorax, with and without a chest drain.  All else is equal, so the difference of
two of them is the effect of one thing, and any correlation between the two can be made
by choosing which of the four a network gets to see.

They are releases as :mod:`medimg_utils.pneumothorax.simulate` writes them: a release
without drains, and the same patients with drains.
"""

from __future__ import annotations

import csv
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage as ndi

from medimg_utils.errors import InputError
from medimg_utils.io import read_image
from medimg_utils.pneumothorax.dataset import read_release
from medimg_utils.pneumothorax.phantom import ANATOMIES
from medimg_utils.pneumothorax.preprocess import prepare
from medimg_utils.pneumothorax.simulate import (
    HELD_OUT,
    Simulation,
    simulate_release,
)
from medimg_utils.pneumothorax.technique import Rates
from medimg_utils.settings import Settings, get_settings
from medimg_utils.simulation import remove_older

#: Rows and columns of the films: a CPU trains on them in a minute.
SIDE = 128
_SEEN = tuple(anatomy for anatomy in ANATOMIES if anatomy != HELD_OUT)


def _plan(patients: int, seed: int, anatomies: tuple[str, ...]) -> Simulation:
    return Simulation(
        patients,
        seed=seed,
        size=SIDE,
        positive_rate=1.0,  # with its twin, each film is there with and without air
        pairs=True,
        anatomies=anatomies,
        rates=Rates(drain=(0.0, 0.0), mirrored=0.0),
    )


#: What the small networks learn from, what they are measured on, and another site: a CT
#: that none of them has learned from.
PLANS = {
    "train": _plan(64, 410, _SEEN),
    "test": _plan(64, 420, _SEEN),
    "site": _plan(16, 430, (HELD_OUT,)),
}


@dataclass(frozen=True, eq=False)
class Films:
    """Films of some patients, each taken four times.

    Attributes
    ----------
    images: ``(V, 2, 2, S, S)`` uint8, standardised; the axes after the view say whether
        the lung is collapsed and whether there is a drain.
    lesions: ``(V, S, S)`` bool, the pneumothorax of the collapsed films.
    drains: ``(V, S, S)`` bool, where the drained films show the drain.
    patients: ``(V,)``; views of one patient never part.
    areas: ``(V,)`` of the pneumothorax as a share of the film.
    kinds: ``(V,)`` such as ``"apical"``.
    image_ids: ``(V, 2)`` names of the collapsed film without and with a drain.
    """

    images: NDArray[np.uint8]
    lesions: NDArray[np.bool_]
    drains: NDArray[np.bool_]
    patients: NDArray[np.str_]
    areas: NDArray[np.float64]
    kinds: NDArray[np.str_]
    image_ids: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.images)


def plan_of(name: str, drained: bool, patients: int | None = None) -> Simulation:
    """The simulation of one of :data:`PLANS`, without drains or with a drain in each.

    With fewer ``patients`` it gives the films of the first ones.

    >>> plan_of("test", True).rates.drain
    (1.0, 1.0)
    """
    if name not in PLANS:
        raise InputError(f"there are no films {name!r}; there are: {', '.join(PLANS)}.")
    plan = PLANS[name]
    rates = replace(plan.rates, drain=(float(drained), float(drained)))
    return replace(plan, rates=rates, patients=patients or plan.patients)


def ensure_films(
    name: str,
    settings: Settings | None = None,
    *,
    patients: int | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Films:
    """The films of one of :data:`PLANS`, simulated on first use.

    Parameters
    ----------
    name: ``train``, ``test`` or ``site``.
    settings: say where the data are.
    patients: only the first so many of the plan; their films are the same, but they are
        kept in a folder of their own.
    workers, progress: see :func:`medimg_utils.pneumothorax.simulate.simulate_release`.

    Raises
    ------
    InputError
        No such plan, or the folder holds something else.
    """
    data = (settings or get_settings()).data
    folders = []
    for drained, word in enumerate(("plain", "drained")):
        plan = plan_of(name, bool(drained), patients)
        few = f"-{patients}" if patients else ""
        out = data / f"challenges-{name}-{word}{few}"
        remove_older(out, asdict(plan))
        simulate_release(out, plan, workers=workers, data_dir=data, progress=progress)
        folders.append(out)
    return read_films(*folders)


def read_films(plain: Path, drained: Path) -> Films:
    """Read the same views from two releases, without and with drains.

    Raises
    ------
    InputError
        The two do not hold the same views.
    """
    found = [_views(folder) for folder in (plain, drained)]
    same = ("patient", "kind", "area")
    if [[row[k] for k in same] for row, _ in found[0]] != [
        [row[k] for k in same] for row, _ in found[1]
    ]:
        raise InputError(
            f"{plain} and {drained} do not hold the same views; delete both and "
            "simulate them anew"
        )
    raw, lesions = [], []
    for folder, views in zip((plain, drained), found, strict=True):
        records = {record.image_id: record for record in read_release(folder)}
        for row, twin in views:
            pair = [records[twin], records[row["ImageId"]]]
            raw.append([read_image(record.path).pixels for record in pair])
            if folder == plain:
                lesions.append(pair[1].mask(raw[-1][1].shape))
    pixels = np.array(raw, dtype=np.float32)
    count, side = len(lesions), pixels.shape[-1]
    pixels = pixels.reshape(2, count, 2, side, side).transpose(1, 2, 0, 3, 4)
    images = np.array(
        [prepare(one, side)[0] for one in pixels.reshape(-1, side, side)], np.uint8
    ).reshape(pixels.shape)
    rows = [row for row, _ in found[0]]
    return Films(
        images,
        np.array(lesions),
        np.array([drain_mask(*view[0]) for view in pixels]),
        np.array([row["patient"] for row in rows]),
        np.array([float(row["area"]) for row in rows]),
        np.array([row["kind"] for row in rows]),
        np.array([[r["ImageId"] for r, _ in views] for views in found]).T,
    )


def _views(folder: Path) -> list[tuple[dict[str, str], str]]:
    """Rows of the films with pneumothorax, each with the name of its healthy twin."""
    with (folder / "simulation-truth.csv").open(newline="", encoding="utf-8") as file:
        return [(r, r["pair"]) for r in csv.DictReader(file) if r["kind"]]


def drain_mask(
    plain: NDArray[np.floating], drained: NDArray[np.floating]
) -> NDArray[np.bool_]:
    """Where two films ``(H, W)`` in [0, 1] differ by a drain.

    A drain also changes scatter and display curve of the whole film a little; only the
    fine part of the difference counts.

    >>> film = np.full((64, 64), 0.5)
    >>> with_tube = film.copy()
    >>> with_tube[10:50, 30:32] += 0.2
    >>> mask = drain_mask(film, with_tube)
    >>> bool(mask[30, 30]), bool(mask[30, 40])
    (True, False)
    """
    difference = np.asarray(drained, np.float64) - plain
    fine = np.abs(difference - ndi.gaussian_filter(difference, 6.0))
    line = ndi.gaussian_filter(fine, 1.0) > 0.015
    labels, _ = ndi.label(line, structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(np.isin(labels, np.flatnonzero(sizes >= 8)))
