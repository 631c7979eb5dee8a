import numpy as np
import pytest

from medimg_utils.challenges import comparison
from medimg_utils.viewers import StudyExplorer
from medimg_utils.viewers.study_explorer import random_numbers

RANDOM = np.random.default_rng(0)
HARD = RANDOM.normal(0.7, 0.08, 60)  # patients are hard or easy for both designs
SCORES = {
    name: np.clip(
        HARD + shift + RANDOM.normal(0, 0.02, (5, 1)) + RANDOM.normal(0, 0.03, (5, 60)),
        0, 1,
    )
    for name, shift in (("good", 0.03), ("poor", 0.0), ("bad", -0.2))
}  # fmt: skip


def example(first: str = "good", second: str = "poor", **options) -> StudyExplorer:
    return StudyExplorer(SCORES, first, second, **options)


def test_the_random_numbers_are_uniform() -> None:
    numbers = random_numbers(50_000)
    assert len(np.unique(numbers)) > 49_000
    counts = np.histogram(numbers, 20, (0, 1))[0]
    # 2500 in each, give or take 49: chi² with 19 degrees of freedom
    assert ((counts - 2500) ** 2 / 2500).sum() < 45
    assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.02


def test_the_difference_is_that_of_the_scores() -> None:
    expected = (SCORES["good"] - SCORES["poor"]).mean()
    assert example().statistics()["difference"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("seeds", "patients"), [(1, 20), (5, 100)])
def test_studies_scatter_as_in_another_bootstrap(seeds: int, patients: int) -> None:
    found = example(seeds=seeds, patients=patients).replayed()
    table = SCORES["good"] - SCORES["poor"]
    other = comparison.replay(table, seeds, patients, draws=4000)
    assert found.mean() == pytest.approx(other.mean(), abs=0.003)
    assert found.std() == pytest.approx(other.std(), rel=0.1)


def test_who_leads_does_not_depend_on_the_order_of_the_designs() -> None:
    one, other = example().statistics(), example("poor", "good").statistics()
    assert one["wrong"] == other["wrong"]
    assert one["difference"] == pytest.approx(-other["difference"])
    assert (one["low"], one["high"]) == pytest.approx((-other["high"], -other["low"]))


def test_larger_studies_go_wrong_less_often() -> None:
    few = example(seeds=1, patients=5).statistics()
    many = example(seeds=10, patients=200).statistics()
    assert few["wrong"] > many["wrong"]
    assert few["high"] - few["low"] > many["high"] - many["low"]
    assert example("good", "bad").statistics()["wrong"] == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StudyExplorer({"a": [[0.1]]}, "a", "a"), "1 designs"),
        (lambda: StudyExplorer({"a": [[0.1]], "b": [[0.1, 0.2]]}, "a", "b"), "shapes"),
        (lambda: StudyExplorer({"a": [0.1], "b": [0.2]}, "a", "b"), "shapes"),
        (lambda: StudyExplorer({"a": [[2]], "b": [[1]]}, "a", "b"), "outside 0 to 1"),
        (lambda: StudyExplorer({"a": [[np.nan]], "b": [[1]]}, "a", "b"), "NaN"),
        (lambda: example("good", "ugly"), "ugly"),
        (lambda: example(seeds=0), "seeds is 0"),
        (lambda: example(patients=1000), "patients is 1000"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_still_picture_follows_the_plan() -> None:
    explorer = example(alt="What studies find.")
    data, metadata = explorer._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "What studies find."
    explorer.seeds = 9
    assert explorer._repr_mimebundle_()[0]["image/png"] != data["image/png"]
