import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import DiceMetric, compute_hausdorff_distance
from scipy.spatial.distance import cdist
from scipy.stats import bootstrap as scipy_bootstrap
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve

from medimg_utils import metrics
from medimg_utils.errors import InputError


def _scores(seed=0, n=120, ties=False):
    random = np.random.default_rng(seed)
    labels = (random.random(n) < 0.35).astype(int)
    scores = random.random(n) + 0.4 * labels
    return labels, np.round(scores, 1) if ties else scores


# ----------------------------------------------------------------------------- detection


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 6)), min_size=4, max_size=60
    ).filter(lambda rows: len({label for label, _ in rows}) == 2)
)
@settings(max_examples=100, deadline=None)
def test_auc_is_scikit_learns_and_the_share_of_ordered_pairs(rows):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    positive, negative = scores[labels][:, None], scores[~labels][None]
    pairs = (positive > negative) + 0.5 * (positive == negative)
    assert metrics.auc(labels, scores) == pytest.approx(pairs.mean())


def test_auc_of_one_class_is_undefined():
    assert np.isnan(metrics.auc([1, 1], [0.1, 0.2]))
    assert np.isnan(metrics.auc_delong([0, 0], [0.1, 0.2]).value)


def test_delong_by_hand():
    # Positives 0.8 and 0.35, negatives 0.1 and 0.4. Share of negatives below: 1 and 1/2; share
    # of positives above: 1 and 1/2. Each has variance 1/8, divided by two images: 1/16 + 1/16.
    areas, covariance = metrics.delong_covariance([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    assert areas[0] == 0.75
    assert covariance[0, 0] == pytest.approx(1 / 8)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_variance_is_near_the_bootstraps(ties):
    labels, scores = _scores(ties=ties)
    _, covariance = metrics.delong_covariance(labels, scores)
    random = np.random.default_rng(1)
    draws = [
        metrics.auc(labels[k], scores[k])
        for k in random.integers(len(labels), size=(2000, 120))
    ]
    assert np.sqrt(covariance[0, 0]) == pytest.approx(np.std(draws), rel=0.1)


def test_delong_covariance_of_equal_and_opposite_scores():
    labels, scores = _scores()
    _, covariance = metrics.delong_covariance(
        labels, np.stack([scores, 3 * scores, -scores])
    )
    variance = covariance[0, 0]
    expected = variance * np.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    np.testing.assert_allclose(covariance, expected, atol=1e-12)


def test_delong_interval_covers_the_truth():
    """Two normal classes one standard deviation apart have AUC Phi(1 / sqrt 2) = 0.760."""
    random = np.random.default_rng(3)
    labels = np.repeat([0, 1], [60, 40])
    inside = 0
    for _ in range(400):
        found = metrics.auc_delong(labels, random.standard_normal(100) + labels)
        inside += found.low <= 0.7602 <= found.high
    assert 0.90 < inside / 400 < 0.99


def test_clusters_widen_the_interval():
    random = np.random.default_rng(0)
    labels = np.repeat(random.integers(0, 2, 40), 5)
    scores = np.repeat(random.random(40), 5) + 0.3 * labels
    patients = np.repeat(np.arange(40), 5)
    single = metrics.auc_bootstrap(labels, scores, draws=400)
    clustered = metrics.auc_bootstrap(labels, scores, patients, draws=400)
    assert clustered.value == single.value
    assert clustered.high - clustered.low > 1.5 * (single.high - single.low)


def test_bootstrap_without_clusters_is_scipys():
    values = np.random.default_rng(0).exponential(size=80)
    ours = metrics.bootstrap(
        lambda index: np.median(values[index]), np.arange(80), draws=4000
    )
    theirs = scipy_bootstrap(
        (values,), np.median, n_resamples=4000, method="percentile", rng=1
    ).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.high, abs=0.03)


def test_one_patient_has_no_interval():
    for one in (
        metrics.bootstrap(lambda index: float(len(index)), ["a", "a"], draws=10),
        metrics.mean_bootstrap([1.0, 3.0], ["a", "a"], draws=10),
    ):
        assert one.value == 2
        assert np.isnan([one.low, one.high]).all()


def test_fast_bootstraps_are_the_slow_one():
    labels, scores = _scores(ties=True)
    patients = np.random.default_rng(2).integers(0, 50, len(labels))
    for fast, statistic in (
        (
            metrics.auc_bootstrap(labels, scores, patients, draws=200),
            lambda k: metrics.auc(labels[k], scores[k]),
        ),
        (
            metrics.mean_bootstrap(scores, patients, draws=200),
            lambda k: scores[k].mean(),
        ),
    ):
        slow = metrics.bootstrap(statistic, patients, draws=200)
        np.testing.assert_allclose(fast, slow, rtol=1e-12)


def test_bootstrap_leaves_undefined_draws_out_and_repeats():
    labels, scores = [1, 1, 0, 0], [0.9, 0.8, 0.1, 0.2]
    patients = ["a", "b", "c", "d"]  # some draws hold nobody who is ill
    found = metrics.auc_bootstrap(labels, scores, patients, draws=50)
    assert found == (1, 1, 1)
    assert found == metrics.auc_bootstrap(labels, scores, patients, draws=50)


@pytest.mark.parametrize("labels", [[1, 1, 0, 0], [0, 0, 1, 1]])
def test_a_single_patient_of_a_class_gives_no_interval(labels):
    found = metrics.auc_bootstrap(labels, [0.9, 0.8, 0.1, 0.2], ["a", "a", "b", "c"])
    assert found.value == labels[0]
    assert np.isnan(found[1:]).all()


@given(st.integers(0, 30), st.sampled_from([0.5, 0.8, 0.9, 1.0]))
@settings(max_examples=40, deadline=None)
def test_sensitivity_at_specificity_is_the_best_of_scikit_learns_curve(seed, wanted):
    labels, scores = _scores(seed, ties=seed % 2 == 0)
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    found = metrics.sensitivity_at_specificity(labels, scores, wanted)
    assert found.sensitivity == pytest.approx(
        true_rate[1 - false_rate >= wanted - 1e-12].max()
    )
    assert found.specificity >= wanted - 1e-12
    if np.isfinite(found.threshold):
        assert metrics.at_threshold(labels, scores, found.threshold) == pytest.approx(
            found
        )


def test_wrong_lists_are_refused():
    with pytest.raises(InputError, match="0 or 1"):
        metrics.auc([0, 2], [0.1, 0.2])
    with pytest.raises(InputError, match="NaN"):
        metrics.auc([0, 1], [0.1, float("nan")])
    with pytest.raises(InputError, match="alike"):
        metrics.auc([0, 1], [0.1])


# -------------------------------------------------------------------------- segmentation

pairs_of_masks = hnp.array_shapes(
    min_dims=2, max_dims=2, min_side=4, max_side=14
).flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


@given(pairs_of_masks)
@settings(max_examples=60, deadline=None)
def test_dice_is_monais(pair):
    first, second = pair
    ours = metrics.dice(first, second)
    if second.any():
        measure = DiceMetric(include_background=True)
        theirs = measure(*(torch.tensor(mask)[None, None].float() for mask in pair))
        assert ours == pytest.approx(float(theirs))
    assert ours == metrics.dice(second, first)
    assert metrics.dice(first, first) == 1


@given(pairs_of_masks, st.sampled_from([(1.0, 1.0), (0.5, 2.0)]))
@settings(max_examples=60, deadline=None)
def test_hausdorff95_is_monais(pair, spacing):
    if not (pair[0].any() and pair[1].any()):
        return
    tensors = [torch.tensor(mask)[None, None].float() for mask in pair]
    theirs = compute_hausdorff_distance(
        *tensors, include_background=True, percentile=95, spacing=list(spacing)
    )
    assert metrics.hausdorff95(*pair, spacing) == pytest.approx(float(theirs), abs=1e-5)


def test_hausdorff95_of_all_pairs_of_points():
    random = np.random.default_rng(0)
    first, second = random.random((2, 30, 30)) > 0.9
    points = [
        np.argwhere(mask) * [0.5, 2.0] for mask in (first, second)
    ]  # all are outline
    far = cdist(*points)
    expected = max(np.percentile(far.min(0), 95), np.percentile(far.min(1), 95))
    assert metrics.hausdorff95(first, second, (0.5, 2.0)) == pytest.approx(expected)


def test_probabilities_are_no_mask():
    truth = np.eye(3)
    assert metrics.dice(np.float32([[1, 0], [0, 1]]), np.eye(2)) == 1
    for wrong in (0.9 * truth, np.where(truth > 0, np.nan, 0)):
        for measure in (metrics.dice, metrics.hausdorff95):
            with pytest.raises(InputError, match="by a threshold"):
                measure(wrong, truth)


def test_hausdorff95_of_empty_masks():
    empty, full = np.zeros((4, 4)), np.ones((4, 4))
    assert metrics.hausdorff95(empty, empty) == 0
    assert metrics.hausdorff95(empty, full) == float("inf")
    assert metrics.hausdorff95(full, full) == 0


def test_masks_of_different_shape_are_refused():
    with pytest.raises(InputError, match="differ"):
        metrics.dice(np.ones((2, 3)), np.ones((3, 2)))


def test_pointing_game():
    probability = np.zeros((10, 10))
    probability[2, 3] = 1
    mask = np.zeros((10, 10), bool)
    mask[2, 5] = True
    assert not metrics.pointing_game(probability, mask)
    assert not metrics.pointing_game(probability, mask, tolerance=1.9)
    assert metrics.pointing_game(probability, mask, tolerance=2)
    mask[2, 3] = True
    assert metrics.pointing_game(probability, mask)
    with pytest.raises(InputError, match="positives"):
        metrics.pointing_game(probability, np.zeros((10, 10)))


# --------------------------------------------------------------------------- calibration


def test_the_interval_of_the_calibration_error_holds_the_truth():
    """Right probabilities have the error 0, and doubled odds one that a sum tells."""
    random = np.random.default_rng(0)
    fine = np.linspace(0.02, 0.98, 10**5)
    exact = np.mean(2 * fine / (1 + fine) - fine)  # all bins err to the same side
    right, doubled = [], []
    for _ in range(150):
        true = random.uniform(0.02, 0.98, 200)
        labels = (random.random(200) < true).astype(int)
        said = 2 * true / (1 + true)
        who = np.arange(200)
        one, other = (
            metrics.calibration_bootstrap(labels, p, who, draws=200)
            for p in (true, said)
        )
        right.append(one.low == 0)
        doubled.append(other.low <= exact <= other.high)
    assert np.mean(right) > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 150)
    assert np.mean(doubled) > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 150)


def test_calibration_is_scikit_learns():
    random = np.random.default_rng(0)
    probabilities = random.random(500)
    labels = (random.random(500) < probabilities**2).astype(int)
    assert metrics.brier(labels, probabilities) == pytest.approx(
        brier_score_loss(labels, probabilities)
    )
    mean, share, count = metrics.calibration_bins(labels, probabilities, 10)
    their_share, their_mean = calibration_curve(labels, probabilities, n_bins=10)
    np.testing.assert_allclose(mean[count > 0], their_mean)
    np.testing.assert_allclose(share[count > 0], their_share)
    error = metrics.expected_calibration_error(labels, probabilities)
    assert error == pytest.approx(np.abs(their_share - their_mean) @ count / 500)


def test_a_confident_liar_is_badly_calibrated():
    assert metrics.expected_calibration_error([0, 0], [1.0, 1.0]) == 1
    # one patient: every drawn test set is the whole again
    assert metrics.calibration_bootstrap([0, 0], [1.0, 1.0], [7, 7]) == (1, 1, 1)
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        metrics.expected_calibration_error([0, 1], [0.5, 1.5])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 9)), min_size=4, max_size=25),
    st.integers(1, 4),
)
def test_precision_at_another_prevalence_is_that_of_more_healthy_films(
    cases, copies: int
) -> None:
    labels, scores = np.array(cases).T
    assume(0 < labels.sum() < labels.size)
    # Every healthy film again and again is what a lower prevalence stands for.
    often = np.repeat(np.arange(labels.size), np.where(labels == 1, 1, copies))
    rarer = labels.sum() / often.size
    by_weight = metrics.precision_recall(labels, scores, rarer)
    by_copies = metrics.precision_recall(labels[often], scores[often])
    np.testing.assert_allclose(by_weight, by_copies, atol=1e-12)
    np.testing.assert_allclose(
        metrics.average_precision(labels, scores, rarer),
        metrics.average_precision(labels[often], scores[often]),
        atol=1e-12,
    )


def test_precision_of_guessing_is_the_prevalence() -> None:
    labels, same = [1, 0, 0, 1, 0], [0.5] * 5
    precision, recall = metrics.precision_recall(labels, same, 0.02)
    np.testing.assert_allclose([precision, recall], [[0.02], [1.0]], atol=1e-12)
    assert metrics.average_precision(labels, same, 0.02) == pytest.approx(0.02)


def test_precision_needs_both_classes_and_a_share() -> None:
    assert np.isnan(metrics.average_precision([1, 1], [0.2, 0.3]))
    assert np.isnan(metrics.precision_recall([0, 0], [0.2, 0.3])).all()
    with pytest.raises(InputError, match="prevalence is 1, expected between 0 and 1"):
        metrics.average_precision([0, 1], [0.2, 0.3], 1)
