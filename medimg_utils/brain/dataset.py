"""Readers of the BraTS releases and of MSD Task01, and the data sets of both networks.

| release | files of a case | core, oedema, enhancing |
|---|---|---|
| BraTS 2018 | `{HGG,LGG}/Brats18_*/` `_t1 _t1ce _t2 _flair _seg` | 1, 2, 4 |
| BraTS 2019 | `{HGG,LGG}/BraTS19_*/`, the same endings | 1, 2, 4 |
| BraTS 2020 | `BraTS20_Training_001/`, the same endings | 1, 2, 4 |
| BraTS 2021 | `BraTS2021_00000/`, the same endings | 1, 2, 4 |
| BraTS 2023 GLI | `BraTS-GLI-00000-000/` `-t1n -t1c -t2w -t2f -seg` | 1, 2, 3 |
| BraTS 2024 GLI | `BraTS-GLI-00000-100/`, the same; visits from 100 on | 1, 2, 3; 4 is a cavity |
| MSD Task01 | `imagesTr/BRATS_001.nii.gz`, four channels; `labelsTr/` | 2, 1, 3 |

The release is told by the names, never by the values: a mask of 1, 2 and 3 is possible in
three of them and means different things. Inside the package the labels are always 0
background, 1 necrotic and non-enhancing core, 2 oedema, 3 enhancing tumour. Nothing here
knows or asks whether an image was simulated.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from medimg_utils.brain.inference import SIDE, STRIDE, coarsen, pad_to_multiple
from medimg_utils.brain.models import BORDER
from medimg_utils.brain.preprocess import (
    MODALITIES,
    Grid,
    IntensityError,
    Prepared,
    augment,
    bounding_box,
    cut,
    five_channels,
    prepare,
    standardise,
)
from medimg_utils.errors import InputError
from medimg_utils.io import (
    ImageError,
    Volume,
    atomic_path,
    read_nifti,
    write_json_atomic,
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

SMALLEST, LARGEST = 200.0, 4000.0  # cm³ of a brain; with care for what was cut off
SURVIVAL_TABLES = ("survival_data.csv", "survival_info.csv", "survival_evaluation.csv")
STRAY_MASK = re.compile(
    r"\w+_\d{4}\.\d\d\.\d\d_Segm\.nii(\.gz)?"
)  # BraTS 2020, case 355


# ---------------------------------------------------------------------------------- layouts


@dataclass(frozen=True)
class Layout:
    """How a release names its files and its labels.

    Attributes:
        name: `brats2018` ... `brats2024`, `msd`.
        title: for people.
        pattern: of a file's name; groups `case`, `patient` and `kind`.
        kinds: the name of each of `MODALITIES`, and of the mask, in file names.
        labels: value in the release → value in the package.
    """

    name: str
    title: str
    pattern: re.Pattern[str]
    kinds: tuple[str, str, str, str, str]
    labels: Mapping[int, int] = field(hash=False)

    @property
    def values(self) -> tuple[int, int, int, int]:
        """What the release writes for background, core, oedema and enhancing tumour.

        >>> LAYOUTS["brats2018"].values
        (0, 1, 2, 4)
        """
        first: dict[int, int] = {}
        for theirs, ours in self.labels.items():
            first.setdefault(ours, theirs)
        return first[0], first[1], first[2], first[3]


def _layout(
    name: str, title: str, case: str, kinds: Sequence[str], labels: dict[int, int]
) -> Layout:
    separator = "-" if "t1n" in kinds else "_"
    ending = (
        rf"{separator}(?P<kind>{'|'.join(kinds)})" if name != "msd" else "(?P<kind>)"
    )
    pattern = re.compile(rf"(?P<case>{case}){ending}\.nii(\.gz)?")
    return Layout(name, title, pattern, tuple(kinds), labels)  # type: ignore[arg-type]


_OLD = ("t1", "t1ce", "t2", "flair", "seg")
_NEW = ("t1n", "t1c", "t2w", "t2f", "seg")
_OLD_LABELS = {0: 0, 1: 1, 2: 2, 4: 3}
LAYOUTS = {
    layout.name: layout
    for layout in (
        _layout(
            "brats2018", "BraTS 2018", r"(?P<patient>Brats18_\w+?)", _OLD, _OLD_LABELS
        ),
        _layout(
            "brats2019", "BraTS 2019", r"(?P<patient>BraTS19_\w+?)", _OLD, _OLD_LABELS
        ),
        _layout(
            "brats2020", "BraTS 2020", r"(?P<patient>BraTS20_[A-Za-z]+_\d+)", _OLD,
            _OLD_LABELS,
        ),
        _layout(
            "brats2021", "BraTS 2021", r"(?P<patient>BraTS2021_\d+)", _OLD, _OLD_LABELS
        ),
        _layout(
            "brats2023", "BraTS 2023 GLI", r"(?P<patient>BraTS-GLI-\d+)-0\d\d", _NEW,
            {0: 0, 1: 1, 2: 2, 3: 3},
        ),
        _layout(
            "brats2024", "BraTS 2024 GLI", r"(?P<patient>BraTS-GLI-\d+)-[1-9]\d\d", _NEW,
            {0: 0, 1: 1, 2: 2, 3: 3, 4: 0},  # a resection cavity is no tumour
        ),
        _layout(
            "msd", "MSD Task01", r"(?P<patient>BRATS_\d+)", _OLD, {0: 0, 1: 2, 2: 1, 3: 3}
        ),
    )
}  # fmt: skip
MSD_CHANNELS = (1, 2, 3, 0)  # of FLAIR, T1w, t1gd, T2w in the order of MODALITIES


@dataclass(frozen=True)
class Case:
    """What is known about one exam.

    Attributes:
        case_id: unique in the release.
        layout: how its files are to be read.
        images: files of T1, T1ce, T2 and FLAIR; one file with four channels in MSD.
        mask: file of the truth, None where the release holds it back.
        patient: identifier of the patient; exams of one patient never part.
        grade: `HGG`, `LGG`, or None where the release does not say.
        age: years, None where unknown.
        survival: days from diagnosis to death, None where unknown.
        alive_after: days after which the patient was alive; death is not known then.
        resection: `GTR` (gross total), `STR` (subtotal) or None.
    """

    case_id: str
    layout: Layout
    images: tuple[Path, ...]
    mask: Path | None
    patient: str
    grade: str | None = None
    age: float | None = None
    survival: float | None = None
    alive_after: float | None = None
    resection: str | None = None


# ---------------------------------------------------------------------------------- readers


def read_brats(root: str | os.PathLike[str]) -> list[Case]:
    """Read a BraTS release of 2018 to 2021, 2023 or 2024, whichever the names say.

    Case folders may lie anywhere below the root; files end with `.nii.gz` or `.nii`. A
    survival table is read where there is one. One mask of 2020 has a stray name, and one
    patient of its table is alive: both are understood.

    Args:
        root: folder of the release.

    Returns:
        Cases sorted by their id.

    Raises:
        DatasetError: no case, cases of two releases, a case without one of its four
            modalities, or a survival table that contradicts itself.
    """
    root = release_folder(root)
    found = _brats_files(root)
    problems = _file_problems(found)
    if problems:
        more = f" There are {len(problems) - 1} more." if problems[1:] else ""
        raise DatasetError(problems[0] + more)
    return _with_survival(_cases(found), _tables(root))


def read_msd(root: str | os.PathLike[str]) -> list[Case]:
    """Read Task01 of the Medical Segmentation Decathlon.

    Label 1 is oedema and 2 the non-enhancing core there: the other way round than in
    BraTS. `dataset.json` is held against that.

    Args:
        root: folder with `dataset.json`, `imagesTr` and `labelsTr`.

    Returns:
        Cases sorted by their id.

    Raises:
        DatasetError: the folder is not that release.
    """
    root = release_folder(root)
    listed = _check_msd(root)
    layout = LAYOUTS["msd"]
    cases = []
    for path in sorted((root / "imagesTr").iterdir()):
        match = layout.pattern.fullmatch(path.name)
        if not match or not path.is_file():
            continue  # an archive made on a Mac also holds ._BRATS_001.nii.gz
        mask = root / "labelsTr" / path.name
        cases.append(
            Case(
                case_id=match["case"],
                layout=layout,
                images=(path,),
                mask=mask if mask.is_file() else None,
                patient=match["patient"],
            )
        )
    if not cases:
        raise DatasetError(f"{root / 'imagesTr'} holds no BRATS_*.nii.gz. Unpack it.")
    absent = sorted(listed - {case.case_id for case in cases})
    if absent:
        raise DatasetError(
            f"{root / 'dataset.json'} lists {len(listed)} cases, but {len(absent)} of them "
            f"have no file in imagesTr, e.g. {absent[0]}. Unpack the archive again, or "
            "take them out of the list."
        )
    return cases


def read_release(root: str | os.PathLike[str]) -> list[Case]:
    """Read a folder in any of the layouts; MSD is told by its `imagesTr`."""
    folder = release_folder(root)
    return read_msd(folder) if (folder / "imagesTr").is_dir() else read_brats(folder)


def read_case(path: str | os.PathLike[str]) -> Case:
    """One case: a folder with the files of one exam, or a file of MSD Task01.

    Age and survival are taken from the release's table where it lies beside the folder or
    one level above.

    Raises:
        DatasetError: the folder holds no case, several, or one that is not whole.
    """
    path = Path(path)
    if path.is_file():
        match = LAYOUTS["msd"].pattern.fullmatch(path.name)
        if not match:
            raise DatasetError(
                f"{path} is a file, but a case is a folder with four modalities (BraTS) or "
                "a file BRATS_001.nii.gz with four channels (MSD Task01)."
            )
        return Case(match["case"], LAYOUTS["msd"], (path,), None, match["patient"])
    if not path.is_dir():
        raise DatasetError(
            f"there is no {path}. A case is a folder with four modalities (BraTS) or a "
            "file with four channels (MSD Task01)."
        )
    folder = release_folder(path)
    names = sorted(item.name for item in folder.iterdir() if item.is_file())
    found = {key: files for key, files in _group(folder, names).items() if files}
    if len(found) != 1:
        listed = ", ".join(case for _, case in found) or "none"
        raise DatasetError(
            f"{folder} should hold the files of one case, but these cases were found: "
            f"{listed}. Give the folder of a case, not that of a release, with names like "
            "BraTS2021_00000_{t1,t1ce,t2,flair}.nii.gz."
        )
    problems = _file_problems(found)
    if problems:
        raise DatasetError(problems[0])
    nearby = [folder.absolute().parent, folder.absolute().parent.parent]
    tables = [place / name for place in nearby for name in SURVIVAL_TABLES]
    return _with_survival(
        _cases(found), [table for table in tables if table.is_file()]
    )[0]


Files = dict[tuple[str, str], dict[str, list[Path]]]  # (layout, case) → kind → files


def _brats_files(root: Path) -> Files:
    found: Files = {}
    for folder, names in walk(root):
        for key, files in _group(folder, names).items():
            kinds = found.setdefault(key, defaultdict(list))
            for kind, paths in files.items():
                kinds[kind] += paths
    for kinds in found.values():
        # a mask elsewhere may be what a network has answered, under the same name
        homes = {p.parent for kind, ps in kinds.items() if kind != "seg" for p in ps}
        if homes:
            kinds["seg"] = [path for path in kinds["seg"] if path.parent in homes]
    return found


def _group(folder: Path, names: Sequence[str]) -> Files:
    """The files of each case among the names in a folder."""
    found: Files = {}
    for name in names:
        for layout in LAYOUTS.values():
            match = layout.pattern.fullmatch(name)
            if match and layout.name != "msd":
                kinds = found.setdefault(
                    (layout.name, match["case"]), defaultdict(list)
                )
                kinds[match["kind"]].append(folder / name)
    stray = [name for name in names if STRAY_MASK.fullmatch(name)]
    if len(found) == 1 and len(stray) == 1:
        ((layout_name, _), kinds) = next(iter(found.items()))
        if layout_name == "brats2020" and not kinds["seg"]:
            kinds["seg"].append(folder / stray[0])
    return found


def _file_problems(found: Files) -> list[str]:
    """What forbids to use the files, one text per problem."""
    if not found:
        return [
            "no file has a name of a BraTS release, e.g. "
            "BraTS2021_00000/BraTS2021_00000_t1.nii.gz. Give the folder that holds the "
            "cases."
        ]
    problems = []
    releases = Counter(layout for layout, _ in found)
    if len(releases) > 1:
        counts = ", ".join(
            f"{count} of {LAYOUTS[name].title}" for name, count in releases.items()
        )
        problems.append(
            f"there are cases of several releases: {counts}. Their labels differ; give "
            "them one by one."
        )
    for (name, case), kinds in sorted(found.items()):
        layout = LAYOUTS[name]
        folder = next(path for paths in kinds.values() for path in paths).parent
        separator = "-" if "t1n" in layout.kinds else "_"
        for kind in layout.kinds:
            paths = kinds[kind]
            if len(paths) > 1:
                problems.append(f"{paths[0]} and {paths[1]} are one image. Keep one.")
            if not paths and kind != "seg":
                problems.append(
                    f"{folder / f'{case}{separator}{kind}.nii.gz'} is missing: a case "
                    "needs all four modalities. Download it again."
                )
    return problems


def _cases(found: Files) -> list[Case]:
    cases = []
    for (name, case), kinds in sorted(found.items(), key=lambda item: item[0][1]):
        layout = LAYOUTS[name]
        images = tuple(kinds[kind][0] for kind in layout.kinds[:4])
        match = layout.pattern.fullmatch(images[0].name)
        folders = images[0].absolute().parts
        grades = [part for part in folders if part in ("HGG", "LGG")]
        cases.append(
            Case(
                case_id=case,
                layout=layout,
                images=images,
                mask=kinds["seg"][0] if kinds["seg"] else None,
                patient=match["patient"] if match else case,
                grade=grades[-1] if grades else None,
            )
        )
    return cases


def _check_msd(root: Path) -> set[str]:
    """Hold `dataset.json` against the layout; return the cases that it lists."""
    path = root / "dataset.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        modalities = [facts["modality"][str(k)].lower() for k in range(4)]
        labels = [facts["labels"][str(k)].lower() for k in range(4)]
        listed = [Path(one["image"]).name for one in facts.get("training", ())]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"{path} cannot be read as the description of MSD Task01 ({error!r}). Give the "
            "folder Task01_BrainTumour as it was unpacked."
        ) from error
    if modalities != ["flair", "t1w", "t1gd", "t2w"]:
        raise DatasetError(
            f"{path} lists the modalities {modalities}, but Task01 has FLAIR, T1w, t1gd, "
            "T2w in this order."
        )
    expected = ("background", "edema", "non-enhancing", "enhancing")
    if any(
        not text.startswith(word) for text, word in zip(labels, expected, strict=True)
    ):
        raise DatasetError(
            f"{path} lists the labels {labels}, but Task01 has 1 edema, 2 non-enhancing "
            "tumor, 3 enhancing tumour."
        )
    found = map(LAYOUTS["msd"].pattern.fullmatch, listed)
    return {match["case"] for match in found if match}


# --------------------------------------------------------------------------------- survival


def _tables(root: Path) -> list[Path]:
    return sorted(
        folder / name
        for folder, names in walk(root)
        for name in names
        if name in SURVIVAL_TABLES
    )


def _with_survival(cases: Sequence[Case], tables: Sequence[Path]) -> list[Case]:
    """Fill in age, survival and resection from the release's tables."""
    known: dict[str, dict[str, Any]] = {}
    for path in tables:
        for name, facts in read_survival(path).items():
            if known.setdefault(name, facts) != facts:
                raise DatasetError(f"{path}: {name} stands in two tables that differ.")
    return [replace(case, **known.get(case.case_id, {})) for case in cases]


def read_survival(path: Path) -> dict[str, dict[str, Any]]:
    """Read `survival_data.csv` (2018, 2019) or `survival_info.csv` (2020).

    `survival_evaluation.csv`, of cases without truth, has no column of days.

    Returns:
        Case → `age`, `survival`, `alive_after` and `resection`, None where not known.

    Raises:
        DatasetError: a column is missing, a case is listed twice, or a number is none.
    """
    table = read_table(path)
    columns = list(table)
    name = next((c for c in columns if re.fullmatch(r"brats\d\did", c)), None)
    days = next((c for c in ("survival", "survival_days") if c in columns), None)
    extent = next(
        (c for c in ("resectionstatus", "extent_of_resection") if c in columns), None
    )
    told = days is not None or path.name == "survival_evaluation.csv"
    if name is None or not told or "age" not in columns:
        raise DatasetError(
            f"{path} has the columns {', '.join(columns)}, but an id (e.g. Brats18ID), Age "
            "and Survival are needed."
        )
    facts: dict[str, dict[str, Any]] = {}
    for row in table.to_dict("records"):
        if row[name] in facts:
            raise DatasetError(f"{path} lists {row[name]} twice. Keep one row.")
        lived = row[days] if days else ""
        alive = re.fullmatch(r"ALIVE\s*\((\d+) days later\)", lived, re.IGNORECASE)
        resection = row[extent].upper() if extent else ""
        facts[row[name]] = {
            "age": _number(row["age"], 120, f"{path}, {row[name]}: Age"),
            "survival": None
            if alive
            else _number(lived, 36525, f"{path}, {row[name]}: Survival"),
            "alive_after": float(alive[1]) if alive else None,
            "resection": resection if resection in ("GTR", "STR") else None,
        }
    return facts


def _number(text: str, highest: float, place: str) -> float | None:
    if text.upper() in ("", "NA", "NAN"):
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= highest:
        raise DatasetError(f"{place} is {text!r}, but a number from 0 to {highest:g} is "
                           "expected. Correct the table.")  # fmt: skip
    return value


# ----------------------------------------------------------------------------------- voxels


@dataclass(frozen=True, eq=False)
class Scan:
    """The voxels of one case, turned to the orientation RAS.

    Attributes:
        images: (4, D, H, W) float32 in the order of `MODALITIES`.
        labels: (D, H, W) uint8, 0 to 3; None without truth.
        spacing: of the voxels in mm along D, H and W.
        affine: (4, 4) of the files, from their own voxel index to mm.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.uint8] | None
    spacing: tuple[float, float, float]
    affine: NDArray[np.float64]

    def to_file(self, labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(D, H, W) in RAS → the order of axes and the directions of the files."""
        own = nib.orientations.io_orientation(self.affine)
        ras = np.array([[0, 1], [1, 1], [2, 1]])
        back = nib.orientations.ornt_transform(ras, own)
        return nib.orientations.apply_orientation(labels, back)


def load(case: Case) -> Scan:
    """Read the volumes of a case and hold them against each other.

    Raises:
        ImageError: a file is damaged, or its shape, affine or labels are not as they must
            be; the file is named.
    """
    path = case.images[0]
    if len(case.images) == 1:
        whole = read_nifti(path)
        if whole.voxels.ndim != 4 or whole.voxels.shape[-1] != 4:
            raise ImageError(
                f"{path} has the shape {whole.voxels.shape}, but four channels (D, H, W, "
                "4) are expected."
            )
        volumes = [Volume(whole.voxels[..., k], whole.affine) for k in MSD_CHANNELS]
    else:
        volumes = [_single(name) for name in case.images]
        for other, name in zip(volumes, case.images, strict=True):
            _check_alike(path, volumes[0], name, other)
    first = volumes[0]
    images = np.stack([volume.voxels for volume in volumes])
    labels = None
    if case.mask is not None:
        truth = _single(case.mask)
        _check_alike(path, first, case.mask, truth)
        labels = _labels(case, truth.voxels)
    own = nib.orientations.io_orientation(first.affine)
    turned = [nib.orientations.apply_orientation(one, own) for one in images]
    spacing = [first.spacing[int(np.flatnonzero(own[:, 0] == k)[0])] for k in range(3)]
    return Scan(
        images=np.ascontiguousarray(turned),
        labels=None
        if labels is None
        else np.ascontiguousarray(nib.orientations.apply_orientation(labels, own)),
        spacing=(spacing[0], spacing[1], spacing[2]),
        affine=first.affine,
    )


def _single(path: Path) -> Volume:
    volume = read_nifti(path)
    voxels = volume.voxels
    if voxels.ndim == 4 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3:
        raise ImageError(
            f"{path} holds {voxels.shape[-1]} volumes, but one is expected."
        )
    return Volume(voxels, volume.affine)


def _check_alike(path: Path, first: Volume, name: Path, other: Volume) -> None:
    if other.voxels.shape != first.voxels.shape:
        raise ImageError(
            f"{name} has {_times(other.voxels.shape)} voxels, but {path.name} has "
            f"{_times(first.voxels.shape)}. All files of a case must lie on one grid."
        )
    if not np.allclose(other.affine, first.affine, atol=0.01):
        raise ImageError(
            f"{name} has another affine than {path.name}: their voxels lie in different "
            "places, or in another order. Bring it onto the same grid, or download it "
            "again."
        )


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))


def _labels(case: Case, voxels: NDArray[np.float32]) -> NDArray[np.uint8]:
    values = np.unique(voxels)
    wrong = [value for value in values.tolist() if value not in case.layout.labels]
    if wrong:
        listed = ", ".join(f"{value:g}" for value in wrong[:5])
        allowed = ", ".join(map(str, case.layout.labels))
        raise ImageError(
            f"{case.mask} holds the labels {listed}, but {case.layout.title} has {allowed}. "
            "Is it a mask of another release, or was it resampled with interpolation?"
        )
    table = np.zeros(max(case.layout.labels) + 1, np.uint8)
    for theirs, ours in case.layout.labels.items():
        table[theirs] = ours
    return table[voxels.astype(np.int64)]


def to_release(labels: NDArray[np.uint8], layout: Layout) -> NDArray[np.uint8]:
    """Labels 0 to 3 → the values that a release writes for them.

    >>> to_release(np.array([0, 1, 2, 3]), LAYOUTS["msd"]).tolist()
    [0, 2, 1, 3]
    """
    return np.array(layout.values, np.uint8)[labels]


# --------------------------------------------------------------------------------- data sets


def prepare_cases(
    cases: Sequence[Case],
    voxel: float,
    cache: Path | None = None,
    *,
    progress: bool = False,
) -> list[Prepared]:
    """Load and prepare cases, once.

    Args:
        cases: with their masks.
        voxel: side of the network's voxels in mm.
        cache: folder in which the results are kept, and read from piece by piece; all
            stays in memory where None.
        progress: show a bar.

    Raises:
        DatasetError: names the case whose intensities cannot be used.
        ImageError: names the file.
    """
    if not cases:
        raise DatasetError("a data set needs at least one case, but there is none.")

    def one(case: Case) -> Prepared:
        if cache is None:
            return prepare_case(case, voxel)
        return _stored(case, voxel, cache)

    with ThreadPoolExecutor(min(4, count_cores())) as pool:
        bar = tqdm(pool.map(one, cases), "read", len(cases), disable=not progress)
        return list(bar)


def prepare_case(case: Case, voxel: float) -> Prepared:
    """Load one case and bring it into the form of the networks."""
    return prepare_scan(case, load(case), voxel)


def prepare_scan(case: Case, scan: Scan, voxel: float) -> Prepared:
    """`preprocess.prepare`, with the case named where it fails.

    Raises:
        DatasetError: a volume cannot be standardised, or is too large or too small for
            a brain: its header has lost the size of the voxels.
    """
    try:
        prepared = prepare(scan.images, scan.spacing, voxel, scan.labels)
    except IntensityError as error:
        raise DatasetError(
            f"{case.images[0].parent}, {case.case_id}: {error}"
        ) from error
    voxels = np.count_nonzero((scan.images != 0).any(axis=0))
    size = voxels * math.prod(scan.spacing) / 1000
    if not SMALLEST <= size <= LARGEST:
        raise DatasetError(
            f"{case.images[0].parent}, {case.case_id}: the brain measures {size:.0f} cm³ "
            f"with voxels of {' × '.join(f'{side:g}' for side in scan.spacing)} mm; "
            f"{SMALLEST:g} to {LARGEST:g} were expected. Set the size of the voxels in "
            "the header."
        )
    return prepared


def _stored(case: Case, voxel: float, cache: Path) -> Prepared:
    paths = [*case.images, *([case.mask] if case.mask else [])]
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    key = repr((2, voxel, case.layout.name, facts))
    base = cache / f"brain-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    about = base.with_suffix(".json")
    if not about.is_file():
        prepared = prepare_case(case, voxel)
        arrays = {"channels": prepared.channels, "target": prepared.target}
        for name, array in arrays.items():
            if array is not None:
                with atomic_path(Path(f"{base}-{name}.npy")) as partial:
                    np.save(partial, array)
        grid = prepared.grid
        write_json_atomic(  # last: it says that all is there
            about,
            {
                "scale": prepared.scale,
                "shape": grid.shape,
                "box": [[side.start, side.stop] for side in grid.box],
                "steps": grid.steps,
                "spacing": grid.spacing,
                "target": prepared.target is not None,
            },
        )
    stored = json.loads(about.read_text(encoding="utf-8"))
    first, second, third = (slice(*side) for side in stored["box"])
    grid = Grid(
        tuple(stored["shape"]),
        (first, second, third),
        tuple(stored["steps"]),
        tuple(stored["spacing"]),
    )
    target = Path(f"{base}-target.npy")
    return Prepared(
        np.load(f"{base}-channels.npy", mmap_mode="r"),
        stored["scale"],
        grid,
        np.load(target, mmap_mode="r") if stored["target"] else None,
    )


class _Volumes(Dataset):
    """What both data sets share: cases with truth, and a random stream per item."""

    def __init__(
        self,
        prepared: Sequence[Prepared],
        names: Sequence[str],
        augmentation: float,
        seed: int,
    ) -> None:
        self.prepared = list(prepared)
        self.names = list(names)
        self.augmentation = augmentation
        self.seed = seed

    def generator(self, key: int | tuple[int, int]) -> tuple[int, torch.Generator]:
        """Number of the item, and the generator of everything random in it."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        seed = stable_seed(self.seed, epoch, index)
        return index, torch.Generator().manual_seed(seed)


class WholeBrains(_Volumes):
    """Step 1: whole brains, coarser by a factor, padded to multiples of 8.

    An index is a number, or a pair (epoch, number) as the training loop gives it; the pair
    and the seed decide every random choice.

    Args:
        prepared: of cases with truth.
        names: their ids.
        factor: side of step 1's voxels in voxels of `prepared`.
        augmentation: strength; see `preprocess.augment`.
        seed: of the augmentation.

    Each item is a dict: `image` (5, D, H, W) float32, `tumour` (D, H, W) share of each
    voxel that is tumour, `image_id`.
    """

    def __init__(
        self,
        prepared: Sequence[Prepared],
        names: Sequence[str],
        *,
        factor: int = 1,
        augmentation: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(prepared, names, augmentation, seed)
        self.factor = factor

    def __len__(self) -> int:
        return len(self.prepared)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, generator = self.generator(key)
        one = self.prepared[index]
        channels = torch.from_numpy(one.channels.astype(np.float32))
        tumour = _shares(one).sum(dim=0, keepdim=True)
        channels, tumour = augment(channels, tumour, self.augmentation, generator)
        image = five_channels(channels, one.scale)
        return {
            "image": pad_to_multiple(coarsen(image, self.factor)),
            "tumour": pad_to_multiple(coarsen(tumour, self.factor))[0],
            "image_id": self.names[index],
        }


class Patches(_Volumes):
    """Step 2: patches around the tumour, wider than what is to be learnt by a border.

    Two kinds take turns. *Grid*: a place of a regular grid over the tumour's box where
    every class that the case has fills more than `least` voxels. *Random*: anywhere in the
    box, grown by `around` voxels, so that the network also meets what only looks like
    tumour. An index is used as in `WholeBrains`.

    Args:
        prepared: of cases with truth.
        names: their ids.
        patches: of each case in an epoch.
        side: of the part that is learnt; 36 in the paper.
        border: voxels that are seen around it; 44 are what step 2 loses.
        least: voxels of each class in a patch of the grid; 320 in the paper.
        around: voxels; 20 in the paper.
        grid_share: how many of the patches are of the grid.
        augmentation: strength; see `preprocess.augment`.
        seed: of places and augmentation.

    Each item is a dict: `image` (5, side + 2 · border, ...) float32, `target` (4, side, ...) share
    of each class in each voxel, `image_id`.
    """

    def __init__(
        self,
        prepared: Sequence[Prepared],
        names: Sequence[str],
        *,
        patches: int = 1,
        side: int = SIDE,
        border: int = BORDER,
        least: float = 320,
        around: int = 20,
        grid_share: float = 0.5,
        augmentation: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(prepared, names, augmentation, seed)
        self.patches = patches
        self.side = side
        self.border = border
        self.around = around
        self.grid_share = grid_share
        self.boxes = []
        self.places = []
        for one in self.prepared:
            target = _target(one)
            tumour = target.max(axis=0) > 0
            everywhere = np.ones_like(tumour)  # a case without tumour
            self.boxes.append(bounding_box(tumour if tumour.any() else everywhere))
            self.places.append(grid_places(target, side, least=least))

    def __len__(self) -> int:
        return len(self.prepared) * self.patches

    def start(self, case: int, generator: torch.Generator) -> list[int]:
        """Where the learnt part of a patch begins."""
        turn, *position = torch.rand(4, generator=generator).tolist()
        places = self.places[case]
        if turn < self.grid_share and len(places):
            return places[int(position[0] * len(places))].tolist()
        start = []
        for side, share in zip(self.boxes[case], position, strict=True):
            low, high = side.start - self.around, side.stop + self.around - self.side
            low, high = min(low, (low + high) // 2), max(high, (low + high) // 2)
            start.append(low + int(share * (high - low + 1)))
        return start

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index, generator = self.generator(key)
        case = index % len(self.prepared)
        one = self.prepared[case]
        start = self.start(case, generator)
        outer = [first - self.border for first in start]
        channels = cut(
            torch.from_numpy(one.channels), outer, [self.side + 2 * self.border] * 3
        ).float()
        shares = cut(torch.from_numpy(_target(one)), start, [self.side] * 3) / 255
        channels, shares = augment(channels, shares, self.augmentation, generator)
        background = (1 - shares.sum(dim=0, keepdim=True)).clamp(min=0)
        return {
            "image": five_channels(channels, one.scale),
            "target": torch.cat([background, shares]),
            "image_id": self.names[case],
        }


def _target(prepared: Prepared) -> NDArray[np.uint8]:
    if prepared.target is None:
        raise DatasetError("training needs masks, but a case has none.")
    return prepared.target


def _shares(prepared: Prepared) -> Tensor:
    return torch.from_numpy(_target(prepared).astype(np.float32) / 255)


def grid_places(
    target: NDArray[np.uint8],
    side: int = SIDE,
    stride: int = STRIDE,
    least: float = 320,
) -> NDArray[np.int64]:
    """Starts of those patches of a grid that hold enough of everything.

    The grid lies over the tumour's box, with each axis cut by its own length. (In the
    published code one axis takes the length of another.) A class that the whole case has
    less than `least` of is not asked for; background always is.

    Args:
        target: (3, D, H, W) uint8 share of core, oedema and enhancing tumour, 255 = all.
        side: of a patch.
        stride: of the grid.
        least: voxels that each class must exceed.

    Returns:
        (N, 3) starts; N may be 0.
    """
    shares = target.astype(np.float64) / 255
    tumour = shares.sum(axis=0)
    if not tumour.any():
        return np.empty((0, 3), np.int64)
    box = bounding_box(tumour > 0)
    axes = [
        np.arange(part.start, max(part.stop - side, part.start) + 1, stride)
        for part in box
    ]
    classes = [share for share in shares if share.sum() > least]
    classes.append(1 - tumour)
    starts = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    good = np.ones(len(starts), bool)
    for share in classes:
        good &= _box_sums(share, starts, side) > least
    return starts[good].astype(np.int64)


def _box_sums(
    values: NDArray[np.float64], starts: NDArray[np.int64], side: int
) -> NDArray[np.float64]:
    """Sum of the cube of `side` voxels from each start on, by a summed volume."""
    table = np.pad(values.cumsum(0).cumsum(1).cumsum(2), ((1, 0), (1, 0), (1, 0)))
    low = starts
    high = np.minimum(starts + side, values.shape)
    total = np.zeros(len(starts))
    for corner in np.ndindex(2, 2, 2):
        place = np.where(np.array(corner, bool), high, low)
        sign = (-1) ** (3 - sum(corner))
        total += sign * table[place[:, 0], place[:, 1], place[:, 2]]
    return total


# ----------------------------------------------------------------------------- verification


def verify(
    layout: str, root: str | os.PathLike[str], *, progress: bool = False
) -> list[Check]:
    """Walk a release, open every file, and say what is fine and what is not.

    Args:
        layout: `brats` (any year) or `msd`.
        root: folder of the release.
        progress: show a bar.

    Returns:
        One check per topic. The release is usable where no check has a problem.
    """
    readers = {"brats": _brats_parts, "msd": _msd_parts}
    if layout not in readers:
        raise InputError(
            f"{layout!r} is no known layout; there are: {', '.join(readers)}."
        )
    try:
        root = release_folder(root)
        cases, problems, tables = readers[layout](root)
    except InputError as error:
        return [Check("layout", "cannot be read", (str(error),))]
    if not cases:
        return [Check("layout", "cannot be used", tuple(problems))]
    title = " and ".join(dict.fromkeys(case.layout.title for case in cases))
    grades = Counter(case.grade or "grade not given" for case in cases)
    patients = len({case.patient for case in cases})
    checks = [
        Check("layout", title),
        Check(
            "cases",
            f"{len(cases)} whole, of {patients} patients; "
            + ", ".join(f"{grade}: {count}" for grade, count in grades.items()),
            tuple(problems),
        ),
    ]
    return [*checks, *_voxel_checks(cases, progress), _survival_check(cases, tables)]


def _brats_parts(root: Path) -> tuple[list[Case], list[str], list[Path]]:
    found = _brats_files(root)
    problems = _file_problems(found)
    whole = {
        key: kinds
        for key, kinds in found.items()
        if all(kinds[kind] for kind in LAYOUTS[key[0]].kinds[:4])
    }
    return _cases(whole), problems, _tables(root)


def _msd_parts(root: Path) -> tuple[list[Case], list[str], list[Path]]:
    return read_msd(root), [], []


def _voxel_checks(cases: Sequence[Case], progress: bool) -> list[Check]:
    """Open every volume, standardise it and count its labels."""

    def one(case: Case) -> tuple[str, Any]:
        try:
            scan = load(case)
        except (ImageError, OSError) as error:
            return "files", str(error)
        extreme = 0
        for name, image in zip(MODALITIES, scan.images, strict=True):
            try:
                standardise(image)
            except IntensityError as error:
                return "intensities", f"{case.case_id}, {name}: {error}"
            extreme += bool(image.max() > 10 * np.percentile(image[image != 0], 99))
        shares = None
        if scan.labels is not None:
            voxel = float(np.prod(scan.spacing)) / 1000
            shares = np.bincount(scan.labels.ravel(), minlength=4)[1:] * voxel
        axes = "".join(nib.orientations.aff2axcodes(scan.affine))
        sizes = " × ".join(f"{size:.3g}" for size in scan.spacing)
        return "", (scan.images.shape[1:], sizes, axes, extreme, shares)

    with ThreadPoolExecutor(min(4, count_cores())) as pool:
        bar = tqdm(pool.map(one, cases), "verify", len(cases), disable=not progress)
        results = list(bar)
    facts = [value for kind, value in results if not kind]
    broken: dict[str, tuple[str, ...]] = {
        name: tuple(value for kind, value in results if kind == name)
        for name in ("files", "intensities")
    }
    grids = Counter(
        f"{_times(shape)} voxels of {sizes} mm, {axes}"
        for shape, sizes, axes, *_ in facts
    )
    extreme = sum(bool(count) for *_, count, _ in facts)
    volumes = [shares for *_, shares in facts if shares is not None]
    empty = sum(not shares.sum() for shares in volumes)
    dull = sum(bool(shares.sum()) and not shares[2] for shares in volumes)
    text = f"{len(volumes)} masks"
    if volumes:
        core, oedema, enhancing = np.median(volumes, axis=0)
        text += f"; median core {core:.1f}, oedema {oedema:.1f}, enhancing {enhancing:.1f} cm³"
    return [
        Check(
            "files",
            f"{len(facts) + len(broken['intensities'])} read; "
            + "; ".join(f"{grid}: {count}" for grid, count in grids.most_common(3)),
            broken["files"],
        ),
        Check(
            "intensities",
            f"{len(facts)} cases can be standardised",
            broken["intensities"],
            count_notes((extreme, "cases with outliers (limited on reading)")),
        ),
        Check(
            "masks",
            text,
            notes=count_notes(
                (
                    len(facts) - len(volumes),
                    "cases without a mask (not used in training)",
                ),
                (empty, "masks without any tumour"),
                (dull, "tumours without an enhancing part"),
            ),
        ),
    ]


def _survival_check(cases: Sequence[Case], tables: Sequence[Path]) -> Check:
    try:
        known = _with_survival(cases, tables)
        listed = {name for path in tables for name in read_survival(path)}
    except DatasetError as error:
        return Check("survival", "cannot be read", (str(error),))
    if not tables:
        return Check("survival", "no table (segmentation only)")
    absent = len(listed - {case.case_id for case in cases})
    return Check(
        "survival",
        f"{sum(case.survival is not None for case in known)} survival times, "
        f"{sum(case.age is not None for case in known)} ages, "
        f"{sum(case.resection == 'GTR' for case in known)} gross total resections",
        notes=count_notes(
            (absent, "patients of the table without images here"),
            (
                sum(case.alive_after is not None for case in known),
                "patients alive when last seen (left out of the regressions)",
            ),
        ),
    )
