"""Groups of patients: does a network do worse for some of them?

Many groups are compared at once, so that some difference is found where there is none.
Each interval is therefore widened until all of them together hold what they promise
(Dunn 1961).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

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


@lru_cache(maxsize=4)
def _drawn(count: int, draws: int, seed: int) -> NDArray[np.float64]:
    """(draws, patients) how often each patient is in each drawn test set."""
    random = np.random.default_rng(seed)
    return random.multinomial(count, [1 / count] * count, size=draws).astype(float)


def differences(
    outcome: ArrayLike,
    attributes: Mapping[str, ArrayLike],
    patients: ArrayLike,
    *,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> list[Difference]:
    """Mean of each group minus that of all others, with intervals over patients.

    Patients are drawn with replacement.  Of an attribute with two values only the first
    is compared, because the second says the same.  With $m$ comparisons the joint
    intervals have the level $1 - 0.05/m$ each.

    Args:
        outcome: (N,) a number an exam: found or not, Dice.
        attributes: name → (N,) value of each exam.
        patients: (N,) whom each exam belongs to.
        level: of the plain intervals, and of all joint ones together.
        draws: of the bootstrap.
        seed: of the drawing.

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
    inside = np.array([columns[name] == group for name, group in names])
    enough = [min(row.sum(), (~row).sum()) >= FEWEST for row in inside]
    weights = _drawn(int(owner.max()) + 1, draws, seed)

    def means(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        """(draws, groups) mean outcome in each drawn test set."""
        sums = np.zeros((weights.shape[1], 2 * len(rows)))
        np.add.at(sums, owner, np.concatenate([rows * values, rows]).T)
        total, count = np.split(weights @ sums, 2, axis=1)
        with np.errstate(invalid="ignore"):
            return total / count

    drawn = means(inside) - means(~inside)
    found = []
    for (name, group), row, ok, column in zip(
        names, inside, enough, drawn.T, strict=True
    ):
        pair = float(values[row].mean()), float(values[~row].mean())
        found.append(
            Difference(
                name,
                group,
                (int(row.sum()), int((~row).sum())),
                pair,
                _interval(pair[0] - pair[1], column, level, ok),
                _interval(
                    pair[0] - pair[1], column, 1 - (1 - level) / max(sum(enough), 1), ok
                ),
            )
        )
    return found


def _compared(column: NDArray[np.str_]) -> list[str]:
    """Values of which each is compared with all others."""
    groups = list(dict.fromkeys(sorted(column.tolist())))
    return groups[: 1 if len(groups) == 2 else None] if len(groups) > 1 else []


def _interval(
    value: float, drawn: NDArray[np.float64], level: float, enough: bool
) -> Interval:
    if not enough:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.nanquantile(drawn, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high))
