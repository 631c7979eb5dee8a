"""From a score to a decision: operating points, prevalence, net benefit, rule-out.

A threshold is neither right nor wrong: it fits a purpose. Net benefit puts the price of
a false alarm, in units of patients found, into one number (Vickers and Elkin 2006).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression

from medimg_utils import metrics
from medimg_utils.errors import InputError
from medimg_utils.metrics import Interval, Threshold
from medimg_utils.splits import patient_folds


def _inside(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Numbers that lie between 0 and 1, both left out."""
    numbers = np.asarray(values, dtype=np.float64)
    if not ((numbers > 0) & (numbers < 1)).all():
        raise InputError(f"{name} is {numbers}, but must lie between 0 and 1.")
    return numbers


def shift_prevalence(
    probabilities: ArrayLike, learned: float, wanted: float
) -> NDArray[np.float64]:
    r"""Carry probabilities to a clinic in which the disease is rarer or more frequent.

    If the ill and the well look alike in both places, the odds change by one factor:

    $$\frac{p'}{1 - p'} = \frac{p}{1 - p} \cdot
    \frac{\pi' / (1 - \pi')}{\pi / (1 - \pi)}$$

    Args:
        probabilities: (N,) in [0, 1], calibrated at the prevalence `learned`.
        learned: prevalence at which they are right.
        wanted: prevalence of the clinic.

    >>> shift_prevalence([0.5], learned=0.5, wanted=0.2).tolist()
    [0.2]
    """
    before, after = _inside("learned", learned), _inside("wanted", wanted)
    p = np.asarray(probabilities, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise InputError("probabilities must lie in [0, 1].")
    factor = after / (1 - after) * (1 - before) / before
    return p * factor / (p * factor + 1 - p)


def fit_probability(
    labels: ArrayLike, scores: ArrayLike
) -> Callable[[ArrayLike, float], NDArray[np.float64]]:
    """Learn on some patients what a score means; the answer is for others.

    A logistic regression on the log odds of the score (Platt 1999), then
    `shift_prevalence`.

    Args:
        labels: (N,) 0 or 1 of the patients to learn from, at least one of each.
        scores: (N,) in [0, 1].

    Returns:
        A function of scores and of the prevalence of a clinic, which gives
        probabilities there.

    >>> probability = fit_probability([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    >>> rare, often = (probability([0.5], prevalence)[0] for prevalence in (0.01, 0.5))
    >>> bool(rare < 0.05 < often)
    True
    """
    truth = np.asarray(labels)

    def log_odds(values: ArrayLike) -> NDArray[np.float64]:
        p = np.clip(np.asarray(values, dtype=np.float64), 1e-6, 1 - 1e-6)
        return np.log(p / (1 - p))[:, None]

    learned = float(_inside("the share of positives", truth.mean()))
    model = LogisticRegression().fit(log_odds(scores), truth)

    def probability(values: ArrayLike, prevalence: float) -> NDArray[np.float64]:
        here = model.predict_proba(log_odds(values))[:, 1]
        return shift_prevalence(here, learned, prevalence)

    return probability


def net_benefit(
    labels: ArrayLike,
    probabilities: ArrayLike,
    thresholds: ArrayLike,
    prevalence: float | None = None,
) -> NDArray[np.float64]:
    r"""Net benefit per patient of acting on those who reach a threshold probability.

    Whoever acts from the probability $p_t$ on says what a false alarm costs: one
    patient found is worth $(1 - p_t) / p_t$ of them. With prevalence $\pi$

    $$\mathrm{NB}(p_t) = \text{sens} \cdot \pi
    - (1 - \text{spec}) (1 - \pi) \frac{p_t}{1 - p_t}$$

    Without `prevalence` it is that of the labels, and the formula is the usual one,
    $\frac{TP}{n} - \frac{FP}{n} \frac{p_t}{1 - p_t}$ (Vickers and Elkin 2006,
    doi:10.1177/0272989X06295361).

    Args:
        labels: (N,) 0 or 1, at least one of each.
        probabilities: (N,) calibrated at that prevalence.
        thresholds: (T,) between 0 and 1.
        prevalence: of the clinic.

    Returns:
        (T,): 0 is acting on nobody, $\pi$ is finding everyone without a false alarm.

    >>> net_benefit([1, 1, 0, 0], [0.9, 0.3, 0.6, 0.1], [0.5]).tolist()
    [0.0]
    """
    wanted = np.atleast_1d(_inside("a threshold", thresholds))
    share = float(np.asarray(labels).mean()) if prevalence is None else prevalence
    ill = float(_inside("prevalence", share))
    points = [metrics.at_threshold(labels, probabilities, float(t)) for t in wanted]
    found = np.array([point.sensitivity for point in points])
    alarms = 1 - np.array([point.specificity for point in points])
    return found * ill - alarms * (1 - ill) * wanted / (1 - wanted)


def net_benefit_of_all(thresholds: ArrayLike, prevalence: float) -> NDArray[np.float64]:
    """(T,) net benefit of acting on everybody: what a test must beat, beside 0.

    >>> net_benefit_of_all([0.5], prevalence=0.2).round(9).tolist()
    [-0.6]
    """
    wanted = np.atleast_1d(_inside("a threshold", thresholds))
    ill = float(_inside("prevalence", prevalence))
    return ill - (1 - ill) * wanted / (1 - wanted)


class Operations(NamedTuple):
    """What a rule brings, in shares of all patients; see `operations`.

    Attributes:
        operated: are operated on.
        needless: are operated on, and are well.
        missed: are ill, and are not operated on.
        gain: net gain over the better simple rule, in needless operations.
    """

    operated: float
    needless: float
    missed: float
    gain: float


def operations(
    labels: ArrayLike, probabilities: ArrayLike, threshold: float, prevalence: float
) -> Operations:
    r"""Operate from a threshold probability on, and compare with the better simple rule.

    The simple rules are to operate on everybody and on nobody. Which of them is better
    follows from $p_t$ and $\pi$ alone: everybody, if $\pi > p_t$. The gain is the
    difference of the net benefits, paid out in needless operations:

    $$\big(\mathrm{NB} - \max(\mathrm{NB}_\text{all}, 0)\big) \cdot
    \frac{1 - p_t}{p_t}$$

    Where everybody is the rule to beat, these are the needless operations that are spared,
    less those that the missed are worth; where nobody is, those that the found are worth,
    less the needless ones.

    Args:
        labels: (N,) 0 or 1, at least one of each.
        probabilities: (N,) calibrated at that prevalence.
        threshold: $p_t$, between 0 and 1.
        prevalence: $\pi$, of the clinic.

    >>> operations([1, 1, 0, 0], [0.9, 0.3, 0.6, 0.1], 0.5, prevalence=0.5)
    Operations(operated=0.5, needless=0.25, missed=0.25, gain=0.0)
    """
    point = metrics.at_threshold(labels, probabilities, threshold)
    missed = (1 - point.sensitivity) * prevalence
    needless = (1 - point.specificity) * (1 - prevalence)
    benefit = net_benefit(labels, probabilities, [threshold], prevalence)[0]
    best = max(float(net_benefit_of_all([threshold], prevalence)[0]), 0.0)
    return Operations(
        operated=prevalence - missed + needless,
        needless=needless,
        missed=missed,
        gain=float(benefit - best) * (1 - threshold) / threshold,
    )


def called_crosswise(
    labels: ArrayLike,
    scores: ArrayLike,
    choose: Callable[[NDArray[Any], NDArray[np.float64]], Threshold],
    patients: ArrayLike,
    folds: int = 5,
) -> NDArray[np.bool_]:
    """Call each exam by a threshold that was chosen on the exams of other patients.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,).
        choose: takes labels and scores, returns the threshold for a job.
        patients: (N,) whom each exam belongs to.
        folds: as many thresholds, each chosen on all folds but its own.

    Returns:
        (N,) whether the score reaches the threshold.
    """
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    names = np.asarray(patients, dtype=str)
    fold = patient_folds(names.tolist(), truth, folds)
    called = np.zeros(truth.size, dtype=bool)
    for k in range(folds):
        mine = fold == k
        called[mine] = values[mine] >= choose(truth[~mine], values[~mine]).threshold
    return called


def threshold_for_sensitivity(
    labels: ArrayLike, scores: ArrayLike, sensitivity: float = 0.95
) -> Threshold:
    """The best specificity among thresholds that keep at least this sensitivity.

    Scores of the threshold and above count as positive. The threshold for a specificity
    is `metrics.sensitivity_at_specificity`.

    >>> threshold_for_sensitivity([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 1.0)
    Threshold(threshold=0.35, sensitivity=1.0, specificity=0.5)
    """
    thresholds, found, spared = metrics.roc_points(labels, scores)
    if np.isnan(found).any() or np.isnan(spared).any():
        raise InputError("labels are all alike, but both classes are needed.")
    first = int(np.argmax(found >= sensitivity - 1e-12))
    return Threshold(
        float(thresholds[first]), float(found[first]), float(spared[first])
    )


class RuleOut(NamedTuple):
    """What happens if nobody looks at exams below a threshold.

    Attributes:
        skipped: share of the well whose exam nobody reads.
        missed: share of the ill whose exam nobody reads.
        well: how many exams are well and skipped, and how many are well.
        ill: how many exams are ill and skipped, and how many are ill.
    """

    skipped: Interval
    missed: Interval
    well: tuple[int, int]
    ill: tuple[int, int]


def rule_out(labels: ArrayLike, scores: ArrayLike, threshold: float) -> RuleOut:
    """Count what a rule-out threshold spares and misses, with Wilson's intervals.

    The exams must be of different patients.

    >>> rule_out([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.38).well
    (1, 2)
    """
    truth, values = np.asarray(labels) == 1, np.asarray(scores, dtype=np.float64)
    below = values < threshold
    well = int((below & ~truth).sum()), int((~truth).sum())
    ill = int((below & truth).sum()), int(truth.sum())
    return RuleOut(metrics.proportion(*well), metrics.proportion(*ill), well, ill)


def interval_curve(
    curve: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    patients: ArrayLike,
    *,
    draws: int = 200,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """95 % bootstrap band of a whole curve, drawing patients with replacement.

    Args:
        curve: takes indices into the test set (with repeats), returns (T,) numbers.
        patients: (N,) identifier of each exam's patient.
        draws: how many resampled test sets; those with NaN are left out.
        seed: of the resampling.

    Returns:
        (T,) lower and upper ends, each point by itself.
    """
    rows: list[NDArray[np.float64]] = []

    def keep(index: NDArray[np.int64]) -> float:
        rows.append(curve(index))
        return 0.0

    metrics.bootstrap(keep, patients, draws=draws, seed=seed)
    drawn = np.array(rows[1:])  # the first is the test set itself
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    return low, high
