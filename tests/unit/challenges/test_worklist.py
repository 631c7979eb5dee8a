import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kstest

from medimg_utils.challenges import worklist
from medimg_utils.errors import InputError

SCORES, LABELS = [0.9, 0.8, 0.2, 0.7, 0.1, 0.3], [1, 1, 1, 0, 0, 0]
DAY = worklist.Department(
    arrivals=(2.0,) * 7 + (14.0,) * 10 + (8.0,) * 7,
    readers=(1,) * 7 + (2,) * 10 + (1,) * 7,
    minutes=5,
    prevalence=0.1,
)


def exams(department, days=20, seed=0, threshold=0.5):
    random = np.random.default_rng(seed)
    return worklist.draw_exams(department, days, SCORES, LABELS, threshold, random)


def listed(*rows: tuple[float, float, bool]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["arrival", "minutes", "marked"])


ROUND = (1,) * 24  # one reader around the clock


def test_a_list_by_hand() -> None:
    # While the first is read until 10, three more come; the third of them is marked.
    small = listed((0, 10, False), (1, 5, False), (2, 5, False), (9, 5, True))
    assert worklist.read(small, ROUND, 0).tolist() == [0, 9, 13, 11]
    assert worklist.read(small, ROUND, np.inf).tolist() == [0, 14, 18, 1]
    # A lead of 7.5 minutes puts the marked one (at 1.5) before the third, not the second.
    assert worklist.read(small, ROUND, 7.5).tolist() == [0, 9, 18, 6]
    # With two readers the second waits for nobody.
    assert worklist.read(small, (2,) * 24, 0).tolist() == [0, 0, 4, 1]


def test_a_reader_finishes_what_is_open_and_goes_home() -> None:
    # On duty from midnight to one; the exam of minute 55 takes ten minutes.
    early = (1,) + (0,) * 23
    late = listed((55, 10, False), (56, 5, False), (1441, 5, False))
    assert worklist.read(late, early, 0).tolist() == [0, 1440 - 56, 4]


def test_a_reader_who_waits_goes_home_without_an_exam() -> None:
    early = (1,) + (0,) * 23
    late = listed((61, 5, False))  # nobody is there until the next midnight
    assert worklist.read(late, early, 0).tolist() == [1440 - 61]


@pytest.mark.parametrize(("readers", "rate"), [(1, 7.2), (3, 25.2)])
def test_waits_are_those_of_queueing_theory(readers: int, rate: float) -> None:
    department = worklist.steady(rate, readers, 5, prevalence=0.5)
    waits = {}
    for seed in range(6):
        drawn = exams(department, days=40, seed=seed)
        for lead in (0, np.inf):
            wait = worklist.read(drawn, department.readers, lead)
            waits.setdefault(("all", lead), []).append(wait.mean())
            for marked in (True, False):
                mean = wait[drawn["marked"] == marked].mean()
                waits.setdefault((marked, lead), []).append(mean)
    theory = worklist.mean_wait(rate, 5, readers)
    first, later = worklist.priority_waits(rate, 5, readers, 0.5)
    for key, expected in (
        (("all", 0), theory), (("all", np.inf), theory),
        ((True, np.inf), first), ((False, np.inf), later),
        ((True, 0), theory), ((False, 0), theory),
    ):  # fmt: skip
        values = np.array(waits[key])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - expected) < 4 * error
        assert error < 0.1 * expected  # otherwise anything would agree


def test_formulas_by_hand() -> None:
    # M/M/1: wait = load / (rate of reading - rate of arrival); C is the load itself
    assert worklist.mean_wait(8, 6, 1) == pytest.approx(60 * 0.8 / (10 - 8))
    assert worklist.erlang_c(8, 6, 1) == pytest.approx(0.8)
    # M/M/2 with load a = 1: C = 1/3
    assert worklist.erlang_c(12, 5, 2) == pytest.approx(1 / 3)
    assert worklist.mean_wait(12, 5, 2) == pytest.approx(5 / 3)


def test_priority_moves_waiting_from_one_to_another() -> None:
    for share in (0, 0.1, 0.6, 1):
        first, later = worklist.priority_waits(20, 5, 2, share)
        everyone = worklist.mean_wait(20, 5, 2)
        assert share * first + (1 - share) * later == pytest.approx(everyone)


def test_arrivals_follow_the_day() -> None:
    random = np.random.default_rng(3)
    times = worklist.arrivals(DAY, 400, random)
    hours = np.floor(times / 60).astype(int) % 24
    counts = np.bincount(hours, minlength=24) / 400
    # 4 standard errors of the mean of 400 Poisson numbers
    assert np.abs(counts - DAY.arrivals).max() < 4 * np.sqrt(14 / 400)
    steady = worklist.arrivals(worklist.steady(10, 2, 5), 200, random)
    assert kstest(np.diff(steady), "expon", args=(0, 6)).pvalue > 0.01


def test_exams_have_the_prevalence_and_the_error_rates() -> None:
    drawn = exams(DAY, days=200)
    assert drawn["ill"].mean() == pytest.approx(0.1, abs=0.01)
    assert drawn["marked"][drawn["ill"]].mean() == pytest.approx(2 / 3, abs=0.03)
    assert drawn["marked"][~drawn["ill"]].mean() == pytest.approx(1 / 3, abs=0.02)
    assert drawn["minutes"].mean() == pytest.approx(5, rel=0.03)
    assert (np.array(LABELS)[drawn["case"]] == drawn["ill"]).all()


def test_a_longer_lead_never_lets_a_single_marked_exam_wait_longer() -> None:
    drawn = exams(DAY, days=5)
    alone = drawn.assign(marked=False)
    alone.loc[alone.index[40], "marked"] = True
    waits = [
        worklist.read(alone, DAY.readers, lead).iloc[40] for lead in (0, 15, 90, 1e9)
    ]
    assert waits == sorted(waits, reverse=True)


def test_order_changes_nothing_where_nobody_is_marked() -> None:
    drawn = exams(DAY, threshold=2)
    assert not drawn["marked"].any()
    first, strict = (worklist.read(drawn, DAY.readers, lead) for lead in (0, np.inf))
    assert (first == strict).all()
    assert (first >= 0).all()


def test_the_queue_is_the_arrived_less_the_opened() -> None:
    small = listed((0, 10, False), (1, 5, False), (2, 5, False))
    wait = worklist.read(small, ROUND, 0)
    assert worklist.queue_length(small, wait, [-1, 0.5, 3, 10, 15]).tolist() == [
        0, 0, 2, 1, 0,
    ]  # fmt: skip
    # Little's law: mean length = rate of arrival × mean wait
    drawn = exams(DAY, days=60)
    wait = worklist.read(drawn, DAY.readers, 0)
    length = worklist.queue_length(drawn, wait, np.arange(0, 60 * 1440, 2.0)).mean()
    assert length == pytest.approx(len(drawn) / (60 * 1440) * wait.mean(), rel=0.02)


def test_no_exams_give_no_waits() -> None:
    assert worklist.read(listed(), ROUND, 0).empty


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrivals": (1.0,) * 23}, "24 hours"),
        ({"arrivals": (-1.0,) * 24}, "negative"),
        ({"minutes": 0}, "negative"),
        ({"prevalence": 1}, "prevalence"),
        ({"minutes": 50}, "grow for ever"),
        ({"readers": (0,) * 24}, "grow for ever"),
    ],
)
def test_impossible_departments_are_refused(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(DAY, **change)


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(InputError, match="grow for ever"):
        worklist.mean_wait(12, 5, 1)
    with pytest.raises(InputError, match="share"):
        worklist.priority_waits(5, 5, 1, 1.5)
    with pytest.raises(InputError, match="both classes"):
        worklist.draw_exams(DAY, 1, [0.5], [1], 0.5, np.random.default_rng())
    with pytest.raises(InputError, match="nobody is on duty"):
        worklist.read(listed((0, 5, False)), (0,) * 24, 0)


READER = worklist.Habits(alone=0.9, pointed=0.97, trust=0.2, haste=0.4)


def test_who_is_seen_by_hand() -> None:
    rows = pd.DataFrame(
        {
            "arrival": range(5), "minutes": [10.0] * 5,
            "ill": [True, True, True, True, False],
            "marked": [True, True, False, False, True],
            "hard": [0.96, 0.98, 0.69, 0.71, 0.0],
        }
    )  # fmt: skip
    assert READER.seen(rows).tolist() == [True, False, True, False, False]
    assert READER.hurried(rows)["minutes"].tolist() == [10, 10, 6, 6, 10]
    done = worklist.work(rows, ROUND, 0, READER)
    assert done["wait"].tolist() == [0, 9, 18, 23, 28]
    assert done["told"].tolist() == [10, 19, 24, 29, 38]
    assert done["overlooked"].tolist() == [False, True, False, True, False]


def test_a_reader_and_a_network_find_what_the_formula_says() -> None:
    drawn = exams(DAY, days=300)  # two of three ill are marked, one of three is not
    ill = drawn["ill"]
    seen = READER.seen(drawn)[ill].mean()
    expected = 0.97 * 2 / 3 + (0.9 - 0.2) / 3
    error = np.sqrt(expected * (1 - expected) / ill.sum())
    assert abs(seen - expected) < 4 * error
    assert error < 0.01
    assert not READER.seen(drawn)[~ill].any()


def test_more_trust_overlooks_the_same_and_more() -> None:
    drawn = exams(DAY)
    seen = [
        worklist.Habits(0.9, 0.97, trust).seen(drawn) for trust in (0, 0.2, 0.5, 0.9)
    ]
    for careful, careless in itertools.pairwise(seen):
        assert (careful | ~careless).all()  # whoever the careless sees
        assert (careful & ~careless).any()
    assert not seen[-1][~drawn["marked"]].any()
    assert (seen[0] == seen[-1])[drawn["marked"]].all()


def test_habits_without_trust_leave_the_list_as_it_was() -> None:
    drawn = exams(DAY, days=5)
    plain = worklist.Habits(0.9, 0.9)
    for lead in (0, np.inf):
        done = worklist.work(drawn, DAY.readers, lead, plain)
        assert (done["wait"] == worklist.read(drawn, DAY.readers, lead)).all()


def test_waits_of_hurried_readings_are_those_of_queueing_theory() -> None:
    # One reader, marked first (Cobham 1954, for two kinds of reading times): with the mean
    # residual time R = sum of rate * E[S^2] / 2, the marked wait R / (1 - load of the
    # marked), the others R / ((1 - load of the marked)(1 - load)).
    rate, minutes, haste = 9.0, 5.0, 0.4
    department = worklist.steady(rate, 1, minutes, prevalence=0.5)
    waits: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(6):
        drawn = exams(department, days=60, seed=seed)
        done = worklist.work(drawn, ROUND, np.inf, READER)
        for marked in waits:
            waits[marked].append(done["wait"][drawn["marked"] == marked].mean())
    share = 0.5 * 2 / 3 + 0.5 / 3  # exponential times: E[S^2] is twice the mean squared
    times = {True: minutes, False: minutes * (1 - haste)}
    rates = {True: rate * share / 60, False: rate * (1 - share) / 60}
    residual = sum(rates[k] * times[k] ** 2 for k in times)
    first = residual / (1 - rates[True] * times[True])
    later = first / (1 - sum(rates[k] * times[k] for k in times))
    for marked, expected in ((True, first), (False, later)):
        values = np.array(waits[marked])
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - expected) < 4 * error
        assert error < 0.1 * expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"alone": 1.1}, {"pointed": -0.1}, {"trust": 0.95}, {"trust": -0.1},
        {"haste": 1.0}, {"haste": float("nan")},
    ],
)  # fmt: skip
def test_impossible_habits_are_refused(wrong) -> None:
    with pytest.raises(InputError):
        dataclasses.replace(READER, **wrong)
