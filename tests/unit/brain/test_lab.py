import csv
import json
import shutil

import numpy as np
import pytest

from medimg_utils import pretrained, results
from medimg_utils.brain import lab
from medimg_utils.brain.dataset import load, read_brats, read_case
from medimg_utils.brain.evaluation import dices
from medimg_utils.brain.experiment import STAGES, load_run, predict_case
from medimg_utils.brain.inference import Segmenter
from medimg_utils.brain.lab import recovered, run_lab
from medimg_utils.brain.simulate import RELEASES, Survival, _simulate_patient
from medimg_utils.errors import InputError
from medimg_utils.release import describe_release
from medimg_utils.settings import get_settings
from medimg_utils.training import RunError

FOLDERS = {"lab": "known", "lab-choice": "choice", "lab-test": "other"}


def write_truth(folder, names, age=-6.5, seed=3):
    """What a simulation knows, with survival after its own formula."""
    random = np.random.default_rng(seed)
    model = Survival(least=-1e9)
    columns = ["age", "distance_mm", "core_cm3", "oedema_cm3", "enhancing_cm3"]
    told = {
        "sex": "F", "field_t": 3.0, "location": "insula", "side": "left",
        "foci": 1, "satellites": 0,
    }  # fmt: skip
    with (folder / "simulation-truth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(
            file, ["BraTS18ID", *told, "pattern", *columns, "resection", "days"]
        )
        writer.writeheader()
        for k, name in enumerate(names):
            values = random.normal([60, 43, 24, 52, 19], [12, 6, 15, 30, 10])
            row = dict(zip(columns, values.tolist(), strict=True))
            row |= {"resection": "GTR" if k % 3 else "STR"}
            days = model.mean(row) + random.normal(0, 15)
            pattern = ["ring", "none"][k % 2]
            known = {"BraTS18ID": name, **told, "pattern": pattern}
            writer.writerow({**known, **row, "days": days})
    settings = {"survival": {**model.__dict__, "age": age}}
    (folder / "simulation.json").write_text(json.dumps(settings))


def write_cohort(folder, n=80, **options):
    """The tables of a release without images."""
    folder.mkdir()
    write_truth(folder, range(n), **options)
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory, run, brats, toy, write_release):
    """One lab run on toys, with networks that are trained already."""
    root = tmp_path_factory.mktemp("lab")
    other = write_release(root / "other", patients=9, first=100)
    write_truth(other, [case.case_id for case in read_brats(other)])
    known = shutil.copytree(brats, root / "known")
    write_truth(known, [case.case_id for case in read_brats(known)])
    write_release(root / "choice", patients=2, first=200)
    about = shutil.copytree(run, root / "runs" / "brain-lab-fold0") / "best.json"
    facts = json.loads(about.read_text())
    facts["data"] |= describe_release(known)
    about.write_text(json.dumps(facts))
    for folder in ("pretrained", "results"):
        (root / folder).mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab, "ensure_release", lambda name, **_: root / FOLDERS[name])
        patch.setattr(pretrained, "FOLDER", root / "pretrained")
        patch.setattr(results, "FOLDER", root / "results")
        result = run_lab(root / "runs", experiment=toy, compared=1, progress=False)
        with pytest.MonkeyPatch.context() as once:
            for name in ("train", "evaluate", "compare_modes", "choose_anew"):
                once.delattr(lab, name)  # what is done is not done again
            again = run_lab(root / "runs", experiment=toy, compared=1, progress=False)
    assert json.dumps(again) == json.dumps(result)
    return root, result


def test_the_result_says_all_that_the_pages_show(stored):
    root, _ = stored
    read = results.load("brain-lab", root / "results")
    unseen = read["tests"]["unseen-patients"]
    assert unseen["n"] == {"cases": 9, "patients": 9}
    for name in ("WT", "TC", "ET"):
        mean, low, high = read["headline"]["measures"][f"Dice {name}"]
        assert mean == pytest.approx(
            np.mean([case[name]["dice"] for case in unseen["cases"]]), abs=1e-3
        )
        assert low <= mean <= high
        assert unseen["regions"][name]["hausdorff95_mm"]["interval"]
    assert unseen["subgroups"]["pattern"]["ring"]["n"] == 5
    assert unseen["cases"][0]["location"] == "insula"
    assert (unseen["cases"][0]["sex"], unseen["cases"][0]["field_t"]) == ("F", "3.0")
    assert set(read["training"]["networks"]) == {*STAGES, "rehearse"}
    for network in read["training"]["networks"].values():
        assert len(network["history"]) >= network["best"]["epoch"] > 0
        assert network["weights"] > 0
    assert read["training"]["chosen_on"]["patients"] == 2
    assert read["training"]["parts"]["n"] == 2
    inference = read["inference"]
    assert inference["data"]["folder"] == "other"
    assert inference["all modes"]["n"] == 1
    assert set(inference["all modes"]["modes"]) == {"reference", "fast", "one-pass"}
    assert inference["quick modes"]["n"] == 9
    assert set(inference["quick modes"]["modes"]) == {"fast", "one-pass"}
    assert read["survival"]["training release"]["n"] == 11
    assert read["survival"]["unseen patients"]["predicted_masks"]["n"] == 9
    assert read["about"]["data"]["unseen-patients"]["folder"] == "other"


def test_the_networks_travel_with_the_package(stored, monkeypatch):
    root, _ = stored
    monkeypatch.setattr(pretrained, "FOLDER", root / "pretrained")
    assert pretrained.names() == ["brain-lab"]
    assert load_run("lab").facts["mode"] in ("fast", "one-pass")


def test_the_shipped_networks_repeat_a_stored_score(tmp_path):
    """A patient follows from seed and number, and the numbers from the shipped weights."""
    test = results.load("brain-lab")["tests"]["unseen-patients"]
    case = min(test["cases"], key=lambda case: abs(case["TC"]["dice"] - 0.8))
    plan = RELEASES["lab-test"]
    index = int(case["case_id"].split("_")[2])
    _simulate_patient(plan, index, case["grade"], tmp_path, get_settings().data)
    (folder,) = tmp_path.glob("*/*")
    assert folder.name == case["case_id"]
    scan = load(read_case(folder))
    assert scan.labels is not None
    network = load_run("lab")
    segmenter = Segmenter(network.networks, test["mode"])
    found = predict_case(network, read_case(folder), segmenter)
    for name, value in dices(found.labels, scan.labels).items():
        assert value == pytest.approx(case[name]["dice"], abs=0.02), name


def test_a_stopped_lab_run_goes_on(stored):
    root, result = stored
    kept = {path.name for path in (root / "runs" / "brain-lab-fold0").glob("*.json")}
    assert {"unseen-patients.json", "modes.json", "quick-modes.json"} <= kept
    table = result["survival"]["training release"]
    assert table["age"]["mse"] < table["mean"]["mse"]  # toys die of age


def test_what_was_done_with_other_data_is_noticed(stored, monkeypatch):
    root, _ = stored
    monkeypatch.setattr(lab, "ensure_release", lambda name, **_: root / FOLDERS[name])
    seen = []
    monkeypatch.setattr(lab, "evaluate", lambda data, *_, **__: seen.append(data) or {})
    run = root / "runs" / "brain-lab-fold0"
    file, other = run / "unseen-patients.json", root / "other"
    simulation = other / "simulation.json"
    before = file.read_text(), simulation.read_text()
    assert "of" not in lab._once(file, lab._of(run, other), dict)
    simulation.write_text(json.dumps({**json.loads(before[1]), "version": 2}))
    anew = lab._once(file, lab._of(run, other), lambda: lab.evaluate(other) or {})
    assert (seen, anew) == ([other], {})
    known = root / "known" / "simulation.json"
    learnt = known.read_text()
    known.write_text(json.dumps({**json.loads(learnt), "version": 2}))
    with pytest.raises(RunError, match="was trained on the simulation"):
        run_lab(root / "runs", compared=1, progress=False)
    file.write_text(before[0])
    simulation.write_text(before[1])
    known.write_text(learnt)


def test_coefficients_are_recovered_where_they_are_true(tmp_path):
    cohorts = [
        write_cohort(tmp_path / name, n=60, seed=k) for k, name in enumerate("ab")
    ]
    found = recovered(cohorts, trees=3)
    assert found["n"] == 120
    assert found["leave_one_out"]["n"] == 80
    assert found["leave_one_out"]["all"]["mse"] < found["leave_one_out"]["age"]["mse"]
    for name, row in found["coefficients"].items():
        low, high = row["interval"]
        assert low <= row["estimate"] <= high
        assert row["estimate"] == pytest.approx(row["true"], abs=25), name
    assert sum(row["inside"] for row in found["coefficients"].values()) >= 5
    other = write_cohort(tmp_path / "c", n=60, age=+6.5)
    assert not recovered([other], trees=3)["coefficients"]["age"]["inside"]
    with pytest.raises(InputError, match="different coefficients"):
        recovered([cohorts[0], other], trees=3)


def test_the_command_tells_the_scores(shell, stored, monkeypatch, tmp_path):
    _, result = stored
    monkeypatch.setattr(lab, "run_lab", lambda runs: result)
    done = shell("lab", "brain", "--runs", tmp_path)
    assert done.exit_code == 0, done.output
    assert "unseen-patients" in done.output
    assert "times as fast" in done.output

    def fail(runs):
        raise InputError("no such folder")

    monkeypatch.setattr(lab, "run_lab", fail)
    done = shell("lab", "brain")
    assert done.exit_code == 1
    assert "error: no such folder" in done.output
