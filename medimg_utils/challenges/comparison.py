"""What scores of repeated trainings say about the difference between two designs.

A table of scores has a row for each seed and a column for each patient. Both are drawn:
other seeds would have been possible, and other patients will come. Radiologists know the
problem as *multi-reader, multi-case*: a study of readers must hold for readers and
patients that were not in it (Dorfman, Berbaum and Metz 1992). Here the readers are seeds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import quad
from scipy.stats import nct, norm, t

from medimg_utils.errors import InputError
from medimg_utils.metrics import Interval, images_of_patients

#: No study has more seeds than this.
MANY = 10_000


class Components(NamedTuple):
    r"""Variances of a table $d_{sp} = \delta + a_s + b_p + e_{sp}$.

    Attributes:
        seed: of $a_s$, what a seed does to all patients.
        patient: of $b_p$, what a patient does with all seeds.
        rest: of $e_{sp}$, what remains for this seed in this patient.
    """

    seed: float
    patient: float
    rest: float

    def standard_error(self, seeds: int, patients: int) -> float:
        r"""Of the mean over so many seeds and patients.

        $$\sqrt{\frac{\sigma_a^2}{S} + \frac{\sigma_b^2}{P} + \frac{\sigma_e^2}{SP}}$$

        >>> Components(seed=0.04, patient=0.09, rest=0).standard_error(4, 1)
        0.31622776601683794
        """
        if seeds < 1 or patients < 1:
            raise InputError(
                f"{seeds} seeds and {patients} patients: at least one of each is needed."
            )
        return float(
            np.sqrt(
                self.seed / seeds
                + self.patient / patients
                + self.rest / (seeds * patients)
            )
        )


def _table(values: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2:
        raise InputError(
            f"the table has the shape {table.shape}, but at least two seeds (rows) and "
            "two patients (columns) are needed to tell their variances apart."
        )
    if not np.isfinite(table).all():
        raise InputError("the table holds numbers that are not finite.")
    return table


def _mean_squares(table: NDArray[np.float64]) -> tuple[float, float, float]:
    """Of seeds, of patients and of what is left, in a two-way analysis of variance."""
    seeds, patients = table.shape
    rows, columns = table.mean(axis=1), table.mean(axis=0)
    rest = table - rows[:, None] - columns + table.mean()
    return (
        float(patients * rows.var(ddof=1)),
        float(seeds * columns.var(ddof=1)),
        float((rest**2).sum() / ((seeds - 1) * (patients - 1))),
    )


def components(values: ArrayLike) -> Components:
    """Variances by seed, by patient, and what is left; none below 0.

    Each mean square of a two-way analysis of variance has an expectation that is a sum of
    these variances; the sums are solved for them.

    Args:
        values: (S, P) scores, or differences of scores.

    Raises:
        InputError: fewer than two seeds or patients, or numbers that are not finite.

    >>> components([[0.0, 2.0], [4.0, 6.0]])
    Components(seed=8.0, patient=2.0, rest=0.0)
    """
    table = _table(values)
    seeds, patients = table.shape
    by_seed, by_patient, rest = _mean_squares(table)
    return Components(
        seed=max((by_seed - rest) / patients, 0.0),
        patient=max((by_patient - rest) / seeds, 0.0),
        rest=rest,
    )


def interval(
    values: ArrayLike,
    level: float = 0.95,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Mean of a table, with an interval that holds for other seeds and other patients.

    The mean plus and minus a quantile of Student's t times the standard error of the
    `components`. Its degrees of freedom are Satterthwaite's: few, where the few seeds
    decide.

    Args:
        values: (S, P) scores, or differences between two designs that had the same seeds
            and patients.
        level: of confidence.
        bounds: between which the mean must lie; the ends are clipped to them.
    """
    value, half = _mean(values)[0], _half(values, level)
    return Interval(value, max(value - half, bounds[0]), min(value + half, bounds[1]))


def _half(values: ArrayLike, level: float) -> float:
    """Half the width of the interval of a table; NaN where it holds NaN."""
    if np.isnan(values).any():
        return float("nan")
    _, error, freedom = _mean(values)
    return float(t.ppf(0.5 + level / 2, freedom)) * error


def p_value(values: ArrayLike) -> float:
    """Chance of a mean at least as far from 0, if in truth there were no difference.

    Below 0.05 exactly where the 95 % `interval` excludes 0.

    Args:
        values: (S, P) differences between two designs.

    >>> round(p_value([[0.0, 2.0], [4.0, 6.0]]), 3)
    0.35
    """
    value, error, freedom = _mean(values)
    if not error:
        return float(value == 0)
    return float(2 * t.sf(abs(value) / error, freedom))


def _mean(values: ArrayLike) -> tuple[float, float, float]:
    """Mean of a table, its standard error and the degrees of freedom of that."""
    table = _table(values)
    error = components(table).standard_error(*table.shape)
    freedom = _freedom(_mean_squares(table), error, *table.shape)
    return float(table.mean()), error, freedom


def _freedom(
    squares: tuple[float, float, float], error: float, seeds: int, patients: int
) -> float:
    """Satterthwaite's degrees of freedom of a standard error out of mean squares."""
    by_seed, by_patient, rest = squares
    spread = (
        by_seed**2 / (seeds - 1)
        + by_patient**2 / (patients - 1)
        + rest**2 / ((seeds - 1) * (patients - 1))
    )
    # without any spread there is nothing to estimate
    return max((error**2 * seeds * patients) ** 2 / spread, 1.0) if spread else np.inf


def replay(
    values: ArrayLike,
    seeds: int,
    patients: int,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Means of studies that had other seeds and other patients: (draws,).

    Rows and columns are drawn with replacement, each by itself: the *pigeonhole
    bootstrap* (Owen 2007).

    Args:
        values: (S, P) scores or differences.
        seeds: of each replayed study.
        patients: of each replayed study.
        draws: how many studies.
        seed: of the drawing.
    """
    table = _table(values)
    random = np.random.default_rng(seed)
    rows = random.multinomial(seeds, [1 / table.shape[0]] * table.shape[0], size=draws)
    columns = random.multinomial(
        patients, [1 / table.shape[1]] * table.shape[1], size=draws
    )
    return np.einsum("ds,sp,dp->d", rows, table, columns) / (seeds * patients)


def of_patients(values: ArrayLike, patients: ArrayLike) -> NDArray[np.float64]:
    """A table with a column for each image as one with a column for each patient.

    The mean stays that of all images, so a patient with more images weighs more; the
    spread of the columns becomes that between patients.

    Args:
        values: (S, N).
        patients: (N,) whom each image belongs to.

    Returns:
        (S, P).

    >>> of_patients([[1.0, 3.0, 2.0]], ["a", "a", "b"]).tolist()
    [[2.0, 2.0]]
    """
    table = np.asarray(values, dtype=np.float64)
    members = images_of_patients(patients)
    mean, share = table.mean(), len(members) / table.shape[1]
    sums = [(table[:, mine] - mean).sum(axis=1) for mine in members]
    return mean + share * np.stack(sums, axis=1)


def jackknife(
    statistic: Callable[[NDArray[np.intp], NDArray[np.intp]], ArrayLike],
    seeds: int,
    patients: ArrayLike,
    *,
    blocks: int = 20,
    seed: int = 0,
    level: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> NDArray[np.float64]:
    r"""Any statistic, with an interval that holds for other seeds and other patients.

    `interval` for what is no mean of a table: an AUC, an error rate, an ensemble. Each of
    the $S$ seeds is left out in turn, each of $B$ blocks of patients, and each pair of
    both. The *pseudo-values* (Tukey 1958)

    $$d_{sb} = SB\,\theta - (S - 1)B\,\theta_{-s} - S(B - 1)\,\theta_{-b}
    + (S - 1)(B - 1)\,\theta_{-s,-b}$$

    say what seed $s$ and block $b$ put into the statistic $\theta$. For a mean they are the
    table itself; for all else they take its place in `interval`.

    Args:
        statistic: takes seeds and images, both as indices, and returns a number, or
            several, e.g. the points of a curve.
        seeds: how many trained networks there are.
        patients: (N,) whom each image belongs to.
        blocks: into how many parts the patients are dealt; each patient is a block where
            there are no more than that.
        seed: of the dealing.
        level: of confidence.
        bounds: between which the statistic must lie; the ends are clipped to them.

    Returns:
        Value, lower and upper end: (3,), or (3, T) where the statistic has T numbers. The
        ends are NaN where the statistic is NaN without some seed or block.

    Raises:
        InputError: fewer than two seeds or patients.

    >>> scores = np.array([[0.0, 2.0], [4.0, 6.0]])
    >>> found = jackknife(lambda s, k: scores[np.ix_(s, k)].mean(), 2, ["a", "b"])
    >>> np.allclose(found, interval(scores))
    True
    """
    members = images_of_patients(patients)
    if seeds < 2 or len(members) < 2:
        raise InputError(
            f"{seeds} seeds and {len(members)} patients: at least two of each are needed "
            "to tell how much others would differ."
        )
    order = np.random.default_rng(seed).permutation(len(members))
    dealt = np.array_split(order, min(blocks, len(members)))
    rows, images = np.arange(seeds), np.arange(np.size(patients))
    some_rows = [rows] + [np.delete(rows, row) for row in rows]
    some_images = [images] + [
        np.setdiff1d(images, np.concatenate([members[k] for k in block]))
        for block in dealt
    ]
    found = np.array(
        [[statistic(s, k) for k in some_images] for s in some_rows], dtype=np.float64
    )
    value, count = found[0, 0], len(dealt)
    # By differences: where nothing moves, nothing is left of rounding either.
    by_seed, by_block = found[1:, :1] - value, found[:1, 1:] - value
    both = found[1:, 1:] - value - by_seed - by_block
    table = value - (seeds - 1) * by_seed - (count - 1) * by_block
    table += (seeds - 1) * (count - 1) * both
    half = np.apply_along_axis(
        lambda one: _half(one.reshape(seeds, count), level),
        0,
        table.reshape(seeds * count, *value.shape),
    )
    return np.stack([value, *np.clip([value - half, value + half], *bounds)])


def wrong_choice(difference: float, error: float) -> float:
    r"""How often the worse of two designs looks better: $\Phi(-|\delta| / \sigma)$.

    >>> wrong_choice(0.0, 0.1), round(wrong_choice(0.0196, 0.01), 3)
    (0.5, 0.025)
    """
    if error == 0:
        return 0.5 if difference == 0 else 0.0
    return float(norm.cdf(-abs(difference) / error))


def chance_to_find(
    variances: Components, difference: float, seeds: int, patients: int
) -> float:
    r"""Power: how often a study of this size finds a true difference.

    Found means that the 95 % `interval` lies on the right side of 0. Its width is
    estimated, too, so the answer is a tail of the noncentral $t$ distribution, with the
    degrees of freedom $\nu$ that `interval` will have on average:

    $$P\big(t_{\nu,\,|\delta| / \sigma_d} > t_{\nu,\,0.975}\big)$$

    Args:
        variances: of the differences.
        difference: the true one.
        seeds: of each design, two or more: one cannot tell what a seed does.
        patients: of the test set, two or more.

    >>> round(chance_to_find(Components(0.01, 0, 0), 0.1, seeds=10, patients=50), 2)
    0.8
    """
    if seeds < 2 or patients < 2:
        raise InputError(
            f"{seeds} seeds and {patients} patients: at least two of each are needed to "
            "estimate an interval."
        )
    error = variances.standard_error(seeds, patients)
    if not error:
        return float(difference != 0)
    by_seed, by_patient, rest = variances
    squares = patients * by_seed + rest, seeds * by_patient + rest, rest
    freedom = _freedom(squares, error, seeds, patients)
    return float(nct.sf(t.ppf(0.975, freedom), freedom, abs(difference) / error))


def seeds_needed(
    variances: Components, difference: float, patients: int, *, power: float = 0.8
) -> int | None:
    """Seeds of each design until a true difference is found in 80 % of all studies.

    The fewest, from two on, whose `chance_to_find` is as large.

    Args:
        variances: of the differences.
        difference: that matters, and would be a pity to miss.
        patients: of the test set.
        power: share of the studies that should find it.

    Returns:
        None where no number of seeds suffices, because the patients are too few.

    >>> seeds_needed(Components(seed=0.01, patient=0, rest=0), 0.1, patients=50)
    10
    """
    possible = range(2, MANY + 1)
    place = bisect_left(
        possible,
        power,
        key=lambda seeds: chance_to_find(variances, difference, seeds, patients),
    )
    return possible[place] if place < len(possible) else None


class Winner(NamedTuple):
    """What is told of the best of several, and what is true.

    Attributes:
        told: mean score on the patients who chose it.
        fresh: mean score of the same network on the others.
        gaps: what a single choice may be told too high: 2.5 and 97.5 % quantiles of the
            difference over the draws.
    """

    told: float
    fresh: float
    gaps: tuple[float, float]


def choose_the_best(
    scores: ArrayLike, patients: int, *, draws: int = 1000, seed: int = 0
) -> Winner:
    """Pick the best of several networks on a few patients, look at it on the others.

    Args:
        scores: (K, P) of K networks on P patients.
        patients: who choose, fewer than P; drawn anew each time.
        draws: how often this is done.
        seed: of the drawing.

    Raises:
        InputError: nobody chooses, or nobody is left.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    total = table.shape[1]
    if not 1 <= patients < total:
        raise InputError(
            f"{patients} of {total} patients were to choose; give 1 to {total - 1}."
        )
    random = np.random.default_rng(seed)
    found = np.empty((draws, 2))
    for draw in found:
        order = random.permutation(total)
        few, others = order[:patients], order[patients:]
        means = table[:, few].mean(axis=1)
        best = int(means.argmax())
        draw[:] = means[best], table[best, others].mean()
    told, fresh = found.mean(axis=0).tolist()
    low, high = np.quantile(found[:, 0] - found[:, 1], (0.025, 0.975)).tolist()
    return Winner(told, fresh, (low, high))


def expected_maximum(count: int) -> float:
    r"""Mean of the largest of so many independent standard normal numbers.

    $$k \int x\,\varphi(x)\,\Phi(x)^{k-1}\,\mathrm{d}x$$

    >>> [round(expected_maximum(k), 3) for k in (1, 2, 3)]
    [0.0, 0.564, 0.846]
    """
    if count < 1:
        raise InputError(f"the largest of {count} numbers is not defined.")
    value, _ = quad(
        lambda x: count * x * norm.pdf(x) * norm.cdf(x) ** (count - 1), -9, 9
    )
    return float(value)
