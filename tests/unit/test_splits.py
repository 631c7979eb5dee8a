from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg_utils.errors import InputError
from medimg_utils.splits import (
    LeakError,
    check_held_out,
    check_no_leak,
    hold_out,
    never_seen,
    one_each,
    patient_digests,
    patient_folds,
)


@given(
    st.lists(st.tuples(st.integers(0, 30), st.booleans()), min_size=40, max_size=80),
    st.integers(2, 5),
    st.integers(0, 3),
)
@settings(max_examples=25, deadline=None)
def test_every_image_has_a_fold_and_no_patient_two(rows, n_folds, seed):
    patients = [f"P{number}" for number, _ in rows]
    labels = [int(label) for _, label in rows]
    if len(set(patients)) < n_folds or min(labels.count(0), labels.count(1)) < n_folds:
        return
    folds = patient_folds(patients, labels, n_folds, seed)
    assert folds.min() >= 0
    assert folds.max() < n_folds
    for name in set(patients):
        assert (
            len(
                {
                    fold
                    for fold, patient in zip(folds, patients, strict=True)
                    if patient == name
                }
            )
            == 1
        )
    for fold in range(n_folds):
        inside = [p for p, k in zip(patients, folds, strict=True) if k == fold]
        check_no_leak(
            [p for p, k in zip(patients, folds, strict=True) if k != fold], inside
        )


def test_positives_are_spread_over_the_folds():
    patients = [f"P{k // 2}" for k in range(400)]
    labels = [int(k % 10 < 2) for k in range(400)]
    folds = patient_folds(patients, labels, 5)
    shares = [np.mean(np.array(labels)[folds == k]) for k in range(5)]
    assert max(shares) - min(shares) < 0.03


def test_the_seed_decides():
    patients, labels = [f"P{k}" for k in range(50)], [k % 2 for k in range(50)]
    first = patient_folds(patients, labels, seed=1)
    assert (first == patient_folds(patients, labels, seed=1)).all()
    assert (first != patient_folds(patients, labels, seed=2)).any()


def test_a_leak_raises_and_names_the_patient():
    with pytest.raises(LeakError, match=r"^1 patient is in .* set: Jane\."):
        check_no_leak(["Jane", "Ann"], ["Jane"])
    with pytest.raises(LeakError, match=r"^2 patients are in .* set: Ann, Jane\."):
        check_no_leak(["Jane", "Ann"], ["Jane", "Ann", "Joe"])


def test_what_cannot_be_split_is_refused():
    with pytest.raises(InputError, match="2 patients cannot fill 5 folds"):
        patient_folds(["a", "b"], [0, 1])
    with pytest.raises(InputError, match="do not match"):
        patient_folds(["a", "b"], [0])


class Image(NamedTuple):
    patient: str
    label: int


@given(st.integers(0, 3), st.integers(0, 5))
def test_three_sets_share_no_patient_and_lose_no_image(fold, seed):
    images = [Image(f"P{k // 2}", int(k % 8 < 2)) for k in range(96)]
    parts = hold_out(
        images,
        lambda image: image.label,
        fold=fold,
        n_folds=4,
        validation_folds=3,
        seed=seed,
    )
    people = [{image.patient for image in part} for part in parts]
    assert sum(map(len, people)) == len(set.union(*people)) == 48
    assert sum(map(len, parts)) == 96
    assert [round(np.mean([i.label for i in part]), 2) for part in parts] == [0.25] * 3


def test_every_patient_is_tested_once():
    images = [Image(f"P{k}", k % 2) for k in range(20)]

    def tested(fold):
        options = {"fold": fold, "n_folds": 5, "validation_folds": 4}
        return hold_out(images, lambda image: image.label, **options).test

    assert sorted(image for k in range(5) for image in tested(k)) == sorted(images)
    assert tested(None) == tested(0)
    with pytest.raises(InputError, match="fold 5 was asked for; folds are 0 to 4"):
        tested(5)


def test_too_few_patients_are_told_with_what_is_needed():
    images = [Image(f"P{k}", k % 2) for k in range(6)]
    with pytest.raises(
        InputError,
        match="6 patients are too few: one in 5 is for the test, and one in 5 of the 4 "
        "others for validation, who must be 5 at least",
    ):
        hold_out(
            images, lambda image: image.label, fold=0, n_folds=5, validation_folds=5
        )


def test_classes_rarer_than_folds_are_spread_as_far_as_they_go(recwarn):
    patients = [f"P{k}" for k in range(9)]
    assert sorted(patient_folds(patients, [0] * 4 + [1] * 5, n_folds=9)) == list(
        range(9)
    )
    rare = patient_folds(patients, [1] * 2 + [0] * 7, n_folds=3)
    assert rare[0] != rare[1]
    assert not recwarn.list


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(0, 99))
def test_each_patient_gives_one_image(patients, seed):
    rows = one_each(patients, seed)
    assert sorted(np.array(patients)[rows]) == sorted(set(patients))
    assert np.array_equal(rows, one_each(patients, seed))


def test_each_image_of_a_patient_and_each_order_is_as_likely():
    drawn = np.array([one_each(["a", "a", "a", "b"], seed) for seed in range(600)])
    image = drawn[drawn != 3]
    counts = np.bincount(image, minlength=3)
    assert np.abs(counts - 200).max() < 4 * np.sqrt(600 * 2 / 9)
    first = (drawn[:, 0] == 3).mean()  # who has many images does not come early
    assert abs(first - 0.5) < 4 * np.sqrt(0.25 / 600)


def test_a_run_is_measured_on_patients_that_it_has_not_met():
    images = [Image(f"P{k // 2}", 0) for k in range(8)]
    met = {
        "train": patient_digests(images[:3]),  # half of the images of P1
        "validation": patient_digests(images[4:5]),
    }
    assert len(met["train"]) == 2
    facts = {"fold": None, "patients": met}
    assert never_seen(images, "mine", facts, "data") == images[6:]
    with pytest.raises(LeakError, match="every patient of data was used to train mine"):
        never_seen(images[:6], "mine", facts, "data")


@pytest.mark.parametrize(
    ("held", "fold", "refused"),
    [(None, None, False), (None, 0, False), (2, None, False), (2, 2, False),
     (None, 1, True), (2, 0, True)],
)  # fmt: skip
def test_a_run_is_measured_on_its_own_fold(held, fold, refused):
    if refused:
        with pytest.raises(
            LeakError, match=f"held out fold {held or 0} .* not on {fold}"
        ):
            check_held_out("mine", {"fold": held}, fold)
    else:
        check_held_out("mine", {"fold": held}, fold)
