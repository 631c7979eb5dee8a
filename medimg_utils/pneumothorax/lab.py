"""The lab run: simulate, train, measure, and store what travels with the package.

:func:`run_lab` is the only writer of the shipped network and of the result
``pneumothorax-lab``.  Each step that is already done is not done again, so it can be
stopped and called anew.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medimg_utils import pretrained, results
from medimg_utils.experiments import describe
from medimg_utils.pneumothorax.experiment import evaluate, from_json, train
from medimg_utils.pneumothorax.simulate import (
    HELD_OUT,
    LAB_TESTS,
    ensure_release,
    simulate_release,
)
from medimg_utils.settings import get_settings
from medimg_utils.training import BEST, read_log

NAME = "pneumothorax-lab"


def run_lab(
    runs: Path, folds: Sequence[int] = (0,), *, progress: bool = True
) -> dict[str, Any]:
    """Train the lab size on the given folds, measure, and store network and numbers.

    The network of the first fold is shipped.  It is measured on the patients of its own
    fold, on new patients of the CTs it was trained on, and on new patients of the CT
    that no lab network has seen.  The other folds add their own held-out patients.

    Args:
        runs: folder that holds (or will hold) one run a fold.
        folds: of the cross-validation; the first one's network is shipped.
        progress: show bars.

    Returns:
        The stored result.
    """
    data = get_settings().data
    release = ensure_release("lab")
    fold_values = {}
    for fold in folds:
        run = runs / f"{NAME}-fold{fold}"
        if not (run / BEST).with_suffix(".json").is_file():
            train(release, run, "lab", fold=fold, resume=True, progress=progress)
        fold_values[str(fold)] = _once(run / "held-out.json", release, run, progress)
    shipped = runs / f"{NAME}-fold{folds[0]}"
    weights = shipped / BEST
    pretrained.store(NAME, {None: weights}, weights.with_suffix(".json"))
    tests = {"held-out-fold": fold_values[str(folds[0])]}
    for name, plan in LAB_TESTS.items():
        release_of_test = simulate_release(
            data / f"{NAME}-{name}", plan, data_dir=data, progress=progress
        )
        tests[name] = _once(
            shipped / f"{name}.json", release_of_test, shipped, progress
        )
        tests[name]["cases"] = _with_truth(tests[name]["cases"], release_of_test)
    facts = json.loads((shipped / BEST).with_suffix(".json").read_text("utf-8"))
    history = read_log(shipped)
    unseen = tests["unseen-patients"]
    minutes = sum(row["seconds"] for row in history) / 60
    result = {
        "headline": {
            "hardware": results.hardware(unseen["about"]["device"]),
            "minutes": minutes,
            "measures": {
                "AUC": [unseen["auc"]["value"], *unseen["auc"]["bootstrap"]],
                "Dice of positives": [
                    unseen["dice"][k] for k in ("value", "low", "high")
                ],
            },
            "on": f"{unseen['n']['images']} simulated radiographs of unseen patients",
        },
        "held_out_anatomy": HELD_OUT,
        "settings": describe(from_json(facts["experiment"])),
        "training": {
            "history": history,
            "best": facts["best"],
            "minutes": minutes,
            "about": facts["about"],
        },
        "folds": {fold: _headline(values) for fold, values in fold_values.items()},
        "tests": tests,
        "about": {
            **tests["unseen-patients"]["about"],
            "n": {name: test["n"]["images"] for name, test in tests.items()},
            "data": {name: test["about"]["data"] for name, test in tests.items()},
        },
    }
    results.save(NAME, result)
    return result


def _once(file: Path, release: Path, run: Path, progress: bool) -> dict[str, Any]:
    """Evaluate unless the answer is stored already."""
    if not file.is_file():
        truth = release / "simulation-truth.csv"
        evaluate(release, run, out=file, truth=truth, progress=progress)
    return json.loads(file.read_text(encoding="utf-8"))


def _headline(values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("n", "auc", "dice", "pointing_game")}


def _with_truth(cases: list[dict[str, Any]], release: Path) -> list[dict[str, Any]]:
    """Add to each case what the simulation knows and a gallery of failures tells."""
    with (release / "simulation-truth.csv").open(newline="", encoding="utf-8") as file:
        truth = {row["ImageId"]: row for row in csv.DictReader(file)}
    known = ("view", "side", "kind", "devices", "findings", "anatomy")
    return [
        case | {key: truth[case["image_id"]][key] for key in known} for case in cases
    ]
