"""Patient-wise folds: no patient is ever on both sides of a split.

Two radiographs of one patient share bones, drains and disease. A network that saw one
of them recognises the other, so a split by image measures memory instead of skill.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold

from medimg_utils.errors import InputError


class LeakError(InputError):
    """A patient is in the training set and in the test set."""


class _OfPatient(Protocol):
    @property
    def patient(self) -> str: ...


Item = TypeVar("Item", bound=_OfPatient)


class Split(NamedTuple, Generic[Item]):
    """Three sets of images that share no patient."""

    train: list[Item]
    validation: list[Item]
    test: list[Item]

    def met(self) -> dict[str, list[str]]:
        """One-way names of the patients whom a network meets; see `never_seen`."""
        return {
            "train": patient_digests(self.train),
            "validation": patient_digests(self.validation),
        }


def patient_folds(
    patients: Sequence[str], labels: ArrayLike, n_folds: int = 5, seed: int = 0
) -> NDArray[np.int64]:
    """Give each image a fold; patients stay whole, classes are spread evenly.

    A class with fewer images than folds is spread as far as it goes.

    Args:
        patients: (N,) one identifier per image.
        labels: (N,) class of each image.
        n_folds: how many folds.
        seed: the order in which patients are dealt out.

    Returns:
        (N,) fold of each image, 0 to n_folds - 1.

    Raises:
        InputError: the lengths differ, or there are fewer patients than folds.

    >>> patient_folds(["a", "a", "b", "b"], [0, 1, 0, 1], n_folds=2).tolist()
    [1, 1, 0, 0]
    """
    groups = np.asarray(patients, dtype=str)
    classes = np.asarray(labels)
    if groups.shape != classes.shape or groups.ndim != 1:
        raise InputError(
            f"{groups.shape} patients do not match {classes.shape} labels."
        )
    if n_folds < 2:
        raise InputError(
            f"{n_folds} folds were asked for, but a split needs at least 2."
        )
    found = len(np.unique(groups))
    if found < n_folds:
        raise InputError(
            f"{found} patients cannot fill {n_folds} folds. Use fewer folds or more "
            "data."
        )
    if np.unique(classes, return_counts=True)[1].max() < n_folds:  # too few to spread
        classes = np.zeros_like(classes)
    folds = np.full(len(groups), -1, dtype=np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        parts = splitter.split(groups[:, None], classes, groups)
        for fold, (_, test) in enumerate(parts):
            folds[test] = fold
    return folds


def one_each(patients: ArrayLike, seed: int = 0) -> NDArray[np.intp]:
    """One image of each patient at random, and the patients in random order.

    Images of one patient resemble each other. What is proved for independent images
    (exchangeability, a binomial interval) holds for these.

    Args:
        patients: (N,) one identifier per image.
        seed: of the choice and of the order.

    Returns:
        (P,) indices of images.

    >>> found = one_each(["a", "a", "b"])
    >>> len(found), 2 in found
    (2, True)
    """
    names = np.asarray(patients, dtype=str)
    random = np.random.default_rng(seed)
    shuffled = random.permutation(names.size)
    _, first = np.unique(names[shuffled], return_index=True)
    return np.asarray(random.permutation(shuffled[first]))


def patient_digest(patient: str) -> str:
    """Another name of a patient, enough to notice one again.

    It hides nobody from those who have a list of names to try: that needs a secret key,
    and then the patients of two runs could not be compared.

    >>> len(patient_digest("P1")), patient_digest("P1") == patient_digest("P2")
    (16, False)
    """
    return hashlib.sha256(f"patient:{patient}".encode()).hexdigest()[:16]


def check_no_leak(train_patients: Iterable[str], test_patients: Iterable[str]) -> None:
    """Raise where a patient is on both sides.

    Raises:
        LeakError: names the shared patients.

    >>> check_no_leak(["a", "b"], ["c"])
    """
    shared = sorted(set(train_patients) & set(test_patients))
    if shared:
        names = ", ".join(shared[:5]) + (" ..." if len(shared) > 5 else "")
        who = "1 patient is" if len(shared) == 1 else f"{len(shared)} patients are"
        raise LeakError(
            f"{who} in the training set and in the test set: {names}. "
            "Split by patient, not by image."
        )


def patient_digests(items: Iterable[_OfPatient]) -> list[str]:
    """One-way names of all patients, sorted; see `patient_digest`."""
    return sorted({patient_digest(item.patient) for item in items})


def check_held_out(run: str, facts: Mapping[str, Any], fold: int | None) -> None:
    """Refuse to measure a run on a fold that it was trained on.

    Args:
        run: its name.
        facts: of the run; `fold` is the one that was held out.
        fold: that is to be measured; None stands for whichever was held out.

    Raises:
        LeakError: it is another fold.
    """
    held = facts["fold"] or 0  # the single hold-out is the first fold
    if fold is not None and fold != held:
        raise LeakError(
            f"the run {run} held out fold {held} of the release that it was trained on, "
            f"and can be measured on no other of its folds, so not on {fold}. Leave "
            "--fold away: what the run has met is left out in any case."
        )


def never_seen(
    everyone: Iterable[Item],
    run: str,
    facts: Mapping[str, Any],
    data: str | os.PathLike[str],
) -> list[Item]:
    """Those whose patients a run has met neither in training nor in validation.

    Args:
        everyone: all of a release.
        run: its name.
        facts: of the run; `patients` holds the digests of those it has met.
        data: folder of the release.

    Raises:
        LeakError: nobody is left.
    """
    known = {*facts["patients"]["train"], *facts["patients"]["validation"]}
    unseen = [item for item in everyone if patient_digest(item.patient) not in known]
    if not unseen:
        raise LeakError(
            f"every patient of {data} was used to train {run}. Evaluate on other "
            "patients."
        )
    return unseen


def check_fold(fold: int | None, n_folds: int) -> int:
    """The fold to hold out: the first where none was asked for.

    Raises:
        InputError: no such fold.
    """
    if fold is not None and not 0 <= fold < n_folds:
        raise InputError(f"fold {fold} was asked for; folds are 0 to {n_folds - 1}.")
    return fold or 0


def hold_out(
    items: Sequence[Item],
    label: Callable[[Item], int],
    *,
    fold: int | None,
    n_folds: int,
    validation_folds: int,
    seed: int = 0,
) -> Split[Item]:
    """Hold one fold out for the test, and some of the other patients for validation.

    Args:
        items: one an image or case, each with its `patient`.
        label: the class of an item, to be spread evenly.
        fold: which fold is the test; the first where None.
        n_folds: how many folds.
        validation_folds: one part in so many of the rest is for validation.
        seed: the order in which patients are dealt out.

    Raises:
        InputError: no such fold, or too few patients.
    """
    held = check_fold(fold, n_folds)
    rest, test = _part(items, label, n_folds, held, seed)
    left = len({item.patient for item in rest})
    if left < validation_folds:
        raise InputError(
            f"{left + len({item.patient for item in test})} patients are too few: one in "
            f"{n_folds} is for the test, and one in {validation_folds} of the {left} others "
            f"for validation, who must be {validation_folds} at least. Use more data."
        )
    train, validation = _part(rest, label, validation_folds, 0, seed)
    for first, second in ((train, validation), (train, test), (validation, test)):
        check_no_leak([a.patient for a in first], [b.patient for b in second])
    return Split(train, validation, test)


def _part(
    items: Sequence[Item],
    label: Callable[[Item], int],
    n_folds: int,
    held: int,
    seed: int,
) -> tuple[list[Item], list[Item]]:
    patients = [item.patient for item in items]
    folds = patient_folds(patients, [label(item) for item in items], n_folds, seed)
    pairs = list(zip(items, folds, strict=True))
    return (
        [item for item, k in pairs if k != held],
        [item for item, k in pairs if k == held],
    )
