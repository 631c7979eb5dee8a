"""Reading images, volumes and run-length masks, writing files whole or not at all.

A radiograph arrives as DICOM, PNG or JPEG, in 8 to 16 bits, grey or colour, black on
white or white on black. `read_image` turns each of them into the same thing: a float
picture in [0, 1] in which more absorption is brighter, with its pixel spacing where the
file knows it. `read_nifti` reads a volume with its place in space.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import io
import json
import math
import os
import pickle
import re
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array

from medimg_utils.errors import InputError

NARROW = ("LINEAR_EXACT", "SIGMOID")  # functions of windows that may be narrower than 1
IMAGE_ENDINGS = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")


class ImageError(InputError):
    """A file cannot be read as one grey image."""


class RunLengthError(InputError):
    """A text is no run-length mask of the given shape."""


class PickleError(InputError):
    """A pickle is damaged, or holds something else than arrays."""


# ------------------------------------------------------------------------------- images


@dataclass(frozen=True, eq=False)
class Image2D:
    """One radiograph.

    Attributes:
        pixels: (H, W) float32 in [0, 1]; bright is absorbing (bone), dark is air.
        spacing_mm: (row, column) distance of pixel centres in mm, or None where
            unknown.
        meta: facts about the file. Never a name, a birth date or an identifier.
    """

    pixels: NDArray[np.float32]
    spacing_mm: tuple[float, float] | None
    meta: dict[str, Any] = field(default_factory=dict)


def read_image(path: str | os.PathLike[str]) -> Image2D:
    """Read a DICOM, PNG or JPEG file as one grey image.

    The kind of file is told by its first bytes, not by its name. Colour becomes
    luminance, and transparent pixels become black.

    Args:
        path: the file.

    Returns:
        The picture in MONOCHROME2 polarity with its spacing; see `Image2D`.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is empty, damaged, of another kind, has several frames, or
            holds values that are not numbers.
    """
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{path} is a folder. Give the path of one image file.")
    with path.open("rb") as file:
        head = file.read(132)
    if not head:
        raise ImageError(f"{path} is empty (0 bytes). Copy or download it again.")
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        image = _read_picture(path)
    elif head[128:] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom"):
        image = _read_dicom(path)
    else:
        raise ImageError(
            f"{path} is neither DICOM, PNG nor JPEG (it starts with {head[:8]!r}). "
            "Convert it to one of these."
        )
    if image.pixels.size == 0:
        raise ImageError(f"{path} holds an image without pixels, {image.pixels.shape}.")
    if not np.isfinite(image.pixels).all():
        raise ImageError(
            f"{path} holds pixels that are not finite numbers. Export it again."
        )
    return image


def _read_picture(path: Path) -> Image2D:
    """PNG or JPEG, 1 to 16 bits, grey, colour, palette or with transparency."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            frames = getattr(file, "n_frames", 1)
            mode, kind = file.mode, file.format
            file.load()
            ImageOps.exif_transpose(file, in_place=True)  # a camera's note: turn it
            if mode in ("I;16", "I;16B", "I;16L", "I"):
                grey = np.asarray(file, dtype=np.float32) / 65535
            else:
                # Composite over black: a transparent pixel holds no measurement.
                colour = file.convert("RGBA")
                black = Image.new("RGBA", colour.size, (0, 0, 0, 255))
                grey = np.asarray(
                    Image.alpha_composite(black, colour).convert("L"), np.float32
                )
                grey = grey / 255
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise ImageError(
            f"{path} cannot be decoded as PNG or JPEG ({error}). Copy or download it "
            "again."
        ) from error
    if frames != 1:
        raise ImageError(
            f"{path} holds {frames} frames, but one image is needed. Split it."
        )
    return Image2D(np.clip(grey, 0, 1), None, {"format": kind, "mode": mode})


def _read_dicom(path: Path) -> Image2D:
    """DICOM in any transfer syntax that pydicom and Pillow decode."""
    header = read_header(path, stop_before_pixels=False)
    with understood(path):
        return _of_dicom(path, header)


@contextmanager
def understood(path: str | os.PathLike[str]) -> Iterator[None]:
    """Values of a DICOM header are used inside; pydicom converts them only then.

    Raises:
        ImageError: one of them cannot be converted.
    """
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # each kind of value has its own kinds of error
        raise ImageError(
            f"{path} has a header that cannot be understood ({error}). Copy or download "
            "it again."
        ) from error


def _of_dicom(path: Path, header: pydicom.Dataset) -> Image2D:
    frames = int(header.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(
            f"{path} holds {frames} frames, but one radiograph is needed. Export "
            "single frames."
        )
    if not any(
        name in header
        for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    ):
        raise ImageError(
            f"{path} is DICOM without pixel data "
            f"({header.get('Modality') or 'no modality'}). It may be truncated, or "
            "hold a report instead of an image."
        )
    photometric = str(header.get("PhotometricInterpretation", "MONOCHROME2"))
    if photometric == "PALETTE COLOR":
        raise ImageError(
            f"{path} stores numbers of colours instead of grey values (PALETTE COLOR). "
            "Export the radiograph in grey."
        )
    try:
        stored = pixel_array(header)
        if stored.ndim == 3 and stored.shape[-1] in (3, 4):
            grey = stored[..., :3] @ np.array([0.299, 0.587, 0.114])
            stored = np.rint(grey).astype(stored.dtype)
        if stored.ndim != 2:
            raise ValueError(f"pixel array of shape {stored.shape}")
        pixels = _display_values(stored, header)
    except Exception as error:  # each decoder has its own kinds of error
        raise ImageError(
            f"{path}: the pixel data cannot be decoded ({error}). The file may be "
            "truncated or use a compression that needs another plug-in of pydicom."
        ) from error
    if photometric == "MONOCHROME1":
        pixels = 1 - pixels
    pixels = np.where(_padding(stored, header), 0, pixels)  # is no tissue: black
    spacing, source = _spacing(header)
    meta = {
        "format": "DICOM",
        "photometric": photometric,
        "bits": int(header.get("BitsStored") or 0) or None,
        "modality": str(header.get("Modality") or "") or None,
        "view": str(header.get("ViewPosition") or "") or None,
        "spacing_from": source,
    }
    return Image2D(pixels.astype(np.float32), spacing, meta)


def read_header(
    path: str | os.PathLike[str], *, stop_before_pixels: bool = True
) -> pydicom.Dataset:
    """Read the tags of a DICOM file, without the pixels unless asked for.

    Raises:
        ImageError: the file is no DICOM, or damaged.
    """
    try:
        return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except OSError:
        raise
    except Exception as error:  # a damaged file can fail in any of pydicom's parts
        raise ImageError(
            f"{path} cannot be read as DICOM ({error}). Copy or download it again."
        ) from error


def _display_values(
    stored: NDArray[Any], header: pydicom.Dataset
) -> NDArray[np.float64]:
    """Stored values → [0, 1], through rescale or look-up table, and the first window.

    See DICOM PS3.3 C.11.

    Without a window, 8-bit values keep their full range. Deeper images rarely fill
    theirs, so the darkest and brightest pixel (padding left out) become 0 and 1.
    """
    values = apply_modality_lut(stored, header).astype(np.float64)
    if "VOILUTSequence" in header:
        whole = np.rint(values).astype(np.int32)  # rescaled ones may be negative
        shown = np.asarray(apply_voi_lut(whole, header), dtype=np.float64)
        return _stretch(shown, shown)
    centers, widths = header.get("WindowCenter"), header.get("WindowWidth")
    if centers is not None and widths is not None:
        center, width = (
            float(np.atleast_1d(np.asarray(v, float))[0]) for v in (centers, widths)
        )
        function = str(header.get("VOILUTFunction") or "LINEAR")
        if width >= 1 or (width > 0 and function in NARROW):
            return apply_window(values, center, width, function=function)
    if stored.dtype == np.uint8 and int(header.get("BitsStored") or 8) == 8:
        ends = apply_modality_lut(np.array([0, 255], np.uint8), header)
        return _stretch(values, ends.astype(np.float64))
    inside = values[~_padding(stored, header)]
    return _stretch(values, inside if inside.size else values)


def _padding(stored: NDArray[Any], header: pydicom.Dataset) -> NDArray[np.bool_]:
    """Pixels that only fill up the rectangle: of one value, or of a range of them."""
    first = header.get("PixelPaddingValue")
    last = header.get("PixelPaddingRangeLimit")
    last = first if last is None else last
    if not (isinstance(first, int) and isinstance(last, int)):
        return np.zeros(stored.shape, bool)
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _stretch(
    values: NDArray[np.float64], inside: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Map the range of `inside` to [0, 1]; a constant image becomes 0."""
    low, high = float(inside.min()), float(inside.max())
    if not high > low:
        return np.where(np.isfinite(values), 0.0, values)
    return np.clip((values - low) / (high - low), 0, 1)


def apply_window(
    values: ArrayLike, center: float, width: float, *, function: str = "LINEAR"
) -> NDArray[np.float64]:
    """Show the values around `center` as grey from 0 (black) to 1 (white).

    Args:
        values: any shape, in the unit of `center` and `width`.
        center: the value that becomes middle grey.
        width: how many units lie between black and white; above 0, for `LINEAR` at
            least 1.
        function: `LINEAR`, `LINEAR_EXACT` or `SIGMOID`, as in DICOM PS3.3 C.11.2.1.2.

    >>> apply_window([0, 49.5, 99], center=50, width=100).tolist()
    [0.0, 0.5, 1.0]
    """
    values = np.asarray(values, dtype=np.float64)
    if not (width >= 1 or (width > 0 and function in NARROW)):
        least = "above 0" if function in NARROW else "at least 1"
        raise InputError(f"the window width is {width}, but it must be {least}.")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    if function == "LINEAR_EXACT":
        return np.clip((values - center) / width + 0.5, 0, 1)
    if width == 1:  # the standard's linear window of width 1 is a threshold
        return (values > center - 0.5).astype(np.float64)
    return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)


def _spacing(header: pydicom.Dataset) -> tuple[tuple[float, float] | None, str | None]:
    """(row, column) spacing in mm and the tag it comes from.

    `ImagerPixelSpacing` is measured at the detector, where the shadow is some 5 to 15 %
    larger than the patient. `PixelSpacing` may be calibrated to the patient (then
    `PixelSpacingCalibrationType` should say so), or repeat the detector's.
    """
    for tag in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            row, column = (float(value) for value in header.get(tag) or ())
        except (TypeError, ValueError):
            continue
        if 0 < row < math.inf and 0 < column < math.inf:
            return (row, column), tag
    return None, None


# ------------------------------------------------------------------------------ volumes


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels of a NIfTI file as they lie in it.

    Attributes:
        voxels: (D, H, W), or (D, H, W, C) where the file holds several channels;
            float32, rescaled as the header says.
        affine: (4, 4) from voxel index to mm; x grows to the patient's right, y to the
            front, z to the top.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of voxel centres along the three axes in mm."""
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(sizes[0]), float(sizes[1]), float(sizes[2]))


def read_nifti(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI file, `.nii` or `.nii.gz`; what its unit says becomes mm.

    Raises:
        FileNotFoundError: there is no such file.
        ImageError: the file is empty, damaged, no NIfTI, has neither three nor four
            axes, an affine that cannot be inverted, or voxels that are not numbers.
    """
    path = Path(path)
    if path.is_dir():
        raise ImageError(f"{path} is a folder. Give the path of one NIfTI file.")
    if not path.stat().st_size:
        raise ImageError(f"{path} is empty (0 bytes). Copy or download it again.")
    try:
        image: Any = nib.load(path)
        voxels = np.asarray(image.dataobj, dtype=np.float32)
        affine = np.asarray(image.affine, dtype=np.float64)
        unit = int(image.header.get("xyzt_units", 0)) & 7  # metre, mm, µm are 1, 2, 3
        affine[:3] *= {1: 1000.0, 3: 0.001}.get(unit, 1.0)
    except Exception as error:  # a damaged header can fail in any of nibabel's parts
        raise ImageError(
            f"{path} cannot be read as NIfTI ({error}). It may be truncated: copy or "
            "download it again."
        ) from error
    if voxels.ndim not in (3, 4) or not voxels.size:
        raise ImageError(
            f"{path} holds an array of shape {voxels.shape}, but a volume has three axes, "
            "and four with channels."
        )
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ImageError(
            f"{path} has an affine that cannot be inverted, so the size of its voxels is "
            "not known. Convert it again from the original."
        )
    if not np.isfinite(voxels).all():
        count = int(voxels.size - np.isfinite(voxels).sum())
        raise ImageError(
            f"{path} holds {count} voxels that are not finite numbers. Convert it again "
            "from the original."
        )
    return Volume(voxels, affine)


def write_nifti_atomic(
    path: str | os.PathLike[str], voxels: NDArray[Any], affine: NDArray[np.floating]
) -> None:
    """Write a NIfTI file (`.nii.gz`) that is whole or absent; same voxels, same bytes.

    Args:
        path: the file; ends with `.nii.gz`.
        voxels: (D, H, W) or (D, H, W, C), of a type that NIfTI knows.
        affine: (4, 4) from voxel index to mm.
    """
    image = nib.Nifti1Image(voxels, affine)
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")  # some readers know only this one
    image.header.set_xyzt_units("mm")
    with atomic_path(path) as partial:
        partial.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


# --------------------------------------------------------------------- run-length masks


def encode_rle(mask: ArrayLike) -> str:
    """Write a mask as the relative run lengths of the SIIM-ACR table.

    The pixels are numbered down the columns. Each run is two numbers: the gap since the
    end of the run before, and its length. A mask without a pixel is `-1`.

    Args:
        mask: (H, W), anything but 0 is foreground.

    >>> encode_rle([[0, 1], [1, 1]])
    '1 3'
    """
    pixels = np.asarray(mask)
    if pixels.ndim != 2:
        raise RunLengthError(
            f"a mask has two axes (H, W), but this one has shape {pixels.shape}."
        )
    flat = np.zeros(pixels.size + 2, dtype=np.int8)
    flat[1:-1] = (pixels != 0).T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat))  # start, end, start, end ...
    if not edges.size:
        return "-1"
    # Differences of successive edges are gap, length, gap, length ...: the format
    # itself.
    return " ".join(map(str, np.diff(edges, prepend=0).tolist()))


def decode_rle(text: str, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Read the relative run lengths of the SIIM-ACR table.

    Args:
        text: what `encode_rle` writes; blanks around it do not matter.
        shape: (H, W) of the image.

    Returns:
        (H, W) bool.

    Raises:
        RunLengthError: the text is no list of runs, or a run leaves the image.

    >>> decode_rle("1 3", (2, 2)).astype(int).tolist()
    [[0, 1], [1, 1]]
    """
    height, width = shape
    if text.strip() == "-1":
        return np.zeros(shape, dtype=bool)
    words = text.split()
    if not words or len(words) % 2 or not all(map(str.isdecimal, words)):
        raise RunLengthError(
            f"{_short(text)!r} is no list of run lengths: pairs of whole numbers, or "
            "-1 for an empty mask, are expected."
        )
    steps = np.array([int(word) for word in words], dtype=object)
    if not all(steps[1::2]):
        raise RunLengthError(f"{_short(text)!r} holds a run of length 0.")
    end = int(steps.sum())
    if end > height * width:
        raise RunLengthError(
            f"a run ends at pixel {end}, outside the image of {height} × {width} = "
            f"{height * width} pixels. The mask may belong to an image of another size."
        )
    edges = np.cumsum(steps.astype(np.int64))
    change = np.zeros(height * width + 1, dtype=np.int8)
    change[edges[0::2]] += 1
    change[edges[1::2]] -= 1  # a gap of 0 cancels here: two runs that touch
    return np.cumsum(change[:-1], dtype=np.int8).reshape(width, height).T.astype(bool)


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


# ---------------------------------------------------------------------- pickled arrays


class _PickledType:
    """Stands for `numpy.dtype` while a pickle is read."""

    def __init__(self, text: str, *_: Any) -> None:
        if not re.fullmatch("b1|[iu][1248]|f[248]", str(text)):
            raise PickleError(f"an array of type {_short(str(text))!r}")
        self.dtype = np.dtype(str(text))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, *structure = state[1:5]
        if order not in ("<", ">", "|", "=") or any(structure):
            raise PickleError("an array of a composed type")
        self.dtype = self.dtype.newbyteorder(order)


class _PickledArray:
    """Stands for an array while a pickle is read: no code of the pickle ever runs."""

    def __init__(self, *_: Any) -> None:
        self.array = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _PickledType):
            raise PickleError(f"an array of type {_short(repr(kind))}")
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(raw, bytes):  # a list: the array holds Python objects
            raise PickleError("an array of objects")
        flat = np.frombuffer(raw, kind.dtype)
        self.array = flat.reshape(shape, order="F" if fortran else "C")

    @classmethod
    def from_buffer(
        cls, data: Any, kind: Any, shape: Any, order: str, axes: None = None
    ) -> _PickledArray:
        """The way of protocol 5."""
        if axes is not None:
            raise PickleError("an array with its axes in another order")
        array = cls()
        array.__setstate__((1, shape, kind, order == "F", bytes(data)))
        return array


def _latin1(text: str, encoding: str) -> bytes:
    """What old pickles write bytes with: `_codecs.encode(text, "latin1")`."""
    if encoding not in ("latin1", "latin-1"):
        raise PickleError(f"text encoded as {_short(str(encoding))!r}")
    return text.encode("latin1")


def read_pickled_arrays(path: str | os.PathLike[str]) -> Any:
    """Read NumPy arrays, alone or in lists, tuples and dicts, from a Python pickle.

    A pickle is a program: what it names is imported and called. Here nothing is. The
    few names by which NumPy writes an array are replaced by stand-ins that check the
    type and the size and copy the numbers. Any other name is refused.

    Args:
        path: the file, of any protocol, from Python 2 or 3.

    Returns:
        What was pickled; the arrays are read-only.

    Raises:
        FileNotFoundError: there is no such file.
        PickleError: the file is no pickle, is damaged, or holds something else.
    """
    path = Path(path)
    # Made anew for each file: a pickle may set attributes of what it has got hold of.
    array: type[_PickledArray] = type("Array", (_PickledArray,), {})
    allowed: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): array,
        ("numpy", "dtype"): type("Type", (_PickledType,), {}),
        ("_codecs", "encode"): functools.partial(_latin1),
    }
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed[module, "_reconstruct"] = functools.partial(array)
    for module in ("numpy.core.numeric", "numpy._core.numeric"):
        allowed[module, "_frombuffer"] = functools.partial(array.from_buffer)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) not in allowed:
                raise PickleError(f"{module}.{name}")
            return allowed[module, name]

    def plain(value: Any) -> Any:
        if isinstance(value, _PickledArray):
            return value.array
        if isinstance(value, dict):
            return {plain(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(plain(item) for item in value)
        if value is None or isinstance(value, str | bytes | int | float):
            return value
        raise PickleError(type(value).__name__)

    try:
        with path.open("rb") as file:
            return plain(Unpickler(file, encoding="latin1").load())
    except PickleError as error:
        raise PickleError(
            f"{path} holds {error}, but only arrays of numbers are read from a pickle: "
            "anything else could run a program of its author. Do not open it by other "
            "means unless you trust where it comes from."
        ) from error
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise PickleError(
            f"{path} cannot be read as a pickle ({_short(str(error))}). It may be cut "
            "off: copy or download it again."
        ) from error


# ------------------------------------------------------------------------ atomic writes


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `path`, and move it there once it is written whole.

    Readers see the old file or the new one, never half of one, whenever the program is
    killed.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "a.txt") as partial:
    ...     _ = partial.write_text("whole")
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = (
        path.parent / f".partial-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}"
    )
    try:
        yield partial
        with partial.open("r+b") as file:  # Windows writes no file that was read only
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_table_atomic(
    path: str | os.PathLike[str],
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str] | None = None,
) -> None:
    """Write a csv table that is whole or absent.

    Args:
        path: the file.
        rows: what stands under each column; what no column asks for is left out.
        columns: their names; the keys of the first row where None.
    """
    text = io.StringIO()
    names = list(rows[0]) if columns is None else columns
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())


def write_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file (UTF-8) that is whole or absent."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Write strict JSON that is whole or absent.

    NumPy numbers and arrays, paths and tuples are converted. JSON knows no NaN or
    infinity: both are written as null.
    """
    text = json.dumps(to_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomic(path, text + "\n")


def to_json(value: Any) -> Any:
    """Reduce a value to what JSON knows; see `write_json_atomic`."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [to_json(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON.")


def write_png_atomic(path: str | os.PathLike[str], pixels: NDArray[Any]) -> None:
    """Write a PNG that is whole or absent.

    Args:
        path: the file.
        pixels: (H, W) uint8 or uint16, or (H, W, 3) uint8.
    """
    if pixels.dtype not in (np.uint8, np.uint16):
        raise TypeError(f"a PNG holds uint8 or uint16, not {pixels.dtype}.")
    with atomic_path(path) as partial:
        Image.fromarray(pixels).save(partial, format="PNG")


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Refuse a folder for results in which no file can be made, before any work is done.

    Nothing is left behind: a folder that did not exist does not exist afterwards.

    Raises:
        InputError: says why, as the system puts it.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder} is a file. Give the path of a folder for the results."
        )
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{folder} cannot take results ({error.strerror}). Give the path of a folder "
            "that may be written to."
        ) from error
    finally:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()


def check_file(path: str | os.PathLike[str]) -> None:
    """Refuse a file for results that cannot be made, before any work is done.

    Raises:
        InputError: it is a folder, or its folder takes no files.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder. Give the path of a file for the results."
        )
    check_folder(path.parent)


def bare_name(path: Path) -> str:
    """Name of an image file without its ending; dots of an identifier are no ending.

    >>> bare_name(Path("a/film.dcm")), bare_name(Path("1.2.840.10008"))
    ('film', '1.2.840.10008')
    """
    return path.stem if path.suffix.lower() in IMAGE_ENDINGS else path.name


def check_outputs(
    inputs: Sequence[Path],
    out: Path,
    endings: Sequence[str],
    *,
    names: Sequence[str] | None = None,
) -> None:
    """Refuse, before anything is written, what would overwrite or escape.

    Each input NAME.ending is to become `out`/NAME + each of `endings`.

    Args:
        inputs: files that exist.
        out: folder of the results; may not exist yet.
        endings: of the results.
        names: of the results, where several files make one; the inputs' own where None.

    Raises:
        InputError: says which file stands in the way and what to do.
    """
    if not inputs:
        raise InputError("no file was given. Give one or more image files.")
    folders = [str(path) for path in inputs if path.is_dir()]
    if folders:
        raise InputError(
            f"{', '.join(folders)}: a folder, but image files are expected. Name the files "
            "in it, for instance with a *."
        )
    missing = [str(path) for path in inputs if not path.is_file()]
    if missing:
        raise InputError(f"there is no file {', '.join(missing)}. Check the path.")
    wanted = (
        [(bare_name(path), str(path)) for path in inputs]
        if names is None
        else [(name, name) for name in names]
    )
    seen: dict[str, str] = {}
    for name, source in wanted:
        unsafe = name in (".", "..") or any(
            sign in '/\\:*?"<>|' or not sign.isprintable() for sign in name
        )
        if unsafe or max(len(f"{name}{end}".encode()) for end in endings) > 255:
            raise InputError(
                f"{source!r} cannot name the results: it holds signs that not every system "
                "allows in file names, or is too long. Rename the file."
            )
        if other := seen.get(name.casefold()):
            raise InputError(
                f"{other} and {source} would both write {name}{endings[-1]} (capitals do not "
                "count). Rename one, or write them into different folders."
            )
        seen[name.casefold()] = source
    results = {
        (out / f"{name}{end}").resolve() for name, _ in wanted for end in endings
    }
    for path in inputs:
        if path.resolve() in results:
            raise InputError(
                f"a result would overwrite the input {path}. Give another folder."
            )
    check_folder(out)


def differences(stored: Any, wanted: Any) -> str:
    """What differs between two settings, in words; the first three of it, or nothing.

    >>> differences({"seed": 0, "plan": {"train": 4}}, {"seed": 1, "plan": {"train": 4}})
    'seed is 0 and not 1'
    """
    found: list[str] = []

    def shown(value: Any) -> str:
        text = str(value)
        return text if len(text) <= 60 else f"{text[:57]}..."

    def compare(one: Any, other: Any, name: str, alike: bool = True) -> None:
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            for key in {**other, **one}:  # None is not the same as missing
                both = key in one and key in other
                compare(one.get(key), other.get(key), f"{name} {key}".strip(), both)
        elif one != other or not alike:
            texts = shown(one), shown(other)
            differs = f"{name} is {texts[0]} and not {texts[1]}"
            found.append(f"{name} differs" if texts[0] == texts[1] else differs)

    compare(stored, wanted, "")
    found.sort(key=lambda words: words.endswith(("...", "differs")))  # what follows
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more
