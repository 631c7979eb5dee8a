import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg_utils import metrics
from medimg_utils.challenges import decisions
from medimg_utils.errors import InputError

RANDOM = np.random.default_rng(1)
LABELS = RANDOM.integers(0, 2, 300)
SCORES = 1 / (1 + np.exp(-RANDOM.normal(2 * LABELS - 1, 1.5)))


def test_a_decision_curve_counts_as_vickers_and_elkin() -> None:
    thresholds = np.array([0.05, 0.2, 0.5, 0.8])
    found = decisions.net_benefit(LABELS, SCORES, thresholds)
    for t, value in zip(thresholds, found, strict=True):
        called = np.array(t <= SCORES)
        true, false = (called & (LABELS == 1)).sum(), (called & (LABELS == 0)).sum()
        n = len(LABELS)
        assert value == pytest.approx(true / n - false / n * t / (1 - t))
    # by hand: 100 patients, 20 ill; 16 found, 8 alarms; at 20 % four alarms cost one
    labels = np.repeat([1, 0], [20, 80])
    scores = np.concatenate(
        [np.repeat([0.9, 0.1], [16, 4]), np.repeat([0.9, 0.1], [8, 72])]
    )
    assert decisions.net_benefit(labels, scores, [0.2])[0] == pytest.approx(0.14)


@settings(max_examples=30, deadline=None)
@given(threshold=st.floats(0.02, 0.98), prevalence=st.floats(0.01, 0.99))
def test_no_rule_beats_a_perfect_one(threshold: float, prevalence: float) -> None:
    one = decisions.net_benefit(LABELS, SCORES, [threshold], prevalence)[0]
    assert one <= prevalence + 1e-12
    perfect = decisions.net_benefit(LABELS, LABELS, [threshold], prevalence)[0]
    assert perfect == pytest.approx(prevalence)
    everyone = decisions.net_benefit(LABELS, np.ones(300), [threshold], prevalence)
    assert everyone == pytest.approx(
        decisions.net_benefit_of_all([threshold], prevalence)
    )
    nobody = decisions.net_benefit(LABELS, np.zeros(300), [threshold], prevalence)
    assert nobody == pytest.approx(0)


def test_at_another_prevalence_it_is_that_of_reweighted_patients() -> None:
    # One copy of each ill patient, three of each other: prevalence falls.
    labels = np.concatenate([LABELS, np.zeros(2 * (LABELS == 0).sum(), int)])
    scores = np.concatenate([SCORES, np.tile(SCORES[LABELS == 0], 2)])
    expected = decisions.net_benefit(labels, scores, [0.1, 0.4])
    again = decisions.net_benefit(LABELS, SCORES, [0.1, 0.4], float(labels.mean()))
    assert again == pytest.approx(expected)


def test_shifting_the_prevalence_is_undone_by_shifting_back() -> None:
    there = decisions.shift_prevalence(SCORES, 0.4, 0.03)
    assert (there < SCORES).all()
    assert decisions.shift_prevalence(there, 0.03, 0.4) == pytest.approx(SCORES)
    assert np.array_equal(np.argsort(there), np.argsort(SCORES))


def test_a_shifted_probability_is_calibrated_in_the_new_clinic() -> None:
    random = np.random.default_rng(2)

    def clinic(prevalence: float, n: int = 200_000):
        ill = random.random(n) < prevalence
        x = random.normal(np.where(ill, 1.0, -1.0))
        odds = np.exp(2 * x) * 0.5 / 0.5  # right where half are ill
        return ill, odds / (1 + odds)

    ill, p = clinic(0.05)
    shifted = decisions.shift_prevalence(p, 0.5, 0.05)
    assert metrics.expected_calibration_error(ill, shifted) < 0.004
    assert metrics.expected_calibration_error(ill, p) > 0.05


def test_a_threshold_for_sensitivity_keeps_it_and_is_the_highest() -> None:
    point = decisions.threshold_for_sensitivity(LABELS, SCORES, 0.95)
    assert point.sensitivity >= 0.95
    assert point == metrics.at_threshold(LABELS, SCORES, point.threshold)
    above = SCORES[point.threshold < SCORES].min()
    assert metrics.at_threshold(LABELS, SCORES, above).sensitivity < 0.95


def test_rule_out_counts_both_classes() -> None:
    found = decisions.rule_out(LABELS, SCORES, 0.3)
    assert found.well[1] == (LABELS == 0).sum()
    assert found.ill[0] == ((SCORES < 0.3) & (LABELS == 1)).sum()
    assert found.missed.low < found.missed.value < found.missed.high
    nobody = decisions.rule_out(LABELS, SCORES, 0.0)
    assert nobody.missed.value == 0 < nobody.missed.high


def test_the_interval_of_a_proportion_is_wilsons() -> None:
    from scipy.stats import binomtest

    for hits, n in ((0, 20), (3, 7), (95, 100)):
        expected = binomtest(hits, n).proportion_ci(method="wilson")
        found = metrics.proportion(hits, n)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert np.isnan(metrics.proportion(0, 0).value)
    with pytest.raises(InputError, match="no share"):
        metrics.proportion(3, 2)


def test_a_band_holds_its_curve_and_grows_with_fewer_patients() -> None:
    def width(n: int) -> float:
        labels, scores = LABELS[:n], SCORES[:n]

        def curve(index):
            return decisions.net_benefit(labels[index], scores[index], [0.2, 0.5])

        low, high = decisions.interval_curve(curve, np.arange(n), draws=100)
        value = decisions.net_benefit(labels, scores, [0.2, 0.5])
        assert (low < value).all()
        assert (value < high).all()
        return float((high - low).mean())

    assert width(60) > 1.5 * width(300)


@pytest.mark.parametrize("wrong", [0, 1, -0.1, float("nan")])
def test_impossible_shares_are_refused(wrong: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        decisions.net_benefit(LABELS, SCORES, [wrong])
    with pytest.raises(InputError, match="between 0 and 1"):
        decisions.shift_prevalence(SCORES, 0.5, wrong)
    with pytest.raises(InputError, match="between 0 and 1"):
        decisions.net_benefit_of_all([0.5], wrong)


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(InputError, match="both classes"):
        decisions.threshold_for_sensitivity([1, 1], [0.2, 0.4])
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        decisions.shift_prevalence([1.2], 0.5, 0.2)


def test_operations_are_those_of_counted_knees() -> None:
    # 1000 knees, 200 torn; the network operates on 150 of these and on 80 others.
    labels = np.repeat([1, 0], [200, 800])
    says = np.repeat([0.9, 0.05, 0.9, 0.05], [150, 50, 80, 720])
    found = decisions.operations(labels, says, 0.1, 0.2)
    assert found[:3] == pytest.approx((0.230, 0.080, 0.050))
    # from 10 % on everybody is better than nobody: 720 needless operations are spared, and
    # 50 missed tears are worth 9 operations each
    assert 1000 * found.gain == pytest.approx(720 - 9 * 50)
    # from 50 % on nobody is better: 150 found, worth one operation each, and 80 needless
    found = decisions.operations(labels, says, 0.5, 0.2)
    assert 1000 * found.gain == pytest.approx(150 - 80)


@settings(max_examples=30, deadline=None)
@given(threshold=st.floats(0.02, 0.98), prevalence=st.floats(0.02, 0.98))
def test_no_simple_rule_gains_over_the_better_one(
    threshold: float, prevalence: float
) -> None:
    everybody = decisions.operations(LABELS, np.ones(300), threshold, prevalence)
    nobody = decisions.operations(LABELS, np.zeros(300), threshold, prevalence)
    assert max(everybody.gain, nobody.gain) == pytest.approx(0, abs=1e-9)
    assert everybody[:3] == pytest.approx((1, 1 - prevalence, 0))
    assert nobody[:3] == pytest.approx((0, 0, prevalence))
    perfect = decisions.operations(LABELS, LABELS, threshold, prevalence)
    assert perfect.gain >= max(everybody.gain, nobody.gain) - 1e-9


def at_most_a_tenth(labels, scores):
    return metrics.sensitivity_at_specificity(labels, scores, 0.9)


def test_an_exam_has_no_part_in_the_threshold_that_calls_it() -> None:
    patients = np.arange(300) // 3
    called = decisions.called_crosswise(LABELS, SCORES, at_most_a_tenth, patients)
    for one in (0, 150, 299):
        mine = patients == patients[one]
        scores = np.where(
            mine, 0.0, SCORES
        )  # the patient is gone from the others' view
        low = decisions.called_crosswise(LABELS, scores, at_most_a_tenth, patients)
        assert not low[mine].any()
        scores = np.where(mine, 1.0, SCORES)
        high = decisions.called_crosswise(LABELS, scores, at_most_a_tenth, patients)
        assert high[mine].all()
    specificity = 1 - called[LABELS == 0].mean()
    assert specificity == pytest.approx(0.9, abs=0.05)


def test_crosswise_thresholds_are_chosen_on_the_other_patients() -> None:
    seen: list[int] = []

    def choose(labels, scores):
        seen.append(len(labels))
        # the scores are the numbers of the exams
        left_out.append(set(range(40)) - set(scores.astype(int)))
        return metrics.Threshold(0.0, 1.0, 0.0)

    left_out: list[set[int]] = []
    patients = np.arange(40) // 2
    decisions.called_crosswise(
        np.tile([0, 1], 20), np.arange(40.0), choose, patients, folds=4
    )
    assert sorted(k for part in left_out for k in part) == list(range(40))
    for part in left_out:  # both exams of a patient are left out together
        assert {k ^ 1 for k in part} == part


def test_a_fitted_probability_is_right_on_other_patients():
    random = np.random.default_rng(0)

    def drawn(n, share):
        """Labels, and scores that are far too sure of themselves."""
        labels = (random.random(n) < share).astype(int)
        shown = random.normal(2 * labels - 1, 1)
        return labels, 1 / (1 + np.exp(-5 * shown))

    probability = decisions.fit_probability(*drawn(4000, 0.4))
    labels, scores = drawn(20_000, 0.1)
    found = probability(scores, 0.1)
    assert metrics.expected_calibration_error(labels, scores) > 0.1
    assert metrics.expected_calibration_error(labels, found) < 0.02
    assert metrics.auc(labels, found) == pytest.approx(
        metrics.auc(labels, scores), abs=1e-3
    )


def test_a_probability_is_not_learned_from_one_class():
    with pytest.raises(InputError, match="share of positives is 1"):
        decisions.fit_probability([1, 1], [0.2, 0.9])
