"""The lab run: simulate, train, measure, and store what travels with the package.

:func:`run_lab` is the only writer of the shipped network and of the result
``pneumothorax-lab``.  Each step that is already done is not done again, so it can be
stopped and called anew.  What was done with other data or another network is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medimg_utils import pretrained, results
from medimg_utils.experiments import describe, facts_file, read_facts
from medimg_utils.labs import once, subject, trained_folds
from medimg_utils.pneumothorax.experiment import evaluate, from_json, train
from medimg_utils.pneumothorax.simulate import (
    HELD_OUT,
    LAB_TESTS,
    LAB_TRAIN,
    Simulation,
    ensure_release,
    patients_of,
)
from medimg_utils.release import read_truth
from medimg_utils.training import BEST, read_log, trained_on

NAME = "pneumothorax-lab"


def run_lab(
    runs: Path, folds: Sequence[int] = (0,), *, progress: bool = True
) -> dict[str, Any]:
    """Train the lab size on the given folds, measure, and store network and numbers.

    The network of the first fold is shipped.  As it is shipped, in half precision, it
    is measured on the patients of its own fold, on new patients of the CTs it was
    trained on, and on new patients of the CT that no lab network has seen.  The other
    folds add their own held-out patients.

    Args:
        runs: folder that holds (or will hold) one run a fold.
        folds: of the cross-validation; the first one's network is shipped.
        progress: show bars.

    Returns:
        The stored result.

    Raises:
        RunError: ``runs`` holds a run that was trained on other data.
    """
    release = ensure_release("lab", progress=progress)
    fold_values = {}

    def learn(run: Path, fold: int) -> None:
        train(release, run, "lab", fold=fold, resume=True, progress=progress)

    for fold, run in trained_folds(NAME, release, runs, folds, learn):
        if fold == folds[0]:
            pretrained.store(NAME, {None: run / BEST}, facts_file(run))
        network = "lab" if fold == folds[0] else run
        fold_values[str(fold)] = _evaluate_once(
            run / "held-out.json", release, network, progress
        )
    shipped = runs / f"{NAME}-fold{folds[0]}"
    held_out = fold_values[str(folds[0])]
    held_out["cases"] = _with_truth(held_out["cases"], release, LAB_TRAIN)
    tests = {"held-out-fold": held_out}
    for name, plan in LAB_TESTS.items():
        out = ensure_release(f"lab-{name}", progress=progress)
        tests[name] = _evaluate_once(shipped / f"{name}.json", out, "lab", progress)
        tests[name]["cases"] = _with_truth(tests[name]["cases"], out, plan)
    facts = read_facts(shipped)
    history = read_log(shipped)
    unseen = tests["unseen-patients"]
    minutes = sum(row["seconds"] for row in history) / 60
    result = {
        "headline": {
            "hardware": trained_on(history),
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


def _evaluate_once(
    file: Path, release: Path, network: str | Path, progress: bool
) -> dict[str, Any]:
    """Evaluate, unless the answer for this network and these data is stored already."""
    of = subject("pneumothorax", network, release)
    truth = release / "simulation-truth.csv"
    return once(
        file, of, lambda: evaluate(release, network, truth=truth, progress=progress)
    )


def _headline(values: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a fold, and how its network was asked."""
    measured = {key: values[key] for key in ("n", "auc", "dice", "pointing_game")}
    return measured | {key: values["experiment"][key] for key in ("mirror", "zooms")}


def _with_truth(
    cases: list[dict[str, Any]], release: Path, plan: Simulation
) -> list[dict[str, Any]]:
    """Add to each case what the simulation knows of the film and of the patient."""
    truth = read_truth(release / "simulation-truth.csv", "ImageId")
    patients = patients_of(plan)
    known = ("view", "side", "kind", "devices", "findings", "anatomy")
    told = []
    for case in cases:
        film = truth[case["image_id"]]
        who = patients[film["patient"]]
        person = {"sex": who.sex, "age": who.age, "habitus": who.habitus}
        told.append(case | {key: film[key] for key in known} | person)
    return told
