import io

import numpy as np
import pydicom
import pytest
from dicomanonymizer.dicom_anonymization_databases import dicomfields_2026c as profile
from PIL import Image, ImageDraw, ImageFont
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from medimg_utils.challenges import privacy
from medimg_utils.errors import InputError
from medimg_utils.physics import anatomy

SECRET = b"not to be known!"
# Of each kind of value one that nothing else contains.
TELLTALE = {
    "DA": "19370214", "TM": "031415.926", "DT": "19370214031415", "AS": "087Y",
    "PN": "Telltale^Tale", "CS": "TELLTALE", "DS": "314.15926", "IS": "31415926",
    "UI": "1.2.3.31415926",
}  # fmt: skip


def small(**values) -> Dataset:
    data = Dataset()
    data.SOPClassUID = CTImageStorage
    data.SOPInstanceUID, data.StudyInstanceUID = generate_uid(), "1.2.3.4"
    data.PatientID = "hospital-31"
    data.Rows = data.Columns = 1
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for name, value in values.items():
        setattr(data, name, value)
    return data


def written(data: Dataset) -> bytes:
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


@pytest.fixture(scope="module")
def radiograph() -> Dataset:
    return pydicom.dcmread(anatomy.path("radiograph"))


def test_no_attribute_of_the_profile_survives() -> None:
    tags = [tag for tag in profile.ALL_TAGS if len(tag) == 2 and tag[0] > 2]
    tried = 0
    for tag in tags:
        if not dictionary_has_tag(tag):
            continue
        vr = dictionary_VR(tag).split(" or ")[0]
        data = small()
        if vr == "SQ":
            item = Dataset()
            item.PatientComments = "Telltale"
            data.add_new(tag, "SQ", Sequence([item]))
            value = "Telltale"
        elif vr in ("OB", "OW", "UN"):
            value = "Telltale"
            data.add_new(tag, vr, value.encode())
        elif vr in ("US", "UL", "SS", "SL", "FL", "FD", "AT", "OF", "OD", "OL"):
            data.add_new(tag, vr, b"" if vr in ("OF", "OD", "OL") else 1)
            value = None  # a small number could be anything: see below
        else:
            value = TELLTALE.get(vr, "Telltale")
            data.add_new(tag, vr, value)
        clean = privacy.deidentify(data, SECRET)
        if value is None:
            assert tag not in clean
        else:
            assert value.encode() not in written(clean), keyword_for_tag(tag)
        tried += 1
    assert tried > 400


def test_what_stays_is_not_in_the_profile() -> None:
    listed = {
        keyword_for_tag(tag)
        for tag in profile.ALL_TAGS
        if len(tag) == 2 and dictionary_has_tag(tag)
    }
    assert not privacy.KEPT & listed
    assert set(privacy.CHARACTERISTICS) <= listed
    assert set(privacy.UIDS) <= listed


def test_the_real_header_is_cleaned_and_the_picture_stays(radiograph) -> None:
    clean = privacy.deidentify(radiograph, SECRET)
    again = pydicom.dcmread(io.BytesIO(written(clean)))
    assert (again.pixel_array == radiograph.pixel_array).all()
    for name in ("Rows", "PhotometricInterpretation", "ViewPosition", "WindowCenter"):
        assert again[name].value == radiograph[name].value
    raw = written(clean)
    for text in ("Hamburg", "Philips", "THORAVISION", "26210", "9RG1", "1940", "2004",
                 "1995", "ward", "UKE", "gdcmconv"):  # fmt: skip
        assert text.encode() not in raw, text
    assert not privacy.leaks(radiograph, clean)
    assert again.file_meta.MediaStorageSOPInstanceUID == again.SOPInstanceUID
    assert "PatientBirthDate" in again
    assert not again.PatientBirthDate
    assert again.PatientIdentityRemoved == "YES"
    codes = again.DeidentificationMethodCodeSequence
    assert [code.CodeValue for code in codes] == ["113100"]
    assert radiograph.PatientID == "9RG1"  # the original is as it was


def test_the_profile_alone_would_leave_the_hospital(radiograph) -> None:
    left = Dataset()
    for element in radiograph:
        if (element.tag.group, element.tag.element) not in profile.ALL_TAGS:
            left.add(element)
    assert "UKE" in str(left.PostprocessingFunction)


def test_private_tags_overlays_and_nested_names_go() -> None:
    data = small(PixelSpacing=[1, 1])
    block = data.private_block(0x0011, "Maker", create=True)
    block.add_new(0x01, "LO", "Telltale")
    data.add_new((0x6000, 0x3000), "OW", b"Telltale")
    data.add_new((0x5000, 0x3000), "OW", b"Telltale")
    clean = privacy.deidentify(data, SECRET)
    assert b"Telltale" not in written(clean)
    assert b"Maker" not in written(clean)
    assert not any(element.tag.is_private for element in clean)
    assert clean.PixelSpacing == [1, 1]


def test_the_preamble_goes() -> None:
    raw = written(privacy.deidentify(small(), SECRET))
    named = pydicom.dcmread(io.BytesIO(b"Telltale".ljust(128, b"\0") + raw[128:]))
    named.PatientID = "hospital-31"
    assert b"Telltale" not in written(privacy.deidentify(named, SECRET))


def test_uids_are_replaced_alike_for_alike() -> None:
    one, two = (privacy.deidentify(small(), SECRET) for _ in range(2))
    assert one.StudyInstanceUID == two.StudyInstanceUID != "1.2.3.4"
    assert one.SOPInstanceUID != two.SOPInstanceUID
    assert one.PatientID == two.PatientID != "hospital-31"
    other = privacy.deidentify(small(), SECRET[::-1])
    assert other.StudyInstanceUID != one.StudyInstanceUID
    assert other.PatientID != one.PatientID


def test_characteristics_stay_only_when_asked_for() -> None:
    data = small(PatientSex="F", PatientAge="083Y")
    clean = privacy.deidentify(data, SECRET)
    assert clean.PatientSex == ""
    assert "PatientAge" not in clean
    kept = privacy.deidentify(data, SECRET, characteristics=["PatientSex"])
    assert kept.PatientSex == "F"
    assert "PatientAge" not in kept
    codes = [code.CodeValue for code in kept.DeidentificationMethodCodeSequence]
    assert codes == ["113100", "113108"]


def test_changes_name_every_attribute(radiograph) -> None:
    clean = privacy.deidentify(radiograph, SECRET)
    told = {one.name: one for one in privacy.changes(radiograph, clean)}
    assert len(told) == len(radiograph) - 1  # all but the pixels
    assert told["Institution Name"].action == "removed"
    assert told["Patient's Birth Date"].action == "emptied"
    assert told["Study Instance UID"].action == "replaced"
    assert told["Rows"] == ("Rows", "kept", "1955", "1955")


def test_a_leak_is_found_by_its_value() -> None:
    data = small(InstitutionName="Hillside", RescaleType="HU by Hillside")
    assert privacy.leaks(data, privacy.deidentify(data, SECRET)) == ["Hillside"]


def test_what_was_allowed_to_stay_is_no_leak() -> None:
    data = small(PatientAge="058Y")
    clean = privacy.deidentify(data, SECRET, characteristics=("PatientAge",))
    assert clean.PatientAge == "058Y"
    assert privacy.leaks(data, clean) == []


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"secret": b"short"}, "16 are needed"),
        ({}, {"characteristics": ["PatientName"]}, "PatientName may not stay"),
        ({"PatientID": " "}, {}, "PatientID is missing"),
        ({"SOPInstanceUID": None}, {}, "SOPInstanceUID is missing"),
    ],
)
def test_what_cannot_be_cleaned_is_refused(change, options, message: str) -> None:
    data = small(**change)
    if "SOPInstanceUID" in change:
        del data.SOPInstanceUID
    with pytest.raises(InputError, match=message):
        privacy.deidentify(data, **{"secret": SECRET, **options})


def film(text: str = "", grey: int = 255, size: int = 18, place=(40, 30)) -> np.ndarray:
    """A smooth field with noise, and a line of text."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:300, :400] / 300
    values = 90 + 100 * np.sin(3 * x) * np.cos(2 * y) + random.normal(0, 6, (300, 400))
    image = Image.fromarray(np.clip(values, 0, 240).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.fontmode = "1"  # hard edges
    pen.text(place, text, fill=grey, font=ImageFont.load_default(size=size))
    return np.asarray(image) / 255


@pytest.mark.parametrize("size", [16, 24, 40])
def test_a_line_of_text_is_found_where_it_is(size: int) -> None:
    text = "DOE JANE 1937"
    (box,) = privacy.text_boxes(film(text, size=size))
    font = ImageFont.load_default(size=size)
    left, top, right, bottom = font.getbbox(text)
    true = np.array([30 + top, 30 + bottom, 40 + left, 40 + right])
    assert np.abs(true - box).max() <= size / 8  # a letter has a margin


def test_without_text_nothing_is_found() -> None:
    assert privacy.text_boxes(film()) == []
    assert privacy.text_boxes(film("L")) == []  # the mark of a side is no line


def test_the_limits_are_as_stated() -> None:
    assert privacy.text_boxes(film("DOE JANE 1937", grey=200)) == []
    assert privacy.text_boxes(1 - film("DOE JANE 1937")) == []


def test_a_picture_of_another_shape_is_refused() -> None:
    with pytest.raises(InputError, match="one grey image"):
        privacy.text_boxes(np.zeros((4, 4, 3)))
    with pytest.raises(InputError, match="not finite"):
        privacy.text_boxes(np.full((4, 4), np.nan))
