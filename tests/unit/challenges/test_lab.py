"""What the stored result of the black box must show."""

import numpy as np
import pytest

from medimg_utils import metrics, pretrained, results
from medimg_utils.challenges import attribution, classifier, lab, shift
from medimg_utils.release import digest_of


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
    for method in ("integrated gradients", "occlusion"):
        shortcut, balanced = (
            np.array(stored["drains"][arm]["maps"][method])
            for arm in ("shortcut", "balanced")
        )
        assert shortcut.mean() > 1.5 * balanced.mean(), method
        assert attribution.mean_of(shortcut - balanced).low > 0, method


def test_the_checks_tell_the_methods_apart(stored):
    sanity = stored["sanity"]
    passed = {
        name: attribution.sanity_checks(
            sanity["another seed"][name], sanity["forgotten"][-1][name], by_heart
        ).passed()
        for name, by_heart in sanity["random labels"].items()
    }
    assert passed["edges"] == (True, False, False)
    assert len(set(passed.values())) > 1
    assert any(all(one) for one in passed.values())


def test_shuffled_labels_were_learned_by_heart_and_nothing_else(stored):
    by_heart = stored["by_heart"]
    assert min(by_heart["shuffled"]) > 0.98
    assert 0.4 < np.mean(by_heart["new"]) < 0.6


def test_tables_are_of_different_patients(stored):
    seeds = len(lab.SEEDS)
    for part in (
        stored["attribution"], stored["sanity"], *stored["drains"].values()
    ):  # fmt: skip
        assert len(set(part["patients"])) == len(part["patients"])
    people = len(stored["attribution"]["patients"])
    for name, one in stored["attribution"]["maps"].items():
        rows = len(one["pointing"])
        blind = name in ("edges", "centre", "usual place", "anywhere")
        assert np.array(one["inside"]).shape == (rows, people)
        assert rows == (1 if blind else seeds)


def test_every_shift_and_every_film_is_there(stored):
    assert {"none", *shift.SHIFTS} <= set(stored["shift"])
    films = len(stored["test"]["labels"])
    for name, one in stored["shift"].items():
        assert np.array(one["distance"]).shape == np.array(one["logits"]).shape
        if name != "another CT":
            assert np.array(one["logits"]).shape[1] == films
    assert np.array(stored["dropout"]["probabilities"]).shape == (len(lab.SEEDS), films)


def test_shipped_networks_are_small_and_answer():
    for part in ("shortcut", "balanced"):
        path = pretrained.find(classifier.SHIPPED, part)
        assert path.stat().st_size < 200_000
        logits = classifier.logits_of(
            classifier.shipped(part), np.zeros((1, 96, 96), np.uint8)
        )
        assert np.isfinite(logits.numpy()).all()


def test_the_stored_maps_are_those_of_the_shipped_network():
    stored = results.load(lab.MAPS)
    assert stored["network"] == digest_of(pretrained.find("pneumothorax-lab"))
    for measured in stored["maps"].values():
        assert {len(column) for column in measured.values()} == {stored["about"]["n"]}
    assert stored["maps"].keys() >= {"saliency", "Grad-CAM", "its own map", "centre"}
