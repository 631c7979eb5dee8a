from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medimg_utils.io import decode_rle, encode_rle
from medimg_utils.pneumothorax.dataset import (
    DatasetError,
    Radiographs,
    Record,
    read_nih,
    read_release,
    read_siim,
    verify,
)
from medimg_utils.pneumothorax.preprocess import Augment


@pytest.fixture
def small(tmp_path, write_release):
    """Four images of two patients that a test may change."""
    return write_release(tmp_path / "small", patients=2, size=64)


def table(root: Path, text: str, name: str = "train-rle.csv") -> None:
    (root / name).write_text(text)


# ------------------------------------------------------------------------------ SIIM-ACR


def test_siim_layout(release):
    records = read_siim(release)
    assert len(records) == 24
    assert len({record.patient for record in records}) == 12
    assert sum(record.label for record in records) == 6
    record = next(record for record in records if record.image_id == "1.2.3.0.0")
    assert (record.label, record.age, record.sex, record.view) == (1, 30, "M", "PA")
    assert record.mask((128, 128)).any()
    assert all(record.annotated for record in records)
    assert read_release(release) == records


@pytest.mark.parametrize(
    ("header", "negative"),
    [("ImageId, EncodedPixels", " -1"), ("ImageId,EncodedPixels", "-1"),
     ("ImageId,EncodedPixels", "-1 "), ("\ufeffImageId, EncodedPixels", "-1")],
)  # fmt: skip
def test_every_copy_of_the_table_reads_alike(small, header, negative):
    table(
        small, f"{header}\n1.2.3.0.0,5 2\n1.2.3.0.1,{negative}\n1.2.3.1.0,{negative}\n"
    )
    assert [(r.image_id, r.label, r.rle) for r in read_siim(small)] == [
        ("1.2.3.0.0", 1, ("5 2",)), ("1.2.3.0.1", 0, ()), ("1.2.3.1.0", 0, ())
    ]  # fmt: skip


def test_an_index_column_and_a_sample_table_do_not_matter(small):
    table(
        small,
        ",ImageId,EncodedPixels\n0,1.2.3.0.0,-1\n1,1.2.3.0.1,5 2\n",
        "stage_2_train.csv",
    )
    table(small, "ImageId,EncodedPixels\nx,-1\n", "stage_2_sample_submission.csv")
    (small / "train-rle.csv").unlink()
    assert [record.label for record in read_siim(small)] == [0, 1]


def test_several_rows_of_an_image_are_ored(small):
    first, second = np.zeros((64, 64), bool), np.zeros((64, 64), bool)
    first[10:20, 10:20] = True
    second[15:30, 15:30] = True
    table(
        small,
        "ImageId, EncodedPixels\n"
        f"1.2.3.0.0, {encode_rle(first)}\n1.2.3.0.1, -1\n1.2.3.0.0, {encode_rle(second)}\n"
        f"1.2.3.0.0, {encode_rle(first)}\n",
    )
    record = read_siim(small)[0]
    assert len(record.rle) == 2  # a row that is there twice counts once
    assert (record.mask((64, 64)) == (first | second)).all()


def test_missing_images_are_left_out_with_a_warning(small):
    table(small, "ImageId,EncodedPixels\n1.2.3.0.0,-1\nabsent,-1\n")
    with pytest.warns(UserWarning, match=r"1 of 2 images.*absent.dcm"):
        assert len(read_siim(small)) == 1


def test_unlisted_images_are_ignored(small):
    table(small, "ImageId,EncodedPixels\n1.2.3.0.0,-1\n")
    assert [record.image_id for record in read_siim(small)] == ["1.2.3.0.0"]


def test_without_patient_id_an_image_is_its_own_patient(tmp_path, write_dicom):
    for name in ("a", "b"):
        write_dicom(tmp_path / f"{name}.dcm", np.eye(9, dtype=np.uint8), patient=None)
    table(tmp_path, "ImageId,EncodedPixels\na,-1\nb,-1\n")
    with pytest.warns(UserWarning, match="2 of 2 images have no PatientID"):
        records = read_siim(tmp_path)
    assert len({record.patient for record in records}) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [("1.2.3.0.0,-1\n1.2.3.0.0,5 2\n", "both negative"), ("1.2.3.0.0,\n", "no entry"),
     ("other,-1\n", "none of the 1 images"), ("", "lists no image")],
)  # fmt: skip
def test_tables_that_contradict_themselves_are_refused(small, rows, message):
    table(small, "ImageId,EncodedPixels\n" + rows)
    with pytest.raises(DatasetError, match=message):
        read_siim(small)


def test_images_on_another_disk_are_found_once(small, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "train-rle.csv").write_text((small / "train-rle.csv").read_text())
    (linked / "dicom-images").symlink_to(small)
    (small / "circle").symlink_to(small)
    names = [record.image_id for record in read_siim(small)]
    assert [record.image_id for record in read_siim(linked)] == names


def test_two_files_of_one_image_are_refused(small, write_dicom):
    write_dicom(small / "copy" / "1.2.3.0.0.dcm", np.eye(9, dtype=np.uint8))
    with pytest.raises(DatasetError, match="several files"):
        read_siim(small)


def test_folders_that_are_no_release_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="no csv table"):
        read_siim(tmp_path)
    with pytest.raises(DatasetError, match="is no folder"):
        read_release(tmp_path / "absent")


def test_several_tables_need_a_choice(small):
    rows = "ImageId,EncodedPixels\n1.2.3.0.0,-1\n"
    (small / "train-rle.csv").unlink()
    table(small, rows, "a.csv")
    table(small, rows, "b.csv")
    with pytest.raises(DatasetError, match=r"a\.csv, b\.csv"):
        read_siim(small)


# -------------------------------------------------------------------- NIH ChestX-ray14


@pytest.fixture
def nih(tmp_path):
    """Three PNG files, one RGBA, in two folders."""
    random = np.random.default_rng(0)
    for folder, name, channels in (
        ("images_001/images", "00000001_000.png", ()),
        ("images_001/images", "00000001_001.png", (4,)),
        ("images_002/images", "00000002_000.png", ()),
    ):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 255, (32, 32, *channels)).astype(np.uint8)
        if channels:
            pixels[..., 3] = 255
        Image.fromarray(pixels).save(path)
    nih_table(tmp_path, "Patient Gender")
    return tmp_path


def nih_table(root, gender):
    (root / "Data_Entry_2017.csv").write_text(
        f"Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,{gender},View Position\n"
        "00000001_000.png,Effusion|Pneumothorax,0,1,058Y,M,PA\n"
        "00000001_001.png,No Finding,1,1,59,M,AP\n"
        "00000002_000.png,Pleural_Thickening,0,2,413,F,PA\n"
    )


@pytest.mark.parametrize("gender", ["Patient Gender", "Patient Sex"])
def test_nih_layout(nih, gender):
    nih_table(nih, gender)
    records = read_release(nih)
    assert [record.label for record in records] == [1, 0, 0]
    assert [record.annotated for record in records] == [False, True, True]
    assert [record.patient for record in records] == ["1", "1", "2"]
    assert [record.age for record in records] == [58, 59, None]
    assert [record.sex for record in records] == ["M", "M", "F"]
    assert [record.view for record in records] == ["PA", "AP", "PA"]
    data = Radiographs(records, size=32)
    assert not data[0]["annotated"]
    assert data[0]["label"] == 1
    assert not data[0]["mask"].any()


def test_a_part_of_nih_is_enough(nih):
    (nih / "images_002" / "images" / "00000002_000.png").unlink()
    with pytest.warns(UserWarning, match="1 of 3 images"):
        assert len(read_nih(nih)) == 2
    assert not problems("nih", nih)


def test_nih_tables_with_gaps_are_refused(nih):
    (nih / "Data_Entry_2017.csv").write_text("Image Index,Finding Labels\na.png,x\n")
    with pytest.raises(DatasetError, match="patient id"):
        read_nih(nih)
    head = "Image Index,Finding Labels,Patient ID\n"
    (nih / "Data_Entry_2017.csv").write_text(head)
    with pytest.raises(DatasetError, match="lists no image"):
        read_nih(nih)


# ----------------------------------------------------------------------------- data set


def test_items_fit_the_network(release):
    records = read_siim(release)
    data = Radiographs(records, size=96)
    assert len(data) == 24
    for record, item in zip(records, data, strict=False):
        assert item["image"].shape == item["mask"].shape == (1, 96, 96)
        assert item["image"].dtype == item["mask"].dtype == torch.float32
        assert item["image_id"] == record.image_id
        share = float(item["mask"].mean())
        assert share == pytest.approx(record.mask((128, 128)).mean(), rel=0.02)


def test_augmentation_depends_on_seed_epoch_and_patient_alone(release):
    records = [
        replace(record, patient=str(k))
        for k, record in enumerate(read_siim(release)[:4])
    ]
    data = Radiographs(records, size=64, augment=Augment(48), seed=1)
    first = data[(0, 2)]["image"]
    torch.rand(7)  # what happens outside does not matter
    assert torch.equal(data[(0, 2)]["image"], first)
    other = Radiographs(records, size=64, augment=Augment(48), seed=2)
    for changed in (data[(1, 2)], data[(0, 3)], other[(0, 2)]):
        assert not torch.equal(changed["image"], first)


def test_radiographs_of_one_patient_are_augmented_alike(release):
    first, second = read_siim(release)[:2]
    second = replace(second, path=first.path, rle=first.rle, patient=first.patient)
    data = Radiographs([first, second], size=64, augment=Augment(48), seed=1)
    for part in ("image", "mask"):
        assert torch.equal(data[(3, 0)][part], data[(3, 1)][part])


def test_the_cache_gives_the_same_and_notices_changes(tmp_path, release):
    records = read_siim(release)[:3]
    plain = Radiographs(records, size=32)
    for _ in range(2):
        cached = Radiographs(records, size=32, cache=tmp_path)
        assert (cached.squares == plain.squares).all()
    assert len(list(tmp_path.iterdir())) == 1
    Radiographs(records[:2], size=32, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_bad_images_are_named(tmp_path, write_dicom):
    blank = write_dicom(tmp_path / "blank.dcm", np.zeros((9, 9), np.uint8))
    with pytest.raises(DatasetError, match=r"blank\.dcm.*blank"):
        Radiographs([Record("blank", blank, "P", 0)], size=16)
    far = write_dicom(tmp_path / "far.dcm", np.eye(9, dtype=np.uint8))
    with pytest.raises(DatasetError, match=r"far\.dcm.*outside the image"):
        Radiographs([Record("far", far, "P", 1, ("80 9",))], size=16)
    with pytest.raises(DatasetError, match="at least one"):
        Radiographs([])


# --------------------------------------------------------------------------- verification


def test_a_good_release_is_fine(shell, release):
    done = shell("verify", "siim", release, "--quiet")
    assert done.exit_code == 0, done.output
    assert "24 listed, 24 with a file" in done.output
    assert "PROBLEM" not in done.output
    assert "128 × 128: 24" in done.output


def problems(layout, root):
    return {
        check.name: check.problems for check in verify(layout, root) if check.problems
    }


def test_every_kind_of_problem_is_found(shell, small, write_dicom):
    files = {path.stem: path for path in small.rglob("*.dcm")}
    whole = files["1.2.3.0.1"].read_bytes()
    files["1.2.3.0.1"].write_bytes(whole[: len(whole) // 2])
    write_dicom(files["1.2.3.1.0"], np.full((64, 64), 7, np.uint8))
    table(
        small,
        "ImageId,EncodedPixels\n1.2.3.0.0,4090 50\n1.2.3.0.1,-1\n1.2.3.1.0,-1\nabsent,-1\n",
    )
    found = problems("siim", small)
    assert set(found) == {"images", "pixels", "masks"}
    assert "absent" in found["images"][0]
    assert len(found["pixels"]) == 2
    assert "outside the image" in found["masks"][0]
    done = shell("verify", "siim", small, "--quiet")
    assert done.exit_code == 1
    assert "PROBLEM" in done.output


def test_what_is_unusual_is_only_noted(small, write_dicom):
    files = {path.stem: path for path in small.rglob("*.dcm")}
    grey = np.arange(64 * 64).reshape(64, 64).astype(np.uint8)
    write_dicom(files["1.2.3.0.1"], grey, patient=None, photometric="MONOCHROME1")
    table(small, "ImageId,EncodedPixels\n1.2.3.0.0,5 9\n1.2.3.0.0,8 9\n1.2.3.0.1,-1\n")
    checks = verify("siim", small)
    assert not any(check.problems for check in checks)
    notes = [note for check in checks for note in check.notes]
    counts = {note.split(" (")[0]: int(note.rsplit(": ", 1)[1]) for note in notes}
    assert counts == {
        "files not listed": 2,
        "images without PatientID": 1,
        "MONOCHROME1 images": 1,
        "images without spacing": 1,
        "images with overlapping regions": 1,
    }


def test_nih_is_verified_too(shell, nih):
    assert not problems("nih", nih)
    assert shell("verify", "nih", nih, "--quiet").exit_code == 0
    (nih / "images_002" / "images" / "00000002_000.png").write_bytes(b"")
    assert "pixels" in problems("nih", nih)


def test_what_is_no_release_is_a_problem(shell, tmp_path):
    assert "no csv table" in problems("siim", tmp_path)["layout"][0]
    done = shell("verify", "other", tmp_path, "--quiet")
    assert done.exit_code == 1
    assert "siim, nih" in done.stderr


def test_decoded_masks_of_the_toy_release_are_where_they_were_drawn(release):
    record = next(record for record in read_siim(release) if record.label)
    rows, _ = np.nonzero(decode_rle(record.rle[0], (128, 128)))
    assert rows.max() < 0.45 * 128
