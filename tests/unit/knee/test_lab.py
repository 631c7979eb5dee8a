"""The lab run on a toy release: one call, resumable, writes what travels."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medimg_utils import pretrained, results
from medimg_utils.knee import experiment, lab
from medimg_utils.knee.dataset import DIAGNOSES, SERIES
from medimg_utils.knee.experiment import EXPERIMENTS, load_run, predict
from medimg_utils.training import RunError

TOY = replace(
    EXPERIMENTS["tiny"], size="lab", resize=64, crop=56, epochs=2, batch_size=2, folds=4
)


def write_plan(release, **settings):
    """As if the release had been simulated from a plan."""
    (release.parent / "simulation.json").write_text(json.dumps(settings))


@pytest.fixture
def toy(write_mrnet, tmp_path, monkeypatch):
    """The lab run, led to drawn exams and to folders of this test."""
    mrnet = write_mrnet(tmp_path / "seen")
    held = write_mrnet(tmp_path / "held", train=1, valid=10, seed=50)
    folders = {
        "lab": mrnet,
        "lab-unseen-patients": mrnet,
        "lab-unseen-anatomy": held,
    }
    calls = []

    for release in (mrnet, held):
        write_plan(release, version=2)

    def simulated(size, **options):
        calls.append(size)
        return folders[size]

    for name in ("results", "pretrained"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(lab, "ensure_release", simulated)
    monkeypatch.setitem(EXPERIMENTS, "lab", TOY)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "pretrained")
    return tmp_path, calls, mrnet


def test_one_call_trains_measures_and_stores(toy, monkeypatch):
    root, calls, mrnet = toy
    answer = lab.run_lab(root / "runs", progress=False)
    assert calls == ["lab", *(f"lab-{name}" for name in lab.LAB_TESTS)]
    stored = json.loads((root / "results" / "knee-lab.json").read_text())
    assert set(stored["tests"]) == set(lab.LAB_TESTS)
    assert set(stored["training"]["networks"]) == set(SERIES)
    for name in DIAGNOSES:
        value, low, high = stored["headline"]["measures"][f"AUC {name}"]
        assert low <= value <= high
    for test in stored["tests"].values():
        assert set(test["localisation"]) <= set(DIAGNOSES)
        assert len(test["cases"]) == test["n"]["exams"]
        row = test["cases"][0]
        assert set(row["series"]) == set(SERIES)
        assert set(row["combined"]) == {"out_of_fold", "training"}
        assert row["as_it_lies"] == row["combined"]["out_of_fold"]  # one view
        assert {f["diagnosis"] for f in row["findings"]} <= set(DIAGNOSES)
    assert stored["about"]["n"] == {"unseen-patients": 24, "unseen-anatomy": 10}
    assert answer["held_out_anatomy"] == stored["held_out_anatomy"]

    # the networks that travel are those of the run, at half precision
    assert pretrained.names() == ["knee-lab"]
    shipped, trained = load_run("lab"), load_run(root / "runs" / "knee-lab-fold0")
    for part, network in trained.networks.items():
        for key, value in network.state_dict().items():
            other = shipped.networks[part].state_dict()[key]
            np.testing.assert_allclose(other, value, rtol=1e-3, atol=1e-4)
    assert shipped.thresholds == trained.thresholds
    assert "held_out" not in shipped.facts
    assert len(predict("lab", mrnet, root / "out", progress=False)) == 24

    # what is done is not done again
    before = (root / "results" / "knee-lab.json").read_bytes()
    monkeypatch.setattr(lab, "train", None)
    monkeypatch.setattr(lab, "evaluate", None)
    lab.run_lab(root / "runs", progress=False)
    assert (root / "results" / "knee-lab.json").read_bytes() == before

    # an answer about older exams is measured anew, older training is refused
    asked = []

    def evaluate(data, run, **options):
        asked.append(data)
        return experiment.evaluate(data, run, **options)

    monkeypatch.setattr(lab, "evaluate", evaluate)
    held = root / "held" / "MRNet-v1.0"
    write_plan(held, version=3)
    lab.run_lab(root / "runs", progress=False)
    assert asked == [held]

    # so is one about networks that are used otherwise; the rehearsal counts as training
    facts = root / "runs" / "knee-lab-fold0" / "best.json"
    changed = json.loads(facts.read_text())
    changed["thresholds"]["acl"] = 0.123
    changed["parts"][0]["rehearsed"] = [{"hardware": "a GPU"}]
    facts.write_text(json.dumps(changed))
    asked.clear()
    answer = lab.run_lab(root / "runs", progress=False)
    assert asked == [mrnet, held]
    assert answer["headline"]["hardware"].startswith("a GPU, then ")

    write_plan(mrnet, version=3)
    with pytest.raises(RunError, match="trained on the simulation"):
        lab.run_lab(root / "runs", progress=False)
