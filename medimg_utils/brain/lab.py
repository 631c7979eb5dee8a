"""The lab run: simulate, train, measure, and store what travels with the package.

`run_lab` is the only writer of the shipped networks and of the result `brain-lab`. Each
step that is already done is not done again, so it can be stopped and called anew.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medimg_utils import pretrained, results
from medimg_utils.brain.evaluation import REGIONS
from medimg_utils.brain.experiment import (
    STAGES,
    compare_modes,
    evaluate,
    from_json,
    train,
)
from medimg_utils.brain.simulate import ensure_release
from medimg_utils.brain.survival import VARIANTS, fit_linear
from medimg_utils.experiments import describe
from medimg_utils.io import write_json_atomic
from medimg_utils.training import BEST, LOG

NAME = "brain-lab"
COMPARED = 24  # patients on which the modes of inference are compared


def run_lab(
    runs: Path, folds: Sequence[int] = (0,), *, progress: bool = True
) -> dict[str, Any]:
    """Train the lab size on the given folds, measure, and store networks and numbers.

    The networks of the first fold are shipped. They are measured on the patients of their
    own fold and on a release of new patients, in the mode that their validation patients
    chose; on some of the new patients all modes are compared. The other folds add their
    own held-out patients.

    Args:
        runs: folder that holds (or will hold) one run a fold.
        folds: of the cross-validation; the first one's networks are shipped.
        progress: show bars.

    Returns:
        The stored result.
    """
    release, other = ensure_release("lab"), ensure_release("lab-test")
    fold_values = {}
    for fold in folds:
        run = runs / f"{NAME}-fold{fold}"
        if not (run / BEST).with_suffix(".json").is_file():
            train(release, run, "lab", fold=fold, resume=True, progress=progress)
        fold_values[str(fold)] = _evaluate_once(
            run / "held-out.json", release, run, progress
        )
    shipped = runs / f"{NAME}-fold{folds[0]}"
    about = (shipped / BEST).with_suffix(".json")
    pretrained.store(NAME, {stage: shipped / stage / BEST for stage in STAGES}, about)
    unseen = _evaluate_once(shipped / "unseen.json", other, shipped, progress)
    tests = {"held-out-fold": fold_values[str(folds[0])], "unseen-patients": unseen}
    modes = _once(
        shipped / "modes.json",
        lambda: compare_modes(other, shipped, limit=COMPARED, progress=progress),
    )
    facts = json.loads(about.read_text("utf-8"))
    history = {stage: _history(shipped / stage / LOG) for stage in STAGES}
    minutes = {
        stage: sum(row["seconds"] for row in rows) / 60
        for stage, rows in history.items()
    }
    result = {
        "headline": {
            "hardware": results.hardware(unseen["about"]["device"]),
            "minutes": sum(minutes.values()),
            "measures": {
                f"Dice {name}": [
                    unseen["regions"][name]["dice"]["mean"],
                    *unseen["regions"][name]["dice"]["interval"],
                ]
                for name in REGIONS
            },
            "on": f"{unseen['n']['cases']} simulated brains of unseen patients",
        },
        "settings": describe(from_json(facts["experiment"])),
        "training": {
            "history": history,
            "best": facts["best"],
            "minutes": minutes,
            "chosen_mode": facts["mode"],
            "validation": facts["modes"],
            "survival": facts["survival"],
            "about": facts["about"],
        },
        "folds": {
            fold: {key: values[key] for key in ("n", "regions", "survival")}
            for fold, values in fold_values.items()
        },
        "tests": tests,
        "modes": modes,
        "survival_coefficients": recovered(release),
        "about": {
            **unseen["about"],
            "n": {name: test["n"]["cases"] for name, test in tests.items()},
            "data": {name: test["about"]["data"] for name, test in tests.items()},
        },
    }
    results.save(NAME, result)
    return result


def recovered(release: Path) -> dict[str, Any]:
    """Does a regression find the coefficients that survival was simulated with?

    All simulated patients take part, also those whose survival the release's table does
    not list, with the true volumes.

    Args:
        release: a simulated one.

    Returns:
        `n`, and coefficient → `true`, `estimate`, `interval` at 95 %, `inside`.
    """
    with (release / "simulation-truth.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    plan = json.loads((release / "simulation.json").read_text(encoding="utf-8"))
    names = (*VARIANTS["all"], "gross_total")
    rows = [
        {name: float(row[name]) for name in (*VARIANTS["all"], "days")}
        | {"gross_total": float(row["resection"] == "GTR")}
        for row in table
    ]
    found = fit_linear(rows, names).intervals(0.95)
    answer: dict[str, Any] = {"n": len(rows)}
    for name in names:
        true = plan["survival"][name.split("_")[0] if name != "gross_total" else name]
        value, low, high = found[name]
        answer[name] = {
            "true": true,
            "estimate": value,
            "interval": [low, high],
            "inside": bool(low <= true <= high),
        }
    return answer


def _once(file: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the file holds; measured and written where there is none."""
    if not file.is_file():
        write_json_atomic(file, measure())
    return json.loads(file.read_text(encoding="utf-8"))


def _evaluate_once(
    file: Path, release: Path, run: Path, progress: bool
) -> dict[str, Any]:
    """Evaluate unless the answer is stored already."""
    truth = release / "simulation-truth.csv"
    return _once(file, lambda: evaluate(release, run, truth=truth, progress=progress))


def _history(log: Path) -> list[dict[str, float]]:
    with log.open(newline="", encoding="utf-8") as file:
        return [
            {key: float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]
