import gzip
import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from medimg_utils import results
from medimg_utils.errors import InputError
from medimg_utils.experiments import describe
from medimg_utils.knee import experiment
from medimg_utils.knee.dataset import (
    DIAGNOSES,
    SERIES,
    MissingError,
    VolumeError,
    read_mrnet,
)
from medimg_utils.knee.experiment import (
    EXPERIMENTS,
    Experiment,
    activation_map,
    evaluate,
    get_experiment,
    load_run,
    parts_of,
    predict,
    predict_exam,
    split,
    train,
)
from medimg_utils.knee.preprocess import prepare, views
from medimg_utils.knee.simulate import LAB_TESTS, schedule, simulate_exam
from medimg_utils.knee.standardise import Standardiser
from medimg_utils.settings import get_settings
from medimg_utils.splits import LeakError
from medimg_utils.training import RunError, load_tensors

TOY = replace(
    EXPERIMENTS["tiny"],
    resize=64,
    crop=56,
    epochs=14,
    batch_size=2,
    learning_rate=4e-3,
    shift=2.0,
    folds=4,
)
SHORT = replace(TOY, epochs=1, folds=2)
FAST = {"accelerator": "cpu", "precision": "32-true", "workers": 0, "progress": False}
ALL = [(series, diagnosis) for series in SERIES for diagnosis in DIAGNOSES]


@pytest.fixture(scope="module")
def run(tmp_path_factory, mrnet):
    """Networks trained for seconds on drawn knees."""
    out = tmp_path_factory.mktemp("run")
    train(mrnet, out, TOY, **FAST)
    return out


@pytest.fixture(scope="module")
def answer(run, mrnet, tmp_path_factory):
    """The evaluation of `run` on the split that it has not seen."""
    out = tmp_path_factory.mktemp("answer") / "metrics.json"
    truth = mrnet.parent / "simulation-truth.json"
    return evaluate(mrnet, run, out=out, truth=truth, draws=200, progress=False)


# ------------------------------------------------------------------------------- settings


def test_the_papers_values_are_spelled_out():
    paper = EXPERIMENTS["paper"]
    assert (paper.backbone, paper.epochs, paper.batch_size, paper.resize) == (
        "alexnet", 50, 1, 256
    )  # fmt: skip
    assert (paper.learning_rate, paper.weight_decay, paper.patience, paper.factor) == (
        1e-5, 0.01, 5, 0.3
    )  # fmt: skip
    rows = {row["setting"]: row for row in describe(paper)}
    assert set(rows) == set(Experiment.__dataclass_fields__)
    assert not [name for name, row in rows.items() if row["source"] == "differs"]
    assert rows["rotation"]["source"] == rows["flip"]["source"] == "paper"
    assert rows["folds"]["source"] == "our choice"
    lab = {row["setting"]: row for row in describe(EXPERIMENTS["lab"])}
    assert lab["backbone"]["source"] == "differs"
    assert all(row["why"] for row in lab.values())


@pytest.mark.parametrize("size", EXPERIMENTS)
def test_settings_fit_together(size):
    chosen = get_experiment(size)
    assert chosen.size == size
    assert chosen.crop <= chosen.resize
    assert chosen.combination in ("training", "out_of_fold")
    assert Experiment(**json.loads(json.dumps(chosen.__dict__))) == chosen
    assert get_experiment(size, epochs=3).epochs == 3


def test_the_paper_trains_nine_networks(mrnet):
    exam = read_mrnet(mrnet)[0]
    names = [part.name for part in parts_of(EXPERIMENTS["paper"], exam)]
    assert len(set(names)) == 9
    assert "axial-meniscus" in names
    assert [part.name for part in parts_of(EXPERIMENTS["lab"], exam)] == list(SERIES)


# ---------------------------------------------------------------------------------- split


def test_the_folds_cover_the_training_exams_once(mrnet):
    everyone = [exam.exam_id for exam in read_mrnet(mrnet)]
    held = []
    for fold in range(4):
        sides = split(mrnet, TOY, fold)
        train_ids = {exam.exam_id for exam in sides.train}
        assert not train_ids & {exam.exam_id for exam in sides.validation}
        assert len(sides.train) + len(sides.validation) == 48
        held += [exam.exam_id for exam in sides.validation]
    assert sorted(held) == everyone
    assert split(mrnet, TOY) == split(mrnet, TOY, 0)
    with pytest.raises(InputError, match="0 to 3"):
        split(mrnet, TOY, 4)


def test_twins_share_a_fold_and_a_step(tmp_path, write_mrnet, monkeypatch):
    release = write_mrnet(tmp_path, train=24, valid=2)
    chosen = replace(SHORT, twins=True, slices=0.5, batch_size=4)
    assert experiment.twins(release, read_mrnet(release)) is None  # no such plan
    (tmp_path / "simulation.json").write_text('{"twins": true}')
    names = experiment.twins(release, read_mrnet(release))
    assert names == [str(k // 2) for k in range(24)]
    sides = split(release, chosen, 0)
    for side in sides:
        numbers = {int(exam.exam_id) for exam in side}
        assert numbers == {number ^ 1 for number in numbers}
    pairs = experiment.twins(release, sides.train)
    worse = experiment._with_the_finding(sides.train, pairs)
    found = {exam.exam_id: mark for exam, mark in zip(sides.train, worse, strict=True)}
    labels = {exam.exam_id: sum(exam.labels.values()) for exam in sides.train}
    for name, mark in found.items():
        other = f"{int(name) ^ 1:04d}"
        assert mark == (labels[name] > labels[other])

    steps = []
    kept = experiment.fit

    def fit(network, data, **options):
        items = [data[1, k] for k in range(4)]
        for one, other in (items[:2], items[2:]):
            assert one["image"].shape[1:] == other["image"].shape[1:]
        steps.append((options["matched"], len(options["groups"])))
        return kept(network, data, **options)

    monkeypatch.setattr(experiment, "fit", fit)
    train(release, tmp_path / "run", chosen, **FAST)
    assert steps == [(1.0, len(sides.train))] * 3


# ---------------------------------------------------------------- train, evaluate, predict


def test_a_run_can_be_loaded(run, mrnet):
    loaded = load_run(run)
    assert loaded.experiment == TOY
    assert len(loaded.networks) == 3
    assert not any(network.training for network in loaded.networks.values())
    assert set(loaded.thresholds) == set(DIAGNOSES)
    assert set(loaded.combinations) == {"training", "out_of_fold"}
    assert {path.name for path in run.iterdir()} == {
        "best.safetensors", "best.json", *SERIES,
        *(f"landmarks-{series}.json" for series in SERIES),
    }  # fmt: skip
    for series in SERIES:
        stored = Standardiser.load(run / f"landmarks-{series}.json")
        assert stored == loaded.standardisers[series]
        assert stored.volumes == len(split(mrnet, TOY).train)
    assert len(loaded.facts["held_out"]) == len(split(mrnet, TOY).validation)


def test_landmarks_come_from_training_exams_alone(run, mrnet):
    learned = experiment.learn_landmarks(split(mrnet, TOY).train, "axial")
    assert load_run(run).standardisers["axial"] == learned
    everyone = experiment.learn_landmarks(read_mrnet(mrnet), "axial")
    assert everyone.landmarks != learned.landmarks


def test_an_exam_without_contrast_is_named(tmp_path, write_mrnet):
    exams = read_mrnet(write_mrnet(tmp_path, train=4, valid=2), "train")
    np.save(exams[2].series["axial"], np.full((5, 64, 64), 7, np.uint8))
    with pytest.raises(VolumeError, match=f"{exams[2].exam_id}.npy"):
        experiment.learn_landmarks(exams, "axial")


def test_without_tables_there_is_nothing_to_learn(tmp_path, write_mrnet):
    release = write_mrnet(tmp_path, train=4, valid=2)
    for table in release.glob("train-*.csv"):
        table.unlink()
    with pytest.raises(InputError, match="tables train-"):
        train(release, tmp_path / "run", SHORT, **FAST)


def test_fewer_epochs_shorten_the_rehearsal_too():
    chosen = experiment.get_experiment("lab", epochs=1)
    assert (chosen.epochs, chosen.rehearse_epochs) == (1, 1)
    assert experiment.get_experiment("paper", epochs=1).rehearse_epochs == 0


def test_the_networks_have_learned_to_see(answer):
    for diagnosis in DIAGNOSES:
        found = answer["diagnoses"][diagnosis]
        assert found["combined"]["auc"]["value"] > 0.9, diagnosis
        assert set(found["series"]) == set(SERIES)
        assert set(found["ways"]) == {"training", "out_of_fold"}
        assert 0 <= answer["controls"]["style"][diagnosis]["auc"] <= 1
    assert answer["n"]["exams"] == 24
    assert answer["left_out"] == 0


def test_they_look_at_the_lesion(answer):
    """The bright discs of ACL tears lie in the middle, the dark ones aside."""
    for diagnosis, least in (("acl", 0.1), ("meniscus", 0.2)):
        for question, gain in (("slice", 0.3), ("pointing", least)):
            found = [
                row[question] for row in answer["localisation"][diagnosis].values()
            ]
            assert len(found) == 3
            over_centre = [row["gain_over_centre"]["value"] for row in found]
            over_random = [row["gain_over_random"]["value"] for row in found]
            assert np.mean(over_centre) > gain, (diagnosis, question)
            assert np.min(over_random) > gain, (diagnosis, question)


def test_the_numbers_can_be_judged(answer):
    assert answer["use_case"] == "knee"
    assert answer["about"]["data"]["simulated"] is False  # there is no simulation.json
    assert answer["about"]["n"] == 24
    assert "no patient identifiers" in answer["protocol"]
    assert set(answer["subgroups"]["anatomy"]) == {"knee1", "knee2"}
    assert set(answer["subgroups"]["kind"]["meniscus"]) == {"meniscus"}
    case = answer["cases"][0]
    assert set(case["slices"]) == set(SERIES)


def test_training_exams_are_never_measured(run, mrnet, write_mrnet, tmp_path):
    with pytest.raises(LeakError, match="every exam"):
        evaluate(mrnet, run, split="train", progress=False)
    other = write_mrnet(tmp_path, train=52, valid=2)  # the first 48 are the same
    found = evaluate(other, run, split="train", draws=10, progress=False)
    assert found["left_out"] == 48
    assert [case["exam_id"] for case in found["cases"]] == [
        "0048",
        "0049",
        "0050",
        "0051",
    ]


def test_an_exam_is_predicted_alike_by_all(run, answer, mrnet, tmp_path):
    files = predict(run, mrnet, tmp_path, progress=False)
    assert [one["exam"] for one in files] == [c["exam_id"] for c in answer["cases"]]
    for found, case in zip(files, answer["cases"], strict=True):
        assert found["probabilities"] == pytest.approx(case["combined"]["out_of_fold"])
        assert found["slices"] == case["slices"]
        for series, diagnosis in ALL:
            assert found["series"][series][diagnosis] == pytest.approx(
                case["series"][series][diagnosis]
            )


def test_the_files_of_a_prediction(run, mrnet, tmp_path):
    predict(run, mrnet, tmp_path / "out", progress=False)
    names = {f"{number:04d}" for number in range(48, 72)}
    expected = {f"{name}.json" for name in names}
    expected |= {f"{n}.{series}.{d}.nii.gz" for n in names for series, d in ALL}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    stored = json.loads((tmp_path / "out" / "0050.json").read_text())
    assert set(stored["probabilities"]) == set(DIAGNOSES)
    assert all(0 <= value <= 1 for value in stored["probabilities"].values())
    assert {(s, d) for s, row in stored["series"].items() for d in row} == set(ALL)
    exam = read_mrnet(mrnet, "valid")[2]
    loaded = load_run(run)
    prediction = predict_exam(loaded, exam)
    for series, diagnosis in ALL:
        volume = np.load(exam.series[series])
        image = nib.load(tmp_path / "out" / stored["maps"][series][diagnosis])
        heat = image.get_fdata()
        assert heat.shape == volume.shape
        exact = activation_map(loaded, prediction, series, diagnosis)
        np.testing.assert_allclose(heat, exact, atol=np.ptp(exact) / 250)
        assert 0 <= stored["slices"][series][diagnosis] < len(volume)


def test_maps_mean_what_they_say(run, mrnet):
    """The mean of a slice's map is its own logit; the margin holds nothing."""
    loaded = load_run(run)
    exam = read_mrnet(mrnet, "valid")[0]
    prediction = predict_exam(loaded, exam)
    heat = activation_map(loaded, prediction, "axial", "acl")
    assert not heat[:, :4].any()
    assert not heat[:, :, -4:].any()
    low = activation_map(loaded, prediction, "axial", "acl", lowest_outside=True)
    assert (low[:, 0, 0] <= low.min() + 1e-6).all()
    answer = prediction.answers["axial"]["acl"]
    part, network = next(
        (part, one) for part, one in loaded.networks.items() if part.series == "axial"
    )
    slices = torch.zeros(1, 1, 56, 56, dtype=torch.uint8)
    bias = float(network.explain(slices).bias[part.diagnoses.index("acl")])
    logit = np.log(answer.probability / (1 - answer.probability))
    assert answer.shares.sum() + bias == pytest.approx(logit, abs=1e-3)
    assert answer.picked == answer.shares.argmax()


def test_the_answer_is_the_mean_of_what_each_view_says(run, mrnet, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    about = tmp_path / "run" / "best.json"
    facts = json.loads(about.read_text())
    facts["experiment"]["views"] = 3
    about.write_text(json.dumps(facts))
    one, three = load_run(run), load_run(tmp_path / "run")
    exam = read_mrnet(mrnet, "valid")[1]
    lying, found = predict_exam(one, exam), predict_exam(three, exam)
    part, network = next(iter(three.networks.items()))
    ready, _ = prepare(
        np.load(exam.series[part.series]), three.standardisers[part.series], 64
    )
    seen = list(views(torch.from_numpy(ready), 56, 3))
    with torch.inference_mode():
        each = torch.cat([network([view[:, None]]) for view in seen]).sigmoid()
    assert each.std(0).min() > 1e-4
    for k, name in enumerate(part.diagnoses):
        answer = found.answers[part.series][name]
        assert answer.probability == pytest.approx(float(each[:, k].mean()), abs=1e-5)
        same = lying.answers[part.series][name]
        assert answer.as_it_lies == same.as_it_lies == same.probability
        assert torch.equal(answer.maps, same.maps)
    wide = evaluate(mrnet, tmp_path / "run", draws=10, progress=False)
    plain = evaluate(mrnet, run, draws=10, progress=False)
    for name in DIAGNOSES:
        # this copy has the combinations of the run, so its first view is the run's
        auc = plain["diagnoses"][name]["ways"]["out_of_fold"]
        for found in (wide, plain):
            assert found["diagnoses"][name]["as_it_lies"] == auc
    for case, same in zip(wide["cases"], plain["cases"], strict=True):
        assert case["as_it_lies"] == same["combined"]["out_of_fold"]
        assert case["as_it_lies"] != case["combined"]["out_of_fold"]


def test_predicting_needs_no_labels(run, write_mrnet, tmp_path):
    release = write_mrnet(tmp_path / "release", train=1, valid=2)
    for diagnosis in DIAGNOSES:
        (release / f"valid-{diagnosis}.csv").unlink()
    assert len(predict(run, release, tmp_path / "out", progress=False)) == 2
    with pytest.raises(InputError, match="nothing can be measured"):
        evaluate(release, run, progress=False)


def test_missing_exams_stop_before_anything_is_written(run, write_mrnet, tmp_path):
    release = write_mrnet(tmp_path / "release", train=6, valid=3)
    (release / "valid" / "axial" / "0007.npy").unlink()
    (release / "train" / "axial" / "0003.npy").unlink()
    out = tmp_path / "out"
    with pytest.raises(MissingError, match=r"valid/axial/0007\.npy"):
        predict(run, release, out, progress=False)
    with pytest.raises(MissingError, match=r"train/axial/0003\.npy"):
        train(release, tmp_path / "run", SHORT, **FAST)
    with pytest.raises(MissingError, match="--allow-missing"):
        evaluate(release, run, progress=False)
    assert not out.exists()
    assert not (tmp_path / "run").exists()
    found = predict(run, release, out, allow_missing=True, progress=False)
    assert [one["exam"] for one in found] == ["0006", "0008"]


def test_a_broken_exam_does_not_stop_the_others(run, write_mrnet, tmp_path):
    release = write_mrnet(tmp_path / "release", train=1, valid=3)
    path = release / "valid" / "coronal" / "0002.npy"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"1 of 3 exams.*0002\.npy"):
        predict(run, release, tmp_path / "out", progress=False)
    assert (tmp_path / "out" / "0003.json").is_file()
    assert not list((tmp_path / "out").glob("0002*"))
    assert not list((tmp_path / "out").glob(".partial*"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        predict(run, release, tmp_path / "file", progress=False)
    with pytest.raises(InputError, match="cannot take results"):
        predict(run, release, tmp_path / "file" / "below", progress=False)


def test_an_answer_of_an_earlier_prediction_never_stays(run, write_mrnet, tmp_path):
    release = write_mrnet(tmp_path / "release", train=1, valid=4)
    out = tmp_path / "out"
    out.mkdir()
    (out / "other.json").write_text("{}")
    predict(run, release, out, progress=False)
    assert {path.stem for path in out.glob("*.json")} == {
        "0001", "0002", "0003", "0004", "other"
    }  # fmt: skip
    broken = release / "valid" / "coronal" / "0001.npy"
    broken.write_bytes(broken.read_bytes()[:-9])
    (release / "valid" / "axial" / "0003.npy").unlink()
    with pytest.raises(MissingError):
        predict(run, release, out, progress=False)
    assert (out / "0001.json").is_file()  # refused before anything was done
    with pytest.raises(InputError, match=r"1 of 3 exams.*0001\.npy"):
        predict(run, release, out, allow_missing=True, progress=False)
    assert {path.stem for path in out.glob("*.json")} == {"0002", "0004", "other"}


def test_maps_have_the_same_bytes_again(run, mrnet, tmp_path):
    for name in "ab":
        predict(run, mrnet, tmp_path / name, progress=False)
    name = "0048.axial.acl.nii.gz"
    first, second = ((tmp_path / k / name).read_bytes() for k in "ab")
    assert first == second
    assert len(gzip.decompress(first)) < 64 * 64 * 10 + 400  # 8 bit a voxel


# ------------------------------------------------------------------------- other layouts


def test_nine_networks_as_in_the_paper(mrnet, tmp_path):
    nine = replace(SHORT, shared=False, schedule="plateau", algorithm="adam", clip=None)
    logs = train(mrnet, tmp_path, nine, **FAST)
    assert len(logs) == 9
    found = evaluate(mrnet, tmp_path, draws=10, progress=False)
    assert all(len(row["series"]) == 3 for row in found["cases"])
    loaded = load_run(tmp_path)
    assert all(len(part.diagnoses) == 1 for part in loaded.networks)


def test_kneemri_trains_evaluates_and_takes_mrnets_network(shell, run, tmp_path):
    import pickle

    random = np.random.default_rng(0)
    lines = ["examId,seriesNo,aclDiagnosis,volumeFilename"]
    for number in range(20):
        folder = tmp_path / "kneemri" / f"vol{number % 10 + 1:02d}"
        folder.mkdir(parents=True, exist_ok=True)
        volume = random.gamma(2, 200, (4, 72, 72)).astype(np.int16)
        volume[1:3, 20:30, 30:40] += 1500 * (number // 10)
        (folder / f"{number}.pck").write_bytes(pickle.dumps(volume))
        lines.append(f"{number},1,{2 * (number // 10)},{number}.pck")
    root = tmp_path / "kneemri"
    (root / "metadata.csv").write_text("\n".join(lines))
    logs = train(root, tmp_path / "run", SHORT, **FAST)
    assert set(logs) == {"sagittal"}
    own = evaluate(root, tmp_path / "run", split="test", draws=10, progress=False)
    assert own["diagnoses"]["acl"]["combined"] is not None
    assert own["n"]["exams"] == 4
    # MRNet's networks know more series and diagnoses than KneeMRI has.
    other = evaluate(root, run, split="test", draws=10, progress=False)
    assert other["diagnoses"]["acl"]["combined"] is None
    assert 0 <= other["diagnoses"]["acl"]["series"]["sagittal"]["value"] <= 1
    found = predict(run, root, tmp_path / "out", split="test", progress=False)
    assert found[0]["probabilities"] == {}
    assert set(found[0]["series"]) == {"sagittal"}
    stale = tmp_path / "out" / f"{found[0]['exam']}.json"
    some = shutil.copytree(root, tmp_path / "some")
    next(some.rglob(f"{stale.stem}.pck")).unlink()
    words = ("predict", "knee", "--run", run, "--data", some, "--split", "test")
    done = shell(
        "medimg_utils", *words, "--allow-missing", "--out", tmp_path / "out", "--quiet"
    )
    assert done.exit_code == 0, done.output
    one = found[1]
    told = ", ".join(
        f"sagittal {d} {p:.3f}" for d, p in one["series"]["sagittal"].items()
    )
    assert f"{one['exam']}: {told}" in done.output
    assert not stale.exists()
    with pytest.raises(InputError, match="Leave --fold away"):
        train(root, tmp_path / "other", SHORT, fold=1, **FAST)


# ----------------------------------------------------------------------------- interruption


def test_stopped_and_resumed_is_the_same_run(mrnet, tmp_path, monkeypatch):
    short = replace(SHORT, epochs=2)
    train(mrnet, tmp_path / "whole", short, **FAST)
    calls = 0
    honest = experiment.weighted_loss

    def stopping(*arguments):
        nonlocal calls
        calls += 1
        if calls == 45:  # in the second of three networks
            raise KeyboardInterrupt
        return honest(*arguments)

    out = tmp_path / "stopped"
    monkeypatch.setattr(experiment, "weighted_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(mrnet, out, short, **FAST)
    assert (out / "coronal").is_dir()
    assert not (out / "axial").exists()
    with pytest.raises(RunError, match="no finished run"):
        load_run(out)
    with pytest.raises(RunError, match="already holds a run"):
        train(mrnet, out, short, **FAST)
    train(mrnet, out, short, resume=True, **FAST)
    first, second = (
        load_tensors(folder / "best.safetensors")[0]
        for folder in (tmp_path / "whole", out)
    )
    assert set(first) == set(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(RunError, match="other settings"):
        train(mrnet, out, replace(short, epochs=3), resume=True, **FAST)


def test_a_folder_without_run_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match=r"best\.safetensors.*--resume"):
        load_run(tmp_path)


def test_the_shipped_networks_repeat_a_stored_score(tmp_path):
    """An exam follows from its seed, and the stored numbers from the shipped weights."""
    plan = LAB_TESTS["unseen-patients"]
    simulate_exam(plan, "0000", *schedule(plan)["0000"], tmp_path, get_settings().data)
    (found,) = predict("lab", tmp_path / "MRNet-v1.0", tmp_path / "out", progress=False)
    stored = results.load("knee-lab")["tests"]["unseen-patients"]["cases"][0]
    assert stored["exam_id"] == "0000"
    assert found["probabilities"] == pytest.approx(
        stored["combined"]["out_of_fold"], abs=0.02
    )
    assert found["settings"]["experiment"]["size"] == "lab"


# ---------------------------------------------------------------------------- command line


def test_the_verbs_from_the_shell(shell, run, mrnet, tmp_path, monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "tiny", SHORT)
    out = tmp_path / "run"
    words = ("train", "knee", "--data", mrnet, "--size", "tiny", "--out", out)
    done = shell("medimg_utils", *words, "--fold", 1, "--workers", 0, "--quiet")
    assert done.exit_code == 0, done.output
    assert "sagittal: best epoch 1 of 1" in done.output
    assert json.loads((out / "best.json").read_text())["fold"] == 1

    metrics = tmp_path / "metrics.json"
    truth = mrnet.parent / "simulation-truth.json"
    words = ("evaluate", "knee", "--data", mrnet, "--run", run, "--out", metrics)
    done = shell("medimg_utils", *words, "--truth", truth, "--quiet")
    assert done.exit_code == 0, done.output
    assert "24 exams of valid" in done.output
    assert "combined AUC" in done.output
    assert "pointing network" in done.output
    assert json.loads(metrics.read_text())["use_case"] == "knee"

    words = ("predict", "knee", "--run", run, "--data", mrnet, "--split", "valid")
    done = shell("medimg_utils", *words, "--out", tmp_path / "p", "--quiet")
    assert done.exit_code == 0, done.output
    assert done.output.count("acl 0.") == 24
