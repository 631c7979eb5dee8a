"""Measures of detection, segmentation and calibration, with their uncertainty.

Detection asks one question of each image (is there a finding?), segmentation one of
each pixel, localisation whether the network looks at the right place, calibration
whether a score of 0.7 means 70 %. Every function takes plain arrays. What is undefined
(an AUC without negatives) is NaN, never a guess.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.stats import binomtest, norm, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, precision_recall_curve
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medimg_utils.errors import InputError


class Interval(NamedTuple):
    """An estimate with the ends of its confidence interval."""

    value: float
    low: float
    high: float


class Threshold(NamedTuple):
    """What happens when scores of `threshold` and above are called positive."""

    threshold: float
    sensitivity: float
    specificity: float


def proportion(hits: int, n: int, level: float = 0.95) -> Interval:
    """Share of `n` independent patients, with Wilson's interval; NaN for nobody.

    >>> share = proportion(9, 10)
    >>> share.value, round(share.low, 3), round(share.high, 3)
    (0.9, 0.596, 0.982)
    """
    if not 0 <= hits <= n:
        raise InputError(f"{hits} of {n} is no share of patients.")
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    ends = binomtest(int(hits), int(n)).proportion_ci(level, method="wilson")
    return Interval(hits / n, float(ends.low), float(ends.high))


# ---------------------------------------------------------------------------- detection


def _labels_and_scores(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    truth, values = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.shape != values.shape or truth.ndim != 1:
        raise InputError(
            f"labels {truth.shape} and scores {values.shape} must be lists alike."
        )
    if not np.isin(truth, (0, 1)).all():
        raise InputError(
            f"labels must be 0 or 1, but there are {np.unique(truth)[:5]}."
        )
    if np.isnan(values).any():
        raise InputError(f"{np.isnan(values).sum()} of {values.size} scores are NaN.")
    return truth.astype(bool), values


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    r"""Area under the ROC curve: how often a positive scores above a negative.

    $$\mathrm{AUC} = P(s^+ > s^-) + \tfrac12 P(s^+ = s^-)$$

    computed from ranks (Mann-Whitney). NaN where one class is absent.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    truth, values = _labels_and_scores(labels, scores)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(values)[truth].sum() - positives * (positives + 1) / 2
    return float(ranks / (positives * negatives))


def delong_covariance(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUCs of several scores on the same images, and their covariance.

    The AUC is a mean over pairs, so its variance follows from how much each positive
    and each negative contributes: DeLong et al. 1988, in the fast form by ranks of Sun
    and Xu 2014.

    Args:
        labels: (N,) 0 or 1, at least two of each.
        scores: (M, N), one row per network.

    Returns:
        (M,) AUCs and their (M, M) covariance.
    """
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    truth, _ = _labels_and_scores(labels, rows[0])
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if positives < 2 or negatives < 2:
        raise InputError(
            f"{positives} positives and {negatives} negatives were found, but the "
            "variance of an AUC needs at least two of each."
        )
    # Share of negatives below each positive, and of positives above each negative.
    everyone = rankdata(rows, axis=1)
    below = (everyone[:, truth] - rankdata(rows[:, truth], axis=1)) / negatives
    above = 1 - (everyone[:, ~truth] - rankdata(rows[:, ~truth], axis=1)) / positives
    covariance = (
        np.atleast_2d(np.cov(below)) / positives
        + np.atleast_2d(np.cov(above)) / negatives
    )
    return below.mean(axis=1), covariance


def auc_delong(labels: ArrayLike, scores: ArrayLike, level: float = 0.95) -> Interval:
    """AUC with DeLong's interval, for images that are independent of one another.

    The ends are clipped to [0, 1]. Where every positive scores above every negative the
    variance is 0 and the interval has no width: that tells of a small test set, not of
    certainty. With fewer than two images of a class the ends are NaN.

    >>> round(auc_delong([0, 0, 0, 1, 1], [0.1, 0.4, 0.5, 0.45, 0.8]).value, 6)
    0.833333
    """
    truth, values = _labels_and_scores(labels, scores)
    if min(truth.sum(), (~truth).sum()) < 2:
        return Interval(auc(truth, values), float("nan"), float("nan"))
    areas, covariance = delong_covariance(truth, values)
    half = norm.ppf(0.5 + level / 2) * np.sqrt(max(covariance[0, 0], 0))
    area = float(areas[0])
    return Interval(area, float(max(area - half, 0)), float(min(area + half, 1)))


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    patients: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of any statistic, drawing whole patients with replacement.

    Images of one patient resemble each other, so drawing single images would make the
    interval too narrow. The ends are NaN with fewer than two patients: the same one drawn
    again and again would look like certainty.

    Args:
        statistic: takes indices into the test set (with repeats) and returns a number.
            Draws for which it is NaN are left out.
        patients: (N,) identifier of each image's patient.
        draws: how many resampled test sets.
        seed: of the resampling.
        level: share of the draws inside the interval.
    """
    groups, drawn = _draw_patients(patients, draws, seed)
    members = _members(groups)
    value = float(statistic(np.arange(groups.size)))
    if len(members) < 2:
        return Interval(value, float("nan"), float("nan"))
    found = np.array(
        [statistic(np.concatenate([members[k] for k in whom])) for whom in drawn]
    )
    return _percentiles(value, found, level)


def images_of_patients(patients: ArrayLike) -> list[NDArray[np.intp]]:
    """Indices of each patient's images, for a bootstrap that draws whole patients.

    Args:
        patients: (N,) identifier of each image's patient.

    >>> [one.tolist() for one in images_of_patients(["b", "a", "b"])]
    [[1], [0, 2]]
    """
    return _members(_numbered(patients))


def _numbered(patients: ArrayLike) -> NDArray[np.intp]:
    """(N,) number of each image's patient, from 0, in the order of their names."""
    return np.unique(np.asarray(patients, dtype=str), return_inverse=True)[1]


def _members(groups: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.cumsum(np.bincount(groups))[:-1])


def _draw_patients(
    patients: ArrayLike, draws: int, seed: int
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """(N,) number of each image's patient, and (draws, patients) who is drawn."""
    groups = _numbered(patients)
    count = int(groups.max()) + 1
    drawn = np.random.default_rng(seed).integers(count, size=(draws, count))
    return groups, drawn


def _times_drawn(patients: ArrayLike, draws: int, seed: int) -> NDArray[np.float64]:
    """(draws, N) how often each image is in each test set that `bootstrap` draws."""
    groups, drawn = _draw_patients(patients, draws, seed)
    count = drawn.shape[1]
    rows = np.arange(draws)[:, None] * count
    times = np.bincount((rows + drawn).ravel(), minlength=draws * count)
    return times.reshape(draws, count)[:, groups].astype(np.float64)


def _percentiles(value: float, found: NDArray[np.float64], level: float) -> Interval:
    """A value, and the middle part of what other test sets gave; NaN is left out."""
    found = found[~np.isnan(found)]
    if not found.size:
        return Interval(value, float("nan"), float("nan"))
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(value, float(low), float(high))


def mean_bootstrap(
    values: ArrayLike,
    patients: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of one number an image, with the interval of `bootstrap`, but faster.

    >>> mean_bootstrap([0, 0, 1, 1], ["a", "a", "b", "b"]).value
    0.5
    >>> mean_bootstrap([0, 1], ["a", "a"])
    Interval(value=0.5, low=nan, high=nan)
    """
    numbers = np.asarray(values, dtype=np.float64)
    if np.unique(np.asarray(patients)).size < 2:
        return Interval(float(numbers.mean()), float("nan"), float("nan"))
    weights = _times_drawn(patients, draws, seed)
    found = weights @ numbers / weights.sum(axis=1)
    return _percentiles(float(numbers.mean()), found, level)


def auc_bootstrap(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """AUC with a bootstrap interval over patients (over images without them).

    With fewer than two patients in a class the ends are NaN, as in `bootstrap`.

    >>> auc_bootstrap([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4], ["a", "a", "b", "c"])
    Interval(value=0.0, low=nan, high=nan)
    """
    truth, values = _labels_and_scores(labels, scores)
    clusters = np.arange(truth.size) if patients is None else np.asarray(patients)
    if min(np.unique(clusters[truth]).size, np.unique(clusters[~truth]).size) < 2:
        return Interval(auc(truth, values), float("nan"), float("nan"))
    weights = _times_drawn(clusters, draws, seed)
    ill, well = weights[:, truth], weights[:, ~truth]
    mine, theirs = values[truth][:, None], values[~truth]
    above = (mine > theirs) + 0.5 * (mine == theirs)
    with np.errstate(invalid="ignore"):
        found = (ill @ above * well).sum(axis=1) / (ill.sum(axis=1) * well.sum(axis=1))
    return _percentiles(auc(truth, values), found, level)


def roc_points(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Thresholds from high to low with the sensitivity and the specificity of each.

    The first threshold is infinite (nobody is called positive); then comes each
    distinct score.
    """
    truth, values = _labels_and_scores(labels, scores)
    distinct, group = np.unique(-values, return_inverse=True)
    positives = np.bincount(group, weights=truth, minlength=distinct.size).cumsum()
    negatives = np.bincount(group, weights=~truth, minlength=distinct.size).cumsum()
    with np.errstate(invalid="ignore"):
        sensitivity = np.concatenate([[0.0], positives]) / truth.sum()
        specificity = 1 - np.concatenate([[0.0], negatives]) / (~truth).sum()
    return np.concatenate([[np.inf], -distinct]), sensitivity, specificity


def _at_prevalence(
    truth: NDArray[np.bool_], prevalence: float | None
) -> NDArray[np.float64]:
    """Weight of each image, so that positives make up the share `prevalence`."""
    if prevalence is None:
        return np.ones(truth.size)
    if not 0 < prevalence < 1:
        raise InputError(f"the prevalence is {prevalence}, expected between 0 and 1.")
    found = truth.mean()
    return np.where(truth, prevalence / found, (1 - prevalence) / (1 - found))


def precision_recall(
    labels: ArrayLike, scores: ArrayLike, prevalence: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (PPV) and recall (sensitivity) at each distinct score, from high to low.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,).
        prevalence: of the clinic for which precision is wanted; that of `labels` if
            missing. Ill and well must look alike in both.

    Returns:
        Both NaN where one class is absent.

    >>> precision, recall = precision_recall([1, 0, 1], [0.9, 0.5, 0.4])
    >>> recall.tolist(), precision.round(2).tolist()
    ([0.5, 0.5, 1.0], [1.0, 0.5, 0.67])
    """
    truth, values = _labels_and_scores(labels, scores)
    if truth.all() or not truth.any():
        nothing = np.full(np.unique(values).size, np.nan)
        return nothing, nothing.copy()
    precision, recall, _ = precision_recall_curve(
        truth, values, sample_weight=_at_prevalence(truth, prevalence)
    )
    # The library adds a point where nobody is called and precision is not defined.
    return precision[-2::-1], recall[-2::-1]


def average_precision(
    labels: ArrayLike, scores: ArrayLike, prevalence: float | None = None
) -> float:
    """Mean precision over the steps of the recall; see `precision_recall`.

    Guessing reaches the prevalence. NaN where one class is absent.

    >>> round(average_precision([1, 0, 1], [0.9, 0.5, 0.4]), 3)
    0.833
    """
    truth, values = _labels_and_scores(labels, scores)
    if truth.all() or not truth.any():
        return float("nan")
    return float(
        average_precision_score(
            truth, values, sample_weight=_at_prevalence(truth, prevalence)
        )
    )


def sensitivity_at_specificity(
    labels: ArrayLike, scores: ArrayLike, specificity: float = 0.9
) -> Threshold:
    """The best sensitivity among thresholds that keep at least this specificity.

    Scores of the threshold and above count as positive. Where several thresholds are
    equally good, the highest is given.

    >>> sensitivity_at_specificity([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.9)
    Threshold(threshold=0.8, sensitivity=0.5, specificity=1.0)
    """
    thresholds, sensitivities, specificities = roc_points(labels, scores)
    if np.isnan(sensitivities).any() or np.isnan(specificities).any():
        return Threshold(float("nan"), float("nan"), float("nan"))
    allowed = np.flatnonzero(specificities >= specificity - 1e-12)
    best = allowed[np.argmax(sensitivities[allowed])]
    return Threshold(
        float(thresholds[best]), float(sensitivities[best]), float(specificities[best])
    )


def choose_threshold(
    labels: ArrayLike, scores: ArrayLike, specificity: float = 0.9
) -> float:
    """A threshold to be used elsewhere: that of `sensitivity_at_specificity`, finite.

    It lies just above all scores where no lower one keeps the specificity, and is 0.5
    where the labels are all alike and tell nothing.

    >>> choose_threshold([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.8
    >>> 0.7 < choose_threshold([0, 0, 1, 1], [0.7, 0.2, 0.6, 0.55]) < 0.7001
    True
    >>> choose_threshold([1, 1], [0.2, 0.9])
    0.5
    """
    threshold = sensitivity_at_specificity(labels, scores, specificity).threshold
    if np.isnan(threshold):
        return 0.5
    return min(threshold, float(np.nextafter(np.max(scores), np.inf)))


def at_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> Threshold:
    """Sensitivity and specificity of a threshold that was chosen elsewhere.

    >>> at_threshold([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8], 0.38)
    Threshold(threshold=0.38, sensitivity=0.5, specificity=0.5)
    """
    truth, values = _labels_and_scores(labels, scores)
    called = values >= threshold
    return Threshold(
        float(threshold),
        float(called[truth].mean()) if truth.any() else float("nan"),
        float((~called[~truth]).mean()) if (~truth).any() else float("nan"),
    )


# ------------------------------------------------------------------------- segmentation


def _mask(values: ArrayLike) -> NDArray[np.bool_]:
    """Refuse probabilities, of which each above 0 would count as foreground."""
    array = np.asarray(values)
    mask = array.astype(bool)
    if array.dtype.kind == "f" and not np.array_equal(array, mask):
        found = array[array != mask].flat[0]
        raise InputError(
            f"a mask holds 0 and 1 only, but {found:g} was found. Probabilities become a "
            "mask by a threshold, e.g. `probability >= 0.5`, and labels by `label > 0`."
        )
    return mask


def _two_masks(
    predicted: ArrayLike, truth: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first, second = (_mask(one) for one in (predicted, truth))
    if first.shape != second.shape:
        raise InputError(
            f"the predicted mask {first.shape} and the true one {second.shape} differ."
        )
    return first, second


def dice(predicted: ArrayLike, truth: ArrayLike) -> float:
    r"""Overlap of two masks of any shape: $2|A \cap B| / (|A| + |B|)$.

    Two empty masks agree: 1, as in the SIIM-ACR challenge.

    >>> dice([[1, 1], [0, 0]], [[1, 0], [0, 0]])
    0.6666666666666666
    """
    first, second = _two_masks(predicted, truth)
    total = int(first.sum() + second.sum())
    return 2 * int((first & second).sum()) / total if total else 1.0


def hausdorff95(
    predicted: ArrayLike, truth: ArrayLike, spacing: tuple[float, ...] | None = None
) -> float:
    """Robust Hausdorff distance: 95 % of each outline lies this close to the other.

    The outline is the foreground that touches background. The 95th percentile of the
    distances from each outline to the other is taken in both directions, and the larger
    of the two is the result. This is the definition of MONAI and of the BraTS challenge
    before 2023.

    Args:
        predicted: mask of any dimension.
        truth: mask of the same shape.
        spacing: distance of pixel centres along each axis in mm; distances are in
            pixels where it is None.

    Returns:
        mm or pixels; infinite where one mask is empty, 0 where both are.

    >>> hausdorff95([[1, 0, 0, 0]], [[0, 0, 0, 1]], spacing=(1, 0.5))
    1.5
    """
    first, second = _two_masks(predicted, truth)
    if not first.any() or not second.any():
        return 0.0 if first.any() == second.any() else float("inf")
    steps = (1.0,) * first.ndim if spacing is None else spacing
    # Distances matter only near the masks: crop to both, with a margin of one pixel.
    box = ndimage.find_objects((first | second).astype(np.uint8))[0]
    first, second = (np.pad(mask[box], 1) for mask in (first, second))
    outlines = [mask & ~ndimage.binary_erosion(mask) for mask in (first, second)]
    far = [
        np.percentile(
            ndimage.distance_transform_edt(~other, sampling=steps)[outline], 95
        )
        for outline, other in (outlines, outlines[::-1])
    ]
    return float(max(far))


def pointing_game(
    probability: ArrayLike, truth: ArrayLike, tolerance: float = 0
) -> bool:
    """Is the most suspicious pixel inside the finding (Zhang et al. 2016)?

    Args:
        probability: (H, W). Among equal maxima the first in reading order counts.
        truth: (H, W) mask with at least one pixel.
        tolerance: how many pixels beside the mask still count.
    """
    values, mask = np.asarray(probability), np.asarray(truth).astype(bool)
    if values.shape != mask.shape or not mask.any():
        raise InputError(
            f"the map {values.shape} and the mask {mask.shape} must be alike, and the "
            "mask must not be empty: the pointing game is played on positives."
        )
    row, column = np.unravel_index(np.argmax(values), values.shape)
    rows, columns = np.nonzero(mask)
    return bool(((rows - row) ** 2 + (columns - column) ** 2).min() <= tolerance**2)


# -------------------------------------------------------------------------- calibration


def brier(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean squared distance of the probability from what happened; 0 is perfect.

    >>> brier([0, 1], [0.5, 0.5])
    0.25
    """
    truth, values = _labels_and_scores(labels, probabilities)
    return float(np.mean((values - truth) ** 2))


def calibration_bins(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Mean probability, share of positives and count in equal bins of [0, 1].

    Empty bins hold NaN. Together the first two draw the reliability diagram.
    """
    truth, values = _labels_and_scores(labels, probabilities)
    if ((values < 0) | (values > 1)).any():
        raise InputError("probabilities must lie in [0, 1].")
    place = _bin_of(values, bins)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, weights=values, minlength=bins) / count
        share = np.bincount(place, weights=truth, minlength=bins) / count
    return mean, share, count


def _bin_of(values: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Number of the equal bin of [0, 1] that each value lies in; 1 is in the last."""
    return np.minimum((values * bins).astype(np.int64), bins - 1)


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = 10
) -> float:
    """Mean distance of probability and share of positives, weighted by images.

    >>> round(expected_calibration_error([0, 1, 1, 1], [0.75, 0.75, 0.75, 0.75]), 6)
    0.0
    """
    mean, share, count = calibration_bins(labels, probabilities, bins)
    filled = count > 0
    return float(np.sum(np.abs(mean - share)[filled] * count[filled]) / count.sum())


def calibration_bootstrap(
    labels: ArrayLike,
    probabilities: ArrayLike,
    patients: ArrayLike,
    bins: int = 10,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Expected calibration error with a bootstrap interval over patients.

    Chance moves bins away from the diagonal, so the error of a small test set is too
    large, and that of a drawn one is larger again.  What drawing adds is therefore taken
    off before the interval goes down; up it goes from the error that was found.  It
    begins at 0 where right probabilities would show such an error, too: in 95 % of the
    test sets whose labels are drawn from the probabilities it is as small (Bröcker and
    Smith 2007).
    """
    truth, values = _labels_and_scores(labels, probabilities)
    value = expected_calibration_error(truth, values, bins)
    inside = np.eye(bins)[_bin_of(values, bins)]
    weights = _times_drawn(patients, draws, seed)
    gaps = np.abs(weights @ (inside * (values - truth)[:, None])).sum(axis=1)
    drawn = gaps / weights.sum(axis=1)
    added = float(drawn.mean()) - value
    half = float(np.quantile(drawn, 0.5 + level / 2) - drawn.mean())
    low, high = max(value - added - half, 0.0), value + half
    right = np.random.default_rng(seed).random((draws, values.size)) < values
    by_chance = np.abs((values - right) @ inside).sum(axis=1) / values.size
    if value <= np.quantile(by_chance, level):
        low = 0.0
    return Interval(value, low, high)


# ------------------------------------------------------------------------------ summary


def detection(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    threshold: float,
    specificity: float = 0.9,
    *,
    draws: int = 1000,
) -> dict[str, Any]:
    """What is told of every detector: AUC, two operating points, calibration.

    Args:
        labels: (N,) 0 or 1.
        scores: (N,) in [0, 1].
        patients: (N,) whom each image belongs to; the bootstrap draws patients.
        threshold: chosen on other patients.
        specificity: at which the sensitivity is looked up on these patients.
        draws: of the bootstrap.

    Returns:
        `auc` (`value`, `delong` and `bootstrap` intervals),
        `sensitivity_at_specificity`, `operating_point` (of `threshold`), `calibration`.
        What is undefined is NaN.
    """
    truth, values = _labels_and_scores(labels, scores)
    delong = auc_delong(truth, values)
    clustered = auc_bootstrap(truth, values, patients, draws=draws)
    reached = sensitivity_at_specificity(truth, values, specificity)
    interval = bootstrap(
        lambda index: (
            sensitivity_at_specificity(
                truth[index], values[index], specificity
            ).sensitivity
        ),
        patients,
        draws=draws,
    )
    return {
        "auc": {
            "value": delong.value,
            "delong": [delong.low, delong.high],
            "bootstrap": [clustered.low, clustered.high],
        },
        "sensitivity_at_specificity": {
            "wanted_specificity": specificity,
            **reached._asdict(),
            "bootstrap": [interval.low, interval.high],
        },
        "operating_point": at_threshold(truth, values, threshold)._asdict(),
        "calibration": {
            "brier": brier(truth, values),
            "expected_calibration_error": expected_calibration_error(truth, values),
        },
    }


def style_control(
    labels: ArrayLike, patients: ArrayLike, features: Mapping[str, ArrayLike]
) -> dict[str, Any]:
    """AUC of brightness, borders and the like, which show no finding.

    If they tell positives from negatives, the two classes come from different sources,
    and a network may have learned the source instead of the finding.

    Args:
        labels: (N,) 0 or 1.
        patients: (N,) whom each image belongs to.
        features: {name: (N,)}.

    Returns:
        `auc` of a logistic regression on all of them, on patients that it was not
        fitted to (NaN where that cannot be done), and `single_feature_auc`, the larger
        of the two directions.
    """
    truth = np.asarray(labels)
    groups = np.asarray(patients)
    columns = {name: np.asarray(values, float) for name, values in features.items()}
    single = {
        # Either direction would give the class away.
        name: abs(auc(truth, column) - 0.5) + 0.5
        for name, column in columns.items()
    }
    folds = min(5, len(np.unique(groups)))
    area = float("nan")
    if folds >= 2 and 1 < truth.sum() < len(truth) - 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a fold without positives gives no fit
            try:
                scores = cross_val_predict(
                    make_pipeline(
                        StandardScaler(), LogisticRegression(class_weight="balanced")
                    ),
                    np.column_stack(list(columns.values())),
                    truth,
                    groups=groups,
                    cv=GroupKFold(folds),
                    method="predict_proba",
                )[:, 1]
                area = auc(truth, scores)
            except ValueError:  # one class only in a fold's training part
                area = float("nan")
    return {"auc": area, "single_feature_auc": single}
