"""Shifts change the picture as they say; strange films are told from usual ones."""

import numpy as np
import pytest

from medimg_utils.challenges import shift
from medimg_utils.challenges.shift import Familiar
from medimg_utils.errors import InputError


@pytest.fixture(scope="module", name="films")
def _films():
    rows, columns = np.mgrid[:48, :48] / 47
    films = [0.5 + 0.4 * np.sin(4 * rows + k) * np.cos(5 * columns) for k in range(3)]
    return np.round(255 * np.stack(films)).astype(np.uint8)


def alike(one, other):
    return np.corrcoef(one.ravel().astype(float), other.ravel())[0, 1]


@pytest.mark.parametrize("name", shift.SHIFTS)
def test_a_shift_keeps_the_form_and_leaves_its_input_alone(films, name):
    before = films.copy()
    changed = shift.SHIFTS[name](films)
    assert changed.shape == films.shape
    assert changed.dtype == np.uint8
    assert np.array_equal(films, before)
    assert not np.array_equal(changed, films)


def test_inverted_turns_dark_into_bright(films):
    assert alike(films, shift.inverted(films)) < -0.95


def test_another_contrast_keeps_the_order_of_grey_values(films):
    changed = shift.darker(films)
    order = np.argsort(films[0], axis=None, kind="stable")
    assert (np.diff(changed[0].ravel()[order].astype(int)) >= 0).all()


def test_upside_down_twice_is_nothing(films):
    assert np.array_equal(shift.upside_down(shift.upside_down(films)), films)


def test_blur_removes_and_noise_adds_detail(films):
    def detail(images):
        return np.abs(np.diff(images.astype(float), axis=-1)).mean()

    assert detail(shift.noisy(films)) > detail(films)
    grainy = shift.noisy(films)
    assert detail(shift.blurred(grainy)) < detail(grainy)


def test_usual_features_are_one_away_and_strange_ones_more():
    random = np.random.default_rng(0)
    mixing = random.standard_normal((5, 5))
    usual = random.standard_normal((2000, 5)) @ mixing + 3
    familiar = Familiar.fit(usual)
    assert np.sqrt((familiar.distance(usual) ** 2).mean()) == pytest.approx(1, abs=0.05)
    assert familiar.distance(usual + 4 * mixing[0]).mean() > 1.5


def test_distance_does_not_care_for_units():
    random = np.random.default_rng(1)
    usual, new = random.standard_normal((5000, 3)), random.standard_normal((4, 3))
    here = Familiar.fit(usual).distance(new)
    there = Familiar.fit(10 * usual + 1).distance(10 * new + 1)
    assert np.allclose(here, there, rtol=1e-3)


def test_features_that_are_not_numbers_are_refused():
    with pytest.raises(InputError, match="finite"):
        Familiar.fit([[0.0, np.nan], [1.0, 2.0]])
    with pytest.raises(InputError, match="finite"):
        Familiar.fit([[0.0, 1.0]])


def test_energy_falls_with_certainty_of_either_answer():
    energy = shift.energy([-4.0, -1.0, 0.0, 1.0, 4.0])
    assert energy.argmax() == 2
    assert np.allclose(energy, energy[::-1])
