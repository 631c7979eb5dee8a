"""The lab run: simulate, train, measure, and store what travels with the package.

:func:`run_lab` is the only writer of the shipped networks and of the result
``brain-lab``.  Each step that is already done is not done again, so it can be stopped and
called anew.  What was done with other data or other networks is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medimg_utils import pretrained, results
from medimg_utils.brain import survival
from medimg_utils.brain.dataset import read_brats
from medimg_utils.brain.evaluation import REGIONS
from medimg_utils.brain.experiment import (
    REHEARSE,
    STAGES,
    Experiment,
    choose_anew,
    compare_modes,
    evaluate,
    from_json,
    get_experiment,
    survival_cohort,
    train,
)
from medimg_utils.brain.inference import MODES
from medimg_utils.brain.simulate import ensure_release
from medimg_utils.errors import InputError
from medimg_utils.experiments import describe, facts_file, read_facts
from medimg_utils.labs import SHIPPED, once, rounded, trained_folds
from medimg_utils.release import describe_release, digest_of, read_truth
from medimg_utils.training import (
    BEST,
    LOG,
    load_tensors,
    minutes_of,
    read_log,
    trained_on,
)

NAME = "brain-lab"
UNSEEN = "unseen-patients"
QUICK = 24  # patients on whom both quick modes are compared
COMPARED = 40  # patients with the reference too: a minute or two of a core for each


def run_lab(
    runs: Path,
    experiment: str | Experiment = "lab",
    *,
    compared: int = COMPARED,
    progress: bool = True,
) -> dict[str, Any]:
    """Train the networks that are shipped, measure them, and store both.

    They are measured on a release of new patients, in the mode that yet other patients
    chose.  On some of these patients the quick modes are compared with each other, and
    on a few with the slow reference.

    Args:
        runs: folder that holds (or will hold) the run.
        experiment: other settings than those of the size.
        compared: new patients for whom the reference is computed.
        progress: show bars.

    Returns:
        The stored result.

    Raises:
        RunError: `runs` holds a run that was trained on other data.
    """
    release = ensure_release("lab", progress=progress)
    chosen = get_experiment(experiment) if isinstance(experiment, str) else experiment

    def learn(run: Path, fold: int) -> None:
        train(release, run, chosen, fold=fold, resume=True, progress=progress)

    ((_, shipped),) = trained_folds(NAME, release, runs, [SHIPPED], chosen, learn)
    about = facts_file(shipped)
    choice = ensure_release("lab-choice", progress=progress)
    chosen_on = read_facts(shipped)["chosen_on"]
    present = describe_release(choice).get("simulation")
    if chosen_on is None or chosen_on.get("simulation") != present:
        choose_anew(shipped, choice, progress=progress)
    pretrained.store(NAME, {stage: shipped / stage / BEST for stage in STAGES}, about)
    other = ensure_release("lab-test", progress=progress)
    unseen = _evaluate_once(shipped / f"{UNSEEN}.json", other, shipped, progress)
    of = _of(shipped, other)
    quick = _once(
        shipped / "quick-modes.json",
        of | {"patients": QUICK},
        lambda: compare_modes(
            other, shipped, limit=QUICK, modes=MODES[1:], progress=progress
        ),
    )
    modes = _once(
        shipped / "modes.json",
        of | {"patients": compared},
        lambda: compare_modes(
            other,
            shipped,
            limit=compared,
            keep=shipped / f"modes-{'-'.join(of.values())}",
            progress=progress,
        ),
    )
    facts = read_facts(shipped)
    training = _training(shipped, facts)
    result = {
        "headline": {
            "hardware": training["hardware"],
            "minutes": training["minutes"],
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
        "training": training,
        "tests": {UNSEEN: unseen},
        "inference": {
            "data": describe_release(other),
            "all modes": modes,
            "quick modes": quick,
        },
        "survival": {
            "unseen patients": unseen["survival"],
            "training release": _once(
                shipped / "survival.json",
                describe_release(release),
                lambda: _true_masks(release),
            ),
            "large cohort": _once(
                shipped / "large-cohort.json",
                {"releases": [describe_release(one) for one in (release, other)]},
                lambda: recovered([release, other]),
            ),
        },
        "about": {
            **unseen["about"],
            "n": {UNSEEN: unseen["n"]["cases"]},
            "data": {UNSEEN: unseen["about"]["data"]},
        },
    }
    results.save(NAME, result)
    return result


def _training(run: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Log, best epoch and weights of each network, and what validation chose."""
    networks = {}
    for stage in (STAGES[0], REHEARSE, *STAGES[1:]):
        if not (run / stage / LOG).is_file():
            continue  # settings without a rehearsal
        history = read_log(run / stage)
        tensors, stored = load_tensors(run / stage / BEST)
        networks[stage] = {
            "history": rounded(history),
            "best": stored["best"],
            "weights": sum(value.numel() for value in tensors.values()),
            "minutes": minutes_of(history),
        }
    return {
        "networks": networks,
        "minutes": sum(network["minutes"] for network in networks.values()),
        "hardware": trained_on(
            [row for network in networks.values() for row in network["history"]]
        ),
        "patients": facts["about"]["n"],
        "chosen_mode": facts["mode"],
        "chosen_on": facts["chosen_on"],
        "choices": facts["modes"],
        "parts": facts["parts"],
        "survival": facts["survival"],
        "about": facts["about"],
    }


# ----------------------------------------------------------------------------- survival


def _true_masks(release: Path) -> dict[str, Any]:
    """The regressions on the patients of a release, with features from true masks."""
    return survival.compare(survival_cohort(read_brats(release)))


def recovered(releases: Sequence[Path], *, trees: int = 100) -> dict[str, Any]:
    """Does a regression find the coefficients that survival was simulated with?

    All simulated patients take part, also those whose survival the release's table does
    not list, with the true volumes and the true resection.

    Args:
        releases: simulated ones with the same coefficients.
        trees: of the random forest.

    Returns:
        `coefficients` (name → `true`, `estimate`, `interval` at 95 %, `inside`) and
        `leave_one_out` scores of all regressions on the patients with gross total
        resection.

    Raises:
        InputError: the releases have different coefficients.
    """
    names = survival.VARIANTS["all"]
    keys = {name: name.split("_")[0] for name in names} | {"gross_total": "gross_total"}
    rows, truths = [], []
    for release in releases:
        text = (release / "simulation.json").read_text(encoding="utf-8")
        model = json.loads(text)["survival"]
        truths.append({name: model[key] for name, key in keys.items()})
        rows += [
            {name: float(row[name]) for name in (*names, "days")}
            | {"gross_total": float(row["resection"] == "GTR")}
            for row in read_truth(
                release / "simulation-truth.csv", "BraTS18ID"
            ).values()
        ]
    if any(truth != truths[0] for truth in truths):
        raise InputError(
            f"survival was simulated with different coefficients in "
            f"{', '.join(str(release) for release in releases)}. Give releases of one "
            "model."
        )
    found = survival.fit_linear(rows, (*names, "gross_total")).intervals(0.95)
    coefficients = {}
    for name, true in truths[0].items():
        value, low, high = found[name]
        coefficients[name] = {
            "true": true,
            "estimate": value,
            "interval": [low, high],
            "inside": bool(low <= true <= high),
        }
    removed = [row for row in rows if row["gross_total"]]
    return {
        "n": len(rows),
        "coefficients": coefficients,
        "leave_one_out": survival.compare(removed, trees=trees),
    }


# ------------------------------------------------------------------------------ storing


def _of(run: Path, release: Path) -> dict[str, str]:
    """What a comparison of modes depends on: the data and the networks."""
    networks = [digest_of(run / stage / BEST)[:4] for stage in STAGES]
    return {
        "simulation": str(describe_release(release).get("simulation")),
        "networks": "".join(networks),
    }


def _once(
    file: Path, of: dict[str, Any], measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """`medimg_utils.labs.once`, without what it is about: the result says that once."""
    found = once(file, of, measure)
    del found["of"]
    return found


def _evaluate_once(
    file: Path, release: Path, run: Path, progress: bool
) -> dict[str, Any]:
    """Evaluate unless the answer is stored already; short rows, with what is known."""
    truth = release / "simulation-truth.csv"
    answer = _once(
        file,
        _of(run, release) | {"choices": digest_of(facts_file(run))},
        lambda: evaluate(release, run, truth=truth, progress=progress),
    )
    known = read_truth(truth, "BraTS18ID")
    told = ("sex", "field_t", "location", "side", "pattern", "foci", "satellites")
    answer["cases"] = [
        rounded(case) | {key: known[case["case_id"]][key] for key in told}
        for case in answer["cases"]
    ]
    return answer
