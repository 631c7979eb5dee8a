"""A toy release in the SIIM-ACR layout: drawn chests, written as JPEG DICOM."""

from __future__ import annotations

import io
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    generate_uid,
)
from typer.testing import CliRunner, Result

from medimg_utils import __main__ as command
from medimg_utils.io import encode_rle

SCRIPTS = Path(__file__).parents[2] / "data_scripts"

# How long an example takes says more about the machine than about the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


def chest(
    size: int, seed: int, positive: bool, side: str = "right"
) -> tuple[np.ndarray, np.ndarray]:
    """Grey (size, size) uint8 and mask: two dark lungs, a darker rim of air."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size] / size
    grey = (
        170 + 20 * random.standard_normal() + 30 * np.sin(columns * 6 + random.random())
    )
    mask = np.zeros((size, size), bool)
    for name, center in (("right", 0.3), ("left", 0.7)):
        shift = 0.02 * random.standard_normal(2)
        radius = ((columns - center - shift[0]) / 0.16) ** 2 + (
            (rows - 0.5 - shift[1]) / 0.33
        ) ** 2
        lung = radius < 1
        grey = np.where(lung, 90 + 15 * np.sin(rows * 60) * np.sin(columns * 50), grey)
        if positive and name == side:
            mask = lung & (radius > 0.6) & (rows < 0.45)
            grey = np.where(mask, 30, grey)
    grey = grey + 4 * random.standard_normal(grey.shape)
    return np.clip(grey, 0, 255).astype(np.uint8), mask


def write_dicom(
    path: Path,
    pixels: np.ndarray,
    *,
    jpeg: bool = False,
    patient: str | None = "P1",
    photometric: str = "MONOCHROME2",
    **tags: Any,
) -> Path:
    """Write (H, W) or (F, H, W) uint8/uint16 pixels as DICOM."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.Modality = "CR"
    data.PatientName = "Doe^Jane"
    data.PatientBirthDate = "19600102"
    if patient is not None:
        data.PatientID = patient
    data.Rows, data.Columns = pixels.shape[-2:]
    bits = 8 * pixels.dtype.itemsize
    data.SamplesPerPixel = 1
    data.PhotometricInterpretation = photometric
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = 0
    if pixels.ndim == 3:
        data.NumberOfFrames = len(pixels)
    for name, value in tags.items():
        setattr(data, name, value)
    if jpeg:
        stored = io.BytesIO()
        Image.fromarray(pixels).save(stored, "JPEG", quality=90)
        data.PixelData = encapsulate([stored.getvalue()])
        data["PixelData"].VR = "OB"
    else:
        data.PixelData = pixels.tobytes()
        data["PixelData"].VR = "OB" if bits == 8 else "OW"
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def write_release(root: Path, patients: int = 12, size: int = 128) -> Path:
    """Two images a patient, one of them positive in every second patient."""
    rows = ["ImageId, EncodedPixels"]
    for number in range(patients):
        for visit in range(2):
            positive = number % 2 == 0 and visit == 0
            seed = 10 * number + visit
            grey, mask = chest(size, seed, positive, "left" if number % 4 else "right")
            name = f"1.2.3.{number}.{visit}"
            write_dicom(
                root / "dicom-images" / f"study{seed}" / "series" / f"{name}.dcm",
                grey,
                jpeg=True,
                patient=f"P{number}",
                PatientAge=f"{30 + number:03d}Y",
                PatientSex="F" if number % 2 else "M",
                ViewPosition="PA",
                PixelSpacing=[0.5, 0.25],
            )
            rows.append(f"{name}, {encode_rle(mask)}")
    (root / "train-rle.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Toy networks and small films do not share well: threads would only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of 12 patients; tests only read it."""
    return write_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="session")
def shell() -> Callable[..., Result]:
    """Call `python -m medimg_utils`, or a script of `data_scripts`, in this Python."""

    def call(name: str, *words: object) -> Result:
        app = (
            command.app
            if name == "medimg_utils"
            else runpy.run_path(str(SCRIPTS / f"{name}.py"))["app"]
        )
        return CliRunner().invoke(app, [str(word) for word in words])

    return call


@pytest.fixture(name="write_dicom")
def _write_dicom() -> Callable[..., Path]:
    """The writer of single DICOM files."""
    return write_dicom


@pytest.fixture(name="write_release")
def _write_release() -> Callable[..., Path]:
    """The writer of toy releases, for tests that change one."""
    return write_release
