import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from medimg_utils import pretrained
from medimg_utils.brain import experiment, inference
from medimg_utils.brain.dataset import load, read_brats, read_case
from medimg_utils.brain.experiment import (
    EXPERIMENTS,
    FAULTS,
    REHEARSE,
    STAGES,
    Experiment,
    choose_anew,
    compare_modes,
    evaluate,
    exponential,
    from_json,
    get_experiment,
    load_run,
    predict,
    split,
    train,
)
from medimg_utils.brain.inference import Segmentation
from medimg_utils.brain.models import FixedNorm, valid_size
from medimg_utils.errors import InputError
from medimg_utils.experiments import describe
from medimg_utils.io import ImageError
from medimg_utils.release import DatasetError
from medimg_utils.splits import LeakError
from medimg_utils.training import BEST, RunError, load_tensors, read_log

FAST = {"accelerator": "cpu", "workers": 0, "progress": False}


# ------------------------------------------------------------------------------- settings


def test_the_papers_values_are_spelled_out():
    rows = {row["setting"]: row for row in describe(EXPERIMENTS["paper"])}
    assert set(rows) == set(Experiment.__dataclass_fields__)
    expected = {
        "voxel": 1.0, "find_width": 16, "segment_width": 32, "find_epochs": 300,
        "segment_epochs": 300, "find_rate": 1e-3, "segment_rate": 5e-3, "decay": 0.985,
        "weight_decay": 1e-5, "segment_batch": 2, "side": 36, "least": 320, "around": 20,
    }  # fmt: skip
    for name, value in expected.items():
        assert rows[name]["ours"] == value
        assert rows[name]["source"] == "paper"
    assert rows["one_pass_epochs"]["source"] == "our choice"
    lab = {row["setting"]: row for row in describe(EXPERIMENTS["lab"])}
    assert lab["voxel"]["source"] == lab["segment_width"]["source"] == "differs"
    assert all(row["why"] for row in rows.values())


@pytest.mark.parametrize("size", EXPERIMENTS)
def test_settings_fit_together(size):
    chosen = EXPERIMENTS[size]
    assert chosen.size == size
    assert valid_size(chosen.side) == chosen.side
    assert from_json(json.loads(json.dumps(chosen.__dict__))) == chosen


def test_settings_cannot_be_changed_or_misnamed():
    with pytest.raises(AttributeError):
        EXPERIMENTS["tiny"].voxel = 1
    with pytest.raises(InputError, match="tiny, lab, paper"):
        get_experiment("huge")
    with pytest.raises(InputError, match="at least 1"):
        get_experiment("tiny", epochs=0)
    short = get_experiment("tiny", epochs=3)
    assert short.find_epochs == short.segment_epochs == short.rehearse_epochs == 3
    assert short.one_pass_epochs == 0  # a stage without passes gets none
    assert get_experiment("paper", epochs=3).rehearse_epochs == 0
    assert get_experiment("paper", epochs=3).one_pass_epochs == 3


def test_the_faults_are_named():
    assert len(FAULTS) == 4
    assert all(set(fault) == {"fault", "effect", "here"} for fault in FAULTS)


def test_the_rate_falls_with_each_epoch():
    per_epoch = 7
    steps = 300 * per_epoch
    for epoch in (0, 1, 150, 299):  # at the paper's length: once an epoch
        rates = {
            exponential(0.985)(epoch * per_epoch + k, steps, 1e-3, [])
            for k in range(per_epoch)
        }
        assert rates == {1e-3 * 0.985**epoch}
    last = exponential(0.985)(49, 50, 1e-3, [])
    assert last == pytest.approx(1e-5, rel=0.2)  # a short run falls as deep


# ---------------------------------------------------------------------------------- split


def test_the_folds_cover_everyone_once(brats, toy):
    cases = read_brats(brats)
    tested = []
    for fold in range(5):
        parts = split(cases, toy, fold)
        patients = [{case.patient for case in part} for part in parts]
        assert not patients[0] & patients[1]
        assert not patients[0] & patients[2]
        assert not patients[1] & patients[2]
        assert all(patients)
        tested += [case.case_id for case in parts.test]
    assert sorted(tested) == [case.case_id for case in cases]
    assert split(cases, toy) == split(cases, toy, 0)
    with pytest.raises(InputError, match="0 to 4"):
        split(cases, toy, 5)


# ---------------------------------------------------------------- train, evaluate, predict


def test_a_run_can_be_loaded(run, toy):
    loaded = load_run(run)
    assert loaded.experiment == toy
    assert loaded.mode in ("fast", "one-pass")
    norms = [m for m in loaded.networks.one_pass.modules() if isinstance(m, FixedNorm)]
    assert norms
    assert not torch.equal(norms[0].mean, torch.zeros_like(norms[0].mean))
    assert not loaded.networks.find.training
    for stage in STAGES:
        assert loaded.facts["best"][stage]["by"] == "val_dice"


def test_no_patient_is_named_in_a_run(run):
    for path in run.rglob("*.json"):
        assert "Brats18_TOY" not in path.read_text()


def test_step_1_has_learned_to_find_the_tumour(run, brats):
    best = load_tensors(run / "find" / BEST)[1]["best"]
    assert best["value"] > 0.6


def test_step_2_has_learned_something(run):
    rows = (run / "segment" / "log.csv").read_text().splitlines()
    losses = [float(row.split(",")[1]) for row in rows[1:]]
    assert losses[-1] < losses[0] < 0.95


def test_step_2_starts_from_its_rehearsal(run):
    rehearsed = load_tensors(run / REHEARSE / BEST)[0]
    step_2 = load_tensors(run / "segment" / BEST)[0]
    assert set(step_2) == set(rehearsed)
    for name, value in rehearsed.items():
        assert (step_2[name] - value).abs().max() < 0.2, name
    assert any(
        not torch.equal(step_2[name], value) for name, value in rehearsed.items()
    )
    losses = [row["loss"] for row in read_log(run / REHEARSE)]
    assert losses[-1] < losses[0]


def test_the_one_pass_network_starts_from_step_2(run):
    step_2 = load_tensors(run / "segment" / BEST)[0]
    one_pass = load_tensors(run / "one-pass" / BEST)[0]
    assert set(step_2) < set(one_pass)
    for name, value in step_2.items():
        change = (one_pass[name] - value).abs().max()
        assert 0 <= change < 0.2, name


def test_a_stopped_run_goes_on_to_the_same_end(tmp_path, brats, monkeypatch, toy):
    small = replace(
        toy,
        find_epochs=2,
        rehearse_epochs=1,
        segment_epochs=1,
        segment_width=1,
        side=4,
    )
    train(brats, tmp_path / "whole", small, **FAST)
    calls = 0
    dice_loss = experiment.dice_loss

    def stopping(*arguments):
        nonlocal calls
        calls += 1
        if calls == 16:  # in the middle of the last network
            raise KeyboardInterrupt
        return dice_loss(*arguments)

    monkeypatch.setattr(experiment, "dice_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(brats, tmp_path / "stopped", small, **FAST)
    assert (tmp_path / "stopped" / "segment" / BEST).is_file()
    assert not (tmp_path / "stopped" / "best.json").is_file()
    with pytest.raises(RunError, match="already holds a run"):
        train(brats, tmp_path / "stopped", small, **FAST)
    with pytest.raises(RunError, match="no finished run"):
        load_run(tmp_path / "stopped")
    monkeypatch.setattr(experiment, "dice_loss", dice_loss)
    train(brats, tmp_path / "stopped", small, resume=True, **FAST)
    for stage in STAGES:
        first, second = (
            load_tensors(tmp_path / name / stage / BEST)[0]
            for name in ("whole", "stopped")
        )
        assert all(torch.equal(first[name], second[name]) for name in first), stage


def test_a_release_without_masks_cannot_be_trained_on(tmp_path, write_case, toy):
    folder = write_case(tmp_path, "brats2021", 1)
    (folder / f"{folder.name}_seg.nii.gz").unlink()
    with pytest.raises(DatasetError, match="training needs them"):
        train(tmp_path, tmp_path / "run", toy, **FAST)


def test_evaluate_measures_unseen_patients_only(run, brats, tmp_path, toy):
    out = tmp_path / "metrics.json"
    answer = evaluate(brats, run, out=out, draws=20, progress=False)
    held_out = split(read_brats(brats), toy).test
    assert [row["case_id"] for row in answer["cases"]] == [c.case_id for c in held_out]
    stored = json.loads(out.read_text())
    for name in ("WT", "TC", "ET"):
        for number in ("dice", "hausdorff95_mm", "sensitivity", "specificity"):
            assert answer["regions"][name][number]["n"] <= len(held_out)
        assert stored["regions"][name]["dice"]["mean"] == pytest.approx(
            np.mean([row[name]["dice"] for row in answer["cases"]])
        )
    assert answer["controls"]["flair_threshold"]["n"] == len(held_out)
    assert answer["survival"]["true_masks"] is None  # three patients are no cohort
    assert answer["survival"]["run"]["n"] > 0
    assert answer["about"]["data"] == {
        "folder": brats.name, "cases": len(held_out), "patients": len(held_out),
        "simulated": False, "layout": "BraTS 2018",
    }  # fmt: skip
    with pytest.raises(LeakError, match="held out fold 0"):
        evaluate(brats, run, fold=1, progress=False)


def test_the_largest_part_alone_is_a_control(run, brats, tmp_path, monkeypatch):
    """It is what a run that keeps nothing else reaches."""

    def two_parts(engine, image, factor=1, parts=1.0):
        brain = (image != 0).any(dim=0).numpy()
        mask = np.zeros_like(brain)
        third = len(mask) // 3
        mask[:third] = True
        mask[2 * third :] = parts < 1
        return mask & brain

    monkeypatch.setattr(inference, "find", two_parts)
    mine = shutil.copytree(run, tmp_path / "run")
    facts = json.loads((mine / "best.json").read_text())
    answers = {}
    for parts in (1.0, 0.1):
        facts["experiment"]["parts"] = parts
        (mine / "best.json").write_text(json.dumps(facts))
        answers[parts] = evaluate(brats, mine, draws=20, progress=False)
    for alone, every in zip(*(a["cases"] for a in answers.values()), strict=True):
        assert (alone["parts"], every["parts"]) == (1, 2)
        for name in ("WT", "TC", "ET"):
            assert alone["largest_part_dice"][name] == alone[name]["dice"]
            assert every["largest_part_dice"][name] == alone[name]["dice"]
    for name, control in answers[0.1]["controls"]["largest_part"].items():
        alone = answers[1.0]["regions"][name]["dice"]
        assert control["mean"] == pytest.approx(alone["mean"])


def test_evaluate_refuses_patients_that_were_trained_on(run, brats, tmp_path, toy):
    known = split(read_brats(brats), toy).train[0].images[0].parent
    shutil.copytree(known, tmp_path / known.name)
    with pytest.raises(LeakError, match="every patient"):
        evaluate(tmp_path, run, progress=False)


def test_mode_and_rule_can_be_chosen_on_more_patients(run, tmp_path, write_release):
    mine = shutil.copytree(run, tmp_path / "run")
    other = write_release(tmp_path / "other", patients=3, first=100)
    before = json.loads((mine / "best.json").read_text())
    answer = choose_anew(mine, other, progress=False)
    after = json.loads((mine / "best.json").read_text())
    assert before["chosen_on"] is None
    assert after["chosen_on"]["patients"] == 3
    assert after["modes"] == answer["modes"]
    assert after["parts"]["n"] == 3
    assert after["mode"] in after["modes"]
    assert {*before["patients"]["validation"]} < {*after["patients"]["validation"]}
    for key in ("experiment", "survival", "best"):
        assert after[key] == before[key]
    # the same may choose again
    assert choose_anew(mine, other, progress=False) == answer
    assert json.loads((mine / "best.json").read_text()) == after
    with pytest.raises(LeakError, match="every patient"):
        evaluate(other, mine, progress=False)


def test_modes_are_compared_on_the_same_patients(run, brats, tmp_path, monkeypatch):
    options = {
        "limit": 1, "modes": ("fast", "one-pass"), "draws": 10, "progress": False,
        "keep": tmp_path,
    }  # fmt: skip
    answer = compare_modes(brats, run, **options)
    with monkeypatch.context() as patch:  # what was measured is not measured again
        patch.delattr(experiment.Segmenter, "segment")
        again = compare_modes(brats, run, **options)
    assert json.dumps(again) == json.dumps(answer)  # NaN is NaN
    assert answer["n"] == 1
    fast, one_pass = answer["modes"]["fast"], answer["modes"]["one-pass"]
    assert fast["times_as_fast"] == 1
    assert fast["agreement"] == 1
    assert fast["difference"]["mean"]["mean"] == 0
    assert fast["agreement_by_region"] == {"WT": 1, "TC": 1, "ET": 1}
    assert one_pass["agreement"] == pytest.approx(
        np.mean(list(one_pass["agreement_by_region"].values()))
    )
    assert 0 <= one_pass["agreement"] <= 1
    assert one_pass["difference"]["WT"]["mean"] == pytest.approx(
        one_pass["dice"]["WT"] - fast["dice"]["WT"]
    )


@pytest.mark.parametrize("layout", ["brats2021", "brats2023", "msd"])
def test_predictions_lie_on_the_input_and_speak_its_labels(
    layout, run, tmp_path, write_case, monkeypatch
):
    path = write_case(tmp_path / "data", layout, 31)
    case = read_case(path)
    truth = load(read_case(write_case(tmp_path / "t", "brats2018", 31))).labels

    def perfect(self, prepared):
        assert prepared.target is None  # the mask is not read
        return Segmentation(truth, certain=truth.size, parts=1)

    monkeypatch.setattr(experiment.Segmenter, "segment", perfect)
    (answer,) = predict(run, [path], tmp_path / "out", progress=False)
    written = nib.load(tmp_path / "out" / f"{case.case_id}_seg.nii.gz")
    assert np.array_equal(written.affine, nib.load(case.images[0]).affine)
    assert written.get_data_dtype() == np.uint8
    name = path.name.replace("imagesTr", "labelsTr") if layout == "msd" else None
    mask = (
        tmp_path / "data" / "labelsTr" / name
        if name
        else next(p for p in path.iterdir() if "seg" in p.name)
    )
    assert np.array_equal(
        np.asarray(written.dataobj), np.asarray(nib.load(mask).dataobj)
    )
    assert answer == json.loads((tmp_path / "out" / f"{case.case_id}.json").read_text())
    volumes = answer["volumes_cm3"]
    assert volumes["WT"] == pytest.approx((truth > 0).sum() * 27 / 1000, abs=1e-3)
    assert volumes["ET"] == pytest.approx(volumes["enhancing"])
    assert volumes["TC"] == pytest.approx(
        volumes["core"] + volumes["enhancing"], abs=2e-3
    )
    assert answer["labels"]["enhancing tumour"] == (4 if layout == "brats2021" else 3)
    assert answer["survival"]["model"] == "mean"  # no table says the age
    assert "not for clinical use" in answer["survival"]["based_on"]


def test_the_age_is_taken_from_the_release(run, brats, tmp_path, toy):
    case = split(read_brats(brats), toy).test[0]
    (answer,) = predict(run, [case.images[0].parent], tmp_path, progress=False)
    low, high = answer["survival"]["interval_days"]
    assert low < answer["survival"]["days"] < high
    assert answer["survival"]["features"]["age"] == case.age
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{case.case_id}_seg.nii.gz", f"{case.case_id}.json"
    }  # fmt: skip


def test_a_broken_case_is_named_and_the_others_are_written(run, tmp_path, write_case):
    good = write_case(tmp_path / "data", "brats2021", 31)
    bad = write_case(tmp_path / "data", "brats2021", 32)
    (bad / f"{bad.name}_t2.nii.gz").write_bytes(b"no image")
    (tmp_path / "out").mkdir()
    earlier = tmp_path / "out" / f"{bad.name}.json"
    earlier.write_text('{"settings": {"use_case": ""}}')
    with pytest.raises(ImageError, match=r"1 of 2 cases.*00032_t2"):
        predict(run, [good, bad], tmp_path / "out", progress=False)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "BraTS2021_00031_seg.nii.gz", "BraTS2021_00031.json"
    }  # fmt: skip


def test_a_prediction_never_overwrites_the_truth(run, tmp_path, write_case):
    folder = write_case(tmp_path, "brats2021", 31)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=r"overwrite the input.*_seg\.nii\.gz"):
        predict(run, [folder], folder, progress=False)
    with pytest.raises(InputError, match="would both write"):
        predict(run, [folder, folder], tmp_path / "out", progress=False)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert not (tmp_path / "out").exists()
    (folder / "BraTS2021_00031_seg.nii.gz").unlink()
    with pytest.raises(InputError, match="would be taken for the truth"):
        predict(run, [folder], folder, progress=False)
    assert len(list(folder.iterdir())) == 4


def test_the_shipped_networks_are_found(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(InputError, match="no network 'brain-lab"):
        load_run("lab")
    pretrained.store(
        "brain-lab", {stage: run / stage / BEST for stage in STAGES}, run / "best.json"
    )
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert len(sizes) == 3
    loaded, original = load_run("lab"), load_run(run)
    assert loaded.name == "brain-lab"
    for name in ("find", "segment", "one_pass"):
        ours = getattr(loaded.networks, name).state_dict()
        for key, value in getattr(original.networks, name).state_dict().items():
            assert torch.allclose(ours[key], value, rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------- command line


def test_the_commands_work_together(shell, run, brats, tmp_path, monkeypatch, toy):
    trained = []
    monkeypatch.setattr(
        experiment,
        "train",
        lambda data, out, chosen, **options: (
            trained.append((data, out, chosen, options))
            or {stage: [{"loss": 0.5, "val_dice": 0.7}] for stage in STAGES}
            | {"one-pass": []}
        ),
    )
    done = shell(
        "medimg_utils", "train", "brain", "--data", brats, "--out", tmp_path / "run",
        "--size", "tiny", "--epochs", 2, "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "segment: 1 epochs, loss 0.500, validation Dice 0.700" in done.output
    assert "one-pass: 0 epochs\n" in done.output
    assert trained[0][2] == get_experiment("tiny", epochs=2)
    done = shell(
        "medimg_utils", "evaluate", "brain", "--data", brats, "--run", run,
        "--out", tmp_path / "m.json", "--mode", "one-pass", "--quiet",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "3 cases of 3 patients, mode one-pass" in done.output
    assert "ET: Dice" in done.output
    folders = [case.images[0].parent for case in split(read_brats(brats), toy).test[:2]]
    done = shell(
        "medimg_utils",
        "predict",
        "brain",
        "--run",
        run,
        *folders,
        "--out",
        tmp_path / "p",
        "--quiet",
    )
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "p").iterdir())) == 4
    assert "days" in done.output


def spoil_shape(folder, name):
    image = nib.load(folder / name)
    cut = image.slicer[:-1]
    nib.save(nib.Nifti1Image(np.asarray(cut.dataobj), image.affine), folder / name)


def spoil_affine(folder, name):
    image = nib.load(folder / name)
    affine = image.affine + np.pad([[5.0]], ((0, 3), (3, 0)))
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), folder / name)


def spoil_bytes(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])


def spoil_values(folder, name):
    image = nib.load(folder / name)
    voxels = np.asarray(image.dataobj, dtype=np.float32)
    voxels[20, 20, 20] = np.nan
    nib.save(nib.Nifti1Image(voxels, image.affine), folder / name)


def remove(folder, name):
    (folder / name).unlink()


@pytest.mark.parametrize(
    "spoil", [spoil_shape, spoil_affine, spoil_bytes, spoil_values, remove]
)
@pytest.mark.parametrize("layout", ["brats2020", "brats2023", "brats2024"])
def test_a_case_that_cannot_be_used_leaves_nothing_behind(
    shell, spoil, layout, run, tmp_path, write_case
):
    folder = write_case(tmp_path / "data", layout, 31)
    ending = "_t2" if layout == "brats2020" else "-t2w"
    name = f"{folder.name}{ending}.nii.gz"
    spoil(folder, name)
    out = tmp_path / "out"
    done = shell(
        "medimg_utils",
        "predict",
        "brain",
        folder,
        "--run",
        run,
        "--out",
        out,
        "--quiet",
    )
    assert done.exit_code != 0
    assert "error: " in done.output
    assert name in done.output
    assert not out.exists() or not list(out.iterdir())


def test_a_wrong_label_stops_the_evaluation(shell, run, tmp_path, write_case):
    folder = write_case(tmp_path / "data", "brats2021", 31)
    mask = folder / f"{folder.name}_seg.nii.gz"
    image = nib.load(mask)
    voxels = np.asarray(image.dataobj).copy()
    voxels[voxels == 4] = 3  # the label of 2023
    nib.save(nib.Nifti1Image(voxels, image.affine), mask)
    out = tmp_path / "numbers.json"
    done = shell(
        "medimg_utils", "evaluate", "brain", "--data", tmp_path / "data", "--run", run,
        "--out", out, "--quiet",
    )  # fmt: skip
    assert done.exit_code == 1
    assert mask.name in done.output
    assert "0, 1, 2, 4" in done.output
    assert not out.exists()


def test_an_error_is_one_line(shell, tmp_path):
    done = shell(
        "medimg_utils", "predict", "brain", "--run", "x", tmp_path, "--out", tmp_path
    )
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
    assert "should hold the files of one case" in done.output
    assert done.output.count("\n") == 1
