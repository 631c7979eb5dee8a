import numpy as np
import pytest

from medimg_utils.challenges.decisions import net_benefit
from medimg_utils.viewers import WorklistExplorer

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 60)
SCORES = np.clip(RANDOM.normal(0.35 + 0.3 * LABELS, 0.2), 0, 1)


def test_values_by_hand() -> None:
    # One reader, 6 exams an hour of 5 minutes: busy half of the time, 5 minutes each.
    # Half of the ill and a quarter of the others are marked.
    explorer = WorklistExplorer(
        [0.9, 0.4, 0.6, 0.1, 0.2, 0.3], [1, 1, 0, 0, 0, 0],
        rate=6, minutes=5, readers=1, prevalence=0.2, exchange=10,
    )  # fmt: skip
    n = explorer.statistics()
    marked = 0.5 * 0.2 + 0.25 * 0.8
    assert n["marked"] == pytest.approx(marked)
    assert n["found"] == pytest.approx(2.5 / (1 - 0.5 * marked))
    assert n["missed"] == pytest.approx(n["found"] / 0.5)
    assert n["ill"] == pytest.approx((n["found"] + n["missed"]) / 2)
    # of 1000: 100 found, 200 false alarms, ten of which cost one found
    assert n["net_benefit"] == pytest.approx(80)
    assert n["all"] == pytest.approx(200 - 80)


def test_marks_take_from_some_what_they_give_to_others() -> None:
    n = WorklistExplorer(SCORES, LABELS, rate=20, readers=2).statistics()
    ill = 0.05
    mean = ill * n["ill"] + (1 - ill) * n["well"]
    assert mean == pytest.approx(n["first_come"])
    assert n["found"] < n["first_come"] < n["missed"]


def test_net_benefit_is_that_of_a_decision_curve() -> None:
    explorer = WorklistExplorer(SCORES, LABELS, prevalence=0.3, exchange=1)
    for threshold in (0.5,):  # at one half a false alarm costs one patient found
        expected = net_benefit(LABELS, SCORES, [threshold], prevalence=0.3)[0]
        assert explorer.net_benefit(threshold) == pytest.approx(1000 * expected)


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        ([0.5], [1, 0], {}, "equally long"),
        ([0.5, np.nan], [1, 0], {}, "NaN"),
        ([0.5, 0.5], [1, 1], {}, "all 2 labels are alike"),
        ([0.5, 0.5], [1, 0], {"prevalence": 0.9}, "prevalence is 0.9"),
        ([0.5, 0.5], [1, 0], {"readers": 0}, "readers is 0"),
        ([0.5, 0.5], [1, 0], {"rate": float("nan")}, "rate is nan"),
        ([0.5, 0.5], [1, 0], {"exchange": 0.1}, "exchange is 0.1"),
        ([0.5, 0.5], [1, 0], {"threshold": -1}, "threshold is -1"),
    ],
)
def test_wrong_input_is_refused(scores, labels, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorklistExplorer(scores, labels, **options)


def test_the_still_picture_follows_the_threshold() -> None:
    explorer = WorklistExplorer(SCORES, LABELS, alt="Bars and a curve.")
    data, metadata = explorer._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "Bars and a curve."
    explorer.threshold = 0.9
    changed = explorer._repr_mimebundle_()[0]["image/png"]
    assert changed != data["image/png"]
    explorer.rate = 60.0  # the list grows
    assert explorer._repr_mimebundle_()[0]["image/png"] != changed
