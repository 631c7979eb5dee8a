import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_score

from medimg_utils.viewers import PrevalenceExplorer

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 60)
SCORES = np.clip(RANDOM.normal(0.35 + 0.3 * LABELS, 0.2), 0, 1)


def example(**options) -> PrevalenceExplorer:
    return PrevalenceExplorer(SCORES, LABELS, **options)


def test_values_by_hand() -> None:
    # One of two ill exams reaches 0.5, one of four others.
    explorer = PrevalenceExplorer(
        [0.9, 0.4, 0.6, 0.1, 0.2, 0.3], [1, 1, 0, 0, 0, 0], prevalence=0.2
    )
    numbers = explorer.statistics()
    assert numbers["sensitivity"] == 0.5
    assert numbers["specificity"] == 0.75
    # of 1000 people 200 are ill: 100 found, 100 missed, 200 alarms, 600 left alone
    assert explorer.counts() == {
        "found": 100,
        "missed": 100,
        "alarms": 200,
        "left": 600,
    }
    assert numbers["ppv"] == pytest.approx(1 / 3)
    assert numbers["npv"] == pytest.approx(6 / 7)


@settings(max_examples=30, deadline=None)
@given(threshold=st.sampled_from(np.round(np.linspace(0.05, 0.7, 14), 2).tolist()))
def test_at_the_prevalence_of_the_exams_the_ppv_is_the_precision(threshold) -> None:
    explorer = example(threshold=threshold, prevalence=float(LABELS.mean()))
    called = np.array(threshold <= SCORES)
    expected = precision_score(LABELS, called)
    assert explorer.statistics()["ppv"] == pytest.approx(expected)
    (tn, fp), (fn, tp) = confusion_matrix(LABELS, called)
    assert explorer.statistics()["npv"] == pytest.approx(tn / (tn + fn))
    assert explorer.statistics()["sensitivity"] == pytest.approx(tp / (tp + fn))
    assert explorer.statistics()["specificity"] == pytest.approx(tn / (tn + fp))


@settings(max_examples=30, deadline=None)
@given(
    threshold=st.floats(0, 1), prevalence=st.floats(0.001, 0.9)
)  # people never get lost
def test_there_are_always_1000_people(threshold: float, prevalence: float) -> None:
    counts = example(threshold=threshold, prevalence=prevalence).counts()
    assert sum(counts.values()) == 1000
    assert min(counts.values()) >= 0


def test_a_rarer_disease_lowers_the_ppv_and_raises_the_npv() -> None:
    rare, frequent = (example(prevalence=p).statistics() for p in (0.01, 0.3))
    assert rare["ppv"] < frequent["ppv"]
    assert rare["npv"] > frequent["npv"]
    assert rare["sensitivity"] == frequent["sensitivity"]


def test_when_nobody_is_called_the_ppv_is_no_number() -> None:
    explorer = PrevalenceExplorer([0.1, 0.2], [0, 1], threshold=1)
    assert np.isnan(explorer.statistics()["ppv"])


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        ([0.5], [1, 0], {}, "equally long"),
        ([0.5, 1.5], [1, 0], {}, "outside 0 to 1"),
        ([0.5, np.nan], [1, 0], {}, "NaN"),
        ([0.5, 0.5], [1, 2], {}, "other than 0 and 1"),
        ([0.5, 0.5], [1, 1], {}, "all 2 labels are alike"),
        ([0.5, 0.5], [1, 0], {"prevalence": 0}, "prevalence is 0"),
        ([0.5, 0.5], [1, 0], {"threshold": -1}, "threshold is -1"),
    ],
)
def test_wrong_input_is_refused(scores, labels, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrevalenceExplorer(scores, labels, **options)


def test_the_still_picture_follows_the_threshold() -> None:
    explorer = example(alt="Two groups of scores.")
    data, metadata = explorer._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "Two groups of scores."
    explorer.threshold = 0.9
    assert explorer._repr_mimebundle_()[0]["image/png"] != data["image/png"]
