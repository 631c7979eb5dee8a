"""Doubt adds up, and conformal sets keep their promise where it holds."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn

from medimg_utils import results
from medimg_utils.challenges import uncertainty
from medimg_utils.challenges.uncertainty import Conformal
from medimg_utils.errors import InputError
from medimg_utils.splits import one_each


@given(arrays(np.float64, (4, 3), elements=st.floats(0, 1)))
def test_shared_doubt_and_disagreement_add_up(probabilities):
    shared, disagreement = uncertainty.decompose(probabilities)
    total = uncertainty.entropy(probabilities.mean(axis=0))
    assert np.allclose(shared + disagreement, total, atol=1e-9)
    assert (disagreement >= 0).all()


def test_members_that_agree_have_no_disagreement():
    _, disagreement = uncertainty.decompose(np.full((5, 2), 0.3))
    assert np.allclose(disagreement, 0)


def test_entropy_does_not_care_which_answer_is_called_yes():
    p = np.linspace(0, 1, 11)
    assert np.allclose(uncertainty.entropy(p), uncertainty.entropy(1 - p))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 1), nn.Flatten(0)
    ).eval()


def test_dropout_draws_differ_and_are_repeatable_and_leave_the_network_alone():
    one, images = network(), torch.ones(3, 1, 2, 2)
    state = torch.get_rng_state()
    first = uncertainty.mc_dropout(one, images, draws=6, seed=1)
    assert first.shape == (6, 3)
    assert np.ptp(first, axis=0).min() > 0
    assert np.array_equal(first, uncertainty.mc_dropout(one, images, draws=6, seed=1))
    assert not any(module.training for module in one.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_without_dropout_there_is_nothing_to_draw():
    with pytest.raises(InputError, match="no dropout"):
        uncertainty.mc_dropout(nn.Linear(1, 1), torch.ones(1, 1))


def test_errors_are_handed_over_in_the_order_of_doubt():
    wrong, doubt = [1, 0, 1, 0], [0.9, 0.1, 0.8, 0.2]
    found = uncertainty.error_kept(wrong, doubt, [1.0, 0.75, 0.5])
    assert np.allclose(found, [1 / 2, 1 / 3, 0])


def scores(count, random):
    labels = random.integers(0, 2, count)
    z = 1.5 * (2 * labels - 1) + 1.5 * random.standard_normal(count)
    return labels, 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("by_class", [False, True])
def test_coverage_follows_its_law(by_class):
    random, alpha, found = np.random.default_rng(0), 0.1, []
    for _ in range(400):
        fitted = Conformal.fit(*scores(100, random), alpha, by_class=by_class)
        found.append(fitted.covered(*scores(100, random)).mean())
    if not by_class:
        law = uncertainty.coverage_interval(100, 100, alpha)
        inside = np.mean([law.low <= one <= law.high for one in found])
        assert 0.92 < inside <= 1
        assert abs(np.mean(found) - law.value) < 0.01
    assert np.mean(found) > 1 - alpha - 0.01


def test_stored_scores_are_covered_as_the_law_says():
    test = results.load("pneumothorax-lab")["tests"]["unseen-patients"]
    films = [(one["label"], one["score"], one["patient"]) for one in test["cases"]]
    labels, probabilities, patients = map(np.array, zip(*films, strict=True))
    found = []
    for seed in range(200):
        drawn = one_each(patients, seed)
        half = len(drawn) // 2
        first, second = drawn[:half], drawn[half:]
        fitted = Conformal.fit(labels[first], probabilities[first], 0.1)
        found.append(fitted.covered(labels[second], probabilities[second]).mean())
    law = uncertainty.coverage_interval(half, len(drawn) - half, 0.1)
    inside = np.mean([law.low <= one <= law.high for one in found])
    assert law.low < np.mean(found) < law.high
    assert inside > 0.9


def test_a_limit_for_each_class_keeps_the_promise_for_the_few():
    random = np.random.default_rng(1)
    labels = (random.random(4000) < 0.1).astype(int)
    z = -2 + 2 * labels + random.standard_normal(4000)
    yes = 1 / (1 + np.exp(-z))
    half = np.arange(4000) % 2 == 0
    shares = {}
    for apart in (False, True):
        fitted = Conformal.fit(labels[half], yes[half], 0.1, by_class=apart)
        covered = fitted.covered(labels[~half], yes[~half])
        shares[apart] = covered[labels[~half] == 1].mean()
    assert shares[False] < 0.6
    assert shares[True] > 0.8


@given(st.integers(9, 400), st.sampled_from([0.1, 0.2]))
def test_expected_coverage_is_at_least_what_was_promised(count, alpha):
    a, b = uncertainty.coverage_shape(count, alpha)
    assert a + b == count + 1
    assert a / (a + b) >= 1 - alpha - 1e-12


def test_with_too_few_exams_every_set_holds_both():
    fitted = Conformal.fit([0, 1, 1], [0.2, 0.9, 0.8], 0.1)
    assert fitted.sets([0.01, 0.99]).all()
    with pytest.raises(InputError, match="At least 9 are needed"):
        uncertainty.coverage_shape(3, 0.1)


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="alpha is 1"):
        Conformal.fit([0], [0.5], 1)
    with pytest.raises(InputError, match="of one class"):
        Conformal.fit([1, 1], [0.5, 0.6], by_class=True)
