"""Patient-wise folds: no patient is ever on both sides of a split.

Two radiographs of one patient share bones, drains and disease. A network that saw one
of them recognises the other, so a split by image measures memory instead of skill.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold

from medimg_utils.errors import InputError


class LeakError(InputError):
    """A patient is in the training set and in the test set."""


def patient_folds(
    patients: Sequence[str], labels: ArrayLike, n_folds: int = 5, seed: int = 0
) -> NDArray[np.int64]:
    """Give each image a fold; patients stay whole, positives are spread evenly.

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
    folds = np.full(len(groups), -1, dtype=np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(groups[:, None], classes, groups)):
        folds[test] = fold
    return folds


def patient_digest(patient: str) -> str:
    """One-way name of a patient: enough to notice one again, not to tell who.

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
