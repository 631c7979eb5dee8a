"""Readers of two public releases, one record form, the data set of a network.

| release | images | truth |
|---|---|---|
| SIIM-ACR 2019 | `<StudyUID>/<SeriesUID>/<ImageId>.dcm` | masks in `train-rle.csv` |
| NIH ChestX-ray14 | PNG in `images*/` | labels in `Data_Entry*.csv` |

Nothing here knows or asks whether an image was simulated.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from medimg_utils.errors import InputError
from medimg_utils.io import (
    ImageError,
    RunLengthError,
    atomic_path,
    decode_rle,
    read_header,
    read_image,
    understood,
)
from medimg_utils.pneumothorax.preprocess import (
    Augment,
    ContrastError,
    check_film,
    prepare,
    prepare_mask,
    to_network,
)
from medimg_utils.release import (
    Check,
    DatasetError,
    count_notes,
    read_table,
    release_folder,
    walk,
)
from medimg_utils.settings import count_cores
from medimg_utils.training import stable_seed


@dataclass(frozen=True)
class Record:
    """What is known about one radiograph.

    Attributes:
        image_id: unique in the release.
        path: of the image file.
        patient: identifier of the patient; images of one patient never part.
        label: 1 with pneumothorax, 0 without.
        rle: relative run lengths, one text per annotated region; they are OR-ed. Empty
            without pneumothorax, and where the release has no masks.
        age: years, None where unknown.
        sex: `M`, `F` or None.
        view: `PA`, `AP` or None.
    """

    image_id: str
    path: Path
    patient: str
    label: int
    rle: tuple[str, ...] = ()
    age: float | None = None
    sex: str | None = None
    view: str | None = None

    @property
    def annotated(self) -> bool:
        """Is every pixel's class known? Not so for a positive without a mask."""
        return not self.label or bool(self.rle)

    def mask(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """(H, W) bool mask at the image's own size; all regions together."""
        mask = np.zeros(shape, dtype=bool)
        for text in self.rle:
            mask |= decode_rle(text, shape)
        return mask


# ----------------------------------------------------------------------------- SIIM-ACR


def read_siim(root: str | os.PathLike[str]) -> list[Record]:
    """Read the SIIM-ACR layout: a csv table, and DICOM files in nested folders.

    Every copy of the table is understood: a leading blank in ` EncodedPixels`, blanks
    around `-1`, one row per region. Listed images whose file is missing are left out
    with a warning; files that the table does not list are ignored. Without PatientID an
    image is its own patient, with a warning: then two images of one patient cannot be
    kept together.

    Args:
        root: folder that holds the table, with the images anywhere below it.

    Returns:
        Records sorted by image id.

    Raises:
        DatasetError: no table, several tables, two files of one image, or an image that
            the table calls both positive and negative.
    """
    root = release_folder(root)
    regions = _siim_table(root)
    files = _files_by_stem(root, (".dcm",))
    twice = sorted(name for name in regions if len(files.get(name, ())) > 1)
    if twice:
        pair = " and ".join(map(str, files[twice[0]][:2]))
        raise DatasetError(
            f"{len(twice)} images have several files, e.g. {pair}. Keep one file of "
            "each image."
        )
    found = sorted(name for name in regions if name in files)
    if not found:
        raise DatasetError(
            f"none of the {len(regions)} images of the table is below {root} as "
            "<ImageId>.dcm. Give the folder that holds both the table and the "
            "dicom-images folder."
        )
    if len(found) < len(regions):
        example = next(name for name in regions if name not in files)
        warnings.warn(
            f"{len(regions) - len(found)} of {len(regions)} images of the table have "
            f"no file below {root} (e.g. {example}.dcm); they are left out.",
            stacklevel=2,
        )
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(lambda name: _header_facts(files[name][0]), found))
    nameless = sum(not facts["patient"] for facts in headers)
    if nameless:
        warnings.warn(
            f"{nameless} of {len(found)} images have no PatientID; each is taken as a "
            "patient of its own. Images of one patient may then end up on both sides "
            "of a split.",
            stacklevel=2,
        )
    return [
        Record(
            image_id=name,
            path=files[name][0],
            patient=facts["patient"] or f"image:{name}",
            label=int(bool(regions[name])),
            rle=regions[name],
            age=facts["age"],
            sex=facts["sex"],
            view=facts["view"],
        )
        for name, facts in zip(found, headers, strict=True)
    ]


def _siim_table(root: Path) -> dict[str, tuple[str, ...]]:
    """{image id: run lengths of its regions}; () is a negative."""
    tables = {}
    for path in sorted(root.glob("*.csv")):
        table = read_table(path)
        if {"imageid", "encodedpixels"} <= set(
            table
        ) and "sample" not in path.name.lower():
            tables[path] = table
    if not tables:
        raise DatasetError(
            f"{root} holds no csv table with the columns ImageId and EncodedPixels. "
            "Give the folder of the SIIM-ACR release that holds train-rle.csv."
        )
    if len(tables) > 1:
        trained = [path for path in tables if path.name == "train-rle.csv"]
        if not trained:
            names = ", ".join(path.name for path in tables)
            raise DatasetError(
                f"{root} holds several tables of masks: {names}. Keep one."
            )
        path = trained[0]
    else:
        path = next(iter(tables))
    regions: dict[str, list[str]] = defaultdict(list)
    for name, text in zip(
        tables[path]["imageid"], tables[path]["encodedpixels"], strict=True
    ):
        if not text:
            raise DatasetError(
                f"{path}: image {name} has no entry in EncodedPixels, but run lengths "
                "or -1 are expected. The table may be cut off: download it again."
            )
        regions[name].append(text)
    if not regions:
        raise DatasetError(f"{path} lists no image. Download it again.")
    both = [
        name
        for name, texts in regions.items()
        if "-1" in texts and set(texts) != {"-1"}
    ]
    if both:
        raise DatasetError(
            f"{path}: {len(both)} images are both negative (-1) and outlined, e.g. "
            f"{both[0]}. Remove the wrong rows."
        )
    return {
        name: () if "-1" in texts else tuple(dict.fromkeys(texts))
        for name, texts in regions.items()
    }


def _header_facts(path: Path) -> dict[str, Any]:
    """Patient, age, sex and view from a DICOM header; names and dates are not read."""
    header = read_header(path)
    with understood(path):
        return {
            "patient": str(header.get("PatientID") or "").strip(),
            "age": parse_age(header.get("PatientAge")),
            "sex": _one_of(header.get("PatientSex"), ("M", "F")),
            "view": _one_of(header.get("ViewPosition"), ("PA", "AP")),
        }


# --------------------------------------------------------------------- NIH ChestX-ray14


def read_nih(root: str | os.PathLike[str]) -> list[Record]:
    """Read the ChestX-ray14 layout: `Data_Entry*.csv`, PNG files in `images*/`.

    The release has labels but no masks, so positives are not `annotated`. Listed images
    without a file are left out with a warning, so that a part of the 45 GB is enough.

    Args:
        root: folder that holds the table, with the images anywhere below it.

    Returns:
        Records sorted by image id.

    Raises:
        DatasetError: no table, columns missing, or two files of one image.
    """
    root = release_folder(root)
    path, table = _nih_table(root)
    files = _files_by_stem(root, (".png",))
    sex = (
        table["patient gender"]
        if "patient gender" in table
        else table.get("patient sex")
    )
    records = []
    missing = []
    for row, name in enumerate(table["image index"]):
        found = files.get(Path(name).stem, ())
        if not found:
            missing.append(name)
            continue
        if len(found) > 1:
            raise DatasetError(
                f"{name} lies in two places: {found[0]} and {found[1]}. Keep one."
            )
        findings = {item.strip() for item in table["finding labels"][row].split("|")}
        records.append(
            Record(
                image_id=Path(name).stem,
                path=found[0],
                patient=table["patient id"][row],
                label=int("Pneumothorax" in findings),
                age=parse_age(table["patient age"][row])
                if "patient age" in table
                else None,
                sex=None if sex is None else _one_of(sex[row], ("M", "F")),
                view=_one_of(table.get("view position", {}).get(row), ("PA", "AP")),
            )
        )
    if not records:
        raise DatasetError(
            f"none of the {len(table)} images of {path} is below {root}."
        )
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(table)} images of {path.name} have no file below "
            f"{root} (e.g. {missing[0]}); they are left out.",
            stacklevel=2,
        )
    return sorted(records, key=lambda record: record.image_id)


def _nih_table(root: Path) -> tuple[Path, pd.DataFrame]:
    paths = sorted(root.glob("Data_Entry*.csv"))
    if len(paths) != 1:
        raise DatasetError(
            f"{root} holds {len(paths)} tables Data_Entry*.csv, but one is needed. "
            "Give the folder of the ChestX-ray14 release."
        )
    table = read_table(paths[0])
    missing = {"image index", "finding labels", "patient id"} - set(table)
    if missing:
        raise DatasetError(f"{paths[0]} has no columns {', '.join(sorted(missing))}.")
    table = table[table["image index"] != ""]
    if table.empty:
        raise DatasetError(f"{paths[0]} lists no image. Download it again.")
    twice = table["image index"][table["image index"].duplicated()]
    if len(twice):
        raise DatasetError(
            f"{paths[0]} lists {len(twice)} images twice, e.g. {twice.iloc[0]}."
        )
    return paths[0], table.reset_index(drop=True)


def read_release(root: str | os.PathLike[str]) -> list[Record]:
    """Read a folder in either layout, told apart by its table.

    Raises:
        DatasetError: the folder holds neither; see `read_siim` and `read_nih`.
    """
    return (
        read_nih(root)
        if any(release_folder(root).glob("Data_Entry*.csv"))
        else read_siim(root)
    )


# ------------------------------------------------------------------------------- shared


def _files_by_stem(root: Path, endings: Sequence[str]) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = defaultdict(list)
    for folder, names in walk(root):
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() in endings:
                files[stem].append(folder / name)
    return {stem: sorted(paths) for stem, paths in files.items()}


def _one_of(value: Any, allowed: Sequence[str]) -> str | None:
    text = str(value or "").strip().upper()
    return text if text in allowed else None


def parse_age(value: Any) -> float | None:
    """Years from `058Y`, `018M` or `58`; None where it makes no sense.

    >>> parse_age("058Y"), parse_age("018M"), parse_age("58"), parse_age("413")
    (58.0, 1.5, 58.0, None)
    """
    match = re.fullmatch(r"\s*(\d{1,3})\s*([YMWD]?)\s*", str(value or "").upper())
    if not match:
        return None
    per_year = {"Y": 1, "": 1, "M": 12, "W": 52.18, "D": 365.25}[match[2]]
    years = int(match[1]) / per_year
    return years if years <= 120 else None


# ----------------------------------------------------------------------------- data set


class Radiographs(Dataset):
    """Radiographs ready for the network, decoded once and kept as 8-bit squares.

    An index is a number, or a pair (epoch, number) as the training loop gives it. With
    `augment`, the epoch, the patient and the seed decide every random choice, so the same
    pair gives the same picture on any machine, in any order and with any number of
    workers, and two radiographs of one patient are augmented alike within an epoch: what
    differs between them stays what differed in the patient.

    Args:
        records: what `read_release` gives.
        size: side of the square; 480 in the paper.
        augment: random crop and augmentation; without it the whole square is given.
        seed: of the augmentation.
        cache: folder in which the squares are kept between runs; in memory only where
            None.
        progress: show a bar while decoding.

    Each item is a dict: `image` (1, S, S) float32 as the network takes it, `mask` (1,
    S, S) float32 in [0, 1], `label` and `annotated` as tensors, `image_id`.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        size: int = 480,
        augment: Augment | None = None,
        seed: int = 0,
        cache: Path | None = None,
        progress: bool = False,
    ) -> None:
        if not records:
            raise DatasetError(
                "a data set needs at least one radiograph, but there is none."
            )
        self.records = list(records)
        self.augment = augment
        self.seed = seed
        known = {record.patient: None for record in self.records}
        number = {patient: k for k, patient in enumerate(known)}
        self.patients = [number[record.patient] for record in self.records]
        self.squares = _squares(self.records, size, cache, progress)

    def __len__(self) -> int:
        return len(self.records)

    def image(self, index: int) -> torch.Tensor:
        """(1, size, size) float32 in [0, 1]: standardised, not augmented."""
        return torch.from_numpy(self.squares[index, 0].astype(np.float32) / 255)[None]

    def mask(self, index: int) -> torch.Tensor:
        """(1, size, size) float32 in [0, 1]: covered share of each pixel."""
        return torch.from_numpy(self.squares[index, 1].astype(np.float32) / 255)[None]

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, mask = self.image(index), self.mask(index)
        if self.augment is not None:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(
                    stable_seed(self.seed, epoch, self.patients[index])
                )
                image, mask = self.augment(image, mask)
        record = self.records[index]
        return {
            "image": to_network(image),
            "mask": mask,
            "label": torch.tensor(float(record.label)),
            "annotated": torch.tensor(record.annotated),
            "image_id": record.image_id,
        }


def _squares(
    records: list[Record], size: int, cache: Path | None, progress: bool
) -> NDArray[np.uint8]:
    """(N, 2, size, size): image and mask of each record, decoded once."""
    if cache is not None:
        facts = [
            (
                str(r.path.resolve()),
                r.path.stat().st_size,
                r.path.stat().st_mtime_ns,
                r.rle,
            )
            for r in records
        ]
        digest = hashlib.sha256(repr((1, size, facts)).encode()).hexdigest()[:16]
        stored = cache / f"squares-{digest}.npy"
        if not stored.is_file():
            with atomic_path(stored) as partial:
                shape = (len(records), 2, size, size)
                mapped = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
                _fill(mapped, records, size, progress)
                mapped.flush()
                del mapped  # Windows renames no file that is mapped
        return np.load(stored, mmap_mode="r")
    out = np.empty((len(records), 2, size, size), np.uint8)
    _fill(out, records, size, progress)
    return out


def _fill(
    out: NDArray[np.uint8], records: list[Record], size: int, progress: bool
) -> None:
    def one(index: int) -> None:
        record = records[index]
        pixels = read_image(record.path).pixels
        try:
            out[index, 0], _ = prepare(pixels, size)
            out[index, 1] = prepare_mask(
                record.mask((pixels.shape[0], pixels.shape[1])), size
            )
        except (ContrastError, RunLengthError) as error:
            raise DatasetError(f"{record.path}: {error}") from error

    with ThreadPoolExecutor(count_cores()) as pool:
        done = pool.map(one, range(len(records)))
        for _ in tqdm(done, "decode", len(records), disable=not progress, leave=False):
            pass


# ------------------------------------------------------------------------- verification


def verify(
    layout: str, root: str | os.PathLike[str], *, progress: bool = False
) -> list[Check]:
    """Walk a release, open every file, and say what is fine and what is not.

    Args:
        layout: `siim` or `nih`.
        root: folder of the release.
        progress: show a bar.

    Returns:
        One check per topic. The release is usable where no check has a problem.
    """
    readers = {"siim": (read_siim, _siim_names), "nih": (read_nih, _nih_names)}
    if layout not in readers:
        raise InputError(
            f"{layout!r} is no known layout; there are: {', '.join(readers)}."
        )
    reader, listed_names = readers[layout]
    try:
        with warnings.catch_warnings(
            record=True
        ):  # the checks below say it in more detail
            warnings.simplefilter("always")
            records = reader(root)
        listed, present = listed_names(release_folder(root))
    except InputError as error:
        return [Check("layout", "cannot be read", (str(error),))]
    checks = [
        Check("layout", layout),
        _image_check(listed, present, layout),
        _patient_check(records, layout),
        _label_check(records),
    ]
    return checks + _file_checks(records, progress)


def _siim_names(root: Path) -> tuple[set[str], set[str]]:
    return set(_siim_table(root)), set(_files_by_stem(root, (".dcm",)))


def _nih_names(root: Path) -> tuple[set[str], set[str]]:
    names = {Path(name).stem for name in _nih_table(root)[1]["image index"]}
    return names, set(_files_by_stem(root, (".png",)))


def _image_check(listed: set[str], present: set[str], layout: str) -> Check:
    """A part of ChestX-ray14 is fine, as its reader says; of SIIM-ACR all is expected."""
    extra, absent = len(present - listed), sorted(listed - present)
    part = layout == "nih" and len(absent) < len(listed)
    return Check(
        "images",
        f"{len(listed)} listed, {len(listed & present)} with a file",
        ()
        if part
        else tuple(f"{name}: listed, but there is no file" for name in absent),
        count_notes(
            (extra, "files not listed (no label; not used)"),
            (len(absent) if part else 0, "images listed without a file (not used)"),
        ),
    )


def _patient_check(records: list[Record], layout: str) -> Check:
    sizes = Counter(record.patient for record in records)
    nameless = sum(name.startswith("image:") for name in sizes)
    ages = [record.age for record in records]
    return Check(
        "patients",
        f"{len(sizes)}; most images of one: {max(sizes.values())}; "
        f"images of known age: {sum(age is not None for age in ages)}",
        notes=count_notes(
            (
                nameless if layout == "siim" else 0,
                "images without PatientID (each counts as a patient of its own)",
            )
        ),
    )


def _label_check(records: list[Record]) -> Check:
    positive = sum(record.label for record in records)
    several = sum(len(record.rle) > 1 for record in records)
    without = sum(not record.annotated for record in records)
    text = f"{positive} positive ({positive / len(records):.1%}), {several} with several regions"
    notes = count_notes((without, "positives without a mask"))
    return Check("labels", text, notes=notes)


def _file_checks(records: list[Record], progress: bool) -> list[Check]:
    """Open every image and decode every mask."""

    def one(record: Record) -> tuple[str, Any, str]:
        try:
            image = read_image(record.path)
            check_film(image.pixels)
        except ContrastError as error:
            return "unreadable", None, f"{record.path}: {error}"
        except (ImageError, OSError) as error:
            return "unreadable", None, str(error)
        shape = (image.pixels.shape[0], image.pixels.shape[1])
        facts = (shape, image.spacing_mm is not None, image.meta.get("photometric"))
        try:
            areas = [int(decode_rle(text, shape).sum()) for text in record.rle]
            overlap = sum(areas) - int(record.mask(shape).sum())
        except RunLengthError as error:
            return "mask", facts, f"{record.image_id}: {error}"
        return ("overlap" if overlap else "fine"), facts, record.image_id

    with ThreadPoolExecutor(count_cores()) as pool:
        done = pool.map(one, records)
        results = list(
            tqdm(done, "verify", len(records), disable=not progress, leave=False)
        )
    facts = [fact for _, fact, _ in results if fact is not None]
    texts: dict[str, tuple[str, ...]] = {
        kind: tuple(text for found, _, text in results if found == kind)
        for kind in ("unreadable", "mask", "overlap")
    }
    shapes = Counter(shape for shape, _, _ in facts).most_common(3)
    inverted = sum(photometric == "MONOCHROME1" for _, _, photometric in facts)
    no_spacing = sum(not known for _, known, _ in facts)
    sizes = ", ".join(
        f"{height} × {width}: {count}" for (height, width), count in shapes
    )
    masked = sum(bool(record.rle) for record in records)
    return [
        Check(
            "pixels",
            f"{len(facts)} decoded; {sizes}",
            texts["unreadable"],
            count_notes((inverted, "MONOCHROME1 images (inverted on reading)")),
        ),
        Check(
            "spacing",
            f"images of known spacing: {len(facts) - no_spacing}",
            notes=count_notes(
                (no_spacing, "images without spacing (areas stay in pixels)")
            ),
        ),
        Check(
            "masks",
            f"images with a mask: {masked}",
            texts["mask"],
            count_notes(
                (len(texts["overlap"]), "images with overlapping regions (OR-ed)")
            ),
        ),
    ]
