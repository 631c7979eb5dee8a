"""Collections hold what was asked for; training can be stopped and repeated."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medimg_utils.challenges import classifier, lab
from medimg_utils.challenges.films import SIDE, Films
from medimg_utils.errors import InputError


@pytest.fixture(scope="module", name="toy")
def _toy():
    """24 grey films of 12 patients; the sick have a dark corner, the drained a line."""
    random = np.random.default_rng(0)
    images = random.integers(100, 156, (24, 2, SIDE, SIDE)).astype(np.uint8)
    labels = np.arange(24) % 2
    lesions = np.zeros((24, SIDE, SIDE), bool)
    lesions[labels == 1, 8:40, 8:40] = True
    images = np.where(lesions[:, None], 20, images).astype(np.uint8)
    drains = np.zeros_like(lesions)
    drains[:, 60, 20:80] = True
    images[:, 1, 60, 20:80] = 250
    patients = np.array([f"P{k // 2}" for k in range(24)])
    return Films(images, labels, lesions, drains, patients)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 5))
def test_drains_are_as_frequent_as_asked(toy, without, with_air, seed):
    found = classifier.collect(toy, (without, with_air), seed)
    for label, rate in enumerate((without, with_air)):
        mine = found.labels == label
        assert found.drains[mine].sum() == round(rate * mine.sum())
    rows = np.arange(len(toy))
    assert np.array_equal(found.images, toy.images[rows, found.drains])


def test_a_rate_that_is_no_share_is_refused(toy):
    with pytest.raises(InputError, match="0 to 1"):
        classifier.collect(toy, (0.1, 1.2))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1))
def test_weights_make_every_cell_count_the_same(pairs):
    labels, drains = np.array(pairs).T
    weights = classifier.cell_weights(labels, drains)
    sums = [
        weights[(labels == a) & (drains == b)].sum()
        for a, b in {(int(a), int(b)) for a, b in pairs}
    ]
    assert np.allclose(sums, sums[0])
    assert weights.mean() == pytest.approx(1)


def test_reweighted_drains_tell_nothing():
    labels = np.array([0] * 95 + [0] * 5 + [1] * 10 + [1] * 90)
    drains = np.array([0] * 95 + [1] * 5 + [0] * 10 + [1] * 90)
    weights = classifier.cell_weights(labels, drains)
    shares = [
        np.average(drains[labels == k], weights=weights[labels == k]) for k in (0, 1)
    ]
    assert shares[0] == pytest.approx(shares[1])


def test_augmentation_moves_film_and_mask_together():
    torch.manual_seed(0)
    masks = torch.zeros(8, 1, SIDE, SIDE)
    masks[:, :, 20:30, 10:20] = 1
    images, moved = classifier.augment(masks.clone(), masks)
    for image, mask in zip(images, moved, strict=True):
        assert mask.sum() == 100
        assert image[mask > 0].min() > image[mask == 0].max()
    assert not torch.equal(moved, masks)


def test_the_answer_is_linear_in_the_features(toy):
    torch.manual_seed(0)
    network = classifier.FilmNet().eval()
    features = classifier.features_of(network, toy.images[:, 0])
    weight = network.head.weight.detach().numpy()[0]
    by_hand = features @ weight + float(network.head.bias.detach())
    found = classifier.logits_of(network, toy.images[:, 0]).numpy()
    assert np.allclose(found, by_hand, atol=1e-4)


def test_training_is_repeated_exactly_and_read_where_it_is_done(toy, tmp_path):
    recipe = classifier.Recipe("balanced", epochs=2, side_task=1.0)
    one, two = (
        classifier.train_classifier(toy, recipe, tmp_path / n, seed=3, progress=False)
        for n in ("one", "two")
    )
    written = (tmp_path / "one" / "best.safetensors").stat().st_mtime_ns
    again = classifier.train_classifier(
        toy, recipe, tmp_path / "one", seed=3, progress=False
    )
    assert (tmp_path / "one" / "best.safetensors").stat().st_mtime_ns == written
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
        assert torch.equal(value, again.state_dict()[name])
    assert not one.training
    other = replace(recipe, epochs=3)
    with pytest.raises(InputError, match="other settings"):
        classifier.train_classifier(
            toy, other, tmp_path / "one", seed=3, progress=False
        )


def test_blocks_are_taken_over_and_the_last_layer_is_new(toy, tmp_path):
    torch.manual_seed(1)
    start = classifier.FilmNet()
    recipe = classifier.Recipe("shortcut", epochs=1, learning_rate=0.0)
    found = classifier.train_classifier(
        toy, recipe, tmp_path / "run", start=start, progress=False
    )
    for name, value in found.blocks.state_dict().items():
        assert torch.equal(value, start.blocks.state_dict()[name])
    assert not torch.equal(found.head.weight, start.head.weight)


def test_films_to_memorise_are_one_a_patient_with_labels_that_tell_nothing(toy):
    found = classifier.memorised_films(toy, lab.RANDOM_LABELS)
    assert sorted(found.patients) == sorted(set(toy.patients))
    again = classifier.memorised_films(toy, lab.RANDOM_LABELS)
    assert np.array_equal(found.images, again.images)
    agree = [
        np.mean(found.labels == found.lesions.any(axis=(1, 2)))
        for found in (
            classifier.memorised_films(toy, lab.RANDOM_LABELS, seed)
            for seed in range(40)
        )
    ]
    assert 0.4 < np.mean(agree) < 0.6


def test_shuffled_labels_are_learned_by_heart(toy, tmp_path):
    recipe = replace(lab.RANDOM_LABELS, epochs=60, learning_rate=3e-3)
    network = classifier.train_classifier(toy, recipe, tmp_path / "run", progress=False)
    learned = classifier.memorised_films(toy, recipe)
    logits = classifier.logits_of(network, learned.images)
    assert np.array_equal(logits.numpy() > 0, learned.labels == 1)


def test_no_patient_is_learned_from_and_measured(toy):
    parts = lab.split_films(toy)
    assert not set(parts["train"].patients) & set(parts["test"].patients)
    assert len(parts["train"]) + len(parts["test"]) == len(toy)


def test_the_cascade_names_all_that_the_network_has_learned():
    network = classifier.FilmNet()
    for name, _ in network.named_parameters():
        assert name.startswith((*lab.CASCADE, "where")), name


@given(st.lists(st.integers(0, 3), min_size=4, max_size=30), st.integers(0, 9))
def test_an_audit_takes_one_film_a_patient_and_fills_the_cells_alike(twins, seed):
    patients = np.repeat(np.arange(len(twins)), [2 * (1 + k) for k in twins])
    labels = np.arange(len(patients)) % 2  # everybody has films of both labels
    rows, drains = classifier.audit(labels, patients, seed)
    assert sorted(patients[rows]) == list(range(len(twins)))
    cells = np.bincount(2 * labels[rows] + drains, minlength=4)
    assert cells.max() - cells.min() <= 1


def test_who_has_films_of_one_label_stays_with_it():
    labels, patients = np.array([0, 0, 1, 1]), np.array(["a", "a", "b", "b"])
    for seed in range(8):
        rows, _ = classifier.audit(labels, patients, seed)
        assert set(zip(patients[rows], labels[rows], strict=True)) == {
            ("a", 0), ("b", 1),
        }  # fmt: skip


def test_an_audit_sees_a_shortcut_that_a_plain_sample_hides():
    random = np.random.default_rng(0)
    patients = np.repeat(np.arange(400), 2)
    labels = np.tile([0, 1], 400)
    called = np.stack([np.zeros(800), np.ones(800)], axis=1)  # a drain says yes
    rows, drains = classifier.audit(labels, patients)
    wrong = called[rows, drains] != labels[rows]
    assert wrong.mean() == pytest.approx(0.5, abs=0.01)
    usual = (random.random(800) < np.where(labels, 0.9, 0.05)).astype(int)
    assert (called[np.arange(800), usual] != labels).mean() < 0.1
