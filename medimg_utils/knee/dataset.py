"""Readers of two public releases of knee MR, one record form, the data set of a network.

| | MRNet 2018 | Rijeka KneeMRI 2017 |
|---|---|---|
| volumes | `{train,valid}/{axial,coronal,sagittal}/0000.npy` | `vol*/*.pck`, sagittal |
| shape | (S, 256, 256) | (S, H, W) |
| labels | `{train,valid}-{abnormal,acl,meniscus}.csv` | ACL grade in `metadata.csv` |
| splits | train, valid | train, tune, test |

MRNet has no patient identifiers: some patients of its training split had several exams,
and nobody outside can keep these together. KneeMRI is divided as the authors of MRNet
divided it, by folder.

Nothing here knows or asks whether an exam was simulated.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from medimg_utils.errors import InputError
from medimg_utils.io import PickleError, read_pickled_arrays
from medimg_utils.knee.preprocess import Augment, prepare
from medimg_utils.knee.standardise import StandardiseError, Standardiser
from medimg_utils.release import (
    Check,
    DatasetError,
    count_notes,
    read_table,
    release_folder,
    walk,
)
from medimg_utils.settings import count_cores
from medimg_utils.training import Batch, stable_seed

SERIES = ("sagittal", "coronal", "axial")  # T2, T1, PD: the order of the paper
DIAGNOSES = ("abnormal", "acl", "meniscus")
MRNET_SPLITS = ("train", "valid")
KNEEMRI_FOLDERS = {  # as the authors of MRNet divided KneeMRI
    "train": ("vol08", "vol04", "vol03", "vol09", "vol06", "vol07"),
    "tune": ("vol10", "vol05"),
    "test": ("vol01", "vol02"),
}
SMALLEST = 32  # rows and columns of a slice
LISTED = 20  # missing files that an error names
LARGEST = 1e30  # grey value: with larger ones sums of squares leave the range of floats


class MissingError(DatasetError):
    """A table names exams that the folder lacks."""


class VolumeError(DatasetError):
    """A file cannot be read as one MR series."""


@dataclass(frozen=True)
class Exam:
    """What is known about one exam.

    Attributes:
        exam_id: unique in its split, e.g. `0042`.
        split: of the release.
        series: {series: file}; MRNet has three, KneeMRI one.
        labels: {diagnosis: 0 or 1}; empty where the release keeps them secret.
    """

    exam_id: str
    split: str
    series: dict[str, Path]
    labels: dict[str, int] = field(default_factory=dict)

    def digest(self) -> str:
        """A name made of the images themselves: enough to notice an exam again.

        Numbers of exams are no help there: every release starts with 0000.
        """
        first = next(iter(self.series.values()))
        return hashlib.sha256(first.read_bytes()).hexdigest()[:16]


# -------------------------------------------------------------------------------- MRNet


def read_mrnet(
    root: str | os.PathLike[str], split: str = "train", *, allow_missing: bool = False
) -> list[Exam]:
    """Read one split of the MRNet layout.

    Without any table the split is one whose labels are kept secret: every exam with all
    three series is read, without labels.

    Args:
        root: the folder `MRNet-v1.0`.
        split: `train` or `valid`.
        allow_missing: leave out exams that a table names and the folder lacks. A copy
            of 5.7 GB is easily incomplete, and a number measured on a part of the exams
            is another number, so this is never done unasked.

    Returns:
        Exams sorted by number.

    Raises:
        DatasetError: no such split, tables that are missing or contradict each other.
        MissingError: lists the files that are missing.
    """
    root = release_folder(root)
    labels = _mrnet_labels(root, split)
    files = _mrnet_files(root, split)
    listed = set(labels) if labels is not None else set.union(*files.values())
    names = sorted(listed)
    if not names:
        raise DatasetError(f"{root} has no exam in its split {split}. Use another one.")
    exams, missing = [], []
    for name in names:
        absent = [series for series in SERIES if name not in files[series]]
        if absent:
            missing += [f"{split}/{series}/{name}.npy" for series in absent]
            continue
        paths = {series: root / split / series / f"{name}.npy" for series in SERIES}
        exams.append(Exam(name, split, paths, labels[name] if labels else {}))
    _refuse_missing(missing, len(names) - len(exams), len(names), root, allow_missing)
    return exams


def _mrnet_labels(root: Path, split: str) -> dict[str, dict[str, int]] | None:
    """{exam: {diagnosis: label}}; None where the split has no table."""
    if split not in MRNET_SPLITS:
        raise DatasetError(
            f"{split!r} is no split of MRNet; there are: {', '.join(MRNET_SPLITS)}."
        )
    tables = {
        diagnosis: root / f"{split}-{diagnosis}.csv"
        for diagnosis in DIAGNOSES
        if (root / f"{split}-{diagnosis}.csv").is_file()
    }
    if not tables:
        if not (root / split).is_dir():
            inside = " One lies below it: give that." if _nested(root) else ""
            raise DatasetError(
                f"{root} holds neither {split}-abnormal.csv nor a folder {split}. Give "
                f"the folder MRNet-v1.0 of the release.{inside}"
            )
        return None
    if len(tables) < len(DIAGNOSES):
        absent = ", ".join(
            f"{split}-{diagnosis}.csv"
            for diagnosis in DIAGNOSES
            if diagnosis not in tables
        )
        raise DatasetError(f"{root} lacks {absent}. Download it again.")
    columns = {diagnosis: _mrnet_table(path) for diagnosis, path in tables.items()}
    first = columns[DIAGNOSES[0]]
    for diagnosis in DIAGNOSES[1:]:
        if different := sorted(set(first) ^ set(columns[diagnosis])):
            raise DatasetError(
                f"{tables[DIAGNOSES[0]].name} and {tables[diagnosis].name} list "
                f"different exams: {len(different)} are in one only, e.g. "
                f"{different[0]}. Use the tables of one release."
            )
    return {
        name: {diagnosis: columns[diagnosis][name] for diagnosis in DIAGNOSES}
        for name in first
    }


def _has_split(root: Path, split: str) -> bool:
    tables = (root / f"{split}-{diagnosis}.csv" for diagnosis in DIAGNOSES)
    return (root / split).is_dir() or any(table.is_file() for table in tables)


def _nested(root: Path) -> bool:
    return any((folder / "train-abnormal.csv").is_file() for folder in root.iterdir())


def _mrnet_table(path: Path) -> dict[str, int]:
    """{exam: label} of a table without a header, `0000,1` a line."""
    if not path.stat().st_size:  # a simulated split may be empty
        return {}
    table = read_table(path, header=False)
    if table.shape[1] != 2:
        raise DatasetError(
            f"{path} has {table.shape[1]} columns, but lines of the form 0000,1 are "
            "expected. Use the table of the release."
        )
    labels: dict[str, int] = {}
    for line, (text, label) in enumerate(table.itertuples(index=False), start=1):
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", text) or label not in ("0", "1"):
            raise DatasetError(
                f"{path}, line {line}: {text!r}, {label!r} was found, but the number "
                "of an exam and a label 0 or 1 are expected, as in 0000,1."
            )
        name = text.zfill(4) if text.isdecimal() else text  # spreadsheets drop zeros
        if labels.setdefault(name, int(label)) != int(label):
            raise DatasetError(f"{path} calls exam {name} both 0 and 1. Remove one.")
    return labels


def _mrnet_files(root: Path, split: str) -> dict[str, set[str]]:
    """{series: numbers of the exams that have a file}."""
    return {
        series: {
            path.stem
            for path in (root / split / series).glob("*.npy")
            if not path.name.startswith(".")  # a Mac leaves ._0000.npy beside 0000.npy
        }
        for series in SERIES
    }


def _refuse_missing(
    missing: Sequence[str], gone: int, listed: int, root: Path, allowed: bool
) -> None:
    if missing and not allowed:
        shown = ", ".join(missing[:LISTED])
        more = f" and {len(missing) - LISTED} more" if len(missing) > LISTED else ""
        raise MissingError(
            f"{gone} of {listed} exams are incomplete below {root}; missing: {shown}"
            f"{more}. Complete the download, or leave these exams out with "
            "--allow-missing."
        )
    if gone == listed:
        raise MissingError(
            f"none of the {listed} exams of this split is complete below {root}. Give "
            "the folder of the release with its images."
        )


# -------------------------------------------------------------------------------- Rijeka


def read_kneemri(
    root: str | os.PathLike[str], split: str = "train", *, allow_missing: bool = False
) -> list[Exam]:
    """Read the Rijeka KneeMRI layout: sagittal PD with fat suppression, ACL alone.

    A partial and a complete tear both count as injured, as in the MRNet paper.

    Args:
        root: folder with `metadata.csv`, and the volumes in `vol01` to `vol10` anywhere
            below it.
        split: `train`, `tune` or `test`; see `KNEEMRI_FOLDERS`.
        allow_missing: leave out exams whose volume is missing.

    Returns:
        Exams sorted by file, each with one series, `sagittal`, and one label, `acl`.

    Raises:
        DatasetError: no such split, or a table that cannot be used.
        MissingError: lists the volumes that are missing.
    """
    root = release_folder(root)
    if split not in KNEEMRI_FOLDERS:
        raise DatasetError(
            f"{split!r} is no split of KneeMRI; there are: "
            f"{', '.join(KNEEMRI_FOLDERS)}."
        )
    grades = _kneemri_grades(root)
    files = _kneemri_files(root)
    missing = sorted(name for name in grades if name not in files)
    # Which split a missing volume belongs to is written in its folder, so nobody knows.
    _refuse_missing(missing, len(missing), len(grades), root, allow_missing)
    folders = KNEEMRI_FOLDERS[split]
    exams = [
        Exam(Path(name).stem, split, {"sagittal": path}, {"acl": int(grades[name] > 0)})
        for name, path in sorted(files.items())
        if name in grades and path.parent.name in folders
    ]
    if not exams:
        raise DatasetError(
            f"{root} holds no volume in {', '.join(folders)}, the folders of the split "
            f"{split}. Keep the folders of the release."
        )
    return exams


def _kneemri_grades(root: Path) -> dict[str, int]:
    """{file name: 0 healthy, 1 partial tear, 2 complete tear}."""
    path = root / "metadata.csv"
    if not path.is_file():
        raise DatasetError(
            f"{root} holds no metadata.csv. Give the folder of the KneeMRI release."
        )
    table = read_table(path)
    wanted = ("acldiagnosis", "volumefilename")
    if absent := [name for name in wanted if name not in table]:
        raise DatasetError(f"{path} has no column {', '.join(absent)}.")
    grades: dict[str, int] = {}
    for line, (grade, name) in enumerate(
        zip(table[wanted[0]], table[wanted[1]], strict=True), start=2
    ):
        plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,128}", name) and Path(name).stem.strip(
            "."
        )
        if not plain or grade not in ("0", "1", "2"):
            raise DatasetError(
                f"{path}, line {line}: file {name!r} with aclDiagnosis {grade!r} was "
                "found, but a file name and 0, 1 or 2 are expected."
            )
        if grades.setdefault(name, int(grade)) != int(grade):
            raise DatasetError(f"{path} gives {name} two grades. Remove one line.")
    return grades


def _kneemri_files(root: Path) -> dict[str, Path]:
    """{file name: path} of the volumes in the folders of the release."""
    known = {folder for folders in KNEEMRI_FOLDERS.values() for folder in folders}
    files: dict[str, Path] = {}
    found = (folder / name for folder, names in walk(root) for name in names)
    for path in sorted(found):
        if path.suffix != ".pck" or path.parent.name not in known:
            continue
        if other := files.get(path.name):
            raise DatasetError(f"{other} and {path} are one exam. Keep one of them.")
        files[path.name] = path
    return files


def listed_exams(root: str | os.PathLike[str], split: str) -> set[str]:
    """Names of the exams of a split, those included whose images are not all there.

    A volume of KneeMRI that is missing may belong to any split, and counts in each.

    Raises:
        DatasetError: as `read_release`.
    """
    root = release_folder(root)
    if not _is_kneemri(root):
        labels = _mrnet_labels(root, split) or {}
        return set(labels).union(*_mrnet_files(root, split).values())
    files = _kneemri_files(root)
    folders = KNEEMRI_FOLDERS[split]
    return {
        Path(name).stem
        for name in _kneemri_grades(root)
        if name not in files or files[name].parent.name in folders
    }


def _is_kneemri(root: Path) -> bool:
    return (root / "metadata.csv").is_file()


def read_release(
    root: str | os.PathLike[str], split: str, *, allow_missing: bool = False
) -> list[Exam]:
    """Read a folder in either layout, told apart by `metadata.csv`.

    Raises:
        DatasetError: the folder holds neither; see `read_mrnet` and `read_kneemri`.
    """
    reader = read_kneemri if _is_kneemri(release_folder(root)) else read_mrnet
    return reader(root, split, allow_missing=allow_missing)


# ------------------------------------------------------------------------------- volumes


def read_volume(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read one series from `.npy`, or from a pickle (`.pck`) that holds an array alone.

    Neither runs code: an array of Python objects is refused, and of a pickle nothing
    but numbers is taken.

    Returns:
        (S, H, W) in the file's own numbers.

    Raises:
        VolumeError: the file is missing, damaged, or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise VolumeError(f"there is no file {path}. Check the path.")
    try:
        if path.suffix == ".npy":
            # Mapped: a header that lies about the size cannot claim all memory.
            volume = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            volume = read_pickled_arrays(path)
    except PickleError as error:
        raise VolumeError(str(error)) from error
    except Exception as error:  # NumPy raises many kinds for damaged files
        raise VolumeError(
            f"{path} cannot be read as an array ({error}). Copy or download it again."
        ) from error
    if not isinstance(volume, np.ndarray) or volume.dtype.kind not in "iuf":
        found = getattr(volume, "dtype", type(volume).__name__)
        raise VolumeError(f"{path} holds {found}, but one array of numbers is needed.")
    if volume.ndim != 3 or not volume.shape[0] or min(volume.shape[1:]) < SMALLEST:
        raise VolumeError(
            f"{path} has the shape {volume.shape}, but (slices, rows, columns) with at "
            f"least one slice of {SMALLEST} × {SMALLEST} pixels is needed. Are the axes "
            "in another order?"
        )
    if volume.shape[0] > 2 * min(volume.shape[1:]):
        raise VolumeError(
            f"{path} has the shape {volume.shape}: {volume.shape[0]} slices, each only "
            f"{min(volume.shape[1:])} pixels narrow. (slices, rows, columns) is needed; "
            "are the axes in another order?"
        )
    if volume.dtype.kind == "f" and not np.isfinite(volume).all():
        raise VolumeError(
            f"{path} holds values that are not finite numbers. Export it again."
        )
    if volume.dtype.kind == "f":
        furthest = max(float(volume.max()), -float(volume.min()))
        if furthest > LARGEST:
            raise VolumeError(
                f"{path} holds values up to {furthest:.2g}, but grey values of at most "
                f"{LARGEST:.0e} are expected. Is the type or the byte order of the "
                "numbers right? Export it again."
            )
    return np.array(volume)  # in memory, no longer mapped


# ------------------------------------------------------------------------------ data set


class Exams(Dataset):
    """One series of many exams, ready for the network.

    An index is a number, or a pair (epoch, number) as the training loop gives it. With
    `augment`, epoch, number and seed decide every random choice, and each choice is
    made once for all slices of the exam.

    Args:
        exams: what `read_release` gives.
        series: which of their series.
        standardiser: learned on training exams.
        diagnoses: which labels, in which order.
        size: side of the square slices; 256 in the paper.
        crop: side of the square that is cut out of their middle.
        augment: None for evaluation.
        seed: of the augmentation.
        groups: a number an exam; exams of one group are augmented alike.
        remember: keep items in memory, for exams that are asked after every epoch:
            30 slices of 160 × 160 pixels are 0.8 MB. Without `augment` only.

    Each item is a dict: `image` (S, 1, crop, crop) uint8, `label` (D,) float32,
    `image_id`.
    """

    def __init__(
        self,
        exams: Sequence[Exam],
        series: str,
        standardiser: Standardiser,
        *,
        diagnoses: Sequence[str] = DIAGNOSES,
        size: int = 256,
        crop: int = 256,
        augment: Augment | None = None,
        seed: int = 0,
        groups: Sequence[int] | None = None,
        remember: bool = False,
    ) -> None:
        if not exams:
            raise DatasetError("a data set needs at least one exam, but there is none.")
        self.exams = list(exams)
        self.series = series
        self.standardiser = standardiser
        self.diagnoses = tuple(diagnoses)
        self.size = size
        self.augment = augment or Augment.none(crop)
        self.seed = seed
        self.groups = range(len(exams)) if groups is None else groups
        self.remembered: dict[int, dict[str, Any]] | None = {} if remember else None
        if remember and augment is not None:
            raise InputError(
                "augmented exams differ in each epoch; there is nothing to remember."
            )

    def __len__(self) -> int:
        return len(self.exams)

    def volume(self, index: int) -> NDArray[np.uint8]:
        """(S, size, size): read, standardised, brought to size."""
        path = self.exams[index].series[self.series]
        try:
            return prepare(read_volume(path), self.standardiser, self.size)[0]
        except StandardiseError as error:
            raise VolumeError(f"{path}: {error}") from error

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if self.remembered is None:
            return self._item(epoch, index)
        if index not in self.remembered:
            self.remembered[index] = self._item(epoch, index)
        return self.remembered[index]

    def _item(self, epoch: int, index: int) -> dict[str, Any]:
        drawn = stable_seed(self.seed, epoch, self.groups[index])
        random = torch.Generator().manual_seed(drawn)
        exam = self.exams[index]
        return {
            "image": self.augment(torch.from_numpy(self.volume(index)), random)[
                :, None
            ],
            "label": torch.tensor([float(exam.labels[d]) for d in self.diagnoses]),
            "image_id": exam.exam_id,
        }


def collate(items: Sequence[Batch]) -> Batch:
    """A batch of exams: slices and what belongs to them stay lists, as numbers differ."""
    return {
        key: torch.stack([item[key] for item in items])
        if key == "label"
        else [item[key] for item in items]
        for key in items[0]
    }


# -------------------------------------------------------------------------- verification


def verify(
    layout: str, root: str | os.PathLike[str], *, progress: bool = False
) -> list[Check]:
    """Walk a release, open every file, and say what is fine and what is not.

    Args:
        layout: `mrnet` or `kneemri`.
        root: folder of the release.
        progress: show a bar.

    Returns:
        One check per topic. The release is usable where no check has a problem.
    """
    walks: dict[str, Callable[[Path, bool], list[Check]]] = {
        "mrnet": _verify_mrnet,
        "kneemri": _verify_kneemri,
    }
    if layout not in walks:
        raise InputError(
            f"{layout!r} is no known layout; there are: {', '.join(walks)}."
        )
    try:
        return [Check("layout", layout), *walks[layout](release_folder(root), progress)]
    except InputError as error:
        return [Check("layout", "cannot be read", (str(error),))]


def _verify_mrnet(root: Path, progress: bool) -> list[Check]:
    checks = []
    files: list[Path] = []
    there = [split for split in MRNET_SPLITS if _has_split(root, split)]
    for split in MRNET_SPLITS:
        if there and split not in there:
            note = f"neither tables nor images of {split}: this copy holds a part"
            checks.append(Check(f"{split} exams", "not there", notes=(note,)))
            continue
        labels = _mrnet_labels(root, split) or {}
        present = _mrnet_files(root, split)
        absent = [
            f"{split}/{series}/{name}.npy: listed, but there is no file"
            for name in sorted(labels)
            for series in SERIES
            if name not in present[series]
        ]
        extra = len(set.union(*present.values()) - set(labels))
        complete = sum(
            all(name in present[series] for series in SERIES) for name in labels
        )
        checks.append(
            Check(
                f"{split} exams",
                f"{len(labels)} listed, {complete} with all series",
                tuple(absent),
                count_notes((extra, "exams not listed (no label; not used)")),
            )
        )
        checks.append(_label_check(split, labels.values()))
        files += [
            root / split / series / f"{name}.npy"
            for series in SERIES
            for name in sorted(present[series])
        ]
    by_series = {path: path.parent.name for path in files}
    return checks + _file_checks(by_series, progress, (256, 256))


def _label_check(split: str, labels: Iterable[dict[str, int]]) -> Check:
    rows = list(labels)
    counts = {name: sum(row[name] for row in rows) for name in DIAGNOSES}
    against = sum(
        not row["abnormal"] and bool(row["acl"] or row["meniscus"]) for row in rows
    )
    return Check(
        f"{split} labels",
        ", ".join(
            f"{name} {count} ({count / max(1, len(rows)):.1%})"
            for name, count in counts.items()
        ),
        notes=count_notes((against, "exams with a tear that are not called abnormal")),
    )


def _verify_kneemri(root: Path, progress: bool) -> list[Check]:
    grades = _kneemri_grades(root)
    files = _kneemri_files(root)
    listed = {name: path for name, path in files.items() if name in grades}
    absent = [
        f"{name}: listed, but there is no file"
        for name in sorted(set(grades) - set(files))
    ]
    names = ("healthy", "partial tear", "complete tear")
    counts = Counter(grades.values())
    splits = Counter(path.parent.name for path in listed.values())
    found = ", ".join(
        f"{split} {sum(splits[folder] for folder in folders)}"
        for split, folders in KNEEMRI_FOLDERS.items()
    )
    extra = len(set(files) - set(grades))
    return [
        Check(
            "exams",
            f"{len(grades)} listed, {len(listed)} with a volume",
            tuple(absent),
            count_notes((extra, "volumes not listed (no label; not used)")),
        ),
        Check("splits", found),
        Check(
            "labels", ", ".join(f"{name} {counts[k]}" for k, name in enumerate(names))
        ),
        *_file_checks(dict.fromkeys(listed.values(), "sagittal"), progress, None),
    ]


def _file_checks(
    files: dict[Path, str], progress: bool, usual: tuple[int, int] | None
) -> list[Check]:
    """Open every volume; a line per series, and one of their sizes."""

    def one(path: Path) -> tuple[str, tuple[int, ...], str]:
        try:
            volume = read_volume(path)
        except (DatasetError, OSError) as error:
            return str(error), (), ""
        flat = volume.min() == volume.max()
        blank = f"{path} is blank: all voxels are equal" if flat else ""
        return blank, volume.shape, str(volume.dtype)

    with ThreadPoolExecutor(count_cores()) as pool:
        done = pool.map(one, files)
        found = dict(
            zip(
                files,
                tqdm(done, "verify", len(files), disable=not progress, leave=False),
                strict=True,
            )
        )
    checks = []
    for series in SERIES:
        mine = [found[path] for path, name in files.items() if name == series]
        if not mine:
            continue
        slices = [shape[0] for _, shape, _ in mine if shape]
        middle = (
            f"; {min(slices)} to {max(slices)} slices, mean {np.mean(slices):.1f}"
            if slices
            else ""
        )
        kinds = ", ".join(sorted({kind for _, _, kind in mine if kind}))
        checks.append(
            Check(
                series,
                f"{len(slices)} of {len(mine)} volumes opened{middle}; {kinds}",
                tuple(problem for problem, _, _ in mine if problem),
            )
        )
    sizes = Counter(shape[1:] for _, shape, _ in found.values() if shape)
    other = sum(count for size, count in sizes.items() if usual and size != usual)
    shown = ", ".join(
        f"{height} × {width}: {count}"
        for (height, width), count in sizes.most_common(3)
    )
    checks.append(
        Check(
            "slices",
            shown or "none",
            notes=count_notes((other, "volumes of another size (resized on reading)")),
        )
    )
    return checks
