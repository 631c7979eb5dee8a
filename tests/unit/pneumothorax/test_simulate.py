"""A simulated release: same seed, same bytes; what is written is what was drawn."""

import csv
import functools
import json
import re
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import JPEGBaseline8Bit
from releases import fingerprint
from scipy import stats

from medimg_utils.errors import InputError
from medimg_utils.io import decode_rle
from medimg_utils.pneumothorax import simulate
from medimg_utils.pneumothorax.collapse import Pneumothorax
from medimg_utils.pneumothorax.dataset import read_siim
from medimg_utils.pneumothorax.devices import device_paths
from medimg_utils.pneumothorax.film import SMALLEST, Radiograph, _outline
from medimg_utils.pneumothorax.phantom import ANATOMIES, LEFT, RIGHT, load_chest
from medimg_utils.pneumothorax.simulate import (
    HELD_OUT,
    LAB_TESTS,
    LAB_TRAIN,
    SIIM_AREAS,
    TINY,
    VERSION,
    Simulation,
    ensure_release,
    patients_of,
    random_area,
    simulate_films,
    simulate_release,
)
from medimg_utils.pneumothorax.technique import (
    Rates,
    random_patient,
    random_technique,
)
from medimg_utils.pneumothorax.view import make_view
from medimg_utils.settings import get_settings

HERE = {"data_dir": get_settings().data, "progress": False}


@pytest.fixture(scope="module")
def tiny():
    """24 patients, half of the images positive."""
    return ensure_release("tiny", get_settings())


def truth(root):
    with (root / "simulation-truth.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# --- bytes ----------------------------------------------------------------------------

SMALL = Simulation(
    3, seed=4, size=96, positive_rate=0.5, pairs=True, anatomies=("chest3",)
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Three patients, made by two processes without a break."""
    out = tmp_path_factory.mktemp("two") / "release"
    return simulate_release(out, SMALL, workers=2, **HERE)


def test_interrupted_and_resumed_by_one_process_gives_the_same_bytes(
    small, tmp_path, monkeypatch
):
    out = tmp_path / "release"
    whole = simulate._simulate_patient

    def die(plan, index, films, folder, data_dir):
        rows = whole(plan, index, films, folder, data_dir)
        if index == 1:  # killed when the films were written and the note was not
            one = next((folder / "dicom-images").rglob("*.dcm"))
            one.with_name(".partial-1-abc.dcm").write_bytes(b"half")
            raise KeyboardInterrupt
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(simulate, "_simulate_patient", die)
        with pytest.raises(KeyboardInterrupt):
            simulate_release(out, SMALL, workers=1, **HERE)
    assert not (out / "train-rle.csv").exists()
    assert not (out / "simulation.json").exists()
    done = []

    def note(plan, index, *rest):
        done.append(index)
        return whole(plan, index, *rest)

    monkeypatch.setattr(simulate, "_simulate_patient", note)
    simulate_release(out, SMALL, workers=1, **HERE)
    assert done == [1, 2]
    assert fingerprint(out) == fingerprint(small)


def test_a_finished_release_is_not_touched(small, monkeypatch):
    before = fingerprint(small)
    monkeypatch.setattr(simulate, "prepare", None)  # a call would fail
    assert simulate_release(small, SMALL, **HERE) == small
    assert fingerprint(small) == before


def test_a_few_films_of_a_release_have_the_bytes_of_the_whole(small, tmp_path):
    row = truth(small)[0]
    simulate_films(tmp_path / "some", SMALL, [row["ImageId"]], workers=1, **HERE)
    wanted = {r["ImageId"] for r in truth(small) if r["patient"] == row["patient"]}
    found = fingerprint(tmp_path / "some")
    images = {name: digest for name, digest in found.items() if name.endswith(".dcm")}
    assert {Path(name).stem for name in images} == wanted
    assert images.items() <= fingerprint(small).items()
    with pytest.raises(InputError, match=r"1 of 1 images are not.*1\.2\.3"):
        simulate_films(tmp_path / "none", SMALL, ["1.2.3"], **HERE)
    with pytest.raises(InputError, match="none was named"):
        simulate_films(tmp_path / "none", SMALL, [], **HERE)
    assert not (tmp_path / "none").exists()


def test_a_break_while_tidying_up_is_mended(small, tmp_path):
    out = shutil.copytree(small, tmp_path / "release")
    (out / "unfinished").mkdir()
    (out / "unfinished" / "000000.json").write_text("[]")
    shutil.copy(out / "simulation.json", out / "unfinished.json")
    simulate_release(out, SMALL, **HERE)
    assert fingerprint(out) == fingerprint(small)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"size": 128},
        {"patients": 2},
        {"pairs": False},
        {"rates": Rates(drain=(0, 0))},
    ],
)
def test_other_settings_in_the_same_folder_are_refused(small, change):
    before = fingerprint(small)
    with pytest.raises(InputError, match="other settings"):
        simulate_release(small, replace(SMALL, **change), **HERE)
    assert fingerprint(small) == before


def test_pairs_share_everything_but_the_collapse(small):
    rows = {row["ImageId"]: row for row in truth(small)}
    records = {record.image_id: record for record in read_siim(small)}
    positives = [row for row in rows.values() if row["side"]]
    assert positives
    for row in positives:
        twin = rows[row["pair"]]
        assert twin["pair"] == row["ImageId"]
        for same in (
            "patient",
            "anatomy",
            "view",
            "drain",
            "devices",
            "findings",
            "mirrored",
        ):
            assert twin[same] == row[same]
        assert (twin["side"], twin["kind"], float(twin["area"])) == ("", "", 0)
        images = [pydicom.dcmread(records[r["ImageId"]].path) for r in (row, twin)]
        for tag in (
            "PatientID",
            "PatientAge",
            "PatientSex",
            "ViewPosition",
            "PixelSpacing",
            "StudyDate",
        ):
            assert images[0].get(tag) == images[1].get(tag)
        assert images[0].StudyInstanceUID != images[1].StudyInstanceUID
        pixels = [image.pixel_array.astype(float) for image in images]
        mask = functools.reduce(
            np.logical_or,
            (decode_rle(runs, (96, 96)) for runs in records[row["ImageId"]].rle),
        )
        change = pixels[0] - pixels[1]
        assert change[mask].mean() < 0
        assert abs(change[mask]).mean() > abs(change[~mask]).mean()


def test_the_twin_of_a_tension_pneumothorax_has_its_mediastinum_back(
    tmp_path, monkeypatch
):
    """Geometry and technique are those of the film: only air and push are gone."""
    seen = []

    def note(view, girdle, gap):
        seen.append((view, gap))
        empty = np.zeros((view.size, view.size), bool)
        pixels = empty.astype(np.uint8)
        return Radiograph(pixels, empty, empty, view.pixel_mm, ())

    monkeypatch.setattr(simulate, "render", note)
    monkeypatch.setattr(
        simulate,
        "random_pneumothorax",
        lambda area, generator: Pneumothorax(LEFT, "tension", 1, area),
    )
    monkeypatch.setattr(simulate, "random_area", lambda generator: 0.04)
    simulate._simulate_patient(SMALL, 0, [True], tmp_path, get_settings().data)
    (pushed, gap), (twin, none) = seen
    assert gap is not None
    assert none is None
    assert twin.geometry == pushed.geometry
    assert twin.technique == pushed.technique
    assert twin.technique.drain_side == LEFT
    calm = make_view(twin.chest, twin.patient, twin.technique, twin.size)
    assert torch.equal(twin.deformation.bend, calm.deformation.bend)
    low, high = twin.chest.lungs[LEFT]
    heart = (low + high)[None] / 2
    heart[0, 0] = twin.chest.midline
    # air on the left pushes the heart to the right, which is on the left of the film
    assert pushed.pixels(heart)[0, 1] < twin.pixels(heart)[0, 1] - 2


def healthy_view():
    generator = np.random.default_rng(0)
    patient = random_patient(("chest3",), Rates(), generator)
    technique = random_technique(Rates(), True, generator)
    return make_view(load_chest("chest3", get_settings().data), patient, technique, 96)


def test_where_an_area_does_not_fit_another_is_drawn(monkeypatch):
    areas = iter([SMALLEST, 0.0012, 0.01])
    monkeypatch.setattr(simulate, "random_area", lambda generator: next(areas))
    monkeypatch.setattr(
        simulate, "fit_pneumothorax", lambda view, wanted: wanted.area > 0.005 or None
    )
    *_, found = simulate._collapse_somehow(healthy_view(), np.random.default_rng(0))
    assert found.area == 0.01


def test_a_view_in_which_nothing_fits_is_an_error_and_no_endless_search(monkeypatch):
    monkeypatch.setattr(simulate, "random_area", lambda generator: SMALLEST)
    monkeypatch.setattr(simulate, "fit_pneumothorax", lambda *_: None)
    with pytest.raises(
        RuntimeError, match="no pneumothorax shows in this view of chest3"
    ):
        simulate._collapse_somehow(healthy_view(), np.random.default_rng(0))


def test_drains_lie_on_the_side_of_the_pneumothorax():
    data, sides = get_settings().data, set()
    for index in range(6):
        generator = np.random.default_rng([8, index])
        patient = random_patient(("chest3",), Rates(), generator)
        technique = random_technique(Rates(), True, generator)
        technique = replace(technique, devices=("drain",))
        view = make_view(load_chest("chest3", data), patient, technique, 96)
        posed, (cavity, _), found = simulate._collapse_somehow(view, generator)
        assert posed.technique.drain_side == found.side == cavity.side
        metal = device_paths(posed)
        x, _ = posed.film_mm()  # grows to the patient's right
        right = float((metal * (x > 0)).sum() / metal.sum())
        assert right > 0.98 if found.side == RIGHT else right < 0.02
        sides.add(found.side)
    assert sides == {RIGHT, LEFT}


def test_the_workers_leave_the_number_of_threads_alone(tmp_path):
    torch.set_num_threads(2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(simulate, "render", None)  # fails at the first film
            healthy = replace(SMALL, positive_rate=0.0)
            with pytest.raises(TypeError):
                simulate_release(tmp_path / "out", healthy, workers=1, **HERE)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 0}, "patients is 0"),
        ({"size": 32}, "size is 32 pixels; 64 to 2048"),
        ({"positive_rate": 1.5}, "positive rate is 1.5"),
        ({"positive_rate": float("nan")}, "positive rate is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"anatomies": ("chest1", "chest7")}, r"\['chest7'\].*chest1, chest2"),
        ({"anatomies": ()}, "no anatomy"),
        ({"rates": Rates(drain=(0.1, 1.2))}, r"drain.*0\.1.*1\.2.*0 to 1"),
        ({"rates": Rates(drain=(-0.1, 0.2))}, "drain"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_a_bad_number_of_workers_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="workers is -2"):
        simulate_release(tmp_path / "out", SMALL, workers=-2, **HERE)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        simulate_release(tmp_path, SMALL, **HERE)
    with pytest.raises(InputError, match=r"is a file\. Give the path of a folder"):
        simulate_release(tmp_path / "thesis.txt", SMALL, **HERE)
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.txt"]


def test_sizes_without_a_simulated_release_are_refused():
    with pytest.raises(InputError, match=r"'paper'.*tiny, lab.*real release"):
        ensure_release("paper", get_settings())


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"version": VERSION - 1}, False),
        ({"version": VERSION}, True),
        ({"version": VERSION - 1, "seed": 77}, True),  # somebody's own
    ],
)
def test_a_release_of_an_older_version_is_made_anew(
    tmp_path, monkeypatch, changes, kept
):
    made = []
    monkeypatch.setattr(
        simulate, "simulate_release", lambda out, plan, **_: made.append(out.exists())
    )
    out = tmp_path / "pneumothorax-tiny"
    out.mkdir()
    (out / "simulation.json").write_text(json.dumps(asdict(TINY) | changes))
    ensure_release("tiny", replace(get_settings(), data=tmp_path))
    assert made == [kept]


def test_the_command_line_passes_its_options_on(shell, monkeypatch):
    calls = []
    monkeypatch.setattr(
        simulate, "simulate_release", lambda *a, **k: calls.append((a, k))
    )
    words = "--out x --patients 5 --seed 6 --size 128 --positive-rate 0.3 --pairs"
    words += " --drain-rate 0.1 0.9"
    assert shell("simulate", "pneumothorax", *words.split()).exit_code == 0
    plan = Simulation(
        5, 6, size=128, positive_rate=0.3, pairs=True, rates=Rates(drain=(0.1, 0.9))
    )
    assert calls == [((Path("x"), plan), {"workers": None})]


# --- numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.0, 0.22, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_positive_rate_is_exact(rate, seed):
    schedule = simulate._schedule(Simulation(150, seed, positive_rate=rate))
    films = [film for patient in schedule for film in patient]
    assert sum(films) == round(rate * len(films))
    assert Counter(map(len, schedule)).keys() == {1, 2, 3}
    assert np.mean([len(p) for p in schedule]) == pytest.approx(1.6, abs=0.25)


def test_positive_patients_have_films_from_before_or_after():
    """A film without pneumothorax of a patient who has one elsewhere."""
    schedule = simulate._schedule(Simulation(600, 0))
    ill = [p for p in schedule if any(p)]
    assert 0.03 < np.mean([not all(p) for p in ill]) < 0.3
    assert np.mean([any(p) for p in schedule]) < 0.35  # positives cluster in patients


def siim_cdf(areas):
    levels = [0.0, *SIIM_AREAS, 1.0]
    ends = [SMALLEST, *SIIM_AREAS.values(), 0.08]
    return np.interp(np.log(areas), np.log(ends), levels)


def test_drawn_areas_have_the_quantiles_of_siim():
    generator = np.random.default_rng(0)
    drawn = [random_area(generator) for _ in range(20000)]
    for level, area in SIIM_AREAS.items():
        assert np.quantile(drawn, level) == pytest.approx(area, rel=0.06)
    assert min(drawn) >= SMALLEST
    assert max(drawn) <= 0.08


def test_fitted_areas_have_the_distribution_of_siim():
    """Kolmogorov-Smirnov test of 40 masks on the grid they are drawn from, p > 0.01."""
    data = get_settings().data
    wanted, found = [], []
    for index in range(40):
        generator = np.random.default_rng([7, index])
        patient = random_patient(("chest3", "chest4"), Rates(), generator)
        technique = random_technique(Rates(), True, generator)
        view = make_view(load_chest(patient.anatomy, data), patient, technique, 256)
        posed, gap, drawn = simulate._collapse_somehow(view, generator)
        wanted.append(drawn.area)
        found.append(float((_outline(posed, *gap, rows=256) > 0.5).float().mean()))
    assert stats.kstest(found, siim_cdf).pvalue > 0.01
    ratio = np.array(found) / wanted
    assert np.median(ratio) == pytest.approx(1, abs=0.1)
    assert (abs(ratio - 1) < 0.25).mean() > 0.85
    assert ratio.min() > 0.4


# --- the tiny release -----------------------------------------------------------------


def test_the_reader_reads_what_was_written(tiny):
    rows = {row["ImageId"]: row for row in truth(tiny)}
    records = read_siim(tiny)
    assert {r.image_id for r in records} == set(rows)
    for record in records:
        row = rows[record.image_id]
        assert record.patient == row["patient"]
        assert record.label == int(row["side"] != "")
        assert record.view == row["view"]
        if record.label:
            masks = [decode_rle(runs, (512, 512)) for runs in record.rle]
            mask = functools.reduce(np.logical_or, masks)
            assert mask.mean() == pytest.approx(float(row["area"]), abs=1e-6)
            assert mask.mean() >= SMALLEST
            middle = np.nonzero(mask)[1].mean()
            assert (middle < 256) == (row["side"] == "R")  # the right is on the left
            assert row["kind"]
        else:
            assert float(row["area"]) == 0


def test_the_patients_drawn_anew_are_those_on_the_films(tiny):
    patients = patients_of(TINY)
    assert len(patients) == TINY.patients
    rows = {row["ImageId"]: row for row in truth(tiny)}
    for record in read_siim(tiny):
        who, row = patients[record.patient], rows[record.image_id]
        assert (who.sex, who.age) == (record.sex, record.age)
        assert (who.anatomy, int(who.mirrored)) == (
            row["anatomy"],
            int(row["mirrored"]),
        )


def test_half_of_the_tiny_release_is_positive(tiny):
    rows = truth(tiny)
    assert sum(row["side"] != "" for row in rows) == round(0.5 * len(rows))
    assert len({row["patient"] for row in rows}) == 24
    assert {row["anatomy"] for row in rows} == set(ANATOMIES)
    assert {row["view"] for row in rows} == {"PA", "AP"}


def test_the_table_looks_like_siims(tiny):
    lines = (tiny / "train-rle.csv").read_text().splitlines()
    assert lines[0] == "ImageId, EncodedPixels"
    assert all(re.fullmatch(r"[\d.]+,(-1|\d+( \d+)+)", line) for line in lines[1:])
    counts = Counter(line.split(",")[0] for line in lines[1:])
    assert max(counts.values()) > 1  # several rows an image
    for line in lines[1:]:
        name, runs = line.split(",")
        if runs == "-1":
            assert counts[name] == 1


def test_settings_are_kept_and_nothing_unfinished_is(tiny):
    assert {f.name for f in tiny.iterdir()} == {
        "dicom-images",
        "train-rle.csv",
        "simulation-truth.csv",
        "simulation.json",
    }
    kept = json.loads((tiny / "simulation.json").read_text())
    assert (kept["patients"], kept["size"], kept["positive_rate"]) == (24, 512, 0.5)


def test_files_are_valid_dicom_without_a_name(tiny):
    files = list((tiny / "dicom-images").rglob("*"))
    files = [f for f in files if f.is_file()]
    assert len(files) == len(truth(tiny))
    seen = set()
    for file in files:
        image = pydicom.dcmread(file)
        assert image.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
        study, series, name = file.relative_to(tiny / "dicom-images").parts
        assert name == f"{image.SOPInstanceUID}.dcm"
        assert (study, series) == (image.StudyInstanceUID, image.SeriesInstanceUID)
        assert image.file_meta.MediaStorageSOPInstanceUID == image.SOPInstanceUID
        for uid in (
            image.SOPInstanceUID,
            image.StudyInstanceUID,
            image.SeriesInstanceUID,
        ):
            assert uid.is_valid
            seen.add(uid)
        assert (image.Rows, image.Columns, image.BitsStored) == (512, 512, 8)
        assert image.PhotometricInterpretation == "MONOCHROME2"
        assert image.Modality == "CR"
        assert image.ViewPosition in ("PA", "AP")
        assert re.fullmatch(r"\d{3}Y", image.PatientAge)
        assert image.PatientSex in ("F", "M")
        assert 0.4 < image.PixelSpacing[0] < 1.2  # a film of 20 to 60 cm
        assert re.fullmatch(r"SIM\d{4}-\d{5}", str(image.PatientName))
        assert image.PatientID == image.PatientName
        assert image.PatientBirthDate == ""
        assert "Simulated" in image.ImageComments
        assert image.LossyImageCompression == "01"
    assert len(seen) == 3 * len(files)
    assert pydicom.dcmread(files[0]).pixel_array.shape == (512, 512)


def test_no_gap_of_the_tiny_release_is_clipped_to_black(tiny):
    """Then no air could be told from another black: see the pixels under the masks."""
    shares = []
    for record in read_siim(tiny):
        if record.label:
            pixels = pydicom.dcmread(record.path).pixel_array
            mask = functools.reduce(
                np.logical_or, (decode_rle(r, (512, 512)) for r in record.rle)
            )
            shares.append((pixels[mask] <= 1).mean())
    assert np.mean(shares) < 0.03
    assert np.median(shares) < 0.001


# --- the lab releases -----------------------------------------------------------------


def test_the_lab_releases_keep_patients_and_an_anatomy_apart():
    assert HELD_OUT not in LAB_TRAIN.anatomies
    assert LAB_TESTS["unseen-anatomy"].anatomies == (HELD_OUT,)
    assert LAB_TESTS["unseen-patients"].anatomies == LAB_TRAIN.anatomies
    assert {HELD_OUT, *LAB_TRAIN.anatomies} == set(ANATOMIES)
    seeds = [LAB_TRAIN.seed, *(test.seed for test in LAB_TESTS.values())]
    assert len(set(seeds)) == len(seeds)
    assert LAB_TRAIN.rates.drain[0] == LAB_TRAIN.rates.drain[1]
