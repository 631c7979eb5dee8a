import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp
from PIL import Image
from pydicom.pixels import apply_windowing

from medimg_utils.errors import InputError
from medimg_utils.io import (
    ImageError,
    PickleError,
    RunLengthError,
    _display_values,
    apply_window,
    atomic_path,
    check_file,
    check_folder,
    check_outputs,
    decode_rle,
    encode_rle,
    read_image,
    read_nifti,
    read_pickled_arrays,
    write_json_atomic,
    write_png_atomic,
    write_text_atomic,
)

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


# ------------------------------------------------------------------------------- images


def test_8_bit_dicom_keeps_its_full_range(tmp_path, write_dicom):
    image = read_image(
        write_dicom(tmp_path / "a.dcm", RAMP // 2, PixelSpacing=[0.2, 0.1])
    )
    np.testing.assert_allclose(image.pixels, (RAMP // 2) / 255, atol=1e-6)
    assert image.pixels.dtype == np.float32
    assert image.spacing_mm == (0.2, 0.1)


def test_8_bit_colours_keep_their_full_range(tmp_path, write_dicom):
    colours = np.stack([RAMP // 2] * 3, axis=-1)
    path = write_dicom(tmp_path / "a.dcm", RAMP, photometric="RGB")
    header = pydicom.dcmread(path)
    header.SamplesPerPixel, header.PlanarConfiguration = 3, 0
    header.PixelData = colours.tobytes()
    header.save_as(path)
    np.testing.assert_allclose(read_image(path).pixels, (RAMP // 2) / 255, atol=1e-6)


def test_a_table_in_place_of_the_rescale_is_followed(tmp_path, write_dicom):
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 16])
    table.add_new("LUTData", "US", [257 * (255 - value) for value in range(256)])
    table.ModalityLUTType = "US"
    path = write_dicom(tmp_path / "a.dcm", RAMP, ModalityLUTSequence=[table])
    np.testing.assert_allclose(read_image(path).pixels, 1 - RAMP / 255, atol=1e-6)


def test_jpeg_dicom_is_close_to_its_source(tmp_path, write_dicom):
    rows, columns = np.mgrid[:64, :48]
    smooth = (128 + 60 * np.sin(rows / 9) * np.cos(columns / 7)).astype(np.uint8)
    image = read_image(write_dicom(tmp_path / "a.dcm", smooth, jpeg=True))
    assert np.abs(image.pixels - smooth / 255).max() < 0.03


def test_monochrome1_is_the_negative_of_monochrome2(tmp_path, write_dicom):
    plain = read_image(write_dicom(tmp_path / "a.dcm", RAMP))
    inverted = read_image(
        write_dicom(tmp_path / "b.dcm", 255 - RAMP, photometric="MONOCHROME1")
    )
    np.testing.assert_allclose(plain.pixels, inverted.pixels, atol=1e-6)


def test_spacing_prefers_the_patient_over_the_detector(tmp_path, write_dicom):
    both = {"PixelSpacing": [0.2, 0.3], "ImagerPixelSpacing": [0.4, 0.4]}
    assert read_image(write_dicom(tmp_path / "a.dcm", RAMP, **both)).spacing_mm == (
        0.2,
        0.3,
    )
    only = write_dicom(tmp_path / "b.dcm", RAMP, ImagerPixelSpacing=[0.4, 0.5])
    assert read_image(only).spacing_mm == (0.4, 0.5)
    assert read_image(only).meta["spacing_from"] == "ImagerPixelSpacing"
    assert read_image(write_dicom(tmp_path / "c.dcm", RAMP)).spacing_mm is None
    assert (
        read_image(
            write_dicom(tmp_path / "d.dcm", RAMP, PixelSpacing=[0, 0])
        ).spacing_mm
        is None
    )


def test_window_and_rescale(tmp_path, write_dicom):
    deep = (RAMP.astype(np.uint16) * 16) + 100
    tags = {"RescaleSlope": 2, "RescaleIntercept": -100}
    windowed = write_dicom(
        tmp_path / "a.dcm", deep, WindowCenter=1000, WindowWidth=500, **tags
    )
    expected = apply_window(deep * 2.0 - 100, 1000, 500)
    np.testing.assert_allclose(read_image(windowed).pixels, expected, atol=1e-6)
    assert expected.min() == 0
    assert expected.max() == 1
    full = read_image(write_dicom(tmp_path / "b.dcm", deep))
    np.testing.assert_allclose(full.pixels, RAMP / 255, atol=1e-6)


def test_padding_is_black_and_does_not_stretch_the_range(tmp_path, write_dicom):
    deep = RAMP.astype(np.uint16) + 1000
    deep[:, 0] = 65535
    image = read_image(write_dicom(tmp_path / "a.dcm", deep, PixelPaddingValue=65535))
    assert (image.pixels[:, 0] == 0).all()
    assert image.pixels[:, 1:].max() == 1
    deep[:, 1] = 65530
    ends = {"PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 65530}
    image = read_image(write_dicom(tmp_path / "b.dcm", deep, **ends))
    assert (image.pixels[:, :2] == 0).all()
    assert image.pixels[:, 2:].max() == 1


def test_names_and_birth_dates_stay_in_the_file(tmp_path, write_dicom):
    image = read_image(write_dicom(tmp_path / "a.dcm", RAMP, patient="SECRET"))
    text = json.dumps(image.meta)
    assert not any(word in text for word in ("Doe", "Jane", "1960", "SECRET"))


@pytest.mark.parametrize(
    ("mode", "ending", "tolerance"),
    [("L", "png", 1e-6), ("RGB", "png", 1e-2), ("RGBA", "png", 1e-2), ("LA", "png", 1e-2),
     ("P", "png", 1e-2), ("L", "jpg", 2e-2), ("RGB", "jpg", 2e-2)],
)  # fmt: skip
def test_pictures_of_every_mode_read_alike(tmp_path, mode, ending, tolerance):
    smooth = np.linspace(0, 255, 32 * 32).reshape(32, 32).astype(np.uint8)
    path = tmp_path / f"a.{ending}"
    Image.fromarray(smooth).convert(mode).save(path)
    image = read_image(path)
    assert image.spacing_mm is None
    np.testing.assert_allclose(image.pixels, smooth / 255, atol=tolerance)


def test_a_turned_jpeg_is_turned_back(tmp_path):
    """A camera stores what it saw and notes how to hold it; viewers follow the note."""
    upright = Image.fromarray(np.kron(np.diag([0, 80, 160, 240]), np.ones((16, 16))))
    upright = upright.convert("L").crop((0, 0, 64, 48))
    note = Image.Exif()
    note[0x0112] = 6  # orientation: turn by 90 degrees clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "a.jpg", exif=note, quality=95)
    pixels = read_image(tmp_path / "a.jpg").pixels
    assert pixels.shape == (48, 64)
    np.testing.assert_allclose(pixels, np.asarray(upright) / 255, atol=0.05)


def test_colours_of_a_palette_are_refused(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP, photometric="PALETTE COLOR")
    with pytest.raises(ImageError, match=r"PALETTE COLOR.*in grey"):
        read_image(path)


@pytest.mark.parametrize(
    ("unit", "size"), [("meter", 2000.0), ("micron", 0.002), ("unknown", 2.0)]
)
def test_the_unit_of_nifti_counts(tmp_path, unit, size):
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.float32), np.diag([2.0, 2, 2, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_nifti(tmp_path / "a.nii.gz").spacing == pytest.approx((size,) * 3)


def test_an_odd_unit_of_nifti_means_nothing(tmp_path):
    image = nib.Nifti1Image(np.ones((3, 4, 5), np.float32), np.diag([2.0, 2, 2, 1]))
    image.header["xyzt_units"] = 255
    nib.save(image, tmp_path / "a.nii")
    assert read_nifti(tmp_path / "a.nii").spacing == pytest.approx((2.0,) * 3)


def test_16_bit_png_keeps_its_depth(tmp_path):
    deep = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    write_png_atomic(tmp_path / "a.png", deep)
    np.testing.assert_allclose(
        read_image(tmp_path / "a.png").pixels, deep / 65535, atol=1e-7
    )


def test_transparent_pixels_are_black(tmp_path):
    pixels = np.full((8, 8, 4), 200, np.uint8)
    pixels[:, :4, 3] = 0
    pixels[:, 4:, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png").pixels
    assert image[:, :4].max() == 0
    np.testing.assert_allclose(image[:, 4:], 200 / 255, atol=1e-6)


def test_the_content_tells_the_kind_not_the_name(tmp_path, write_dicom):
    path = write_dicom(tmp_path / "a.dcm", RAMP)
    odd = path.rename(tmp_path / "a.png")
    assert read_image(odd).meta["format"] == "DICOM"


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", ["dcm", "jpeg.dcm", "png", "jpg"])
def test_truncated_files_are_refused(tmp_path, write_dicom, kind, share):
    random = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind.endswith("dcm"):
        write_dicom(path, random, jpeg=kind.startswith("jpeg"))
    else:
        Image.fromarray(random).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ImageError, match=r"a\."):
        read_image(path)


def test_a_damaged_header_is_refused_whatever_it_breaks(tmp_path, write_dicom):
    """Bytes of a small file are overwritten at random: an image comes back, or one error."""
    nifti = tmp_path / "whole.nii"
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), nifti)
    film = write_dicom(tmp_path / "whole.dcm", np.zeros((8, 9), np.uint8))
    refused = []
    for whole, read, first, last in (
        (nifti, read_nifti, 0, 348),
        (film, read_image, 132, film.stat().st_size),
    ):
        random = np.random.default_rng(0)
        for _ in range(400):
            content = bytearray(whole.read_bytes())
            for place in random.integers(first, last, 3):
                content[place] = random.integers(256)
            damaged = tmp_path / f"damaged{whole.suffix}"
            damaged.write_bytes(content)
            try:
                read(damaged)
            except ImageError as error:
                refused.append(str(error))
    assert len(refused) > 100
    assert all(str(tmp_path / "damaged") in text for text in refused)


def test_other_bad_input_says_what_to_do(tmp_path, write_dicom):
    (tmp_path / "a.txt").write_text("no image at all")
    with pytest.raises(ImageError, match="neither DICOM, PNG nor JPEG"):
        read_image(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.dcm")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(tmp_path)
    frames = write_dicom(tmp_path / "f.dcm", np.stack([RAMP, RAMP]))
    with pytest.raises(ImageError, match="2 frames"):
        read_image(frames)
    broken = write_dicom(
        tmp_path / "n.dcm", RAMP, RescaleSlope=float("nan"), RescaleIntercept=0
    )
    with pytest.raises(ImageError, match="not finite"):
        read_image(broken)


def test_a_report_is_no_image(tmp_path, write_dicom):
    import pydicom

    path = write_dicom(tmp_path / "a.dcm", RAMP)
    header = pydicom.dcmread(path)
    del header.PixelData
    header.save_as(path)
    with pytest.raises(ImageError, match="without pixel data"):
        read_image(path)


def test_linear_window_of_the_standard():
    # DICOM PS3.3 C.11.2.1.2.1: center 2048, width 4096 maps 0 to 0 and 4095 to 1.
    np.testing.assert_allclose(apply_window([0, 4095], 2048, 4096), [0, 1], atol=1e-12)
    np.testing.assert_allclose(apply_window([0, 4095], 2048, 1), [0, 1])
    np.testing.assert_allclose(apply_window([5.0], 5, 10, function="SIGMOID"), [0.5])
    with pytest.raises(InputError, match="width"):
        apply_window([0], 0, 0)


@pytest.mark.parametrize(
    ("function", "width"),
    [("LINEAR", 401), ("LINEAR_EXACT", 401), ("SIGMOID", 401), ("LINEAR_EXACT", 0.5)],
)
def test_windows_are_those_of_pydicom(function, width):
    values = np.arange(4096, dtype=np.uint16)
    header = pydicom.Dataset()
    header.PhotometricInterpretation, header.BitsStored = "MONOCHROME2", 12
    header.PixelRepresentation = 0
    header.WindowCenter, header.WindowWidth = 1040, width
    header.VOILUTFunction = function
    theirs = apply_windowing(values, header) / 4095
    ours = apply_window(values, 1040, width, function=function)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    np.testing.assert_allclose(_display_values(values, header), theirs, atol=1e-12)


@pytest.mark.parametrize(("first", "entries"), [(0, 3072), (-1024, 4096)])
def test_a_table_of_greys_follows_the_rescale(tmp_path, first, entries):
    """Air is stored as 0 and means −1024 HU: it is dark, whatever the stored type holds."""
    header = pydicom.Dataset()
    header.RescaleSlope, header.RescaleIntercept = 1, -1024
    header.BitsStored, header.BitsAllocated, header.PixelRepresentation = 16, 16, 0
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "SS", [entries, first, 16])
    table.add_new("LUTData", "US", list(range(entries)))
    header.VOILUTSequence = [table]
    stored = np.array([[0, 512], [1024, 2048]], np.uint16)
    shown = _display_values(stored, header)
    hounsfield = np.clip(stored.astype(int) - 1024, first, None)
    expected = (hounsfield - hounsfield.min()) / np.ptp(hounsfield)
    np.testing.assert_allclose(shown, expected)


# ---------------------------------------------------------------------- run-length masks

masks = hnp.arrays(
    bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24)
)


@given(masks)
@settings(max_examples=200, deadline=None)
def test_masks_survive_the_round_trip(mask):
    assert (decode_rle(encode_rle(mask), mask.shape) == mask).all()


@given(masks)
@settings(max_examples=100, deadline=None)
def test_decoding_agrees_with_the_loop_of_the_challenge(mask):
    """The release defines its format by a loop over runs; ours has none."""
    text = encode_rle(mask)
    expected = np.zeros(mask.size, bool)
    if text != "-1":
        numbers = [int(word) for word in text.split()]
        position = 0
        for gap, length in zip(numbers[::2], numbers[1::2], strict=True):
            position += gap
            expected[position : position + length] = True
            position += length
    assert (decode_rle(text, mask.shape) == expected.reshape(mask.shape[::-1]).T).all()


def test_runs_go_down_the_columns():
    mask = np.zeros((3, 4), bool)
    mask[1:, 0] = True
    mask[0, 1] = True
    assert encode_rle(mask) == "1 3"
    assert encode_rle(np.zeros((3, 4))) == "-1"
    assert not decode_rle(" -1 ", (3, 4)).any()
    assert decode_rle("0 12", (3, 4)).all()
    assert decode_rle("2 1 0 3", (3, 4)).sum() == 4  # runs that touch


@pytest.mark.parametrize(
    "text", ["10 3", "0 13", "12 1", "99999999999999999999999 1", "0 1 50 1"]
)
def test_runs_outside_the_image_are_refused(text):
    with pytest.raises(RunLengthError, match="outside the image of 3 × 4"):
        decode_rle(text, (3, 4))


@pytest.mark.parametrize(
    "text", ["", "1", "1 2 3", "a b", "-2 3", "1.5 2", "1 0", "-1 -1"]
)
def test_what_is_no_list_of_runs_is_refused(text):
    with pytest.raises(RunLengthError):
        decode_rle(text, (9, 9))


def test_the_codec_is_fast_enough_for_a_release():
    mask = (
        np.random.default_rng(0).random((1024, 1024)) > 0.5
    )  # half a million runs: the worst
    started = time.perf_counter()
    assert (decode_rle(encode_rle(mask), mask.shape) == mask).all()
    assert time.perf_counter() - started < 5


# ------------------------------------------------------------------------- atomic writes


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def failing():
        with atomic_path(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"old": 1})
    code = f"""
import os
from medimg_utils.io import atomic_path
with atomic_path({str(path)!r}) as partial:
    partial.write_text('{{"new": ')
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert json.loads(path.read_text()) == {"old": 1}


def test_json_is_strict(tmp_path):
    value = {
        "nan": float("nan"),
        "array": np.arange(3),
        "number": np.float32(0.5),
        "tuple": (1,),
    }
    write_json_atomic(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text
    assert json.loads(text) == {
        "nan": None,
        "array": [0, 1, 2],
        "number": 0.5,
        "tuple": [1],
    }


def test_files_are_readable_by_others(tmp_path):
    write_text_atomic(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode


# ----------------------------------------------------------------------- names of results

ENDINGS = (".probability.png", ".json")


def _files(folder, *names):
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"x")
    return paths


def test_the_dots_of_an_identifier_are_no_ending(tmp_path):
    check_outputs(
        _files(tmp_path, "1.2.840.100", "1.2.840.101"), tmp_path / "o", (".x",)
    )
    with pytest.raises(InputError, match="film"):
        check_outputs(_files(tmp_path, "film.dcm", "film.png"), tmp_path / "o", (".x",))


def test_usual_names_pass(tmp_path):
    check_outputs(
        _files(tmp_path, "a.dcm", "b.c.dcm", "Röntgen 1.png"), tmp_path / "out", ENDINGS
    )


@pytest.mark.parametrize(
    "name",
    [
        "..dcm",
        "...png",
        "..\\..\\evil.dcm",
        "a\nb.dcm",
        "con:x.dcm",
        "x" * 245 + ".dcm",
    ],
)
def test_hostile_names_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="Rename the file"):
        check_outputs(_files(tmp_path, name), tmp_path / "out", ENDINGS)


def test_names_that_collide_are_refused(tmp_path):
    pair = _files(tmp_path, "x/a.dcm", "y/a.dcm")
    with pytest.raises(InputError, match=r"x/a.dcm.*y/a.dcm.*a.json"):
        check_outputs(pair, tmp_path, ENDINGS)
    with pytest.raises(InputError, match="capitals"):
        check_outputs(_files(tmp_path, "A.dcm", "a.png"), tmp_path, ENDINGS)
    with pytest.raises(InputError, match="both write"):
        check_outputs(_files(tmp_path, "same.dcm") * 2, tmp_path, ENDINGS)


def test_results_never_overwrite_inputs(tmp_path):
    paths = _files(tmp_path, "a.dcm", "a.probability.png")
    with pytest.raises(InputError, match="overwrite the input"):
        check_outputs(paths, tmp_path, ENDINGS)
    check_outputs(paths, tmp_path / "out", ENDINGS)


def test_missing_inputs_and_a_file_as_folder_are_refused(tmp_path):
    (path,) = _files(tmp_path, "a.dcm")
    with pytest.raises(InputError, match="no file"):
        check_outputs([tmp_path / "b.dcm"], tmp_path, ENDINGS)
    with pytest.raises(InputError, match="is a file"):
        check_outputs([path], path, ENDINGS)
    with pytest.raises(InputError, match="no file was given"):
        check_outputs([], tmp_path, ENDINGS)
    with pytest.raises(InputError, match="a folder, but image files"):
        check_outputs([tmp_path], tmp_path / "out", ENDINGS)


def test_a_place_for_results_is_tried_and_left_as_it_was(tmp_path):
    check_folder(tmp_path / "new" / "deep er")
    check_file(tmp_path / "new" / "numbers.json")
    assert not list(tmp_path.iterdir())
    (path,) = _files(tmp_path, "a.dcm")
    with pytest.raises(InputError, match=r"a\.dcm.x cannot take results \(Not a dir"):
        check_outputs([path], path / "x", ENDINGS)
    with pytest.raises(InputError, match="is a folder"):
        check_file(tmp_path)
    for place in (Path("/proc/results"), Path("/dev/null/results")):  # for root, too
        with pytest.raises(InputError, match="cannot take results"):
            check_file(place / "numbers.json")
    assert [one.name for one in tmp_path.iterdir()] == ["a.dcm"]


# ---------------------------------------------------------------------- pickled arrays


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("dtype", ["u1", "<i2", ">u2", "f4", "f8", "?"])
def test_pickled_arrays_come_back(tmp_path, protocol, dtype):
    array = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    value = {"a": [array, (np.asfortranarray(array[0]), 3, "text", None)]}
    path = tmp_path / "a.pck"
    path.write_bytes(pickle.dumps(value, protocol))
    found = read_pickled_arrays(path)
    assert found["a"][0].dtype == array.dtype
    np.testing.assert_array_equal(found["a"][0], array)
    np.testing.assert_array_equal(found["a"][1][0], array[0])
    assert found["a"][1][1:] == (3, "text", None)


def test_pickles_of_python_2_come_back(tmp_path):
    """Written by hand as Python 2 writes it: the numbers are a byte string."""
    text = (
        b"cnumpy.core.multiarray\n_reconstruct\np0\n(cnumpy\nndarray\np1\n(I0\ntp2\n"
        b"S'b'\np3\ntp4\nRp5\n(I1\n(I1\nI2\ntp6\ncnumpy\ndtype\np7\n(S'i2'\np8\nI0\n"
        b"I1\ntp9\nRp10\n(I3\nS'<'\np11\nNNNI-1\nI-1\nI0\ntp12\nbI00\n"
        b"S'\\x01\\x00\\xff\\xff'\np13\ntp14\nb."
    )
    (tmp_path / "old.pck").write_bytes(text)
    assert read_pickled_arrays(tmp_path / "old.pck").tolist() == [[1, -1]]


class Hostile:
    """Pickles to a call of the given function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Hostile(os.system, "touch {ran}"),
        Hostile(eval, "open({ran!r}, 'w')"),
        Hostile(exec, "open({ran!r}, 'w')"),
        [np.arange(3), Hostile(os.mkdir, "{ran}")],
        Hostile(np.load, "{ran}"),
        Hostile(np.zeros, 10**12),
        np.array([{}, "an object"], object),
        np.zeros(2, [("a", "i4")]),
        np.float32(3),
        Path("a"),
        {1, 2},
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_but_arrays_is_refused_and_never_runs(tmp_path, value):
    ran = tmp_path / "ran"
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, Hostile):
            function, arguments = part.call
            part.call = (
                function,
                tuple(
                    a.format(ran=str(ran)) if isinstance(a, str) else a
                    for a in arguments
                ),
            )
    path = tmp_path / "a.pck"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(PickleError, match="only arrays of numbers"):
        read_pickled_arrays(path)
    assert not ran.exists()


def test_damaged_pickles_are_refused(tmp_path):
    whole = pickle.dumps(np.arange(100, dtype=np.int16), 2)
    path = tmp_path / "a.pck"
    for broken in (b"", whole[:40], whole[:-60], b"no pickle", whole[::-1]):
        path.write_bytes(broken)
        with pytest.raises(PickleError, match=r"a\.pck"):
            read_pickled_arrays(path)
    more = whole.replace(b"K\x64", b"K\x65")  # one number more than there are bytes
    assert more != whole
    path.write_bytes(more)
    with pytest.raises(PickleError, match="cut off"):
        read_pickled_arrays(path)


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD on what a pickle has got hold of sets attributes: of its own copy alone."""
    path = tmp_path / "a.pck"
    path.write_bytes(b"cnumpy\ndtype\n}S'__setstate__'\nNsb.")
    with pytest.raises(PickleError):
        read_pickled_arrays(path)
    path.write_bytes(pickle.dumps(np.arange(3)))
    assert read_pickled_arrays(path).tolist() == [0, 1, 2]
