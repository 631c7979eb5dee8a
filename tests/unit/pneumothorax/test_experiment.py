import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medimg_utils import results
from medimg_utils.errors import InputError
from medimg_utils.experiments import describe
from medimg_utils.io import ImageError, read_image
from medimg_utils.pneumothorax import experiment
from medimg_utils.pneumothorax.dataset import Record, read_siim
from medimg_utils.pneumothorax.experiment import (
    EXPERIMENTS,
    Experiment,
    evaluate,
    from_json,
    get_experiment,
    limit,
    load_run,
    predict,
    split,
    train,
)
from medimg_utils.pneumothorax.simulate import LAB_TESTS, simulate_films
from medimg_utils.settings import get_settings
from medimg_utils.splits import LeakError
from medimg_utils.training import RunError, load_tensors

TOY = replace(
    EXPERIMENTS["tiny"],
    resize=80,
    crop=64,
    epochs=12,
    channels=(16, 16, 32, 32),
    batch_size=2,
    augmentation=0.2,
    curriculum=0.0,
)
FAST = {"accelerator": "cpu", "precision": "32-true", "workers": 0, "progress": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory, release):
    """A network trained for seconds on drawn chests."""
    out = tmp_path_factory.mktemp("run")
    train(release, out, TOY, **FAST)
    return out


# ------------------------------------------------------------------------------- settings


def test_the_papers_values_are_spelled_out():
    paper = EXPERIMENTS["paper"]
    assert (paper.images, paper.epochs, paper.resize, paper.crop, paper.folds) == (
        871, 400, 480, 448, 5
    )  # fmt: skip
    rows = {row["setting"]: row for row in describe(paper)}
    assert set(rows) == set(Experiment.__dataclass_fields__)
    assert {
        rows[name]["source"] for name in ("images", "epochs", "resize", "crop", "folds")
    } == {"paper"}
    assert rows["learning_rate"]["source"] == "our choice"
    assert all(row["why"] for row in rows.values())
    tiny = {row["setting"]: row for row in describe(EXPERIMENTS["tiny"])}
    assert tiny["crop"]["source"] == "differs"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 50))
def test_a_number_of_images_takes_whole_patients(patients, images):
    records = [
        Record(str(k), Path(f"{k}.dcm"), str(patient), 0)
        for k, patient in enumerate(patients)
    ]
    drawn = limit(records, images)
    names = {record.patient for record in drawn}
    assert sorted(drawn, key=str) == sorted(
        (record for record in records if record.patient in names), key=str
    )
    assert len(drawn) >= min(images, len(records))
    last = drawn[-1].patient
    assert len(drawn) == len(records) or (
        sum(record.patient != last for record in drawn) < images
    )
    assert limit(records, None) == records
    assert limit(records, images) == drawn


@pytest.mark.parametrize("size", EXPERIMENTS)
def test_settings_fit_together(size):
    chosen = EXPERIMENTS[size]
    multiple = 2 ** (len(chosen.channels) - 1)
    assert chosen.size == size
    assert chosen.crop % multiple == chosen.resize % multiple == 0
    for zoom in chosen.zooms:
        side = round(zoom * chosen.resize)
        assert 0 <= side - chosen.crop <= chosen.crop * (chosen.positions - 1)
    stored = json.loads(json.dumps({**chosen.__dict__}))
    assert from_json(stored) == chosen
    del stored["zooms"]  # a run of before there were any was asked at one size
    assert from_json(stored).zooms == (1.0,)


def test_settings_cannot_be_changed_or_misnamed():
    with pytest.raises(AttributeError):
        EXPERIMENTS["tiny"].epochs = 1
    with pytest.raises(InputError, match="tiny, lab, paper"):
        get_experiment("huge")
    with pytest.raises(InputError, match="at least 1"):
        get_experiment("tiny", epochs=0)
    assert get_experiment("tiny", epochs=3).epochs == 3


# ---------------------------------------------------------------------------------- split


def test_the_folds_cover_everyone_once(release):
    records = read_siim(release)
    tested = []
    for fold in range(5):
        parts = split(records, TOY, fold)
        patients = [{record.patient for record in part} for part in parts]
        assert not patients[0] & patients[1]
        assert not patients[0] & patients[2]
        assert not patients[1] & patients[2]
        assert sum(map(len, parts)) == 24
        tested += [record.image_id for record in parts.test]
    assert sorted(tested) == sorted(record.image_id for record in records)
    assert split(records, TOY) == split(records, TOY, 0)
    with pytest.raises(InputError, match="0 to 4"):
        split(records, TOY, 5)


# ---------------------------------------------------------------- train, evaluate, predict


def test_a_run_can_be_loaded(run):
    loaded = load_run(run)
    assert loaded.experiment == TOY
    assert set(loaded.thresholds) == {"mask", "score", "prior"}
    assert loaded.facts["about"]["n"]["train"] > 0
    assert not loaded.network.training
    assert 0 < loaded.prior.max() <= 1


def test_no_patient_is_named_in_a_run(run):
    for path in run.glob("*.json"):
        assert not any(f'"P{number}"' in path.read_text() for number in range(12))


def test_the_network_has_learned_to_see(run, release, tmp_path):
    out = tmp_path / "metrics.json"
    answer = evaluate(release, run, out=out, draws=50, progress=False)
    held_out = split(read_siim(release), TOY).test
    assert [case["image_id"] for case in answer["cases"]] == [
        r.image_id for r in held_out
    ]
    assert answer["auc"]["value"] > 0.9
    assert answer["dice"]["value"] > 0.5
    assert answer["dice"]["value"] > answer["controls"]["static_prior"]["dice"]
    assert answer["dice"]["value"] > answer["controls"]["mirrored_mask"]["dice"] + 0.3
    stored = json.loads(out.read_text())
    assert stored["about"]["data"]["simulated"] is False
    assert stored["about"]["n"] == len(held_out)
    assert stored["thresholds"] == load_run(run).thresholds
    assert stored["hausdorff95_mm"]["n"] > 0


def test_a_run_of_some_images_is_measured_on_the_fold_of_these(release, tmp_path):
    few = replace(TOY, images=20, epochs=1)
    train(release, tmp_path / "run", few, fold=1, **FAST)
    records = read_siim(release)
    drawn = limit(records, 20)
    assert len(drawn) < len(records)
    answer = evaluate(release, tmp_path / "run", draws=10, progress=False)
    found = {case["image_id"] for case in answer["cases"]}
    assert found == {one.image_id for one in split(drawn, few, 1).test}


def test_another_test_set_changes_no_threshold(run, tmp_path, write_release):
    other = write_release(tmp_path / "other", patients=8, size=96)
    for path in other.rglob("*.dcm"):  # other people
        header = pydicom.dcmread(path)
        header.PatientID = "other" + header.PatientID
        header.save_as(path)
    answer = evaluate(other, run, draws=20, progress=False)
    assert answer["n"]["images"] == 16
    assert "other identifiers" in answer["protocol"]
    assert answer["thresholds"] == load_run(run).thresholds


def test_evaluating_on_training_patients_is_refused(run, release, tmp_path):
    with pytest.raises(LeakError, match="held out fold 0"):
        evaluate(release, run, fold=3, progress=False)
    records = split(read_siim(release), TOY).train
    rows = [f"{r.image_id},{r.rle[0] if r.rle else -1}" for r in records]
    (tmp_path / "train-rle.csv").write_text("\n".join(["ImageId,EncodedPixels", *rows]))
    (tmp_path / "dicom-images").symlink_to(release / "dicom-images")
    with pytest.raises(LeakError, match="every patient"):
        evaluate(tmp_path, run, progress=False)


def test_another_truth_file_is_refused_before_the_work(
    run, release, tmp_path, monkeypatch
):
    truth = tmp_path / "truth.csv"
    truth.write_text("ImageId,side\nsomebody,left\n")
    monkeypatch.setattr(experiment, "predict_image", None)  # a call would fail
    with pytest.raises(InputError, match=r"does not list \d+ of \d+ images"):
        evaluate(release, run, truth=truth, progress=False)


def test_evaluation_and_prediction_agree(run, release, tmp_path):
    answer = evaluate(release, run, draws=10, progress=False)
    case = answer["cases"][0]
    path = next(release.rglob(f"{case['image_id']}.dcm"))
    (found,) = predict(run, [path], tmp_path, progress=False)
    assert found["score"] == pytest.approx(case["score"], abs=1e-6)
    assert found["mask_area_share"] == pytest.approx(case["predicted_area"])


def test_the_files_of_a_prediction(run, release, tmp_path, write_dicom):
    grey = read_image(next(release.rglob("*.dcm"))).pixels
    wide = np.pad((grey * 255).astype(np.uint8), ((0, 0), (0, 40)))
    dicom = write_dicom(
        tmp_path / "in" / "a.b.dcm", wide, patient="SECRET", PixelSpacing=[0.5, 0.2]
    )
    png = tmp_path / "in" / "plain.png"
    Image.fromarray(wide).save(png)
    out = tmp_path / "out"
    answers = predict(run, [dicom, png], out, progress=False)
    assert sorted(path.name for path in out.iterdir()) == sorted(
        name + end
        for name in ("a.b", "plain")
        for end in (".probability.png", ".overlay.png", ".json")
    )
    with Image.open(out / "a.b.probability.png") as file:
        assert file.mode == "I;16"
        assert file.size == (168, 128)
        probability = np.asarray(file) / 65535
    with Image.open(out / "a.b.overlay.png") as file:
        assert (file.mode, file.size) == ("RGB", (168, 128))
    stored = json.loads((out / "a.b.json").read_text())
    area = (probability >= load_run(run).thresholds["mask"]).sum() * 0.5 * 0.2
    assert stored["mask_area_mm2"] == pytest.approx(area, abs=0.3)
    assert 0 <= stored["score"] <= 1
    assert stored["settings"]["experiment"]["crop"] == 64
    assert json.loads((out / "plain.json").read_text())["mask_area_mm2"] is None
    assert stored["score"] == pytest.approx(answers[1]["score"], abs=0.02)
    for path in out.iterdir():  # nothing about the person, whatever the kind of file
        assert not any(
            word in path.read_bytes()
            for word in (b"SECRET", b"Doe", b"Jane", b"19600102")
        )
    png.write_bytes(png.read_bytes()[:100])
    with pytest.raises(ImageError, match="1 of 2 files could not be used"):
        predict(run, [dicom, png], out, progress=False)
    assert not list(
        out.glob("plain*")
    )  # nobody takes an old picture for the new answer
    assert len(list(out.glob("a.b*"))) == 3


def test_wrong_names_stop_before_anything_is_written(run, release, tmp_path):
    path = next(release.rglob("*.dcm"))
    copies = [tmp_path / folder / "same.dcm" for folder in "ab"]
    for copy in copies:
        copy.parent.mkdir()
        copy.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="both write"):
        predict(run, [path, *copies], tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_broken_file_does_not_stop_the_others(run, release, tmp_path):
    good = next(release.rglob("*.dcm"))
    bad = tmp_path / "bad.dcm"
    bad.write_bytes(good.read_bytes()[:900])
    (tmp_path / "out").mkdir()
    earlier = tmp_path / "out" / "bad.json"
    earlier.write_text('{"settings": {"use_case": ""}}')
    with pytest.raises(ImageError, match=r"1 of 2 files.*bad\.dcm"):
        predict(run, [bad, good], tmp_path / "out", progress=False)
    assert (tmp_path / "out" / f"{good.stem}.json").is_file()
    assert not list((tmp_path / "out").glob("bad*"))


def test_stopped_and_resumed_is_the_same_run(run, release, tmp_path, monkeypatch):
    calls = 0
    honest = experiment.segmentation_loss

    def stopping(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == 17:
            raise KeyboardInterrupt
        return honest(*arguments, **options)

    monkeypatch.setattr(experiment, "segmentation_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(release, tmp_path, TOY, **FAST)
    with pytest.raises(RunError, match="no finished run"):
        load_run(tmp_path)
    train(release, tmp_path, TOY, resume=True, **FAST)
    first, second = (
        load_tensors(folder / "best.safetensors")[0] for folder in (run, tmp_path)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(RunError, match="other settings"):
        train(release, tmp_path, replace(TOY, epochs=3), resume=True, **FAST)


def test_a_release_without_masks_trains_and_evaluates(tmp_path):
    """ChestX-ray14 has labels alone: then there is no Dice, but there is an AUC."""
    random = np.random.default_rng(0)
    rows = ["Image Index,Finding Labels,Patient ID"]
    (tmp_path / "nih" / "images").mkdir(parents=True)
    for k in range(12):
        image = random.integers(0, 255, (32, 32)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "nih" / "images" / f"{k}.png")
        rows.append(f"{k}.png,{'Pneumothorax' if k % 2 else 'No Finding'},{k}")
    (tmp_path / "nih" / "Data_Entry_2017.csv").write_text("\n".join(rows))
    short = replace(TOY, epochs=1, resize=32, crop=24, channels=(8, 8, 8))
    train(tmp_path / "nih", tmp_path / "run", short, **FAST)
    answer = evaluate(tmp_path / "nih", tmp_path / "run", draws=10, progress=False)
    assert answer["dice"]["n"] == 0
    assert answer["n"]["images"] > 0


# ----------------------------------------------------------------------------- checkpoints


def test_the_shipped_network_repeats_a_stored_score(tmp_path):
    """The film follows from its seed, and the stored numbers from the shipped weights."""
    tests = results.load("pneumothorax-lab")["tests"]
    cases = tests["unseen-patients"]["cases"]
    case = min(cases, key=lambda case: abs(case["score"] - 0.5))  # the least sure
    films = simulate_films(
        tmp_path / "films",
        LAB_TESTS["unseen-patients"],
        {case["image_id"]},
        workers=1,
        data_dir=get_settings().data,
        progress=False,
    )
    (path,) = films.rglob(f"{case['image_id']}.dcm")
    (answer,) = predict("lab", [path], tmp_path / "out", progress=False)
    assert answer["score"] == pytest.approx(case["score"], abs=0.01)
    assert answer["settings"]["experiment"]["size"] == "lab"


def test_the_stored_folds_hold_every_film_once():
    stored = results.load("pneumothorax-lab")
    settings = {row["setting"]: row["ours"] for row in stored["settings"]}
    folds = stored["folds"].values()
    assert len(folds) == settings["folds"]
    released = stored["training"]["about"]["data"]
    for part in ("images", "patients", "positives"):
        assert sum(fold["n"][part] for fold in folds) == released[part]
    for fold in folds:  # asked as the network that is shipped
        for name in ("mirror", "zooms"):
            assert fold[name] == settings[name]


def test_a_folder_without_run_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match=r"best\.safetensors.*--resume"):
        load_run(tmp_path)


# ---------------------------------------------------------------------------- command line


def test_from_simulation_to_prediction_in_the_shell(shell, tmp_path):
    """The words of the README, on few small films and with two passes."""
    made, trained, out = (tmp_path / name for name in ("data", "run", "answers"))
    metrics = tmp_path / "metrics.json"

    def say(*words):
        done = shell(*words)
        assert done.exit_code == 0, done.output
        return done.output

    say("simulate", "pneumothorax", "--out", made, "--patients", 12, "--seed", 3,
        "--size", 96, "--positive-rate", 0.5, "--workers", 1)  # fmt: skip
    say("verify", "siim", made)
    words = ("train", "pneumothorax", "--data", made, "--size", "tiny", "--out", trained,
             "--fold", 1, "--epochs", 2, "--workers", 0, "--quiet")  # fmt: skip
    say("medimg_utils", *words)
    assert json.loads((trained / "best.json").read_text())["fold"] == 1
    weights = (trained / "best.safetensors").read_bytes()
    say("medimg_utils", *words, "--resume")
    assert (trained / "best.safetensors").read_bytes() == weights
    words = ("--data", made, "--run", trained, "--fold", 1, "--out", metrics, "--quiet")
    assert "AUC" in say("medimg_utils", "evaluate", "pneumothorax", *words)
    found = json.loads(metrics.read_text())
    assert found["use_case"] == "pneumothorax"
    films = sorted(made.rglob("*.dcm"))[:2]
    words = ("--run", trained, *films, "--out", out, "--quiet")
    say("medimg_utils", "predict", "pneumothorax", *words)
    endings = ("probability.png", "overlay.png", "json")
    assert {path.name for path in out.iterdir()} == {
        f"{film.stem}.{ending}" for film in films for ending in endings
    }
    for film in films:
        answer = json.loads((out / f"{film.stem}.json").read_text())
        assert 0 <= answer["score"] <= 1
        assert answer["mask_area_mm2"] >= 0
        assert answer["settings"]["experiment"]["epochs"] == 2
        with Image.open(out / f"{film.stem}.probability.png") as picture:
            assert picture.size == (96, 96)


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict"])
def test_a_place_that_takes_no_results_stops_before_the_work(
    shell, run, release, tmp_path, monkeypatch, verb
):
    for work in ("read_release", "load_run"):  # what comes first in each of the verbs
        monkeypatch.setattr(experiment, work, lambda *_: pytest.fail("has begun"))
    taken = tmp_path / "a file"
    taken.touch()
    given = {
        "train": ("--data", release),
        "evaluate": ("--data", release, "--run", run),
        "predict": (next(release.rglob("*.dcm")), "--run", run),
    }
    words = (verb, "pneumothorax", *given[verb], "--out", taken / "out")
    done = shell("medimg_utils", *words)
    assert (done.exit_code, done.output.count("\n")) == (1, 1)
    said = "is a file" if verb == "evaluate" else "cannot take results ("
    assert said in done.output


def test_errors_are_one_line_without_traceback(shell, tmp_path):
    words = ("train", "pneumothorax", "--data", tmp_path, "--out", "x")
    done = shell("medimg_utils", *words)
    assert done.exit_code == 1
    assert done.output.startswith("error: ")
    assert "no csv table" in done.output
    assert done.output.count("\n") == 1
