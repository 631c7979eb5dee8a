"""What the stored result of the black box must show."""

import numpy as np
import pytest

from medimg_utils import metrics, pretrained, results
from medimg_utils.challenges import classifier, lab, shift


@pytest.fixture(scope="module", name="stored")
def _stored():
    return results.load(lab.NAME)


def area(stored, arm, drains):
    labels = np.array(stored["test"]["labels"])
    logits = np.array(stored["test"]["logits"][arm])
    chosen = np.where(labels == 1, drains[1], drains[0])
    rows = np.arange(len(labels))
    return np.mean([metrics.auc(labels, one[rows, chosen]) for one in logits])


def test_the_usual_test_rewards_the_shortcut(stored):
    with_drains = (0, 1)
    gain = area(stored, "shortcut", with_drains) - area(stored, "balanced", with_drains)
    assert gain > 0.05


def test_the_shortcut_costs_what_matters(stored):
    usual, emergency, against = (
        area(stored, "shortcut", drains) for drains in ((0, 1), (0, 0), (1, 0))
    )
    assert emergency < usual - 0.1
    assert against < 0.5


@pytest.mark.parametrize("arm", ["reweighted", "balanced"])
def test_the_repairs_help_where_drains_mislead(stored, arm):
    assert area(stored, arm, (1, 0)) > area(stored, "shortcut", (1, 0)) + 0.05


def test_drains_draw_the_maps_of_the_shortcut(stored):
    for method in ("integrated gradients", "Grad-CAM", "occlusion"):
        mass = {
            arm: np.mean(one["maps"][method]) for arm, one in stored["drains"].items()
        }
        assert mass["shortcut"] > 1.5 * mass["balanced"], method


def test_the_checks_tell_the_methods_apart(stored):
    forgotten = {k: np.mean(v) for k, v in stored["sanity"]["forgotten"][-1].items()}
    assert forgotten["edges"] == 1
    others = [value for name, value in forgotten.items() if name != "edges"]
    assert max(others) < 1
    assert max(others) - min(others) > 0.1


def test_every_shift_and_every_film_is_there(stored):
    assert {"none", *shift.SHIFTS} <= set(stored["shift"])
    films = len(stored["test"]["labels"])
    for name, one in stored["shift"].items():
        if name != "another CT":
            assert np.array(one["logits"]).shape[1] == films
    assert np.array(stored["dropout"]["probabilities"]).shape[1] == films


def test_shipped_networks_are_small_and_answer():
    for part in ("shortcut", "balanced"):
        path = pretrained.find(classifier.SHIPPED, part)
        assert path.stat().st_size < 200_000
        logits = classifier.logits_of(
            classifier.shipped(part), np.zeros((1, 96, 96), np.uint8)
        )
        assert np.isfinite(logits.numpy()).all()
