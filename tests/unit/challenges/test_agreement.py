import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from medimg_utils.challenges import agreement
from medimg_utils.challenges.agreement import Reader
from medimg_utils.errors import InputError
from medimg_utils.metrics import dice

Y, X = np.mgrid[:96, :96]
DISC = np.hypot(Y - 40, X - 50) < 20
SPECK = np.hypot(Y - 85, X - 12) < 3


def test_a_faultless_reader_draws_the_truth() -> None:
    drawn = agreement.draw(DISC | SPECK, Reader("exact"), np.random.default_rng(0))
    assert (drawn == (DISC | SPECK)).all()


@pytest.mark.parametrize("bias", [-3, 2, 5])
def test_a_size_bias_moves_the_outline_by_so_many_pixels(bias: int) -> None:
    reader = Reader("biased", size_bias=bias)
    drawn = agreement.draw(DISC, reader, np.random.default_rng(0))
    radius = np.sqrt(drawn.sum() / np.pi) - np.sqrt(DISC.sum() / np.pi)
    assert radius == pytest.approx(bias, abs=0.4)


def test_jitter_moves_the_outline_and_not_its_mean() -> None:
    random = np.random.default_rng(0)
    drawn = [agreement.draw(DISC, Reader("shaky", jitter=2), random) for _ in range(60)]
    overlap = np.mean([dice(one, DISC) for one in drawn])
    assert 0.85 < overlap < 0.98
    assert np.mean([one.sum() for one in drawn]) == pytest.approx(DISC.sum(), rel=0.05)


def test_small_findings_are_overlooked_more_often() -> None:
    reader, random = Reader("hasty", overlooked=100), np.random.default_rng(0)
    drawn = [agreement.draw(DISC | SPECK, reader, random) for _ in range(400)]
    seen = np.mean([[(one & part).any() for part in (DISC, SPECK)] for one in drawn], 0)
    areas = np.array([DISC.sum(), SPECK.sum()])
    assert seen == pytest.approx(areas / (areas + 100), abs=0.09)  # 3.5 errors


def test_invented_findings_come_at_their_rate() -> None:
    reader, random = Reader("eager", invented=0.3), np.random.default_rng(0)
    empty = np.zeros((96, 96))
    found = [agreement.draw(empty, reader, random).any() for _ in range(400)]
    assert np.mean(found) == pytest.approx(0.3, abs=0.08)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), answers=st.integers(2, 4))
def test_cohens_kappa_is_that_of_scikit_learn(seed: int, answers: int) -> None:
    random = np.random.default_rng(seed)
    first = random.integers(0, answers, 40)
    second = np.where(random.random(40) < 0.6, first, random.integers(0, answers, 40))
    expected = cohen_kappa_score(first, second)
    assert agreement.cohen_kappa(first, second) == pytest.approx(expected)


def test_kappa_by_hand() -> None:
    # 50 exams: both yes 20, only the first 5, only the second 10, both no 15.
    first = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    second = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    # p_o = 0.7; p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    assert agreement.cohen_kappa(first, second) == pytest.approx(0.4)
    # Fleiss pools: p(yes) = 55 / 100, p_e = 0.55² + 0.45² = 0.505
    counts = np.stack([first + second, 2 - first - second], axis=1)
    expected = (0.7 - 0.505) / (1 - 0.505)
    assert agreement.fleiss_kappa(counts) == pytest.approx(expected)


def test_fleiss_by_hand_with_three_readers() -> None:
    counts = [[3, 0], [2, 1], [1, 2], [0, 3]]
    # agreeing pairs of 6: 6, 2, 2, 6 -> mean 2/3; p = 1/2 each, chance 1/2
    assert agreement.fleiss_kappa(counts) == pytest.approx((2 / 3 - 1 / 2) / (1 / 2))


def test_kappa_of_chance_is_none_and_of_unanimity_undefined() -> None:
    random = np.random.default_rng(0)
    first, second = random.integers(0, 2, (2, 20_000))
    assert agreement.cohen_kappa(first, second) == pytest.approx(0, abs=0.03)
    assert np.isnan(agreement.cohen_kappa([1, 1], [1, 1]))
    assert np.isnan(agreement.fleiss_kappa([[3, 0], [3, 0]]))


def three_masks() -> np.ndarray:
    random = np.random.default_rng(5)
    readers = (
        Reader("wide", size_bias=3, jitter=1.5),
        Reader("narrow", size_bias=-3, jitter=1.5),
        Reader("shaky", jitter=3),
    )
    return np.array([agreement.draw(DISC, one, random) for one in readers])


def test_staple_is_that_of_simpleitk() -> None:
    masks = three_masks()
    ours = agreement.staple(masks, tolerance=1e-10)
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in masks]
    library = sitk.STAPLEImageFilter()
    library.SetForegroundValue(1)
    theirs = sitk.GetArrayFromImage(library.Execute(images))
    assert ours.probability == pytest.approx(theirs, abs=1e-4)
    assert ours.sensitivity == pytest.approx(library.GetSensitivity(), abs=1e-4)
    assert ours.specificity == pytest.approx(library.GetSpecificity(), abs=1e-4)


def test_staple_finds_the_rates_of_independent_readers() -> None:
    random = np.random.default_rng(0)
    p, q = np.array([0.95, 0.8, 0.6, 0.9]), np.array([0.98, 0.9, 0.95, 0.85])
    truth = random.random(60_000) < 0.3
    chance = np.where(truth, p[:, None], 1 - q[:, None])
    found = agreement.staple(random.random(chance.shape) < chance, prior=0.3)
    assert found.sensitivity == pytest.approx(p, abs=0.015)
    assert found.specificity == pytest.approx(q, abs=0.015)
    right = np.mean((found.probability >= 0.5) == truth)
    assert right > 0.96


def test_staple_does_not_depend_on_the_order_of_readers_or_pixels() -> None:
    masks = three_masks()
    one = agreement.staple(masks)
    other = agreement.staple(masks[::-1, ::-1])
    assert other.probability[::-1] == pytest.approx(one.probability)
    assert other.sensitivity[::-1] == pytest.approx(one.sensitivity)


def test_equal_masks_are_the_truth() -> None:
    found = agreement.staple([DISC, DISC, DISC])
    assert ((found.probability >= 0.5) == DISC).all()
    assert found.sensitivity == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: agreement.staple([DISC]), "two or more"),
        (lambda: agreement.staple(np.zeros((3, 4, 4))), "nothing to estimate"),
        (lambda: agreement.cohen_kappa([1], [1, 0]), "lists alike"),
        (lambda: agreement.fleiss_kappa([[2, 1], [1, 1]]), "2 to 3 readers"),
        (lambda: agreement.fleiss_kappa([[1, 0]]), "at least two"),
        (lambda: agreement.fleiss_kappa([1, 2]), "expected"),
        (lambda: Reader("bad", jitter=-1), "bad: jitter"),
        (lambda: Reader("bad", invented=2), "probability"),
        (
            lambda: agreement.draw(np.zeros(4), Reader("x"), np.random.default_rng()),
            "expected",
        ),
    ],
)
def test_wrong_input_is_refused(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()
