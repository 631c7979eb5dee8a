"""How well a network's maps show the finding, beside chance and the centre.

A simulated exam knows each voxel of its lesions, so what is often only looked at can be
counted. Three questions are asked of each series that shows a positive's lesion:

- **slice**: is the lesion in the slice that the network picked?
- **pointing**: is the hottest pixel of that slice inside the lesion, or at most
  `tolerance` pixels beside it (pointing game, Zhang et al. 2016)?
- **overlap**: of the n hottest voxels of the whole series, n the size of the lesion,
  which share lies in it? This is their Dice, since both have n voxels.

Lesions lie near the joint line, and so does the centre of every slice: a map must beat
one that always points there (`centre`), not only one that points anywhere (`random`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medimg_utils import metrics
from medimg_utils.errors import InputError
from medimg_utils.release import DatasetError

QUESTIONS = ("slice", "pointing", "overlap")


def measure(
    heat: NDArray[np.floating],
    picked: int,
    lesion: NDArray[np.bool_],
    tolerance: float = 0.0,
) -> dict[str, dict[str, float]]:
    """The three questions about one map, and what the two baselines reach.

    Args:
        heat: (S, H, W) map; higher is more suspicious.
        picked: the slice that the network's answer rests on most.
        lesion: (S, H, W) with at least one voxel.
        tolerance: pixels beside the lesion that still count when pointing.

    Returns:
        {question: {`network`, `random`, `centre`: in [0, 1]}}. `random` is the expected
        value of a random slice, pixel, or set of voxels.

    Raises:
        InputError: the shapes differ, or there is no lesion.
    """
    if heat.shape != lesion.shape or not lesion.any():
        raise InputError(
            f"the map {heat.shape} and the lesion {lesion.shape} must be alike, and the "
            "lesion must not be empty."
        )
    size = int(lesion.sum())
    in_slice = np.asarray(lesion.any(axis=(1, 2)))
    near = np.array(
        [
            ndimage.distance_transform_edt(~one).__le__(tolerance).mean() if seen else 0
            for one, seen in zip(lesion, in_slice, strict=True)
        ]
    )
    middle = len(lesion) // 2
    distance = far_from_centre(lesion.shape)
    return {
        "slice": {
            "network": float(in_slice[picked]),
            "random": float(in_slice.mean()),
            "centre": float(in_slice[middle]),
        },
        "pointing": {
            "network": _points(heat[picked], lesion[picked], tolerance),
            "random": float(near.mean()),
            "centre": _points(-distance[middle], lesion[middle], tolerance),
        },
        "overlap": {
            "network": float(lesion.ravel()[_hottest(heat, size)].mean()),
            "random": size / lesion.size,
            "centre": float(lesion.ravel()[_hottest(-distance, size)].mean()),
        },
    }


def _points(
    heat: NDArray[np.floating], lesion: NDArray[np.bool_], tolerance: float
) -> float:
    if not lesion.any():
        return 0.0
    return float(metrics.pointing_game(heat, lesion, tolerance))


def _hottest(heat: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Flat indices of the `count` highest voxels."""
    return np.argpartition(heat.ravel(), heat.size - count)[heat.size - count :]


def far_from_centre(shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Distance of each voxel from the centre, in half-lengths of the volume.

    >>> far_from_centre((3, 5)).round(2).tolist()[1]
    [1.0, 0.5, 0.0, 0.5, 1.0]
    """
    axes = [
        np.linspace(-1, 1, length) if length > 1 else np.zeros(1) for length in shape
    ]
    grids = np.meshgrid(*axes, indexing="ij", sparse=True)
    return np.sqrt(np.asarray(sum(axis**2 for axis in grids)))


def summarise(
    rows: Sequence[dict[str, dict[str, float]]], *, draws: int = 1000
) -> dict[str, Any]:
    """Means over exams with bootstrap intervals, and the gain over each baseline.

    Args:
        rows: what `measure` returned, one an exam.
        draws: of the bootstrap over exams.

    Returns:
        {question: {who: {value, low, high}, `gain_over_random`, `gain_over_centre`}}
        and `n`; the gain is the mean of the paired differences.
    """
    answer: dict[str, Any] = {"n": len(rows)}
    if not rows:
        return answer
    exams = np.arange(len(rows))
    for question in QUESTIONS:
        values = {
            who: np.array([row[question][who] for row in rows])
            for who in ("network", "random", "centre")
        }
        for who in ("random", "centre"):
            values[f"gain_over_{who}"] = values["network"] - values[who]
        answer[question] = {
            who: metrics.mean_bootstrap(chosen, exams, draws=draws)._asdict()
            for who, chosen in values.items()
        }
    return answer


def read_lesions(path: Path, shape: tuple[int, ...]) -> dict[str, NDArray[np.bool_]]:
    """The lesions of one series of a simulated exam: {diagnosis: (S, H, W)}.

    Args:
        path: `lesions/<split>/<series>/0000.npz` beside the release.
        shape: of the series.

    Raises:
        DatasetError: no such file, or it belongs to another exam.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            lesions = {name: np.asarray(stored[name], dtype=bool) for name in stored}
    except Exception as error:  # NumPy raises many kinds for damaged files
        raise DatasetError(
            f"{path} cannot be read as the lesions of a simulated exam ({error}). Give "
            "the truth file of the same simulation."
        ) from error
    if wrong := [name for name, mask in lesions.items() if mask.shape != shape]:
        raise DatasetError(
            f"{path}: the lesion {wrong[0]} has the shape {lesions[wrong[0]].shape}, "
            f"but the series {shape}. Give the truth file of the same simulation."
        )
    return lesions
