"""The six defects are found, each by its own test, and a sound pipeline keeps its word."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medimg_utils.challenges import broken
from medimg_utils.errors import InputError

STEPS = ["join", "split", "window", "scale", "augment", "predict"]


def join(names, table):
    rows = {name: row for row, name in enumerate(table)}
    return [rows[name] for name in names]


def split(patients, seed):
    names = np.unique(patients)
    test = np.random.default_rng(seed).permutation(names)[: len(names) // 3]
    return np.isin(patients, test)


def window(image, mask):
    low, high = np.quantile(image, [0.02, 0.98])
    return (image - low) / (high - low)


def scale(training, others):
    mean, spread = training.mean(), training.std()
    return (training - mean) / spread, (others - mean) / spread


def augment(image, mask, flip):
    return (image.flip(-1), mask.flip(-1)) if flip else (image, mask)


def predict(network, images):
    network.eval()
    with torch.no_grad():
        return network(images).sigmoid()


SOUND = broken.Pipeline(join, split, window, scale, augment, predict)


def test_every_step_of_the_broken_pipeline_is_red():
    found = broken.examine(broken.BROKEN)
    assert [symptom.step for symptom in found] == STEPS
    assert not any(symptom.green for symptom in found)


@pytest.mark.parametrize("seed", [0, 5])
def test_every_step_of_a_sound_pipeline_is_green(seed):
    assert all(symptom.green for symptom in broken.examine(SOUND, seed))


@pytest.mark.parametrize("step", STEPS)
def test_repairing_a_step_turns_this_one_green_and_no_other(step):
    repaired = replace(broken.BROKEN, **{step: getattr(SOUND, step)})
    green = {symptom.step for symptom in broken.examine(repaired) if symptom.green}
    assert green == {step}


def test_a_step_that_does_nothing_is_no_repair():
    lazy = {
        "split": lambda patients, seed: np.zeros(len(patients), bool),
        "window": lambda image, mask: np.zeros_like(image),
        "scale": lambda training, others: (training, others),
        "augment": lambda image, mask, flip: (image, mask),
    }
    for step, function in lazy.items():
        found = {s.step: s for s in broken.examine(replace(SOUND, **{step: function}))}
        assert not found[step].green, step


def test_a_sound_pipeline_keeps_its_word_and_the_broken_one_does_not():
    claims = {
        name: [broken.outcome(pipeline, seed) for seed in (0, 1)]
        for name, pipeline in (("sound", SOUND), ("broken", broken.BROKEN))
    }
    later = {
        name: np.mean([o.next_year for o in some]) for name, some in claims.items()
    }
    gap = {
        name: np.mean([abs(o.claimed - o.next_year) for o in some])
        for name, some in claims.items()
    }
    assert later["sound"] > 0.85
    assert later["sound"] > later["broken"] + 0.1
    assert gap["sound"] < gap["broken"]


def test_the_archive_follows_from_its_seed_and_patients_stay_sick():
    one, again, other = broken.archive(), broken.archive(), broken.archive(seed=1)
    assert all(
        np.array_equal(a.image, b.image) for a, b in zip(one, again, strict=True)
    )
    assert not np.array_equal(one[0].image, other[0].image)
    states = {}
    for film in one:
        states.setdefault(film.patient, set()).add(film.label)
    assert all(len(labels) == 1 for labels in states.values())
    assert sum(labels == {1} for labels in states.values()) == len(states) // 2


def test_an_archive_of_one_patient_is_refused():
    with pytest.raises(InputError, match="at least 2"):
        broken.archive(1)
