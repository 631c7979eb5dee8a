"""The lab run: simulate, train, measure, and store what travels with the package.

:func:`run_lab` writes the shipped network and the result ``pneumothorax-lab``, and
:func:`run_folds` adds the other folds of the cross-validation to it, at whatever time
they are trained.  Each step that is already done is not done again, so both can be
stopped and called anew.  What was done with other data or another network is noticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from medimg_utils import pretrained, results
from medimg_utils.errors import InputError
from medimg_utils.experiments import describe, facts_file, read_facts, recipe
from medimg_utils.labs import SHIPPED, once, subject, trained_folds
from medimg_utils.pneumothorax.experiment import (
    evaluate,
    from_json,
    get_experiment,
    train,
)
from medimg_utils.pneumothorax.simulate import (
    HELD_OUT,
    LAB_TESTS,
    LAB_TRAIN,
    Simulation,
    ensure_release,
    patients_of,
)
from medimg_utils.release import describe_release, read_truth
from medimg_utils.splits import check_fold
from medimg_utils.training import BEST, RunError, minutes_of, read_log, trained_on

NAME = "pneumothorax-lab"


def run_lab(runs: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train the network that is shipped, measure it, and store both.

    As it is shipped, in half precision, it is measured on the patients of its own fold,
    on new patients of the CTs it was trained on, and on new patients of the CT that no
    lab network has seen.  What `run_folds` has stored for the same data is kept.

    Args:
        runs: folder that holds (or will hold) one run a fold.
        progress: show bars.

    Returns:
        The stored result.

    Raises:
        RunError: ``runs`` holds a run that was trained on other data.
    """
    release = ensure_release("lab", progress=progress)
    ((_, shipped),) = _trained(release, runs, [SHIPPED], progress)
    pretrained.store(NAME, {None: shipped / BEST}, facts_file(shipped))
    held_out = _evaluate_once(shipped / "held-out.json", release, "lab", progress)
    folds = _stored_folds(release) | {str(SHIPPED): _fold(held_out, shipped)}
    held_out["cases"] = _with_truth(held_out["cases"], release, LAB_TRAIN)
    tests = {"held-out-fold": held_out}
    for name, plan in LAB_TESTS.items():
        out = ensure_release(f"lab-{name}", progress=progress)
        tests[name] = _evaluate_once(shipped / f"{name}.json", out, "lab", progress)
        tests[name]["cases"] = _with_truth(tests[name]["cases"], out, plan)
    facts = read_facts(shipped)
    history = read_log(shipped)
    unseen = tests["unseen-patients"]
    minutes = minutes_of(history)
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
        "folds": dict(sorted(folds.items())),
        "tests": tests,
        "about": {
            **tests["unseen-patients"]["about"],
            "n": {name: test["n"]["images"] for name, test in tests.items()},
            "data": {name: test["about"]["data"] for name, test in tests.items()},
        },
    }
    results.save(NAME, result)
    return result


def run_folds(
    runs: Path, folds: Sequence[int] = (1, 2, 3, 4), *, progress: bool = True
) -> dict[str, Any]:
    """Train other folds, measure their held-out patients, and add that to the result.

    Args:
        runs: folder that holds (or will hold) one run a fold.
        folds: of the cross-validation; any but the shipped one.
        progress: show bars.

    Returns:
        The stored result.

    Raises:
        RunError: ``runs`` holds a run that was trained on other data, or the network
            that is shipped was.
        InputError: the shipped fold is among them, or one that there is not.
    """
    if SHIPPED in folds:
        raise InputError(
            f"fold {SHIPPED} belongs to the network that is shipped; run_lab makes it."
        )
    for fold in folds:
        check_fold(fold, get_experiment("lab").folds)
    release = ensure_release("lab", progress=progress)
    if not _stored_folds(release):
        raise RunError(
            f"the stored result {NAME} is not of {release} and today's settings, so "
            "folds of these cannot join it. Call run_lab first."
        )
    result = results.load(NAME)
    for fold, run in _trained(release, runs, folds, progress):
        values = _evaluate_once(run / "held-out.json", release, run, progress)
        joined = result["folds"] | {str(fold): _fold(values, run)}
        result["folds"] = dict(sorted(joined.items()))
        results.save(NAME, result)
    return result


def _trained(
    release: Path, runs: Path, folds: Sequence[int], progress: bool
) -> Iterator[tuple[int, Path]]:
    """Each fold and the folder of its run, trained first where it is not yet."""

    def learn(run: Path, fold: int) -> None:
        train(release, run, "lab", fold=fold, resume=True, progress=progress)

    return trained_folds(NAME, release, runs, folds, get_experiment("lab"), learn)


def _stored_folds(release: Path) -> dict[str, Any]:
    """The folds of the stored result, if that is of the same data and settings.

    How a network is asked may differ, which each fold says.
    """
    if NAME not in results.names():
        return {}
    stored = results.load(NAME)
    trained = stored["training"]["about"]["data"]["simulation"]
    settings = {row["setting"]: row["ours"] for row in stored["settings"]}
    same = trained == describe_release(release)["simulation"]
    same = same and recipe(get_experiment("lab")).items() <= settings.items()
    return dict(stored["folds"]) if same else {}


def _evaluate_once(
    file: Path, release: Path, network: str | Path, progress: bool
) -> dict[str, Any]:
    """Evaluate, unless the answer for this network and these data is stored already."""
    of = subject("pneumothorax", network, release)
    truth = release / "simulation-truth.csv"
    return once(
        file, of, lambda: evaluate(release, network, truth=truth, progress=progress)
    )


def _fold(values: dict[str, Any], run: Path) -> dict[str, Any]:
    """What is kept of a fold: its numbers, how it was trained and how it was asked."""
    measured = {key: values[key] for key in ("n", "auc", "dice", "pointing_game")}
    asked = {key: values["experiment"][key] for key in ("mirror", "zooms")}
    about = read_facts(run)["about"]
    history = read_log(run)
    trained = {
        "hardware": trained_on(history),
        "minutes": minutes_of(history),
        **{key: about[key] for key in ("n", "seed", "commit")},
    }
    return measured | asked | {"trained": trained, "about": values["about"]}


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
