import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medimg_utils.challenges import comparison
from medimg_utils.errors import InputError


def table(seed: int, seeds: int, patients: int, spread=(0.03, 0.05, 0.04), shift=0.0):
    """Differences with known variances by seed, by patient, and rest."""
    random = np.random.default_rng(seed)
    by_seed, by_patient, rest = spread
    return (
        shift
        + random.normal(0, by_seed, (seeds, 1))
        + random.normal(0, by_patient, (1, patients))
        + random.normal(0, rest, (seeds, patients))
    )


def test_components_of_a_table_by_hand() -> None:
    # rows 1 and 5, columns 2 and 4, no rest: variances 8 and 2
    assert comparison.components([[0, 2], [4, 6]]) == (8, 2, 0)
    # crossed: no mean differs, all is rest: (1 + 1 + 1 + 1) / 1
    assert comparison.components([[1, -1], [-1, 1]]) == (0, 0, 4)


def test_components_are_right_on_average() -> None:
    found = np.mean(
        [comparison.components(table(k, 12, 30)) for k in range(300)], axis=0
    )
    np.testing.assert_allclose(found, np.square([0.03, 0.05, 0.04]), rtol=0.1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-1, 1))
def test_a_shift_moves_the_interval_and_nothing_else(seed: int, shift: float) -> None:
    one = table(seed, 4, 9)
    first, second = comparison.interval(one), comparison.interval(one + shift)
    np.testing.assert_allclose(np.subtract(second, first), shift, atol=1e-9)
    mirrored = comparison.interval(-one)
    np.testing.assert_allclose(
        mirrored, [-first.value, -first.high, -first.low], atol=1e-12
    )


def test_with_patients_alone_it_is_the_interval_of_a_t_test() -> None:
    # The seeds agree to the last digit, so only patients are drawn.
    row = np.random.default_rng(0).normal(0.02, 0.05, 40)
    found = comparison.interval(np.tile(row, (3, 1)))
    expected = stats.ttest_1samp(row, 0).confidence_interval()
    np.testing.assert_allclose(found[1:], expected, rtol=1e-6)


def test_with_seeds_alone_it_is_the_interval_of_a_t_test() -> None:
    column = np.array([0.01, 0.03, 0.02, 0.06])
    found = comparison.interval(np.tile(column[:, None], (1, 25)))
    expected = stats.ttest_1samp(column, 0).confidence_interval()
    np.testing.assert_allclose(found[1:], expected, rtol=1e-6)


def test_with_patients_alone_it_is_the_p_value_of_a_t_test() -> None:
    row = np.random.default_rng(0).normal(0.02, 0.05, 40)
    expected = stats.ttest_1samp(row, 0).pvalue
    assert comparison.p_value(np.tile(row, (3, 1))) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.floats(0.5, 0.999))
def test_the_interval_excludes_zero_where_the_p_value_is_small(
    seed: int, level: float
) -> None:
    one = table(seed, 4, 9, shift=0.05)
    found = comparison.interval(one, level)
    assert (found.low * found.high > 0) == (comparison.p_value(one) < 1 - level)


def test_differences_that_never_vary_are_certain() -> None:
    assert comparison.p_value(np.zeros((2, 3))) == 1
    assert comparison.p_value(np.full((2, 3), 0.125)) == 0


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    inside = []
    for k in range(400):
        low, high = comparison.interval(table(k, 5, 30, shift=0.01))[1:]
        inside.append(low <= 0.01 <= high)
    # 95 % within three standard errors of the count; a little more is no harm
    assert np.mean(inside) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400)


def test_patients_alone_promise_too_much() -> None:
    inside = []
    for k in range(200):
        row = table(k, 1, 30, spread=(0.05, 0.05, 0.02))[0]
        low, high = stats.ttest_1samp(row, 0).confidence_interval()
        inside.append(low <= 0 <= high)
    assert np.mean(inside) < 0.6


def test_the_standard_error_is_that_of_replayed_studies() -> None:
    one = table(3, 8, 60)
    error = comparison.replay(one, 6, 40, draws=4000).std()
    # a bootstrap takes the spread of what is stored as that of all there is
    rows, columns = one.mean(axis=1).var(), one.mean(axis=0).var()
    rest = (one - one.mean(1, keepdims=True) - one.mean(0) + one.mean()).var()
    expected = np.sqrt(rows / 6 + columns / 40 + rest / 240)
    assert error == pytest.approx(expected, rel=0.05)


def mean_of(one):
    """A statistic for `jackknife`: the mean of a table."""
    return lambda s, k: one[np.ix_(s, k)].mean()


def held(intervals, truth: float) -> float:
    return float(np.mean([low <= truth <= high for _, low, high in intervals]))


def at_least(level: float, count: int) -> float:
    """The share less three standard errors of a count of so many studies."""
    return level - 3 * np.sqrt(level * (1 - level) / count)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), seeds=st.integers(2, 6), patients=st.integers(2, 20))
def test_of_a_mean_the_jackknife_gives_the_interval_of_its_table(
    seed: int, seeds: int, patients: int
) -> None:
    one = table(seed, seeds, patients, shift=0.3)
    found = comparison.jackknife(mean_of(one), seeds, np.arange(patients))
    np.testing.assert_allclose(found, comparison.interval(one), rtol=1e-8)


def test_blocks_of_patients_say_what_single_patients_say() -> None:
    wide = [
        np.ptp(comparison.jackknife(mean_of(one), 5, np.arange(90))[1:])
        / np.ptp(comparison.interval(one)[1:])
        for one in (table(k, 5, 90, (0.005, 0.05, 0.04)) for k in range(200))
    ]
    # twenty blocks have fewer degrees of freedom than ninety patients
    assert 1 < np.mean(wide) < 1.1


@pytest.mark.parametrize("spread", [(0.05, 0.05, 0.02), (0.005, 0.1, 0.04)])
def test_the_jackknife_holds_the_truth_as_often_as_it_says(spread) -> None:
    found = []
    for k in range(300):
        one = table(k, 5, 40, spread)
        found.append(
            comparison.jackknife(
                lambda s, p, one=one: np.exp(one[np.ix_(s, p)].mean()), 5, np.arange(40)
            )
        )
    assert held(found, 1.0) >= at_least(0.95, 300)


def test_an_auc_of_a_few_seeds_is_held_as_often_as_it_says() -> None:
    """Networks differ by how far they part the classes, patients by their scores."""
    random, labels = np.random.default_rng(4), np.repeat([0, 1], 30)
    parted = random.normal(1, 0.4, 200_000)
    truth = float(stats.norm.cdf(parted / np.sqrt(2 * 1.25)).mean())

    def study():
        scores = random.normal(1, 0.4, (5, 1)) * labels + random.normal(0, 1, 60)
        scores += random.normal(0, 0.5, (5, 60))
        above = scores[:, 30:, None] > scores[:, None, :30]

        def area(s, k):
            ill, well = k[k >= 30] - 30, k[k < 30]
            return above[np.ix_(s, ill, well)].mean()

        return comparison.jackknife(area, 5, np.arange(60))

    assert held([study() for _ in range(250)], truth) >= at_least(0.95, 250)


def test_patients_alone_do_not_hold_for_other_seeds() -> None:
    found = []
    for k in range(150):
        row = table(k, 5, 40, spread=(0.02, 0.05, 0.04)).mean(axis=0)
        found.append((0, *stats.ttest_1samp(row, 0).confidence_interval()))
    assert held(found, 0) < 0.8


def test_images_of_one_patient_are_left_out_together() -> None:
    met = []

    def mean(seeds, images):
        met.append(tuple(images.tolist()))
        return float(images.sum() + seeds.sum())

    comparison.jackknife(mean, 2, ["b", "a", "b", "a"])
    assert set(met) == {(0, 1, 2, 3), (0, 2), (1, 3)}


def test_images_of_patients_keep_their_mean_and_count_as_one() -> None:
    one = table(6, 3, 30)
    names = [f"{k:02d}" for k in range(30)]
    np.testing.assert_allclose(comparison.of_patients(one, names), one)
    several = np.repeat(one, 4, axis=1)
    found = comparison.of_patients(several, np.repeat(names, 4))
    np.testing.assert_allclose(found, one)
    uneven = np.array([[1.0, 1.0, 1.0, 5.0]])  # three images of one, one of the other
    joined = comparison.of_patients(uneven, ["a", "a", "a", "b"])
    np.testing.assert_allclose(joined, [[0.5, 3.5]])  # by hand; the mean is still 2
    by_jackknife = comparison.jackknife(
        mean_of(np.repeat(one, 2, axis=1)), 3, np.repeat(np.arange(30), 2), blocks=30
    )
    np.testing.assert_allclose(by_jackknife, comparison.interval(one))


def test_every_point_of_a_curve_has_its_own_ends() -> None:
    one = table(5, 4, 30)

    def curve(s, k):
        mean = mean_of(one)(s, k)
        return [mean, 2 * mean, np.nan if len(s) < 4 else mean]

    found = comparison.jackknife(curve, 4, np.arange(30))
    assert found.shape == (3, 3)
    np.testing.assert_allclose(found[:, 1], 2 * found[:, 0])
    # what cannot be told without a seed has no ends
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1:, 2]).all()


def test_ends_stay_within_their_bounds() -> None:
    one = np.array([[1.0, 0.9, 0.7], [1.0, 0.8, 1.0]])
    free, clipped = (
        comparison.interval(one, bounds=bounds) for bounds in ((-9, 9), (0, 1))
    )
    assert free.high > 1
    assert clipped == (free.value, free.low, 1)
    again = comparison.jackknife(mean_of(one), 2, np.arange(3), bounds=(0, 1))
    np.testing.assert_allclose(again, clipped)


def test_what_never_moves_has_no_width() -> None:
    found = comparison.jackknife(lambda s, k: 0.1, 3, np.arange(7))
    np.testing.assert_allclose(found, 0.1, rtol=1e-12)


def test_replayed_studies_repeat_themselves() -> None:
    one = table(0, 3, 5)
    again = [comparison.replay(one, 2, 4, draws=9, seed=5) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert not np.array_equal(again[0], comparison.replay(one, 2, 4, draws=9, seed=6))


# Studies of one sample against 0, two-sided 5 %, power 80 %: Cohen (1988), and every
# calculator of sample sizes since.
@pytest.mark.parametrize(
    ("effect", "size"), [(0.2, 199), (0.5, 34), (0.8, 15), (1, 10)]
)
def test_the_needed_seeds_are_those_of_published_tables(effect, size) -> None:
    by_seed = comparison.Components(0.04, 0, 0)
    assert comparison.seeds_needed(by_seed, 0.2 * effect, patients=50) == size


def test_two_seeds_are_the_fewest() -> None:
    clear = comparison.Components(1e-9, 1e-9, 1e-9)
    assert comparison.seeds_needed(clear, 0.5, patients=30) == 2


@pytest.mark.parametrize("patients", [20, 100])
def test_the_needed_seeds_are_the_fewest_that_suffice(patients: int) -> None:
    parts, difference = comparison.Components(0.0004, 0.0009, 0.002), 0.03
    needed = comparison.seeds_needed(parts, difference, patients)

    def power(seeds: int) -> float:
        """Share of drawn studies whose interval lies above 0."""
        spread = np.sqrt(parts)
        found = [
            comparison.interval(table(k, seeds, patients, spread, difference)).low > 0
            for k in range(700)
        ]
        return float(np.mean(found))

    assert needed is not None
    # three standard errors of such a share are 0.045
    assert power(needed) >= 0.8 - 0.045
    assert power(needed - 1) < 0.8 + 0.045


def test_the_chance_to_find_nothing_is_the_error_of_one_side() -> None:
    parts = comparison.Components(0.0004, 0.0009, 0.002)
    assert comparison.chance_to_find(parts, 0, 5, 50) == pytest.approx(0.025)
    assert comparison.seeds_needed(parts, 0, patients=50) is None
    certain = comparison.Components(0, 0, 0)
    assert comparison.chance_to_find(certain, 0.01, 2, 2) == 1
    assert comparison.chance_to_find(certain, 0, 2, 2) == 0


def test_no_number_of_seeds_replaces_patients() -> None:
    parts = comparison.Components(0.0001, 0.01, 0.001)
    assert comparison.seeds_needed(parts, 0.01, patients=20) is None
    assert comparison.seeds_needed(parts, 0.01, patients=5000) is not None
    assert parts.standard_error(10**9, 20) >= np.sqrt(0.01 / 20)


def test_the_wrong_choice_is_a_coin_where_nothing_differs() -> None:
    assert comparison.wrong_choice(0, 0.1) == 0.5
    assert comparison.wrong_choice(0, 0) == 0.5
    assert comparison.wrong_choice(0.1, 0) == 0
    assert comparison.wrong_choice(-0.2, 0.1) == pytest.approx(stats.norm.cdf(-2))


def test_the_largest_of_equals_is_as_simulated() -> None:
    random = np.random.default_rng(0)
    for count in (1, 5, 40):
        seen = random.normal(size=(20_000, count)).max(axis=1).mean()
        assert comparison.expected_maximum(count) == pytest.approx(seen, abs=0.02)


def test_luck_is_told_and_vanishes_on_fresh_patients() -> None:
    equal = np.random.default_rng(1).normal(0.7, 0.1, (20, 300))
    told, fresh, (low, high) = comparison.choose_the_best(equal, 20)
    luck = comparison.expected_maximum(20) * 0.1 / np.sqrt(20)
    assert told - 0.7 == pytest.approx(luck, rel=0.15)
    assert fresh == pytest.approx(0.7, abs=0.01)
    assert 0 < low < told - fresh < high  # among so many equals hardly a choice is fair


def test_a_single_network_cannot_be_overrated() -> None:
    one = np.random.default_rng(2).normal(0.7, 0.1, (1, 100))
    told, fresh, (low, high) = comparison.choose_the_best(one, 50, draws=3000)
    assert told == pytest.approx(fresh, abs=0.002)
    spread = 1.96 * one.std() * np.sqrt(1 / 50 + 1 / 50)  # both halves of 100 patients
    assert (low, high) == pytest.approx((-spread, spread), rel=0.15)


def test_a_much_better_network_is_always_found() -> None:
    scores = np.vstack([np.full(30, 0.9), np.full(30, 0.5)])
    assert comparison.choose_the_best(scores, 3)[:2] == pytest.approx((0.9, 0.9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: comparison.components([[1, 2]]), "at least two seeds"),
        (lambda: comparison.components([1, 2]), "shape"),
        (lambda: comparison.interval([[1, 2], [3, np.nan]]), "not finite"),
        (lambda: comparison.replay([[1], [2]], 1, 1), "two patients"),
        (lambda: comparison.jackknife(lambda s, k: 0, 1, ["a", "b"]), "1 seeds"),
        (lambda: comparison.jackknife(lambda s, k: 0, 3, ["a", "a"]), "1 patients"),
        (lambda: comparison.Components(1, 1, 1).standard_error(0, 3), "0 seeds"),
        (
            lambda: comparison.chance_to_find(comparison.Components(1, 1, 1), 1, 1, 9),
            "1 seeds and 9 patients",
        ),
        (lambda: comparison.choose_the_best([[1, 2]], 2), "give 1 to 1"),
        (lambda: comparison.expected_maximum(0), "0 numbers"),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
