"""What the readers of all releases share: errors, folders, tables and their checks.

A reader of one release lives in the use case's `dataset` module. It says what the
layout is; this module says how a folder or a table is opened, and how the findings of
`data_scripts/verify.py` are told.
"""

from __future__ import annotations

import csv
import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medimg_utils.errors import InputError

#: Folders that a simulation writes into its own.
_INNER = ("MRNet-v1.0", "HGG", "LGG")


class DatasetError(InputError):
    """A folder is not the release that was expected, or contradicts itself."""


@dataclass(frozen=True)
class Check:
    """One line of a release's examination.

    Attributes:
        name: what was looked at.
        found: how many, in words.
        problems: what is wrong, one text per case; none is fine.
        notes: what is unusual but understood.
    """

    name: str
    found: str
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def count_notes(*pairs: tuple[int, str]) -> tuple[str, ...]:
    """Notes "TEXT: COUNT" of the pairs whose count is not 0.

    >>> count_notes((0, "red images"), (1, "blue images"))
    ('blue images: 1',)
    """
    return tuple(f"{text}: {count}" for count, text in pairs if count)


def release_folder(root: str | os.PathLike[str]) -> Path:
    """The path of a folder that exists, and whose simulation, if it is one, is complete.

    Raises:
        DatasetError: it does not, or the simulation was broken off.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(
            f"{root} is no folder. Give the folder that holds the release."
        )
    if left_by_simulation(root, "unfinished.json") is not None:
        raise DatasetError(
            f"{root} holds a simulation that was broken off. Call it again with the same "
            "settings: it goes on where it stopped."
        )
    return root


def _check_surplus(path: Path) -> None:
    """Rows may be longer than the header, by empty cells only."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        width = len(next(rows))
        for number, row in enumerate(rows, 2):
            if any(cell.strip() for cell in row[width:]):
                raise DatasetError(
                    f"{path}: row {number} has {len(row)} cells, but the first row "
                    f"{width}. Is a comma within a cell, or a name missing above?"
                )


def read_table(path: Path, *, header: bool = True) -> pd.DataFrame:
    """All cells of a csv file as text without outer blanks; columns in lower case.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        header: False where the first line is data; columns are numbered from 0 then.

    Raises:
        DatasetError: the file is no table.
    """
    try:
        with warnings.catch_warnings(record=True) as ragged:
            warnings.simplefilter("always", pd.errors.ParserWarning)
            table = pd.read_csv(
                path,
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                header=0 if header else None,
                index_col=False,  # rows may end in a comma
            )
        if ragged:
            _check_surplus(path)
    except (
        pd.errors.ParserError,
        pd.errors.EmptyDataError,
        csv.Error,
        UnicodeDecodeError,
    ) as error:
        raise DatasetError(
            f"{path} is no csv table ({error}). Download it again."
        ) from error
    if header:
        table.columns = [str(name).strip().lower() for name in table.columns]
    return table.apply(lambda column: column.str.strip())


def describe_release(
    root: str | os.PathLike[str], **counts: int
) -> dict[str, str | int | bool]:
    """What a number was measured on: folder, counts, whether it is simulated.

    A simulation leaves `simulation.json` in the folder it writes, or beside it where
    the layout of the release has no room for another file.  Its digest, `simulation`,
    tells one simulation from another in a folder of the same name.
    """
    folder = Path(root).resolve()
    described: dict[str, str | int | bool] = {
        "folder": folder.name,
        **counts,
        "simulated": False,
    }
    plan = left_by_simulation(folder, "simulation.json")
    if plan is not None:
        described |= {"simulated": True, "simulation": digest_of(plan)}
    return described


def left_by_simulation(root: str | os.PathLike[str], name: str) -> Path | None:
    """What a simulation left with a release, if it is there: in its folder, or beside it.

    Beside it where the layout has no room for other files, and for a part of BraTS.
    """
    folder = Path(root).resolve()
    path = (folder.parent if folder.name in _INNER else folder) / name
    return path if path.exists() else None


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each folder of a release with the names of its files, in a fixed order.

    Images often lie on another disk: links are followed, but not in circles. Names that
    begin with a dot are left out; systems leave such files beside the real ones.
    """
    seen: set[str] = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def read_truth(path: Path, key: str) -> dict[str, dict[str, str]]:
    """What only a simulation knows of each image or case: `simulation-truth.csv`.

    Args:
        path: the file.
        key: name of the column that names them; left out of the rows.

    Raises:
        InputError: it cannot be read, lacks the column, was cut off, or names one twice.
    """
    rows: dict[str, dict[str, str]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                if None in row or None in row.values():
                    raise ValueError(f"row {number} has not as many cells as the first")
                name = row.pop(key)
                if name in rows:
                    raise ValueError(f"row {number} names {name} again")
                rows[name] = row
    except (OSError, ValueError, csv.Error, KeyError) as error:
        raise InputError(
            f"{path} is no truth file with a column {key} and whole rows ({error}). Give the "
            "simulation-truth.csv of the same simulation, or leave --truth away."
        ) from error
    return rows


def check_listed(names: Sequence[str], rows: Mapping[str, Any], what: str) -> None:
    """Refuse a truth file that does not know all of these images, cases or exams.

    Raises:
        InputError: says how many are missing.
    """
    absent = [name for name in names if name not in rows]
    if absent:
        raise InputError(
            f"the truth file does not list {len(absent)} of {len(names)} {what}, e.g. "
            f"{absent[0]}. Give the truth file of the same simulation."
        )


def groups_of(
    names: Sequence[str], rows: Mapping[str, Mapping[str, str]], most: int = 12
) -> dict[str, dict[str, list[int]]]:
    """Positions of those that share a value of a truth file: {column: {value: ...}}.

    Args:
        names: of images or cases.
        rows: what `read_truth` gives.
        most: columns with 2 to so many different values make groups; others are constant,
            or measurements.

    >>> rows = {"a": {"side": "L"}, "b": {"side": ""}, "c": {"side": "L"}}
    >>> groups_of(["a", "b", "c"], rows)
    {'side': {'none': [1], 'L': [0, 2]}}
    """
    answer = {}
    for column in next(iter(rows.values())):
        values = [rows[name][column] for name in names]
        if 1 < len(set(values)) <= most:
            answer[column] = {
                wanted or "none": [
                    k for k, value in enumerate(values) if value == wanted
                ]
                for wanted in sorted(set(values))
            }
    return answer


def digest_of(path: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
