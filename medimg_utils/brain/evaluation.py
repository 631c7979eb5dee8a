"""What `experiment.evaluate` measures: three nested regions, in mm, with rules for none.

| region | labels of the package | in BraTS |
|---|---|---|
| whole tumour, WT | core, oedema, enhancing | 1, 2, 4 |
| tumour core, TC | core, enhancing | 1, 4 |
| enhancing tumour, ET | enhancing | 4 |

A *case* is a row per exam: `case_id`, `patient`, and per region what `measure` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medimg_utils import metrics
from medimg_utils.release import check_listed, groups_of

REGIONS: dict[str, tuple[int, ...]] = {"WT": (1, 2, 3), "TC": (1, 3), "ET": (3,)}
NUMBERS = ("dice", "hausdorff95_mm", "sensitivity", "specificity")
# Diagonal of the challenge's volume of 240 × 240 × 155 mm: as wrong as can be.
WORST_DISTANCE_MM = float(np.sqrt(240**2 + 240**2 + 155**2))


def region(labels: NDArray[np.uint8], name: str) -> NDArray[np.bool_]:
    """(D, H, W) mask of WT, TC or ET."""
    return np.isin(labels, REGIONS[name])


def measure(
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    spacing: tuple[float, float, float],
) -> dict[str, float]:
    """Overlap and distance of one region of one case, by the rules of BraTS until 2022.

    Where the region is absent from both, Dice is 1 and the distance 0. Where it is absent
    from one only, Dice is 0 and the distance 373.13 mm, the diagonal of the challenge's
    volume. Sensitivity without the region in the truth is NaN.

    Args:
        predicted: (D, H, W) mask.
        truth: (D, H, W) mask.
        spacing: of the voxels in mm.

    Returns:
        `dice`, `hausdorff95_mm`, `sensitivity`, `specificity` and both volumes in cm³.
    """
    far = metrics.hausdorff95(predicted, truth, spacing)
    hits, background = predicted & truth, ~truth
    voxel = float(np.prod(spacing)) / 1000
    return {
        "dice": metrics.dice(predicted, truth),
        "hausdorff95_mm": far if np.isfinite(far) else WORST_DISTANCE_MM,
        "sensitivity": float(hits.sum() / truth.sum()) if truth.any() else float("nan"),
        "specificity": float((background & ~predicted).sum() / background.sum())
        if background.any()
        else float("nan"),
        "predicted_cm3": float(predicted.sum()) * voxel,
        "true_cm3": float(truth.sum()) * voxel,
    }


def measure_all(
    predicted: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    spacing: tuple[float, float, float],
) -> dict[str, dict[str, float]]:
    """`measure` of WT, TC and ET, from labels 0 to 3."""
    return {
        name: measure(region(predicted, name), region(truth, name), spacing)
        for name in REGIONS
    }


def dices(predicted: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, float]:
    """Dice of WT, TC and ET alone: enough to choose an epoch or to compare modes."""
    return {
        name: metrics.dice(region(predicted, name), region(truth, name))
        for name in REGIONS
    }


def flair_threshold(
    flair: NDArray[np.float32], brain: NDArray[np.bool_], z: float = 1.5
) -> NDArray[np.bool_]:
    """The control that knows no learning: bright FLAIR, smoothed, its largest part.

    Tumour is bright on FLAIR, so this alone overlaps well with the whole tumour. A network
    must be better than it, above all on core and enhancing tumour.

    Args:
        flair: (D, H, W) z-scores.
        brain: (D, H, W) mask.
        z: threshold.
    """
    smooth = ndimage.gaussian_filter(flair, 1.5)
    bright = (smooth > z) & brain
    parts, count = ndimage.label(bright)
    if not count:
        return bright
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


def summarise(cases: Sequence[dict[str, Any]], draws: int = 1000) -> dict[str, Any]:
    """Mean with bootstrap interval over patients, median and quartiles, of every number.

    Args:
        cases: one row per exam; see the module.
        draws: of the bootstrap.

    Returns:
        region → number → `mean`, `interval`, `median`, `quartiles`, `n`. Undefined values
        are left out.
    """
    patients = np.array([case["patient"] for case in cases])
    answer: dict[str, Any] = {}
    for name in REGIONS:
        answer[name] = {}
        for number in NUMBERS:
            values = np.array([case[name][number] for case in cases], dtype=float)
            known = ~np.isnan(values)
            answer[name][number] = summary(values[known], patients[known], draws)
    return answer


def summary(
    values: NDArray[np.float64], patients: NDArray[Any], draws: int = 1000
) -> dict[str, Any]:
    """`mean` with `interval` over patients, `median`, `quartiles` and `n` of a list."""
    if not values.size:
        nothing = float("nan")
        return {
            "mean": nothing, "interval": [nothing, nothing], "median": nothing,
            "quartiles": [nothing, nothing], "n": 0,
        }  # fmt: skip
    found = metrics.mean_bootstrap(values, patients, draws=draws)
    return {
        "mean": found.value,
        "interval": [found.low, found.high],
        "median": float(np.median(values)),
        "quartiles": np.quantile(values, [0.25, 0.75]).tolist(),
        "n": int(values.size),
    }


def subgroups(
    cases: Sequence[dict[str, Any]], rows: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """Mean Dice by what only a simulation knows (kind, grade, scanner ...).

    Args:
        cases: one row per exam.
        rows: of `medimg_utils.release.read_truth`; columns with 2 to 12 different values
            make groups.

    Raises:
        InputError: a case is not listed.
    """
    names = [case["case_id"] for case in cases]
    check_listed(names, rows, "cases")
    return {
        column: {
            value: {
                "n": len(group),
                **{
                    part: float(np.mean([cases[k][part]["dice"] for k in group]))
                    for part in REGIONS
                },
            }
            for value, group in groups.items()
        }
        for column, groups in groups_of(names, rows, min(12, len(cases) // 2)).items()
    }
