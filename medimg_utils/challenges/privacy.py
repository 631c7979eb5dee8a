"""Take the patient out of a DICOM header, and look for text that is in the picture.

De-identification follows the Basic Application Level Confidentiality Profile of DICOM
PS3.15, Annex E, and goes one step further: the profile lists what must go, and leaves
what it does not know; here a list says what may stay, and everything else goes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, UID, generate_uid
from scipy import ndimage

from medimg_utils.errors import InputError

#: What an image is read, shown and measured by. None of it is in the profile's list.
KEPT = frozenset(
    {
        "SpecificCharacterSet", "ImageType", "SOPClassUID", "Modality", "ConversionType",
        "BodyPartExamined", "ViewPosition", "PatientOrientation", "ImageLaterality",
        "Laterality", "KVP", "DistanceSourceToDetector", "Exposure", "ExposureTime",
        "ExposureInuAs", "XRayTubeCurrent", "ImagerPixelSpacing", "PixelSpacing",
        "PixelSpacingCalibrationType", "SamplesPerPixel", "PhotometricInterpretation",
        "PlanarConfiguration", "Rows", "Columns", "NumberOfFrames", "BitsAllocated",
        "BitsStored", "HighBit", "PixelRepresentation", "PixelAspectRatio",
        "SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue",
        "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleIntercept",
        "RescaleSlope", "RescaleType", "PresentationLUTShape", "BurnedInAnnotation",
        "LossyImageCompression", "LossyImageCompressionRatio",
        "LossyImageCompressionMethod", "PixelData", "SeriesNumber", "InstanceNumber",
        "ImagePositionPatient", "ImageOrientationPatient", "SliceThickness",
        "SpacingBetweenSlices", "SliceLocation", "ScanningSequence", "SequenceVariant",
        "ScanOptions", "MRAcquisitionType", "RepetitionTime", "EchoTime",
        "InversionTime", "FlipAngle", "MagneticFieldStrength", "EchoTrainLength",
        "NumberOfAverages", "PixelBandwidth",
    }
)  # fmt: skip

#: Kept in name, emptied of their value: readers expect them to be there.
EMPTIED = ("PatientBirthDate", "StudyDate", "StudyTime", "AccessionNumber", "StudyID",
           "ReferringPhysicianName", "PatientSex")  # fmt: skip

#: Replaced by others, the same each time, so that series stay with their study.
UIDS = (
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
)

#: May stay where the study needs them: the profile's Retain Patient Characteristics
#: Option. They make a patient easier to find.
CHARACTERISTICS = ("PatientSex", "PatientAge", "PatientSize", "PatientWeight")


class Change(NamedTuple):
    """What became of one attribute.

    Attributes:
        name: of the attribute.
        action: `kept`, `emptied`, `replaced` or `removed`.
        before: value in the original, as text.
        after: value in the result, as text.
    """

    name: str
    action: str
    before: str
    after: str


def pseudonym(patient: str, secret: bytes) -> str:
    """A name that is the same for the same patient and cannot be led back without `secret`.

    A plain hash could be led back: whoever knows how numbers of patients look tries them
    all. The keyed hash (HMAC) needs the key.

    >>> pseudonym("9RG1", b"a" * 16) == pseudonym("9RG1", b"a" * 16)
    True
    """
    return hmac.new(secret, patient.encode(), hashlib.sha256).hexdigest()[:16]


def _new_uid(old: str, secret: bytes) -> UID:
    keyed = hmac.new(secret, str(old).encode(), hashlib.sha256).hexdigest()
    return generate_uid(entropy_srcs=[keyed])


def deidentify(
    original: Dataset, secret: bytes, *, characteristics: Collection[str] = ()
) -> FileDataset:
    """A copy of a DICOM image without the patient, by the profile and a list of what stays.

    * attributes in `KEPT` stay; so do those of `characteristics`;
    * those that must be there (`EMPTIED`) lose their value;
    * UIDs and the number of the patient are replaced, alike for alike;
    * everything else goes: names, dates, places, remarks, private tags, sequences,
      overlays, curves, the preamble before the header.

    The pixels are not looked at; see `text_boxes`.

    Args:
        original: as `pydicom.dcmread` gives it; stays as it is.
        secret: at least 16 bytes, kept where the images are not.
        characteristics: attributes of `CHARACTERISTICS` that stay.

    Returns:
        A new data set that says how it was treated. Save it with `save_as`.

    Raises:
        InputError: a short secret, an unknown characteristic, no UID or no patient.
    """
    if len(secret) < 16:
        raise InputError(
            f"the secret has {len(secret)} bytes, but 16 are needed: a short one can be "
            "guessed. Draw it with secrets.token_bytes(32)."
        )
    unknown = set(characteristics) - set(CHARACTERISTICS)
    if unknown:
        raise InputError(
            f"{', '.join(sorted(unknown))} may not stay; choose among "
            f"{', '.join(CHARACTERISTICS)}."
        )
    missing = [
        name for name in ("SOPInstanceUID", "SOPClassUID") if name not in original
    ]
    if missing or not str(original.get("PatientID") or "").strip():
        raise InputError(
            f"{', '.join(missing) or 'PatientID'} is missing or empty. Without it images "
            "of one patient cannot be kept together."
        )
    clean = Dataset()
    for element in original:
        name = element.keyword
        if name in characteristics:
            clean.add(element)
        elif name in UIDS:
            setattr(clean, name, _new_uid(element.value, secret))
        elif name in KEPT and element.VR != "SQ":
            clean.add(element)
    for name in EMPTIED:
        if name not in clean:
            setattr(clean, name, "")
    clean.PatientID = pseudonym(str(original.PatientID), secret)
    clean.PatientName = clean.PatientID
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = "DICOM PS3.15 Annex E, and a list of what stays"
    clean.DeidentificationMethodCodeSequence = Sequence(
        [_code("113100", "Basic Application Confidentiality Profile")]
        + [_code("113108", "Retain Patient Characteristics Option")]
        * bool(characteristics)
    )
    clean.LongitudinalTemporalInformationModified = "REMOVED"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = clean.SOPClassUID
    meta.MediaStorageSOPInstanceUID = clean.SOPInstanceUID
    before = getattr(original, "file_meta", None)
    if before is None or "TransferSyntaxUID" not in before:
        raise InputError("the file does not say its transfer syntax. Save it anew.")
    meta.TransferSyntaxUID = before.TransferSyntaxUID
    meta.ImplementationClassUID = PYDICOM_IMPLEMENTATION_UID
    return FileDataset("", clean, file_meta=meta, preamble=b"\0" * 128)


def _code(value: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = (
        value,
        "DCM",
        meaning,
    )
    return code


def changes(original: Dataset, clean: Dataset) -> list[Change]:
    """What became of each attribute of the original, pixels left out."""

    def text(data: Dataset, tag: pydicom.tag.BaseTag) -> str:
        if tag not in data:
            return ""
        element = data[tag]
        return "a sequence" if element.VR == "SQ" else str(element.value)

    told = []
    for element in original:
        if element.keyword == "PixelData":
            continue
        before, after = text(original, element.tag), text(clean, element.tag)
        if element.tag not in clean:
            action = "removed"
        elif before == after:
            action = "kept"
        else:
            action = "replaced" if after else "emptied"
        name = element.name if not element.tag.is_private else f"private {element.tag}"
        told.append(Change(name, action, before, after))
    return told


def _values(data: Dataset) -> Iterator[str]:
    """Every value in the data set as text, inside sequences too, pixels left out."""
    for element in data:
        if element.VR == "SQ":
            for item in element.value:
                yield from _values(item)
        elif element.keyword != "PixelData" and element.value is not None:
            many = element.value if element.VM > 1 else [element.value]
            yield from (str(value) for value in many)


def leaks(original: Dataset, clean: Dataset, shortest: int = 4) -> list[str]:
    """Values of removed or replaced attributes that occur elsewhere in the result.

    A list of attributes cannot know that somebody wrote the name of the hospital into
    the name of a filter. This looks for the values themselves, as parts of others.

    Args:
        original: before.
        clean: after.
        shortest: values with fewer characters are too common to tell anything.
    """
    kept = list(_values(clean))
    gone: set[str] = set()
    for element in original:
        stays = element.tag in clean and clean[element.tag].value == element.value
        if element.keyword in KEPT or stays:
            continue
        single = Dataset()
        single.add(element)
        gone.update(_values(single))
    return sorted(
        value
        for value in gone
        if len(value) >= shortest
        and not value.startswith("1.2.840.10008.")  # of the standard, of nobody
        and any(value in other for other in kept)
    )


# ----------------------------------------------------------------- text in the picture


class Box(NamedTuple):
    """Where a line of text may be, in pixels; the ends are outside."""

    top: int
    bottom: int
    left: int
    right: int


def text_boxes(
    pixels: NDArray[np.floating],
    *,
    letters: int = 4,
    height: tuple[int, int] = (8, 60),
) -> list[Box]:
    """Look for burned-in lines of text: many bright small islands in a row.

    A machine writes in one grey level, the brightest, with hard edges; anatomy fades.
    Kept are islands of saturated pixels as high as letters, and of these rows of at
    least `letters` with like height and small gaps. Dark text, grey text, handwriting,
    slanted text and photographs of faces are not found.

    Args:
        pixels: (H, W) in [0, 1].
        letters: how many make a line.
        height: of a letter in pixels, lowest and highest.

    Returns:
        One box a line, from top to bottom.
    """
    picture = np.asarray(pixels, dtype=np.float64)
    if picture.ndim != 2 or not np.isfinite(picture).all():
        raise InputError(
            f"pixels have shape {picture.shape} or are not finite, but one grey image "
            "(H, W) is expected."
        )
    labels, _ = ndimage.label(picture >= 0.99, structure=np.ones((3, 3)))
    islands = []
    for place in ndimage.find_objects(labels):
        box = Box(place[0].start, place[0].stop, place[1].start, place[1].stop)
        tall, wide = box.bottom - box.top, box.right - box.left
        if height[0] <= tall <= height[1] and 1 <= wide <= 2 * tall:
            islands.append(box)
    lines: list[list[Box]] = []
    for box in sorted(islands, key=lambda one: one.left):
        for line in lines:
            last = line[-1]
            tall = max(last.bottom - last.top, box.bottom - box.top)
            level = abs(box.bottom - last.bottom) <= 0.35 * tall
            if level and 0 <= box.left - last.right <= 1.5 * tall:
                line.append(box)
                break
        else:
            lines.append([box])
    found = [
        Box(
            min(b.top for b in line), max(b.bottom for b in line),
            line[0].left, line[-1].right,
        )
        for line in lines
        if len(line) >= letters
    ]  # fmt: skip
    return sorted(found)
