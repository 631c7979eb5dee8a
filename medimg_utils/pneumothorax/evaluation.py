"""What `experiment.evaluate` measures: numbers of many predictions, and trivial controls.

A network can reach a good number for a bad reason. Three controls look for one: the same
prediction against mirrored masks (does it know the side?), a map that is the mean training mask
and never looks at the image (does it know more than the usual place?), and a regression on
brightness and borders (do the classes differ in style?).

A *case* is a row per image: `image_id`, `patient`, `label`, `score`, and for positives with a
mask what `measure` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medimg_utils import metrics
from medimg_utils.release import check_listed, groups_of

BLANK = 0.02  # grey values below this are called black in the style control


def measure(
    true: NDArray[np.bool_],
    probability: NDArray[np.float32],
    mask: NDArray[np.bool_],
    static: NDArray[np.bool_ | np.float32],
    static_threshold: float,
    spacing_mm: tuple[float, float] | None,
) -> dict[str, Any]:
    """Overlap, distance and pointing of one positive, beside those of the controls.

    Args:
        true: (H, W) reader's mask.
        probability: (H, W) map of the network.
        mask: (H, W) the map at its threshold.
        static: (H, W) mean training mask, the control that never looks at the image.
        static_threshold: of `static`.
        spacing_mm: None leaves the distance in mm undefined.
    """
    mirrored = true[:, ::-1]
    far = metrics.hausdorff95(mask, true, spacing_mm) if spacing_mm else float("nan")
    return {
        "area": float(true.mean()),
        "dice": metrics.dice(mask, true),
        "hausdorff95_mm": far,
        "hausdorff95_px": metrics.hausdorff95(mask, true),
        "pointing": metrics.pointing_game(probability, true),
        "mirrored_dice": metrics.dice(mask, mirrored),
        "mirrored_pointing": metrics.pointing_game(probability, mirrored),
        "prior_dice": metrics.dice(static >= static_threshold, true),
        "prior_pointing": metrics.pointing_game(static, true),
    }


def summarise(
    cases: Sequence[dict[str, Any]],
    threshold: float,
    specificity: float,
    draws: int = 1000,
) -> dict[str, Any]:
    """Detection, segmentation, localisation and calibration of rows as `evaluate` makes them."""
    labels = np.array([case["label"] for case in cases])
    scores = np.array([case["score"] for case in cases])
    patients = np.array([case["patient"] for case in cases])
    positives = [case for case in cases if "dice" in case]
    groups = [case["patient"] for case in positives]

    def mean(name: str) -> dict[str, Any]:
        values = np.array([case[name] for case in positives], dtype=float)
        if not values.size:
            return {"value": None, "low": None, "high": None, "n": 0}
        found = metrics.mean_bootstrap(values, groups, draws=draws)
        return {**found._asdict(), "median": float(np.median(values)), "n": values.size}

    def distance(name: str) -> dict[str, Any]:
        values = np.array([case[name] for case in positives], dtype=float)
        values = values[~np.isnan(values)]
        missed = int(np.isinf(values).sum())
        found = values[np.isfinite(values)]
        middle = float(np.median(found)) if found.size else None
        return {"median": middle, "n": int(found.size), "without_prediction": missed}

    return {
        "n": {
            "images": len(cases),
            "patients": len(set(patients)),
            "positives": int(labels.sum()),
            "with_mask": len(positives),
        },
        **metrics.detection(
            labels, scores, patients, threshold, specificity, draws=draws
        ),
        "dice": mean("dice"),
        "hausdorff95_mm": distance("hausdorff95_mm"),
        "hausdorff95_px": distance("hausdorff95_px"),
        "pointing_game": mean("pointing"),
    }


def overlap_controls(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the same prediction scores against mirrored masks, and a map that never looks."""
    positives = [case for case in cases if "dice" in case]

    def mean(name: str) -> float:
        return (
            float(np.mean([case[name] for case in positives]))
            if positives
            else float("nan")
        )

    return {
        "mirrored_mask": {
            "dice": mean("mirrored_dice"),
            "pointing": mean("mirrored_pointing"),
        },
        "static_prior": {
            "dice": mean("prior_dice"),
            "pointing": mean("prior_pointing"),
        },
    }


def style_features(pixels: NDArray[np.floating]) -> list[float]:
    """Black share, white share, mean, standard deviation and contrast of an image.

    None of them shows a pneumothorax. If they tell positives from negatives, the two
    classes come from different sources.
    """
    low, high = np.percentile(pixels, [5, 95])
    return [
        float((pixels < BLANK).mean()),
        float((pixels > 1 - BLANK).mean()),
        float(pixels.mean()),
        float(pixels.std()),
        float(high - low),
    ]


def style_control(
    cases: Sequence[dict[str, Any]], features: NDArray[np.float64]
) -> dict[str, Any]:
    """AUC of `style_features` alone; see `medimg_utils.metrics.style_control`."""
    names = ["black_share", "white_share", "mean", "sd", "contrast"]
    return metrics.style_control(
        [case["label"] for case in cases],
        [case["patient"] for case in cases],
        dict(zip(names, features.T, strict=True)),
    )


def subgroups(
    cases: Sequence[dict[str, Any]], rows: Mapping[str, Mapping[str, str]]
) -> dict[str, Any]:
    """AUC and Dice by what only a simulation knows (side, kind, drain, anatomy ...).

    Where a value occurs in positives only, they are compared with all negatives.

    Args:
        cases: one row per image.
        rows: of `medimg_utils.release.read_truth`; columns with 2 to 12 different values
            make groups.

    Raises:
        InputError: an image is not listed.
    """
    names = [case["image_id"] for case in cases]
    check_listed(names, rows, "images")
    found = groups_of(names, rows)
    found.pop("patient", None)
    answer: dict[str, Any] = {}
    for name, groups in found.items():
        answer[name] = {}
        for value, places in groups.items():
            group = [cases[k] for k in places]
            positives = [case for case in group if case["label"]]
            negatives = [case for case in group if not case["label"]]
            negatives = negatives or [case for case in cases if not case["label"]]
            compared = positives + negatives
            overlaps = [case["dice"] for case in positives if "dice" in case]
            answer[name][value] = {
                "positives": len(positives),
                "negatives": len(negatives),
                "auc": metrics.auc(
                    [case["label"] for case in compared],
                    [case["score"] for case in compared],
                ),
                "dice": float(np.mean(overlaps)) if overlaps else float("nan"),
            }
    return answer
