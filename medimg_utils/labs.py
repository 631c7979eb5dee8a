"""What the lab runs of the use cases share: nothing is done twice, nothing is mixed.

A lab run simulates, trains, measures and stores what travels with the package. It can be
stopped and called anew; what was done with other data or another network is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from medimg_utils import pretrained
from medimg_utils.experiments import facts_file, read_facts, recipe
from medimg_utils.io import differences, to_json, write_json_atomic
from medimg_utils.release import describe_release, digest_of
from medimg_utils.training import RunError

SHIPPED = 0  # the fold whose networks travel with the package


def check_run(run: Path, release: Path, experiment: Any) -> None:
    """Refuse a run of another simulation, or of other settings, than the present ones.

    Raises:
        RunError: says what it was trained on, or with which settings.
    """
    facts = read_facts(run)
    trained_on = facts["data"].get("simulation")
    present = describe_release(release).get("simulation")
    if trained_on != present:
        raise RunError(
            f"{run} was trained on the simulation {trained_on}, but {release} holds "
            f"{present}. Give another folder for the runs, or delete this one."
        )
    wanted = recipe(experiment)
    # what a run does not tell was not there yet, and had no effect: as by default
    stored = recipe(type(experiment)()) | facts["experiment"]
    if changed := differences({name: stored[name] for name in wanted}, wanted):
        raise RunError(
            f"{run} was trained with other settings: {changed}. Give another folder for "
            "the runs, or delete this one."
        )


def trained_folds(
    name: str,
    release: Path,
    runs: Path,
    folds: Sequence[int],
    experiment: Any,
    train: Callable[[Path, int], object],
) -> Iterator[tuple[int, Path]]:
    """Each fold and the folder of its run, trained first where it is not yet.

    Args:
        name: of the networks, e.g. `knee-lab`.
        release: that they are trained on.
        runs: folder that holds (or will hold) one run a fold.
        folds: of the cross-validation.
        experiment: the settings.
        train: trains into a folder, for a fold, or goes on where it was stopped.

    Raises:
        RunError: `runs` holds a run that was trained on other data, or with other
            settings.
    """
    for fold in folds:
        run = runs / f"{name}-fold{fold}"
        if not facts_file(run).is_file():
            train(run, fold)
        check_run(run, release, experiment)
        yield fold, run


def subject(use_case: str, network: str | Path, release: Path) -> dict[str, Any]:
    """What an answer is about: data, weights, and how they are used; see `once`.

    Args:
        use_case: e.g. `pneumothorax`.
        network: folder of a run with a single file of weights, or `lab`.
        release: that it is asked about.
    """
    (weights,), about, _ = pretrained.find_run(use_case, network)
    return {
        "simulation": describe_release(release)["simulation"],
        "network": digest_of(weights),
        "choices": digest_of(about),
    }


def once(
    file: Path, of: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """The answer that a file holds; measured and written where it holds another.

    Args:
        file: JSON, with the key `of` beside the answer.
        of: what the answer is about, e.g. the digests of data and network.
        measure: gives the answer.

    Returns:
        The answer as JSON gives it back, with `of`.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "answer.json"
    >>> once(file, {"network": "a"}, lambda: {"auc": 0.9})
    {'auc': 0.9, 'of': {'network': 'a'}}
    >>> once(file, {"network": "a"}, lambda: {"auc": 0.8})["auc"]
    0.9
    >>> once(file, {"network": "b"}, lambda: {"auc": 0.8})["auc"]
    0.8
    """
    wanted = to_json(of)
    if file.is_file():
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if stored.get("of") == wanted:
            return stored
    answer: dict[str, Any] = to_json({**measure(), "of": wanted})
    write_json_atomic(file, answer)
    return answer


def rounded(value: Any) -> Any:
    """JSON with four significant digits of its numbers: pages print three at most.

    >>> rounded({"auc": [0.912345, None], "n": 123456})
    {'auc': [0.9123, None], 'n': 123456}
    """
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
