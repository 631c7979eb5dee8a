"""The lab run on toys: what it does once, does again, and refuses to mix."""

import json
import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pydicom
import pytest

from medimg_utils import pretrained, results
from medimg_utils.errors import InputError
from medimg_utils.pneumothorax import lab
from medimg_utils.pneumothorax.dataset import read_siim
from medimg_utils.pneumothorax.experiment import EXPERIMENTS
from medimg_utils.pneumothorax.simulate import (
    LAB_TESTS,
    LAB_TRAIN,
    RELEASES,
    VERSION,
    patients_of,
)
from medimg_utils.training import BEST, RunError

TESTS = ("held-out-fold", *LAB_TESTS)


@pytest.fixture(scope="module")
def lab_run(tmp_path_factory, release):
    """``run_lab`` with drawn chests, a network of two levels and no packaged folder."""
    root = tmp_path_factory.mktemp("lab")
    done = Counter()

    def prepare(size, **_):
        """The drawn chests, as a simulation of other patients would leave them."""
        out, seed = root / "data" / f"pneumothorax-{size}", RELEASES[size].seed
        if (out / "simulation.json").exists():
            return out
        shutil.copytree(release, out)
        rows = ["ImageId,patient,view,side,kind,devices,findings,anatomy"]
        for k, record in enumerate(read_siim(out)):
            image = pydicom.dcmread(record.path)
            image.PatientID = f"{seed}-{image.PatientID}"
            image.save_as(record.path)
            side, kind = ("R", "apical") if record.label else ("", "")
            who = f"SIM{seed:04d}-{k:05d}"
            rows.append(f"{record.image_id},{who},PA,{side},{kind},marker,,chest3")
        (out / "simulation-truth.csv").write_text("\n".join(rows) + "\n")
        settings = {"seed": seed, "version": VERSION}
        (out / "simulation.json").write_text(json.dumps(settings))
        return out

    def count(name, function):
        def counted(*arguments, **options):
            done[name] += 1
            return function(*arguments, **options)

        return counted

    toy = replace(
        EXPERIMENTS["tiny"], size="lab", resize=32, crop=32, epochs=1, channels=(8, 8)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDIMG_DATA", str(root / "data"))
        patch.setitem(EXPERIMENTS, "lab", toy)
        patch.setattr(pretrained, "FOLDER", root / "pretrained")
        patch.setattr(results, "FOLDER", root / "results")
        patch.setattr(lab, "ensure_release", prepare)
        patch.setattr(lab, "train", count("train", lab.train))
        patch.setattr(lab, "evaluate", count("evaluate", lab.evaluate))

        def run(folds=None):
            done.clear()
            if folds is None:
                result = lab.run_lab(root / "runs", progress=False)
            else:
                result = lab.run_folds(root / "runs", folds, progress=False)
            return result, dict(done)

        yield root, run


def change(settings, **values):
    """As if the release had been simulated anew from another plan or version."""
    stored = json.loads(settings.read_text())
    settings.write_text(json.dumps(stored | values))


@contextmanager
def next_version(root):
    """Inside, the lab release is one of another version of the simulation."""
    settings = root / "data" / lab.NAME / "simulation.json"
    before = settings.read_text()
    change(settings, version=VERSION + 1)
    try:
        yield
    finally:
        settings.write_text(before)


def test_the_result_is_of_the_network_that_is_shipped(lab_run):
    root, run = lab_run
    result, _ = run()
    assert result["tests"].keys() == set(TESTS)
    assert pretrained.names() == [lab.NAME]
    weights = root / "pretrained" / f"{lab.NAME}.safetensors"
    full = root / "runs" / f"{lab.NAME}-fold0" / BEST
    assert weights.stat().st_size < 0.7 * full.stat().st_size  # half precision
    for name in TESTS:
        test = result["tests"][name]
        assert test["run"] == lab.NAME
        assert test["n"]["images"] == len(test["cases"]) > 0
    assert result["tests"]["unseen-patients"]["n"]["images"] == 24
    for name, plan in {"held-out-fold": LAB_TRAIN, **LAB_TESTS}.items():
        folder = lab.NAME if plan is LAB_TRAIN else f"{lab.NAME}-{name}"
        order = [one.image_id for one in read_siim(root / "data" / folder)]
        people = list(patients_of(plan).values())
        for case in result["tests"][name]["cases"]:
            known = ("anatomy", "view", "devices")
            assert [case[key] for key in known] == ["chest3", "PA", "marker"]
            who = people[order.index(case["image_id"])]
            person = (case["sex"], case["age"], case["habitus"])
            assert person == (who.sex, who.age, who.habitus)
    stored = results.load(lab.NAME)
    held_out = stored["tests"]["held-out-fold"]
    for key in ("n", "auc", "dice", "pointing_game"):
        assert stored["folds"]["0"][key] == held_out[key]
    assert stored["headline"]["on"] == "24 simulated radiographs of unseen patients"
    assert stored["about"]["n"].keys() == set(TESTS)


def test_what_is_done_is_not_done_again(lab_run):
    _, run = lab_run
    first, _ = run()
    again, done = run()
    assert done == {}
    assert again == first


def test_other_folds_join_the_result_whenever_they_are_trained(lab_run):
    root, run = lab_run
    first, _ = run()
    more, done = run((2, 1))
    assert done == {"train": 2, "evaluate": 2}  # two folds, their held-out patients
    assert list(more["folds"]) == ["0", "1", "2"]
    assert more["tests"] == first["tests"]
    assert results.load(lab.NAME) == more
    for fold in (0, 1, 2):
        held_out = json.loads(
            (root / "runs" / f"{lab.NAME}-fold{fold}" / "held-out.json").read_text()
        )
        assert held_out["fold"] == fold
        for key in ("n", "auc", "dice", "pointing_game", "about"):
            assert more["folds"][str(fold)][key] == held_out[key]
    patients = [fold["n"]["patients"] for fold in more["folds"].values()]
    assert sum(patients) < more["training"]["about"]["data"]["patients"]
    trained = more["folds"]["1"]["trained"]
    assert trained.keys() == {"hardware", "minutes", "n", "seed", "commit"}
    _, done = run()  # the shipped network anew: the others stay
    assert done == {}
    assert results.load(lab.NAME) == more


def test_the_shipped_fold_is_not_measured_as_another(lab_run):
    _, run = lab_run
    run()
    with pytest.raises(InputError, match="run_lab makes it"):
        run((0, 1))


def test_folds_of_other_data_do_not_join(lab_run):
    root, run = lab_run
    run()
    stored = results.load(lab.NAME)
    with (
        next_version(root),
        pytest.raises(RunError, match=r"is not of .*Call run_lab first"),
    ):
        run((3,))
    assert results.load(lab.NAME) == stored


def test_folds_of_other_settings_do_not_join(lab_run, monkeypatch):
    _, run = lab_run
    run()
    other = replace(EXPERIMENTS["lab"], channels=(8, 9))
    monkeypatch.setitem(EXPERIMENTS, "lab", other)
    with pytest.raises(RunError, match=r"today's settings"):
        run((3,))
    monkeypatch.setitem(EXPERIMENTS, "lab", replace(other, channels=(8, 8)))
    assert "0" in run((1,))[0]["folds"]


def test_an_answer_about_older_data_is_measured_anew(lab_run):
    root, run = lab_run
    first, _ = run()
    change(
        root / "data" / f"{lab.NAME}-unseen-patients" / "simulation.json", patients=7
    )
    second, done = run()
    assert done == {"evaluate": 1}
    of = [result["tests"]["unseen-patients"]["of"] for result in (first, second)]
    assert of[0]["simulation"] != of[1]["simulation"]
    assert of[0]["network"] == of[1]["network"]
    assert first["tests"]["held-out-fold"] == second["tests"]["held-out-fold"]


def test_a_network_that_is_asked_otherwise_is_measured_anew(lab_run):
    root, run = lab_run
    first, _ = run()
    facts = root / "runs" / f"{lab.NAME}-fold0" / "best.json"
    before = facts.read_text()
    changed = json.loads(before)
    changed["experiment"]["zooms"] = [1.0, 1.5]
    facts.write_text(json.dumps(changed))
    second, done = run()
    assert done == {"evaluate": len(TESTS)}
    scores = [
        [case["score"] for case in result["tests"]["held-out-fold"]["cases"]]
        for result in (first, second)
    ]
    assert scores[0] != scores[1]
    assert first["folds"]["0"]["zooms"] == [1.0]
    assert second["folds"]["0"]["zooms"] == [1.0, 1.5]
    facts.write_text(before)
    run()


def test_an_answer_of_another_network_is_measured_anew(lab_run, tmp_path, monkeypatch):
    root, run = lab_run
    run()
    shipped = root / "runs" / f"{lab.NAME}-fold0"
    kept = shutil.move(shipped, tmp_path / "kept")
    with monkeypatch.context() as patch:
        patch.setitem(
            EXPERIMENTS, "lab", replace(EXPERIMENTS["lab"], learning_rate=1e-4)
        )
        _, done = run()
    assert done == {"train": 1, "evaluate": len(TESTS)}
    shutil.rmtree(shipped)
    shutil.move(kept, shipped)
    assert run()[1] == {}  # the answers lie beside the network


def test_a_run_of_other_settings_is_refused(lab_run, monkeypatch):
    _, run = lab_run
    run()
    now = EXPERIMENTS["lab"]
    monkeypatch.setitem(EXPERIMENTS, "lab", replace(now, weight_decay=0.5))
    with pytest.raises(RunError, match=r"weight_decay is 0\.01 and not 0\.5"):
        run()
    monkeypatch.setitem(EXPERIMENTS, "lab", replace(now, mirror=not now.mirror))
    assert run()[1] == {}  # the weights do not depend on how they are asked


def test_a_run_that_learned_from_older_data_is_refused(lab_run):
    root, run = lab_run
    run()
    shipped = (root / "pretrained" / f"{lab.NAME}.safetensors").read_bytes()
    with (
        next_version(root),
        pytest.raises(
            RunError, match=r"fold0 was trained on the simulation .*lab holds"
        ),
    ):
        run()
    assert (root / "pretrained" / f"{lab.NAME}.safetensors").read_bytes() == shipped
