"""The lab run: simulate, train, measure, and store what travels with the package.

:func:`run_lab` is the only writer of the shipped knee networks and of the result
``knee-lab``.  Each step that is already done is not done again, so it can be stopped and
called anew.  What was done with other data or other networks is noticed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from medimg_utils import pretrained, results
from medimg_utils.experiments import describe, facts_file, read_facts
from medimg_utils.io import to_json
from medimg_utils.knee.dataset import DIAGNOSES
from medimg_utils.knee.experiment import evaluate, from_json, get_experiment, train
from medimg_utils.knee.simulate import HELD_OUT, LAB_TESTS, ensure_release
from medimg_utils.labs import SHIPPED, once, rounded, subject, trained_folds
from medimg_utils.training import BEST, read_log, trained_on

NAME = "knee-lab"
HEADLINE = "unseen-patients"


def run_lab(runs: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train the networks that are shipped, measure them, and store both.

    As they are shipped, in half precision, they are measured on new exams of the
    anatomies that they were trained on, and on exams of the anatomy that no lab network
    has seen.

    Args:
        runs: folder that holds (or will hold) the run.
        progress: show bars.

    Returns:
        The stored result.

    Raises:
        RunError: ``runs`` holds a run that was trained on other data.
    """
    release = ensure_release("lab", progress=progress)

    def learn(run: Path, fold: int) -> None:
        train(release, run, "lab", fold=fold, resume=True, progress=progress)

    ((_, shipped),) = trained_folds(
        NAME, release, runs, [SHIPPED], get_experiment("lab"), learn
    )
    facts = read_facts(shipped)
    pretrained.store(
        NAME, {None: shipped / BEST}, facts_file(shipped), leave_out=["held_out"]
    )
    tests = {}
    for name in LAB_TESTS:
        other = ensure_release(f"lab-{name}", progress=progress)
        tests[name] = _evaluate_once(shipped / f"{name}.json", other, progress)
    minutes = sum(part["minutes"] for part in facts["parts"])
    logs = {part["name"]: read_log(shipped / part["name"]) for part in facts["parts"]}
    unseen = tests[HEADLINE]
    result = {
        "headline": {
            "hardware": trained_on(
                [
                    row
                    for part in facts["parts"]
                    for row in (*part["rehearsed"], *logs[part["name"]])
                ]
            ),
            "minutes": minutes,
            "measures": {
                f"AUC {name}": [
                    unseen["diagnoses"][name]["combined"]["auc"]["value"],
                    *unseen["diagnoses"][name]["combined"]["auc"]["bootstrap"],
                ]
                for name in DIAGNOSES
            },
            "on": f"{unseen['n']['exams']} simulated exams of unseen patients",
        },
        "held_out_anatomy": HELD_OUT,
        "settings": describe(from_json(facts["experiment"])),
        "training": {
            "networks": {
                part["name"]: {
                    "history": logs[part["name"]],
                    "rehearsed": part["rehearsed"],
                    "best": part["best"],
                    "weights": part["weights"],
                    "minutes": part["minutes"],
                }
                for part in facts["parts"]
            },
            "minutes": minutes,
            "auc": facts["auc"],
            "about": facts["about"],
        },
        "tests": tests,
        "about": {
            **unseen["about"],
            "n": {name: test["n"]["exams"] for name, test in tests.items()},
            "data": {name: test["about"]["data"] for name, test in tests.items()},
        },
    }
    result = rounded(to_json(result))
    results.save(NAME, result)
    return result


def _evaluate_once(file: Path, release: Path, progress: bool) -> dict[str, Any]:
    """Evaluate, unless the answer for the shipped networks and these data is stored.

    Returns:
        The answer with a short row per exam.
    """
    of = subject("knee", "lab", release)
    known = release.parent / "simulation-truth.json"
    answer = once(
        file, of, lambda: evaluate(release, "lab", truth=known, progress=progress)
    )
    truth = json.loads(known.read_text(encoding="utf-8"))
    del answer["experiment"]  # stored once, as settings
    answer["cases"] = [
        {
            "exam_id": case["exam_id"],
            "labels": case["labels"],
            "series": case["series"],
            "combined": case["combined"],
            "as_it_lies": case["as_it_lies"],
            "findings": [
                {key: finding[key] for key in ("diagnosis", "kind", "grade", "where")}
                for finding in truth[case["exam_id"]]["findings"]
            ],
        }
        for case in answer["cases"]
    ]
    return answer
