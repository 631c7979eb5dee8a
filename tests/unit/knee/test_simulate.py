"""A simulated release: same seed, same bytes, the release's layout, labels that agree."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from releases import fingerprint

from medimg_utils.errors import InputError
from medimg_utils.knee import simulate
from medimg_utils.knee.dataset import DIAGNOSES, SERIES, read_mrnet, verify
from medimg_utils.knee.localise import read_lesions
from medimg_utils.knee.simulate import (
    HELD_OUT,
    LAB_TESTS,
    LAB_TRAIN,
    TINY,
    TRAIN_MIX,
    Simulation,
    ensure_release,
    simulate_exam,
    simulate_release,
)
from medimg_utils.settings import get_settings

HERE = {"data_dir": get_settings().data, "progress": False}
SMALL = Simulation(
    2,
    1,
    seed=4,
    anatomies=("knee1",),
    habitus=("average",),
    train_mix={"both": 1},
    valid_mix={"normal": 1},
)


@pytest.fixture(scope="module")
def tiny():
    """16 + 8 exams."""
    return ensure_release("tiny", get_settings()).parent


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Three exams, made by two processes without a break."""
    out = tmp_path_factory.mktemp("two") / "release"
    return simulate_release(out, SMALL, workers=2, **HERE)


def truth(root):
    return json.loads((root / "simulation-truth.json").read_text(encoding="utf-8"))


# --- bytes ----------------------------------------------------------------------------


def test_interrupted_and_resumed_by_one_process_gives_the_same_bytes(
    small, tmp_path, monkeypatch
):
    out = tmp_path / "release"
    done = []

    def die(*job):
        done.append(job[1])
        if len(done) == 2:
            raise KeyboardInterrupt
        return simulate_exam(*job)

    with monkeypatch.context() as patch:
        patch.setattr(simulate, "simulate_exam", die)
        with pytest.raises(KeyboardInterrupt):
            simulate_release(out, SMALL, workers=1, **HERE)
    assert not (out / "simulation.json").exists()
    assert not (out / "MRNet-v1.0" / "train-acl.csv").exists()
    simulate_release(out, SMALL, workers=1, **HERE)
    assert fingerprint(out) == fingerprint(small)


def test_an_exam_depends_on_its_name_and_the_seed_alone(small, tmp_path):
    record = simulate_exam(SMALL, "0001", "train", "both", tmp_path)
    whole = fingerprint(small)
    found = fingerprint(tmp_path)
    assert len(found) == 6  # three series, three files of lesions
    assert found.items() <= whole.items()
    assert record["labels"] == truth(small)["0001"]["labels"]
    other = replace(SMALL, seed=5)
    simulate_exam(other, "0001", "train", "both", tmp_path / "other")
    assert not set(fingerprint(tmp_path / "other").values()) & set(whole.values())


def test_a_finished_release_is_not_touched(small, monkeypatch):
    before = fingerprint(small)
    monkeypatch.setattr(simulate, "prepare", None)  # a call would fail
    assert simulate_release(small, SMALL, **HERE) == small
    assert fingerprint(small) == before


@pytest.mark.parametrize(
    "change",
    [{"seed": 5}, {"train": 3}, {"anatomies": ("knee2",)}, {"habitus": ("lean",)}],
)
def test_other_settings_in_the_same_folder_are_refused(small, change):
    before = fingerprint(small)
    with pytest.raises(InputError, match="other settings"):
        simulate_release(small, replace(SMALL, **change), **HERE)
    assert fingerprint(small) == before


def test_an_older_version_is_made_anew(small, tmp_path, monkeypatch):
    settings = replace(get_settings(), data=tmp_path)
    out = shutil.copytree(small, tmp_path / "knee-tiny")
    old = json.loads((out / "simulation.json").read_text()) | {"version": 0}
    (out / "simulation.json").write_text(json.dumps(old))
    made = []
    monkeypatch.setitem(simulate.RELEASES, "tiny", SMALL)
    monkeypatch.setattr(
        simulate,
        "simulate_release",
        lambda out, *a, **k: made.append(out.exists()) or out,
    )
    assert ensure_release("tiny", settings) == out / "MRNet-v1.0"
    assert made == [False]
    with pytest.raises(InputError, match="tiny, lab"):
        ensure_release("paper", settings)


# --- the release's layout -------------------------------------------------------------


def test_the_reader_of_the_release_finds_nothing_wrong(tiny):
    release = tiny / "MRNet-v1.0"
    assert not [p for check in verify("mrnet", release) for p in check.problems]
    facts = truth(tiny)
    for split, count in (("train", 16), ("valid", 8)):
        exams = read_mrnet(release, split)
        assert len(exams) == count
        for exam in exams:
            assert set(exam.series) == set(SERIES)
            assert exam.labels == facts[exam.exam_id]["labels"]
            assert facts[exam.exam_id]["split"] == split


def test_series_are_as_in_the_release(tiny):
    for exam, facts in truth(tiny).items():
        for series in SERIES:
            path = tiny / "MRNet-v1.0" / facts["split"] / series / f"{exam}.npy"
            volume = np.load(path)
            assert volume.dtype == np.uint8
            assert volume.shape == (facts["series"][series]["slices"], 256, 256)
            assert 17 <= len(volume) <= 61


def test_lesions_are_there_exactly_where_the_labels_say(tiny):
    for exam, facts in truth(tiny).items():
        for name in DIAGNOSES:
            pixels = 0
            for series in SERIES:
                shape = (facts["series"][series]["slices"], 256, 256)
                file = tiny / "lesions" / facts["split"] / series / f"{exam}.npz"
                found = read_lesions(file, shape)
                seen = int(found[name].sum()) if name in found else 0
                assert (name in found) == (seen > 0)
                assert seen == facts["series"][series]["lesion pixels"][name]
                pixels += seen
            assert (pixels > 0) == bool(facts["labels"][name]), (exam, name)


def test_grey_values_are_spread_like_real_ones(tiny):
    """Quantiles 25, 50, 75, 95 % of public exams; ours may stray by so many levels."""
    real = {
        "sagittal": (22, 44, 83, 154),
        "coronal": (7, 28, 96, 193),
        "axial": (14, 44, 102, 186),
    }
    facts = truth(tiny)
    for series, wanted in real.items():
        found = [
            np.quantile(
                np.load(tiny / "MRNet-v1.0" / row["split"] / series / f"{exam}.npy")[
                    ::3, ::2, ::2
                ],
                (0.25, 0.5, 0.75, 0.95),
            )
            for exam, row in facts.items()
        ]
        far = np.abs(np.median(found, axis=0) - wanted)
        assert (far < (12, 16, 35, 25)).all(), (series, np.median(found, axis=0))


def test_labels_are_as_frequent_and_go_together_as_in_the_release():
    plan = Simulation(1130, 120, seed=3)
    schedule = simulate.schedule(plan)
    assert list(schedule) == [f"{k:04d}" for k in range(1250)]
    assert {split for split, _ in list(schedule.values())[:1130]} == {"train"}
    groups = Counter(group for split, group in schedule.values() if split == "train")
    assert groups == TRAIN_MIX
    for split, wanted in (("train", (913, 208, 397)), ("valid", (95, 54, 52))):
        found = tuple(
            sum(
                name in simulate.GROUPS[group]
                for s, group in schedule.values()
                if s == split
            )
            for name in ("abnormal", "acl", "meniscus")
        )
        assert found == wanted


def test_twins_have_the_labels_of_the_release_and_differ_in_one():
    plan = Simulation(1000, 0, seed=3, twins=True)
    groups = [group for _, group in simulate.schedule(plan).values()]
    for group, count in Counter(groups).items():
        wanted = TRAIN_MIX[group] / sum(TRAIN_MIX.values())
        assert count / 1000 == pytest.approx(wanted, abs=0.01)
    first = 0
    for one, other in zip(groups[::2], groups[1::2], strict=True):
        differ = set(simulate.GROUPS[one]) ^ set(simulate.GROUPS[other])
        assert len(differ) == 1
        first += len(simulate.GROUPS[one]) > len(simulate.GROUPS[other])
    assert 200 < first < 300  # the order of the two tells nothing


def test_twins_are_one_knee_of_which_one_has_a_finding_more(tmp_path):
    plan = replace(SMALL, train=40, twins=True)
    schedule = simulate.schedule(plan)
    exam = next(n for n, (_, group) in schedule.items() if group == "meniscus")
    twin = f"{int(exam) ^ 1:04d}"
    facts = {n: simulate_exam(plan, n, *schedule[n], tmp_path) for n in (exam, twin)}
    torn, whole = facts[exam], facts[twin]
    if whole["labels"]["meniscus"]:
        torn, whole, exam, twin = whole, torn, twin, exam
    for key in ("anatomy", "habitus", "side", "age", "field"):
        assert torn[key] == whole[key]
    assert {f["kind"] for f in whole["mimics"]} >= {f["kind"] for f in torn["mimics"]}
    for series in SERIES:
        one, other = (
            np.load(tmp_path / "MRNet-v1.0" / "train" / series / f"{n}.npy").astype(int)
            for n in (exam, twin)
        )
        assert one.shape == other.shape
        assert 0 < (np.abs(one - other) > 25).mean() < 0.02


def test_no_lab_network_learns_from_the_anatomy_that_is_held_out():
    assert HELD_OUT not in LAB_TRAIN.anatomies
    assert LAB_TESTS["unseen-anatomy"].anatomies == (HELD_OUT,)
    plans = [LAB_TRAIN, *LAB_TESTS.values()]
    assert len({plan.seed for plan in plans}) == 3
    assert all(plan.valid >= 120 for plan in LAB_TESTS.values())
    assert set(TINY.anatomies) == {*LAB_TRAIN.anatomies, HELD_OUT}


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 0, "valid": 0}, "at least one exam"),
        ({"train": -1}, "from 0 on"),
        ({"train": 9999, "valid": 2}, "at most 10000"),
        ({"seed": -1}, "seed is -1"),
        ({"anatomies": ()}, "no anatomy"),
        ({"anatomies": ("knee1", "elbow")}, "elbow"),
        ({"habitus": ()}, "no habitus"),
        ({"habitus": ("tall",)}, "tall"),
        ({"train_mix": {"normal": -1.0}}, "shares from 0 on"),
        ({"valid_mix": {"healthy": 1.0}}, "shares from 0 on"),
        ({"valid_mix": {"normal": float("nan")}}, "shares from 0 on"),
        ({"valid_mix": {}}, "shares from 0 on"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        simulate_release(tmp_path, SMALL, **HERE)
    with pytest.raises(InputError, match=r"is a file\. Give the path of a folder"):
        simulate_release(tmp_path / "thesis.txt", SMALL, **HERE)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


# --- command line ---------------------------------------------------------------------


def test_simulate_from_the_shell(shell, tmp_path, monkeypatch):
    plans = []

    def remember(out, plan, **options):
        plans.append(plan)
        return out

    monkeypatch.setattr(simulate, "simulate_release", remember)
    words = ("knee", "--out", tmp_path / "r", "--train", 3, "--valid", 2, "--seed", 7)
    done = shell("simulate", *words, "--anatomy", "knee2")
    assert done.exit_code == 0, done.output
    assert plans == [Simulation(3, 2, 7, anatomies=("knee2",))]
    done = shell("simulate", *words[:-1], -7)
    assert done.exit_code == 1
    assert "seed is -7" in done.output
