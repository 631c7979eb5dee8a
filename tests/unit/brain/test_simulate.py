"""A simulated release: same seed, same bytes; what is written is what was drawn."""

import csv
import gzip
import json
import shutil
from dataclasses import asdict, replace

import nibabel as nib
import numpy as np
import pytest
from releases import fingerprint

from medimg_utils.brain import simulate
from medimg_utils.brain.simulate import (
    LGG_RATE,
    RELEASES,
    Simulation,
    Survival,
    ensure_release,
    simulate_cases,
    simulate_release,
)
from medimg_utils.errors import InputError
from medimg_utils.settings import get_settings

QUIET = {"progress": False, "data_dir": get_settings().data}
KINDS = ("flair", "t1", "t1ce", "t2", "seg")


def rows(file):
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# --- bytes ----------------------------------------------------------------------------


def test_interrupted_and_resumed_by_one_process_gives_the_same_bytes(
    small, plan, tmp_path, monkeypatch
):
    out = tmp_path / "release"
    whole = simulate._simulate_patient

    def die(some_plan, index, *rest):
        row = whole(some_plan, index, *rest)
        if index == 1:  # killed when the volumes were written and the record was not
            one = next(out.rglob("*_t1.nii.gz"))
            one.with_name(".partial-1-abc.gz").write_bytes(b"half")
            raise KeyboardInterrupt
        return row

    with monkeypatch.context() as patch:
        patch.setattr(simulate, "_simulate_patient", die)
        with pytest.raises(KeyboardInterrupt):
            simulate_release(out, plan, workers=1, **QUIET)
    assert not (out / "survival_data.csv").exists()
    assert not (out / "simulation.json").exists()
    done = []

    def count(*job):
        done.append(job[1])
        return whole(*job)

    monkeypatch.setattr(simulate, "_simulate_patient", count)
    simulate_release(out, plan, workers=1, **QUIET)
    assert done == [1, 2]
    assert fingerprint(out) == fingerprint(small)


def test_a_finished_release_is_not_touched(small, plan, monkeypatch):
    before = fingerprint(small)
    monkeypatch.setattr(simulate, "prepare", None)  # a call would fail
    assert simulate_release(small, plan, **QUIET) == small
    assert fingerprint(small) == before


def test_some_patients_without_the_rest_are_the_same_bytes(small, plan, tmp_path):
    wanted = rows(small / "simulation-truth.csv")[1]
    name = wanted["BraTS18ID"]
    simulate_cases(tmp_path / "one", plan, {name}, workers=1, **QUIET)
    assert rows(tmp_path / "one" / "simulation-truth.csv") == [wanted]
    place = f"{wanted['grade']}/{name}"
    assert fingerprint(tmp_path / "one" / place) == fingerprint(small / place)


def test_patients_of_another_release_are_refused(plan, tmp_path):
    for names in ((), ("Brats18_SIM9999_00000_1",)):
        with pytest.raises(InputError, match=f"of {len(names)} cases are not of this"):
            simulate_cases(tmp_path / "none", plan, names, **QUIET)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        {"spacing": 3.0},
        {"patients": 2},
        {"images": False},
        {"survival": Survival(age=0.0)},
    ],
)
def test_other_settings_in_the_same_folder_are_refused(small, plan, change):
    before = fingerprint(small)
    with pytest.raises(InputError, match="other settings"):
        simulate_release(small, replace(plan, **change), **QUIET)
    assert fingerprint(small) == before


def test_a_folder_with_something_else_is_refused(plan, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        simulate_release(tmp_path, plan, **QUIET)
    with pytest.raises(InputError, match=r"is a file\. Give the path of a folder"):
        simulate_release(tmp_path / "mine.txt", plan, **QUIET)
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 0}, "patients is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"lgg_rate": 1.5}, "LGG rate is 1.5"),
        ({"spacing": 0.3}, "spacing is 0.3"),
    ],
)
def test_settings_out_of_range_are_refused(plan, change, message):
    with pytest.raises(InputError, match=message):
        replace(plan, **change)


# --- layout ---------------------------------------------------------------------------


def test_the_layout_is_that_of_brats_2018(small):
    truth = rows(small / "simulation-truth.csv")
    assert [row["grade"] for row in truth].count("LGG") == 1
    wanted = {"survival_data.csv", "simulation-truth.csv", "simulation.json"}
    for row in truth:
        name = row["BraTS18ID"]
        wanted |= {f"{row['grade']}/{name}/{name}_{kind}.nii.gz" for kind in KINDS}
    assert set(fingerprint(small)) == wanted


def test_volumes_are_int16_to_the_left_the_back_and_up(small):
    for file in small.rglob("*.nii.gz"):
        image = nib.load(file)
        assert image.get_data_dtype() == np.int16
        assert image.shape == (60, 60, 39)
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        np.testing.assert_allclose(image.header.get_zooms(), 4)
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
        assert image.header.get_xyzt_units() == ("mm", "sec")
        raw = file.read_bytes()
        assert raw[4:8] == b"\0\0\0\0"  # gzip without a time
        assert raw[3] == 0  # and without a name
        assert len(gzip.decompress(raw)) == 352 + 2 * 60 * 60 * 39


def test_the_affine_at_1_mm_is_that_of_brats(tmp_path):
    """Every BraTS volume has the first voxel at (0, 239, 0) and runs to L, P, S."""
    grid = simulate.make_grid(1.0)
    box = np.zeros(grid.size, np.int16)
    box[0, 0, 0] = 7  # the rightmost... lowest index: left, back, bottom of the box
    simulate._write_volume(tmp_path / "a.nii.gz", box, grid)
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(
        image.affine,
        [[-1, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]],
        atol=1e-6,
    )
    where = np.argwhere(np.asarray(image.dataobj) == 7)[0]
    mm = image.affine @ [*where, 1]
    assert mm[0] == pytest.approx(grid.box[0].start - 239)
    assert mm[1] == pytest.approx(grid.box[1].start)


def test_the_front_is_in_front_and_the_right_on_the_right(small):
    """The truth's side and lobe are where the mask lies in the world of the file.

    The motor cortex belongs to the frontal lobe and lies near the middle of the brain, so
    lobes are compared with each other.
    """
    forward: dict[str, list[float]] = {}
    for row in rows(small / "simulation-truth.csv"):
        name = row["BraTS18ID"]
        start = small / row["grade"] / name / name
        mask = nib.load(f"{start}_seg.nii.gz")
        brain = nib.load(f"{start}_t1.nii.gz")

        def centre(image):
            index = np.argwhere(np.asarray(image.dataobj) > 0).mean(0)
            return (image.affine @ [*index, 1])[:3]

        off = centre(mask) - centre(brain)
        assert (off[0] > 0) == (row["side"] == "right")
        forward.setdefault(row["location"], []).append(off[1])
    assert max(forward["occipital lobe"]) < 0
    assert min(forward["frontal lobe"]) > max(forward["occipital lobe"])


def test_the_truth_agrees_with_the_files(small):
    for row in rows(small / "simulation-truth.csv"):
        name = row["BraTS18ID"]
        start = small / row["grade"] / name / name
        label = np.asarray(nib.load(f"{start}_seg.nii.gz").dataobj)
        assert set(np.unique(label)) <= {0, 1, 2, 4}
        for value, key in ((1, "core"), (2, "oedema"), (4, "enhancing")):
            volume = (label == value).sum() * 64 / 1000
            assert volume == pytest.approx(float(row[f"{key}_cm3"]), abs=1e-3)
        seen = np.any(
            [np.asarray(nib.load(f"{start}_{k}.nii.gz").dataobj) for k in KINDS[:4]],
            axis=0,
        )
        centres = [np.argwhere(m).mean(0) for m in (seen, label > 0)]
        distance = 4 * np.linalg.norm(centres[0] - centres[1])
        assert distance == pytest.approx(float(row["distance_mm"]), abs=0.5)
        assert (label[~seen] == 0).all()


def test_no_two_patients_are_alike(small):
    digests = [d for f, d in fingerprint(small).items() if f.endswith("_t1.nii.gz")]
    assert len(set(digests)) == 3


# --- survival -------------------------------------------------------------------------


def test_the_survival_table_is_that_of_the_release(small, plan):
    table = rows(small / "survival_data.csv")
    assert list(table[0]) == ["BraTS18ID", "Age", "Survival", "ResectionStatus"]
    truth = {row["BraTS18ID"]: row for row in rows(small / "simulation-truth.csv")}
    listed = {name for name, row in truth.items() if row["listed"] == "1"}
    assert {row["BraTS18ID"] for row in table} == listed
    for row in table:
        real = truth[row["BraTS18ID"]]
        assert real["grade"] == "HGG"
        assert row["Survival"] == real["days"]
        assert float(row["Age"]) == float(real["age"])
        known = real["resection_known"] == "1"
        assert row["ResectionStatus"] == (real["resection"] if known else "NA")
    settings = json.loads((small / "simulation.json").read_text())
    assert settings["survival"] == asdict(plan.survival)
    assert Survival(**settings["survival"]) == plan.survival


def cohort(count, seed):
    generator = np.random.default_rng(seed)
    return [
        {
            "age": generator.normal(60, 12),
            "distance_mm": generator.normal(43, 6),
            "core_cm3": generator.gamma(2, 12),
            "oedema_cm3": generator.gamma(2.5, 21),
            "enhancing_cm3": generator.gamma(2, 9),
            "resection": "GTR" if generator.random() < 0.6 else "STR",
        }
        for _ in range(count)
    ]


def test_the_mean_is_what_a_hand_computes():
    model = Survival()
    patient = {
        "age": 70.0,
        "distance_mm": 45.0,
        "core_cm3": 34.0,
        "oedema_cm3": 52.0,
        "enhancing_cm3": 19.0,
        "resection": "GTR",
    }
    # 390 - 6.5 * 10 + 5 * 2 - 1.5 * 10 + 110
    assert model.mean(patient) == pytest.approx(430.0)
    assert model.mean(patient | {"resection": "STR"}) == pytest.approx(320.0)
    assert model.mean(patient | {"age": 200.0}) == model.least


def test_regression_finds_the_coefficients_in_their_intervals():
    """Least squares with intervals that allow for unequal variance (White 1980)."""
    model = Survival()
    patients = cohort(4000, 0)
    generator = np.random.default_rng(1)
    days = np.array([model.days(model.mean(p), generator) for p in patients], float)
    names = ("age", "distance_mm", "core_cm3", "oedema_cm3", "enhancing_cm3")
    x = np.array(
        [[1, *(p[n] for n in names), p["resection"] == "GTR"] for p in patients], float
    )
    inverse = np.linalg.inv(x.T @ x)
    found = inverse @ x.T @ days
    rest = days - x @ found
    spread = np.sqrt(np.diag(inverse @ (x * rest[:, None] ** 2).T @ x @ inverse))
    true = np.array(
        [
            model.age,
            model.distance,
            model.core,
            model.oedema,
            model.enhancing,
            model.gross_total,
        ]
    )
    assert (np.abs(found[1:] - true) < 3 * spread[1:]).all()
    # age matters, and explains as little as it does in real life
    assert np.abs(found[1]) > 5 * spread[1]
    explained = 1 - rest.var() / days.var()
    assert 0.1 < explained < 0.5


def test_survival_is_spread_over_the_three_classes():
    """Below 10, 10 to 15, and above 15 months."""
    model = Survival()
    generator = np.random.default_rng(2)
    days = np.array([model.days(model.mean(p), generator) for p in cohort(3000, 3)])
    assert days.min() >= 1
    shares = np.histogram(days, [0, 304, 456, np.inf])[0] / len(days)
    assert shares.min() > 0.2
    assert 300 < np.median(days) < 500


# --- plans ----------------------------------------------------------------------------


def test_grades_come_at_the_rate_of_the_release():
    grades = simulate._grades(Simulation(patients=285, seed=3))
    assert grades.count("LGG") == round(LGG_RATE * 285) == 75
    assert simulate._grades(Simulation(patients=10, seed=3, lgg_rate=0)) == ["HGG"] * 10
    other = simulate._grades(Simulation(patients=285, seed=4))
    assert other != grades


def test_ages_are_those_of_the_grades():
    plan = Simulation(patients=1, seed=9)
    high, low = (
        [simulate.draw_case(plan, i, grade).age for i in range(300)]
        for grade in ("HGG", "LGG")
    )
    assert np.mean(high) == pytest.approx(60.3, abs=2.5)
    assert np.mean(low) == pytest.approx(43, abs=2.5)


def test_tables_alone_say_what_the_release_says(small, plan, tmp_path):
    out = simulate_release(
        tmp_path / "tables", replace(plan, images=False), workers=1, **QUIET
    )
    assert not list(out.rglob("*.nii.gz"))
    for name in ("simulation-truth.csv", "survival_data.csv"):
        assert (out / name).read_bytes() == (small / name).read_bytes()


def test_ensure_release_makes_what_the_size_says(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        simulate,
        "simulate_release",
        lambda out, plan, **rest: asked.append((out, plan)) or out,
    )
    settings = replace(get_settings(), data=tmp_path)
    assert ensure_release("tiny", settings) == tmp_path / "brain-tiny"
    assert asked == [(tmp_path / "brain-tiny", RELEASES["tiny"])]
    with pytest.raises(InputError, match="sizes are tiny, lab"):
        ensure_release("paper", settings)
    # the first release of the ablation shares patients with those who choose for the
    # lab networks; its networks are its own
    seeds = [plan.seed for name, plan in RELEASES.items() if name != "ablation"]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("name", ["simulation.json", "unfinished.json"])
def test_ensure_release_replaces_what_an_older_version_made(
    name, monkeypatch, tmp_path
):
    monkeypatch.setattr(simulate, "simulate_release", lambda out, plan, **rest: out)
    settings = replace(get_settings(), data=tmp_path)
    out = tmp_path / "brain-tiny"
    plan = asdict(RELEASES["tiny"])
    for changes, kept in (
        ({"version": simulate.VERSION - 1}, False),
        ({}, True),
        ({"version": simulate.VERSION - 1, "seed": 5}, True),  # another release
    ):
        out.mkdir(exist_ok=True)
        (out / name).write_text(json.dumps(plan | changes))
        ensure_release("tiny", settings)
        assert out.exists() == kept


# --- command line ---------------------------------------------------------------------


def test_the_command_writes_a_release_and_says_what_is_wrong(shell, small, tmp_path):
    common = ["brain", "--patients", "3", "--seed", "8"]
    done = shutil.copytree(small, tmp_path / "done")
    result = shell("simulate", *common, "--spacing", "4", "--out", str(done))
    # the share of low-grade tumours differs from that of the fixture
    assert result.exit_code == 1
    assert "other settings" in result.output
    result = shell("simulate", *common, "--spacing", "9", "--out", str(tmp_path / "x"))
    assert result.exit_code == 1
    assert "spacing is 9.0 mm" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "x").exists()
