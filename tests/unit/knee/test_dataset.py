import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medimg_utils.errors import InputError
from medimg_utils.knee.dataset import (
    DIAGNOSES,
    SERIES,
    Exam,
    Exams,
    MissingError,
    VolumeError,
    collate,
    read_kneemri,
    read_mrnet,
    read_release,
    read_volume,
    verify,
)
from medimg_utils.knee.preprocess import Augment
from medimg_utils.knee.standardise import Standardiser
from medimg_utils.release import DatasetError


@pytest.fixture
def small(tmp_path, write_mrnet):
    """Four + two exams that a test may change."""
    return write_mrnet(tmp_path / "small", train=4, valid=2)


# -------------------------------------------------------------------------------- MRNet


def test_mrnet_layout(mrnet):
    exams = read_mrnet(mrnet, "train")
    assert [exam.exam_id for exam in exams] == [f"{k:04d}" for k in range(48)]
    assert tuple(exams[0].series) == SERIES
    assert tuple(exams[0].labels) == DIAGNOSES
    table = (mrnet / "train-acl.csv").read_text().split()
    assert [exam.labels["acl"] for exam in exams] == [int(row[-1]) for row in table]
    assert {exam.labels["meniscus"] for exam in exams} == {0, 1}
    assert read_release(mrnet, "valid") == read_mrnet(mrnet, "valid")
    assert read_mrnet(mrnet, "valid")[0].exam_id == "0048"
    assert read_volume(exams[0].series["axial"]).shape[1:] == (64, 64)


@pytest.mark.parametrize(
    "text",
    ["0000,1\n0001,0\n", "\ufeff0000,1\r\n0001,0\r\n", "0000, 1\n\n0001 ,0\n", "0,1\n1,0",
     "0000,1\n0001,0\n0001,0\n"],
)  # fmt: skip
def test_every_copy_of_a_table_reads_alike(small, text):
    for diagnosis in DIAGNOSES:
        (small / f"train-{diagnosis}.csv").write_bytes(text.encode())
    exams = read_mrnet(small)
    assert [(exam.exam_id, exam.labels["acl"]) for exam in exams] == [
        ("0000", 1), ("0001", 0)
    ]  # fmt: skip


def test_missing_exams_are_listed_and_refused(small):
    (small / "train" / "axial" / "0002.npy").unlink()
    (small / "train" / "coronal" / "0001.npy").unlink()
    with pytest.raises(MissingError) as error:
        read_mrnet(small)
    text = str(error.value)
    assert "2 of 4 exams" in text
    assert "train/coronal/0001.npy, train/axial/0002.npy" in text
    assert "--allow-missing" in text
    exams = read_mrnet(small, allow_missing=True)
    assert [exam.exam_id for exam in exams] == ["0000", "0003"]
    assert len(read_mrnet(small, "valid")) == 2  # the other split is whole


def test_a_release_without_images_is_refused_even_so(small):
    shutil.rmtree(small / "train")
    with pytest.raises(MissingError, match=r"4 of 4 exams.*0003"):
        read_mrnet(small)
    with pytest.raises(MissingError, match="none of the 4 exams"):
        read_mrnet(small, allow_missing=True)


def test_a_split_with_secret_labels_has_exams_without_labels(small):
    for diagnosis in DIAGNOSES:
        (small / f"valid-{diagnosis}.csv").unlink()
    exams = read_mrnet(small, "valid")
    assert [exam.exam_id for exam in exams] == ["0004", "0005"]
    assert exams[0].labels == {}
    (small / "valid" / "sagittal" / "0005.npy").unlink()
    with pytest.raises(MissingError, match=r"valid/sagittal/0005\.npy"):
        read_mrnet(small, "valid")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0000,2\n", r"line 1: '0000', '2'"),
        ("0000,1\n0001,\n", r"line 2: '0001', ''"),
        ("0000,1\n../../etc/passwd,0\n", r"line 2: '../../etc/passwd'"),
        ("0000,1\n/etc/passwd,0\n", "line 2"),
        ("exam,label\n0000,1\n", "line 1"),
        ("0000,1\n0000,0\n", "both 0 and 1"),
        ("0000\n0001\n", "1 columns"),
        ("", "different exams"),
        ('"', "no csv table"),
        ("0000,1\n0001,0\n0002,0\n", "different exams: 1 .* 0003"),
    ],
)
def test_tables_that_cannot_be_trusted_are_refused(small, text, message):
    (small / "train-acl.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_mrnet(small)


def test_folders_that_are_no_release_say_what_to_give(small, tmp_path):
    with pytest.raises(DatasetError, match="One lies below it"):
        read_mrnet(small.parent)
    with pytest.raises(DatasetError, match=r"neither train-abnormal\.csv"):
        read_release(small / "train", "train")
    with pytest.raises(DatasetError, match="no folder"):
        read_release(tmp_path / "absent", "train")
    with pytest.raises(DatasetError, match="'test' is no split"):
        read_mrnet(small, "test")
    (small / "train-acl.csv").unlink()
    with pytest.raises(DatasetError, match=r"lacks train-acl\.csv"):
        read_mrnet(small)


def test_an_exam_is_known_by_its_images_not_its_number(mrnet, small):
    first, second = read_mrnet(mrnet)[0], read_mrnet(small)[0]
    assert first.exam_id == second.exam_id
    assert first.digest() == second.digest()  # the same seed drew both
    path = second.series["sagittal"]
    volume = np.load(path)
    volume[0, 0, 0] ^= 1
    np.save(path, volume)
    assert second.digest() != first.digest()


# ------------------------------------------------------------------------------- Rijeka


def write_kneemri(root: Path) -> Path:
    """Ten exams, one a folder, as the release has them; grades 0, 1, 2, 0, 1 ..."""
    random = np.random.default_rng(0)
    lines = [
        "examId,seriesNo,aclDiagnosis,kneeLR,roiX,roiY,roiZ,roiHeight,roiWidth,roiDepth,"
        "volumeFilename"
    ]
    for number in range(1, 11):
        name = f"{300 + number}-8.pck"
        folder = root / f"vol{number:02d}"
        folder.mkdir(parents=True)
        signal = random.gamma(2, 200, (6, 80, 72)).astype(np.int16)
        (folder / name).write_bytes(pickle.dumps(signal, protocol=number % 4 + 1))
        lines.append(f"{300 + number},8,{(number - 1) % 3},1,10,10,2,30,30,3,{name}")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def kneemri(tmp_path):
    return write_kneemri(tmp_path / "kneemri")


def test_kneemri_layout(kneemri):
    parts = {name: read_release(kneemri, name) for name in ("train", "tune", "test")}
    ids = {name: {exam.exam_id for exam in exams} for name, exams in parts.items()}
    assert ids["test"] == {"301-8", "302-8"}
    assert ids["tune"] == {"305-8", "310-8"}
    assert sum(map(len, ids.values())) == 10
    labels = {exam.exam_id: exam.labels for exams in parts.values() for exam in exams}
    assert [labels[f"{k}-8"]["acl"] for k in range(301, 307)] == [0, 1, 1, 0, 1, 1]
    exam = parts["test"][0]
    assert tuple(exam.series) == ("sagittal",)
    volume = read_volume(exam.series["sagittal"])
    assert volume.shape == (6, 80, 72)
    assert volume.dtype == np.int16


def test_kneemri_volumes_may_lie_on_another_disk(kneemri, tmp_path):
    names = [exam.exam_id for exam in read_kneemri(kneemri)]
    (kneemri / "vol01").rename(tmp_path / "vol01")
    (kneemri / "vol01").symlink_to(tmp_path / "vol01")
    assert [exam.exam_id for exam in read_kneemri(kneemri)] == names


def test_files_that_a_mac_leaves_are_no_exams(small):
    exams = read_mrnet(small)
    hidden = exams[0].series["axial"]
    shutil.copy(hidden, hidden.with_name(f"._{hidden.name}"))
    assert [exam.exam_id for exam in read_mrnet(small)] == [e.exam_id for e in exams]


def test_kneemri_gaps_are_told(kneemri):
    (kneemri / "vol08" / "308-8.pck").unlink()
    with pytest.raises(MissingError, match=r"1 of 10 exams.*308-8\.pck"):
        read_kneemri(kneemri)
    assert len(read_kneemri(kneemri, allow_missing=True)) == 5
    with pytest.raises(DatasetError, match="'valid' is no split"):
        read_kneemri(kneemri, "valid")
    shutil.copytree(kneemri / "vol07", kneemri / "copy" / "vol07")
    with pytest.raises(DatasetError, match="are one exam"):
        read_kneemri(kneemri, allow_missing=True)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("303,8,2", "303,8,3", "line 4"),
        ("303-8.pck", "../303-8.pck", "line 4"),
        ("303-8.pck", "..", "line 4"),
        ("aclDiagnosis", "other", "no column acldiagnosis"),
    ],
)
def test_kneemri_tables_that_cannot_be_trusted_are_refused(kneemri, old, new, message):
    path = kneemri / "metadata.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=message):
        read_kneemri(kneemri)


def test_a_hostile_volume_is_refused_and_never_runs(kneemri):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(kneemri / "ran"),)

    path = kneemri / "vol01" / "301-8.pck"
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(VolumeError, match="only arrays of numbers"):
        read_volume(path)
    assert not (kneemri / "ran").exists()
    found = {check.name: check for check in verify("kneemri", kneemri)}
    assert "301-8.pck" in found["sagittal"].problems[0]
    assert not (kneemri / "ran").exists()


# ------------------------------------------------------------------------------ volumes


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((40, 40), np.uint8), r"shape \(40, 40\)"),
        (np.zeros((256, 256, 20), np.uint8), "axes in another order"),
        (np.zeros((256, 256, 40), np.uint8), "256 slices, each only 40 pixels"),
        (np.zeros((0, 64, 64), np.uint8), r"\(0, 64, 64\)"),
        (np.full((2, 64, 64), np.nan), "not finite"),
        (np.full((2, 64, 64), 1e307), r"up to 1e\+307, but .* at most 1e\+30"),
        (np.linspace(-1e31, 0, 8192).reshape(2, 64, 64), r"1e\+31"),
        (np.zeros((2, 64, 64), complex), "complex"),
        (np.zeros((2, 64, 64), "U1"), "one array of numbers"),
        (np.zeros((2, 64, 64), object), "cannot be read"),
    ],
)
def test_arrays_that_are_no_series_are_refused(tmp_path, value, message):
    path = tmp_path / "0000.npy"
    np.save(path, value, allow_pickle=True)
    with pytest.raises(VolumeError, match=message):
        read_volume(path)


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "0000.npy"
    with pytest.raises(VolumeError, match="no file"):
        read_volume(path)
    np.save(path, np.zeros((4, 64, 64), np.uint8))
    whole = path.read_bytes()
    for broken in (b"", whole[:40], whole[:-1], b"text", b"\x93NUMPY" + whole[6:60]):
        path.write_bytes(broken)
        with pytest.raises(VolumeError, match=r"0000\.npy"):
            read_volume(path)
    # A header that claims a terabyte does not make the reader ask for it.
    path.write_bytes(whole.replace(b"(4, 64, 64)", b"(9999999, 9, 9)"))
    with pytest.raises(VolumeError):
        read_volume(path)
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    shutil.move(tmp_path / "a.npz", path)
    with pytest.raises(VolumeError, match="NpzFile"):
        read_volume(path)


# ----------------------------------------------------------------------------- data set


@pytest.fixture(scope="module")
def landmarks(mrnet):
    exams = read_mrnet(mrnet)[:6]
    return Standardiser.fit(read_volume(exam.series["axial"]) for exam in exams)


def test_items_fit_the_network(mrnet, landmarks):
    exams = read_mrnet(mrnet)[:5]
    data = Exams(exams, "axial", landmarks, size=64, crop=48)
    items = [data[k] for k in range(len(data))]
    for exam, item in zip(exams, items, strict=True):
        slices = len(read_volume(exam.series["axial"]))
        assert item["image"].shape == (slices, 1, 48, 48)
        assert item["image"].dtype == torch.uint8
        assert item["label"].tolist() == [exam.labels[name] for name in DIAGNOSES]
        assert item["image_id"] == exam.exam_id
    batch = collate(items)
    assert [len(image) for image in batch["image"]] == [len(i["image"]) for i in items]
    assert batch["label"].shape == (5, 3)
    one = Exams(exams, "axial", landmarks, diagnoses=("acl",), size=64, crop=64)
    assert one[0]["label"].shape == (1,)
    expected = landmarks(read_volume(exams[0].series["axial"]), np.uint8)
    np.testing.assert_array_equal(one[0]["image"][:, 0].numpy(), expected)


def test_augmentation_depends_on_seed_epoch_and_index_alone(mrnet, landmarks):
    exams = read_mrnet(mrnet)[:4]
    augment = Augment(48, rotation=20, shift=5, flip=0.5, rendering=0.5)
    options = {"size": 64, "crop": 48, "augment": augment}
    data = Exams(exams, "axial", landmarks, seed=1, **options)
    first = data[(0, 2)]["image"]
    torch.rand(7)  # what happens outside does not matter
    assert torch.equal(data[(0, 2)]["image"], first)
    other = Exams(exams, "axial", landmarks, seed=2, **options)
    for changed in (data[(1, 2)], other[(0, 2)]):
        assert not torch.equal(changed["image"], first)


def test_exams_that_are_asked_again_are_read_once(tmp_path, mrnet, landmarks):
    (exam,) = read_mrnet(mrnet)[:1]
    copy = Exam(
        exam.exam_id,
        exam.split,
        {"axial": Path(shutil.copy(exam.series["axial"], tmp_path))},
        exam.labels,
    )
    options = {"size": 64, "crop": 48}
    data = Exams([copy], "axial", landmarks, remember=True, **options)
    first = data[0]["image"]
    assert torch.equal(first, Exams([copy], "axial", landmarks, **options)[0]["image"])
    copy.series["axial"].unlink()
    assert torch.equal(data[1, 0]["image"], first)
    with pytest.raises(InputError, match="nothing to remember"):
        Exams([copy], "axial", landmarks, augment=Augment(48), remember=True)


def test_a_blank_series_is_named(tmp_path, landmarks):
    path = tmp_path / "blank.npy"
    np.save(path, np.full((3, 64, 64), 9, np.uint8))
    exam = Exam("0000", "train", {"axial": path}, dict.fromkeys(DIAGNOSES, 0))
    with pytest.raises(VolumeError, match=r"blank\.npy.*all its voxels are 9"):
        Exams([exam], "axial", landmarks)[0]
    with pytest.raises(DatasetError, match="at least one"):
        Exams([], "axial", landmarks)


# ------------------------------------------------------------------------- verification


def problems(layout, root):
    return {
        check.name: check.problems for check in verify(layout, root) if check.problems
    }


def test_a_good_release_is_fine(shell, mrnet, kneemri):
    done = shell("verify", "mrnet", mrnet, "--quiet")
    assert done.exit_code == 0, done.output
    assert "48 listed, 48 with all series" in done.output
    assert "24 listed, 24 with all series" in done.output
    assert "72 of 72 volumes opened; 5 to 9 slices" in done.output
    assert "volumes of another size (resized on reading): 216" in done.output
    done = shell("verify", "kneemri", kneemri, "--quiet")
    assert done.exit_code == 0, done.output
    assert "train 6, tune 2, test 2" in done.output
    assert "healthy 4, partial tear 3, complete tear 3" in done.output


def test_every_kind_of_problem_is_found(shell, small):
    (small / "train" / "coronal" / "0001.npy").unlink()
    path = small / "train" / "axial" / "0000.npy"
    path.write_bytes(path.read_bytes()[:-5])
    np.save(
        small / "valid" / "sagittal" / "0005.npy", np.full((3, 64, 64), 7, np.uint8)
    )
    (small / "valid-abnormal.csv").write_text("0004,0\n0005,0\n")
    (small / "valid-acl.csv").write_text("0004,1\n0005,0\n")
    (small / "valid-meniscus.csv").write_text("0004,0\n0005,0\n")
    found = problems("mrnet", small)
    assert set(found) == {"train exams", "axial", "sagittal"}
    assert "train/coronal/0001.npy" in found["train exams"][0]
    assert "0000.npy" in found["axial"][0]
    assert "blank" in found["sagittal"][0]
    notes = " ".join(n for check in verify("mrnet", small) for n in check.notes)
    assert "exams with a tear that are not called abnormal: 1" in notes
    done = shell("verify", "mrnet", small, "--quiet")
    assert done.exit_code == 1
    assert "3 problems" in done.output


def test_unlisted_files_are_only_noted(small):
    for series in SERIES:
        shutil.copy(
            small / "train" / series / "0000.npy", small / "train" / series / "0777.npy"
        )
    assert not problems("mrnet", small)
    notes = " ".join(n for check in verify("mrnet", small) for n in check.notes)
    assert "exams not listed (no label; not used): 1" in notes


def test_a_split_without_exams_is_told_but_no_problem(tmp_path, write_mrnet):
    """Simulated tests have a `valid` split alone; their `train` tables are empty."""
    release = write_mrnet(tmp_path, train=0, valid=2)
    for diagnosis in DIAGNOSES:
        (release / f"train-{diagnosis}.csv").write_text("")
    assert not problems("mrnet", release)
    assert len(read_mrnet(release, "valid")) == 2
    with pytest.raises(DatasetError, match="no exam in its split train"):
        read_mrnet(release, "train")


@pytest.mark.parametrize(("kept", "gone"), [("valid", "train"), ("train", "valid")])
def test_a_copy_of_one_split_is_examined_too(small, kept, gone):
    shutil.rmtree(small / gone)
    tables = [small / f"{gone}-{diagnosis}.csv" for diagnosis in DIAGNOSES]
    tables[0].unlink()
    # A table that is left behind says that the split is meant to be there.
    assert "layout" in problems("mrnet", small)
    for table in tables[1:]:
        table.unlink()
    checks = {check.name: check for check in verify("mrnet", small)}
    assert not problems("mrnet", small)
    assert f"{kept} labels" in checks
    assert f"{gone} labels" not in checks
    assert gone in checks[f"{gone} exams"].notes[0]
    count = len(list((small / kept / "axial").iterdir()))
    assert checks["axial"].found.startswith(f"{count} of {count} volumes")


def test_what_is_no_release_is_a_problem(tmp_path):
    assert "MRNet-v1.0" in problems("mrnet", tmp_path)["layout"][0]
    assert "metadata.csv" in problems("kneemri", tmp_path)["layout"][0]
    with pytest.raises(InputError, match="mrnet, kneemri"):
        verify("brats", tmp_path)
