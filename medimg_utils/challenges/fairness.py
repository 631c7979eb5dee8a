"""Groups of patients: does a network do worse for some of them?

Many groups are compared at once, so that some difference is found where there is none.
Each interval is therefore widened until all of them together hold what they promise
(Dunn 1961).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t

from medimg_utils.errors import InputError
from medimg_utils.metrics import Interval

#: A group with fewer exams than this gives no number that means anything.
FEWEST = 10
AGES = (40, 60)


def age_group(age: float) -> str:
    """`under 40`, `40 to 59` or `60 and over`.

    >>> age_group(39), age_group(40), age_group(60)
    ('under 40', '40 to 59', '60 and over')
    """
    low, high = AGES
    names = f"under {low}", f"{low} to {high - 1}", f"{high} and over"
    return names[int(np.digitize(age, AGES))]


class Difference(NamedTuple):
    """A group beside the others.

    Attributes:
        attribute: what groups are made by.
        group: the value that its members have.
        n: how many exams the group has, and how many the others.
        means: of the group, and of the others.
        plain: their difference with a 95 % interval, as if it were the only one.
        joint: the same with an interval so wide that all of a table hold together.
    """

    attribute: str
    group: str
    n: tuple[int, int]
    means: tuple[float, float]
    plain: Interval
    joint: Interval

    @property
    def verdict(self) -> str:
        """`lower`, `higher`, `not shown` or `too few`, by the joint interval."""
        if min(self.n) < FEWEST:
            return "too few"
        if self.joint.low > 0:
            return "higher"
        return "lower" if self.joint.high < 0 else "not shown"


def differences(
    outcome: ArrayLike,
    attributes: Mapping[str, ArrayLike],
    patients: ArrayLike,
    *,
    level: float = 0.95,
) -> list[Difference]:
    r"""Mean of each group minus that of all others, with intervals over patients.

    Exams of one patient resemble each other, and may lie in both groups.  So the
    variance adds up patients: with the group $A$ and the others $B$

    $$\frac{C}{C - 1} \sum_c \Big(\sum_{i \in c \cap A} \frac{y_i - \bar y_A}{n_A}
    - \sum_{i \in c \cap B} \frac{y_i - \bar y_B}{n_B}\Big)^2$$

    over $C$ patients (Liang and Zeger 1986).  The quantile is Student's, with as many
    degrees of freedom as the smaller side has patients, less one.  Of an attribute with
    two values only the first is compared, because the second says the same.  With $m$
    comparisons the joint intervals have the level $1 - 0.05/m$ each.

    Args:
        outcome: (N,) a number an exam: found or not, Dice.
        attributes: name → (N,) value of each exam.
        patients: (N,) whom each exam belongs to.
        level: of the plain intervals, and of all joint ones together.

    Returns:
        One a group, in the order of the attributes.  A group (or what is left without
        it) of fewer than `FEWEST` exams has no intervals and counts as no comparison.

    Raises:
        InputError: the lists differ in length, or no attribute has two values.
    """
    values = np.asarray(outcome, dtype=np.float64)
    columns = {name: np.asarray(column, str) for name, column in attributes.items()}
    _, owner = np.unique(np.asarray(patients, str), return_inverse=True)
    wrong = [name for name, column in columns.items() if column.shape != values.shape]
    if wrong or values.ndim != 1 or owner.shape != values.shape:
        raise InputError(
            f"{values.shape} outcomes do not go with {owner.shape} patients"
            + "".join(f" and {columns[name].shape} {name}" for name in wrong)
            + "; give one of each for every exam."
        )
    names = [
        (name, str(group))
        for name, column in columns.items()
        for group in _compared(column)
    ]
    if not names:
        raise InputError(f"nobody differs by {', '.join(columns) or 'anything'}.")
    inside = [columns[name] == group for name, group in names]
    enough = [min(row.sum(), (~row).sum()) >= FEWEST for row in inside]
    each = 1 - (1 - level) / max(sum(enough), 1)
    found = []
    for (name, group), row, ok in zip(names, inside, enough, strict=True):
        means = float(values[row].mean()), float(values[~row].mean())
        value = means[0] - means[1]
        error, freedom = _error(values, row, owner)
        halves = (
            float(t.ppf(0.5 + a / 2, freedom)) * error if ok else float("nan")
            for a in (level, each)
        )
        plain, joint = (Interval(value, value - half, value + half) for half in halves)
        n = int(row.sum()), int((~row).sum())
        found.append(Difference(name, group, n, means, plain, joint))
    return found


def _error(
    values: NDArray[np.float64], row: NDArray[np.bool_], owner: NDArray[np.intp]
) -> tuple[float, int]:
    """Standard error of a difference of means, and its degrees of freedom."""
    sides = row, ~row
    centred = np.zeros_like(values)
    for side, sign in zip(sides, (1, -1), strict=True):
        centred[side] = sign * (values[side] - values[side].mean()) / side.sum()
    each = np.bincount(owner, centred)
    count = each.size
    smaller = min(np.unique(owner[side]).size for side in sides)
    error = np.sqrt(count / max(count - 1, 1) * (each**2).sum())
    return float(error), max(smaller - 1, 1)


def _compared(column: NDArray[np.str_]) -> list[str]:
    """Values of which each is compared with all others."""
    groups = list(dict.fromkeys(sorted(column.tolist())))
    return groups[: 1 if len(groups) == 2 else None] if len(groups) > 1 else []
