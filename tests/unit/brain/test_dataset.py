import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from medimg_utils.brain.dataset import (
    LAYOUTS,
    Patches,
    WholeBrains,
    grid_places,
    load,
    prepare_cases,
    prepare_scan,
    read_brats,
    read_case,
    read_msd,
    read_release,
    read_survival,
    to_release,
    verify,
)
from medimg_utils.brain.models import BORDER
from medimg_utils.brain.preprocess import bounding_box
from medimg_utils.io import ImageError
from medimg_utils.release import DatasetError

BRATS = [name for name in LAYOUTS if name != "msd"]


def resave(path, change=lambda x: x, affine=None):
    image = nib.load(path)
    voxels = change(np.asarray(image.dataobj))
    nib.save(nib.Nifti1Image(voxels, image.affine if affine is None else affine), path)


# ------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_patient(layout, tmp_path, write_case):
    """The same voxels under six namings: images and labels come out alike."""
    write_case(tmp_path / "a", "brats2018", 3)
    expected = load(read_brats(tmp_path / "a")[0])
    assert (np.unique(expected.labels) == range(4)).all()
    write_case(tmp_path / "b", layout, 3)
    (case,) = read_release(tmp_path / "b")
    assert case.layout.name == layout
    scan = load(case)
    assert np.array_equal(scan.images, expected.images)
    assert np.array_equal(scan.labels, expected.labels)
    assert scan.spacing == pytest.approx((3, 3, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_go_back_as_they_came(layout, tmp_path, write_case):
    write_case(tmp_path, layout, 3)
    (case,) = read_release(tmp_path)
    scan = load(case)
    voxels = to_release(scan.to_file(scan.labels), case.layout)
    assert np.array_equal(voxels, np.asarray(nib.load(case.mask).dataobj))


@pytest.mark.parametrize(
    ("layout", "mask_value", "label"),
    [
        ("brats2018", 4, 3), ("brats2018", 1, 1), ("brats2018", 2, 2),
        ("brats2023", 3, 3), ("brats2024", 4, 0), ("brats2024", 3, 3),
        ("msd", 1, 2), ("msd", 2, 1), ("msd", 3, 3),
    ],
)  # fmt: skip
def test_what_a_value_means_depends_on_the_release(
    layout, mask_value, label, tmp_path, write_case
):
    write_case(tmp_path, layout, 3)
    (case,) = read_release(tmp_path)
    voxels = np.zeros((48, 56, 44), np.uint8)
    voxels[20, 30, 25] = mask_value
    nib.save(nib.Nifti1Image(voxels, nib.load(case.mask).affine), case.mask)
    labels = load(case).labels
    # LPS to RAS: the first two axes turn round.
    assert labels[47 - 20, 55 - 30, 25] == label
    assert (labels > 0).sum() == (label > 0)


def test_images_are_turned_to_ras(tmp_path, write_case):
    folder = write_case(tmp_path, "brats2021", 3)
    before = load(read_case(folder))
    for path in folder.iterdir():  # the same brain, stored along other axes
        image = nib.load(path)
        turned = image.as_reoriented(
            nib.orientations.ornt_transform(
                nib.orientations.axcodes2ornt("LPS"),
                nib.orientations.axcodes2ornt("SRA"),
            )
        )
        nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), path)
    after = load(read_case(folder))
    assert np.array_equal(before.images, after.images)
    assert np.array_equal(before.labels, after.labels)
    assert after.to_file(after.labels).shape == (44, 48, 56)


def test_grades_and_patients(tmp_path, write_case):
    for number in (0, 1):
        write_case(tmp_path / "a", "brats2018", number)
    assert [case.grade for case in read_brats(tmp_path / "a")] == ["LGG", "HGG"]
    folder = write_case(tmp_path / "b", "brats2023", 7)
    second = folder.with_name(folder.name.replace("07-000", "07-001"))
    shutil.copytree(folder, second)
    for path in second.iterdir():
        path.rename(path.with_name(path.name.replace("07-000", "07-001")))
    cases = read_brats(tmp_path / "b")
    assert [case.case_id[-3:] for case in cases] == ["000", "001"]
    assert len({case.patient for case in cases}) == 1  # two visits, one patient


def test_a_case_on_another_disk_is_found_once(tmp_path, write_case):
    folder = write_case(tmp_path / "disk", "brats2018", 3)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "linked").symlink_to(folder)
    (folder / "circle").symlink_to(tmp_path / "here")
    (case,) = read_brats(tmp_path / "here")
    assert case.images[0].name == read_case(folder).images[0].name


def test_uncompressed_copies_are_read(tmp_path, write_case):
    folder = write_case(tmp_path, "brats2020", 1, ending=".nii")
    assert load(read_case(folder)).labels.any()


def test_a_renamed_folder_is_still_a_case(tmp_path, write_case):
    folder = write_case(tmp_path, "brats2021", 5)
    moved = folder.rename(tmp_path / "my patient")
    assert read_case(moved).case_id == "BraTS2021_00005"


# ---------------------------------------------------------------------------- the traps


def test_the_two_traps_of_2020(tmp_path, write_case):
    folder = write_case(tmp_path, "brats2020", 355, ending=".nii")
    whole = load(read_case(folder)).labels
    mask = folder / "BraTS20_Training_355_seg.nii"
    mask.rename(folder / "W39_1998.09.19_Segm.nii")
    (tmp_path / "survival_info.csv").write_text(
        "Brats20ID,Age,Survival_days,Extent_of_Resection\n"
        "BraTS20_Training_355,58.2,ALIVE (361 days later),GTR\n"
        "BraTS20_Training_001,60,289,NA\n"
    )
    (case,) = read_brats(tmp_path)
    assert np.array_equal(load(case).labels, whole)
    assert (case.age, case.survival, case.alive_after) == (58.2, None, 361)
    assert case.resection == "GTR"
    assert read_case(folder) == case  # the table is found beside the folder


def test_a_stray_mask_elsewhere_is_no_mask(tmp_path, write_case):
    folder = write_case(tmp_path, "brats2021", 1)
    (folder / "BraTS2021_00001_seg.nii.gz").rename(
        folder / "W39_1998.09.19_Segm.nii.gz"
    )
    assert read_case(folder).mask is None


def test_what_a_network_answered_is_no_mask(tmp_path, write_case):
    """Predictions have the names of masks, and may lie below the release."""
    folder = write_case(tmp_path, "brats2021", 1)
    mask = folder / "BraTS2021_00001_seg.nii.gz"
    answers = tmp_path / "predictions"
    answers.mkdir()
    shutil.copy(mask, answers)
    assert read_brats(tmp_path)[0].mask == mask
    mask.unlink()
    assert read_brats(tmp_path)[0].mask is None
    shutil.rmtree(folder)
    with pytest.raises(DatasetError, match="needs all four modalities"):
        read_brats(tmp_path)


def test_mac_archives_leave_files_that_are_not_read(tmp_path, write_case):
    write_case(tmp_path, "msd", 1)
    (tmp_path / "imagesTr" / "._BRATS_001.nii.gz").write_bytes(b"Mac")
    assert [case.case_id for case in read_msd(tmp_path)] == ["BRATS_001"]


def test_a_description_with_swapped_labels_is_refused(tmp_path, write_case):
    write_case(tmp_path, "msd", 1)
    path = tmp_path / "dataset.json"
    text = path.read_text()
    path.write_text(
        text.replace('"edema"', '"x"').replace("non-enhancing tumor", "edema")
    )
    with pytest.raises(DatasetError, match="1 edema, 2 non-enhancing"):
        read_release(tmp_path)


# -------------------------------------------------------------------------- bad releases


def test_a_missing_modality_is_named(tmp_path, write_case):
    folder = write_case(tmp_path, "brats2023", 4)
    (folder / "BraTS-GLI-00004-000-t1c.nii.gz").unlink()
    for reader, place in ((read_brats, tmp_path), (read_case, folder)):
        with pytest.raises(DatasetError, match=r"00004-000-t1c\.nii\.gz is missing"):
            reader(place)


def test_two_releases_in_one_folder_are_refused(tmp_path, write_case):
    write_case(tmp_path, "brats2021", 4)
    write_case(tmp_path, "brats2023", 4)
    with pytest.raises(DatasetError, match="1 of BraTS 2023 GLI, 1 of BraTS 2021"):
        read_brats(tmp_path)


def test_what_is_no_release_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="is no folder"):
        read_release(tmp_path / "absent")
    (tmp_path / "scan.nii.gz").write_bytes(b"x")
    with pytest.raises(DatasetError, match="no file has a name of a BraTS release"):
        read_release(tmp_path)
    with pytest.raises(DatasetError, match=r"one case.*none"):
        read_case(tmp_path)
    with pytest.raises(DatasetError, match="a case is a folder"):
        read_case(tmp_path / "scan.nii.gz")
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(DatasetError, match=r"dataset\.json cannot be read"):
        read_release(tmp_path)


def test_two_copies_of_one_image_are_refused(tmp_path, write_case):
    folder = write_case(tmp_path, "brats2021", 4)
    shutil.copytree(folder, tmp_path / "again" / folder.name)
    with pytest.raises(DatasetError, match="are one image"):
        read_brats(tmp_path)


def moved(affine):
    return affine + np.array([[0, 0, 0, 2], *[[0] * 4] * 3])


@pytest.mark.parametrize(
    ("kind", "change", "affine", "message"),
    [
        ("t2", lambda x: x[:-1], None, r"_t2.nii.gz has 47 × 56 × 44 voxels"),
        ("flair", lambda x: x, moved, r"_flair.nii.gz has another affine"),
        ("seg", lambda x: x[:, :, 1:], None, r"_seg.nii.gz has 48 × 56 × 43 voxels"),
        (
            "seg",
            lambda x: np.where(x == 4, 3, x),
            None,
            r"holds the labels 3, but BraTS",
        ),
        ("seg", lambda x: x * 0.5, None, r"labels 0.5, but BraTS 2021 has 0, 1, 2, 4"),
        ("t1", lambda x: np.where(x == 0, np.nan, x), None, r"_t1.nii.gz.*not finite"),
        ("t1", lambda x: x[..., None, None], None, "shape"),
        ("t1ce", lambda x: np.stack([x, x], -1), None, "2 volumes, but one"),
        (
            "t1",
            lambda x: x,
            lambda a: a * [1e-4, 1e-4, 1e-4, 1],
            "affine that cannot be inverted",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(
    kind, change, affine, message, tmp_path, write_case
):
    folder = write_case(tmp_path, "brats2021", 4)
    path = folder / f"BraTS2021_00004_{kind}.nii.gz"
    resave(path, change, None if affine is None else affine(nib.load(path).affine))
    with pytest.raises(ImageError, match=message):
        load(read_case(folder))


@pytest.mark.parametrize("keep", [0, 40, 0.5])
def test_truncated_files_are_named(keep, tmp_path, write_case):
    folder = write_case(tmp_path, "brats2021", 4)
    path = folder / "BraTS2021_00004_t2.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep != 0.5 else len(whole) / 2)])
    with pytest.raises(ImageError, match=r"_t2\.nii\.gz"):
        load(read_case(folder))


def test_msd_files_need_four_channels(tmp_path, write_case):
    path = write_case(tmp_path, "msd", 1)
    resave(path, lambda x: x[..., :3])
    with pytest.raises(ImageError, match="four channels"):
        load(read_case(path))


def test_intensities_without_contrast_name_the_case(tmp_path, write_case):
    folder = write_case(tmp_path, "brats2021", 4)
    resave(folder / "BraTS2021_00004_t2.nii.gz", lambda x: x * 0)
    with pytest.raises(DatasetError, match=r"BraTS2021_00004: t2: .*no brain"):
        prepare_cases([read_case(folder)], 3.0)


# ------------------------------------------------------------------------------ survival


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Brats18ID,Survival\na,3\n", "Age"),
        ("Brats18ID,Age,Survival\na,3,4\na,3,4\n", "lists a twice"),
        ("Brats18ID,Age,Survival\na,old,4\n", "Age is 'old'"),
        ("Brats18ID,Age,Survival\na,300,4\n", "0 to 120"),
        ("Brats18ID,Age,Survival\na,30,-4\n", "Survival is '-4'"),
        ("Brats18ID,Age,Survival\na,30,soon\n", "Survival is 'soon'"),
    ],
)
def test_bad_survival_tables_are_refused(text, message, tmp_path):
    path = tmp_path / "survival_data.csv"
    path.write_text(text)
    with pytest.raises(DatasetError, match=message):
        read_survival(path)


def test_ages_of_cases_without_truth_are_read(tmp_path, write_case):
    write_case(tmp_path, "brats2018", 1)
    (tmp_path / "survival_evaluation.csv").write_text(
        "BraTS18ID,Age,ResectionStatus\nBrats18_TOY_001_1,61.5,GTR\n"
    )
    (case,) = read_brats(tmp_path)
    assert (case.age, case.survival, case.resection) == (61.5, None, "GTR")


def test_unknown_numbers_are_none(tmp_path):
    path = tmp_path / "survival_data.csv"
    path.write_text("BraTS18ID,Age,Survival,ResectionStatus\na,NA,,NA\n")
    assert set(read_survival(path)["a"].values()) == {None}


def test_tables_that_contradict_each_other_are_refused(tmp_path, write_case):
    write_case(tmp_path, "brats2018", 1)
    for place, days in (("HGG", 3), (".", 4)):
        (tmp_path / place / "survival_data.csv").write_text(
            f"Brats18ID,Age,Survival\nBrats18_TOY_001_1,30,{days}\n"
        )
    with pytest.raises(DatasetError, match="two tables"):
        read_brats(tmp_path)


# ----------------------------------------------------------------------------- data sets


@pytest.fixture(scope="module")
def cases(brats):
    return read_brats(brats)[:4]


@pytest.fixture(scope="module")
def prepared(cases):
    return prepare_cases(cases, 3.0)


def test_prepared_cases_are_the_same_from_the_cache(cases, prepared, tmp_path):
    for _ in range(2):
        again = prepare_cases(cases, 3.0, tmp_path)
        for first, second in zip(prepared, again, strict=True):
            assert np.array_equal(first.channels, second.channels)
            assert np.array_equal(first.target, second.target)
            assert first.scale == second.scale
            assert first.grid == second.grid
    other = prepare_cases(cases[:1], 6.0, tmp_path)
    assert other[0].channels.shape != again[0].channels.shape


def test_whole_brains(prepared):
    data = WholeBrains(prepared, list("abcd"), factor=2)
    for k, one in enumerate(prepared):
        item = data[k]
        assert item["image_id"] == "abcd"[k]
        assert all(size % 8 == 0 for size in item["tumour"].shape)
        assert item["image"].shape == (5, *item["tumour"].shape)
        assert item["tumour"].sum().item() * 8 == pytest.approx(
            one.target.sum() / 255, rel=1e-4
        )
    assert len(data) == 4


def patches(prepared, **changes):
    options = {"side": 12, "least": 20, "around": 3, "patches": 3, "seed": 1}
    return Patches(prepared, list("abcd"), **(options | changes))


def test_a_patch_is_cut_from_its_case(prepared):
    data = patches(prepared)
    assert len(data) == 12
    item = data[(2, 5)]
    again = data[(2, 5)]
    assert torch.equal(item["image"], again["image"])
    assert item["image"].shape == (5, 12 + 88, 12 + 88, 12 + 88)
    assert item["target"].shape == (4, 12, 12, 12)
    assert torch.allclose(item["target"].sum(0), torch.ones(12, 12, 12), atol=0.01)
    assert item["image_id"] == "b"
    _, generator = data.generator((2, 5))
    start = data.start(1, generator)
    corner = prepared[1].channels[(0, *start)]
    assert item["image"][0, BORDER, BORDER, BORDER].item() == pytest.approx(
        float(corner), abs=1e-6
    )
    data.grid_share = 0.0
    starts = {tuple(data.start(1, data.generator((k, 5))[1])) for k in range(8)}
    assert len(starts) > 4  # another place in every epoch


def test_grid_patches_hold_every_class(prepared):
    data = patches(prepared, grid_share=1.0)
    seen = 0
    for k in range(12):
        if len(data.places[k % 4]):
            assert (data[(0, k)]["target"].sum((1, 2, 3)) > 20 - 0.5).all()
            seen += 1
    assert seen > 6


def test_random_patches_lie_around_the_tumour(prepared):
    data = patches(prepared, grid_share=0.0)
    starts = np.array(
        [data.start(0, torch.Generator().manual_seed(k)) for k in range(300)]
    )
    box = data.boxes[0]
    for axis, side in enumerate(box):
        low, high = side.start - 3, side.stop + 3 - 12
        assert starts[:, axis].min() == low
        assert starts[:, axis].max() == high


def test_a_case_smaller_than_a_patch_still_gives_one(prepared):
    data = patches(prepared, grid_share=0.0, side=36, around=0)
    start = data.start(0, torch.Generator().manual_seed(0))
    for first, side in zip(start, data.boxes[0], strict=True):
        assert first <= side.start
        assert first + 36 >= side.stop


def test_the_grid_is_cut_by_each_axis_own_length():
    """A tumour four times as long as wide: patches must reach both of its ends."""
    target = np.zeros((3, 20, 20, 80), np.uint8)
    target[1, 5:15, 5:15, 5:75] = 255
    target[1, 10, 10, ::2] = 0
    places = grid_places(target, side=8, stride=4, least=1)
    assert len(places)
    low, high = places.min(axis=0), places.max(axis=0)
    assert tuple(low) == (5, 5, 5)
    assert high[2] >= 75 - 8 - 3
    assert (high[:2] <= 15 - 8).all()


def test_grid_places_are_those_found_by_counting():
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, (14, 16, 15))
    labels[:3] = 0
    target = np.stack([labels == k for k in (1, 2, 3)]).astype(np.uint8) * 255
    places = {tuple(p) for p in grid_places(target, side=5, stride=3, least=28)}
    box = bounding_box(labels > 0)
    expected = set()
    for start in np.ndindex(*(n for n in labels.shape)):
        inside = all(
            (a - s.start) % 3 == 0 and s.start <= a <= s.stop - 5
            for a, s in zip(start, box, strict=True)
        )
        part = labels[tuple(slice(a, a + 5) for a in start)]
        if inside and (np.bincount(part.ravel(), minlength=4) > 28).all():
            expected.add(start)
    assert places == expected
    assert 0 < len(places) < 60


def test_training_needs_masks(cases):
    from dataclasses import replace

    blind = prepare_cases([replace(cases[0], mask=None)], 3.0)
    with pytest.raises(DatasetError, match="needs masks"):
        Patches(blind, ["a"])


# -------------------------------------------------------------------------- verification


def test_a_whole_release_is_fine(shell, brats):
    done = shell("verify", "brats", brats, "--quiet")
    assert done.exit_code == 0, done.output
    assert "BraTS 2018" in done.output
    assert "12 whole, of 12 patients" in done.output
    assert "48 × 56 × 44 voxels of 3 × 3 × 3 mm, LPS: 12" in done.output
    assert "tumours without an enhancing part: 2" in done.output
    assert "12 survival times, 12 ages, 11 gross total resections" in done.output


def test_msd_cases_that_are_listed_must_be_there(shell, tmp_path, write_case):
    write_case(tmp_path, "msd", 1)
    path = tmp_path / "dataset.json"
    names = [{"image": f"./imagesTr/BRATS_{k:03d}.nii.gz"} for k in (1, 2)]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"training": names}))
    message = "lists 2 cases, but 1 of them have no file in imagesTr, e.g. BRATS_002"
    with pytest.raises(DatasetError, match=message):
        read_msd(tmp_path)
    done = shell("verify", "msd", tmp_path, "--quiet")
    assert done.exit_code == 1
    assert "BRATS_002" in done.output


def test_msd_is_verified_too(shell, tmp_path, write_case):
    write_case(tmp_path, "msd", 1)
    done = shell("verify", "msd", tmp_path, "--quiet")
    assert done.exit_code == 0, done.output
    assert "MSD Task01" in done.output


def test_every_problem_is_found(tmp_path, write_case):
    folders = [write_case(tmp_path, "brats2021", k) for k in range(5)]
    names = [folder.name for folder in folders]
    (folders[0] / f"{names[0]}_t1.nii.gz").unlink()
    resave(folders[1] / f"{names[1]}_t2.nii.gz", lambda x: x[:-1])
    resave(folders[2] / f"{names[2]}_seg.nii.gz", lambda x: np.where(x == 4, 3, x))
    resave(folders[3] / f"{names[3]}_flair.nii.gz", lambda x: x * 0)
    spike = folders[4] / f"{names[4]}_flair.nii.gz"
    resave(spike, lambda x: np.where(x == x.max(), 32767, x))
    (tmp_path / "survival_data.csv").write_text("Brats21ID,Age,Survival\na,x,1\n")
    checks = {check.name: check for check in verify("brats", tmp_path)}
    assert len(checks["cases"].problems) == 1
    assert "is missing" in checks["cases"].problems[0]
    texts = " ".join(checks["files"].problems)
    assert len(checks["files"].problems) == 2
    assert "another" in texts or "voxels" in texts
    assert "labels 3" in texts
    assert "no brain" in checks["intensities"].problems[0]
    assert checks["intensities"].notes == (
        "cases with outliers (limited on reading): 1",
    )
    assert "Age is 'x'" in checks["survival"].problems[0]


def test_what_cannot_be_read_is_a_problem(shell, tmp_path):
    done = shell("verify", "brats", tmp_path, "--quiet")
    assert done.exit_code == 1
    assert "no file has a name" in done.output
    done = shell("verify", "msd", tmp_path, "--quiet")
    assert done.exit_code == 1


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_brain_of_an_impossible_size_has_lost_its_voxels(brats, factor):
    case = read_brats(brats)[0]
    scan = load(case)
    litres = np.count_nonzero(scan.images.any(axis=0)) * np.prod(scan.spacing) / 1e6
    assert 0.5 < litres < 2
    prepare_scan(case, scan, 8.0)
    shrunk = replace(scan, spacing=tuple(factor * side for side in scan.spacing))
    found = f"{case.case_id}: the brain measures {1000 * litres * factor**3:.0f} cm³"
    with pytest.raises(DatasetError, match=f"{found} .* Set the size of the voxels"):
        prepare_scan(case, shrunk, 8.0)


def test_what_shows_no_brain_is_not_told_to_mend_its_voxels(brats):
    case = read_brats(brats)[0]
    scan = load(case)
    for images, words in ((0 * scan.images, "no brain"), (scan.images + 1, "100%")):
        with pytest.raises(DatasetError, match=f"{case.case_id}: t1: .*{words}"):
            prepare_scan(case, replace(scan, images=images), 8.0)
