"""Prepared knees: laid out once for each anatomy and habitus, and kept in the cache.

:func:`load_knee` gives the voxels of :mod:`.voxels` that :mod:`.hard_tissue` took from a
label map and :mod:`.soft_tissue` laid around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medimg_utils.errors import InputError
from medimg_utils.io import atomic_path
from medimg_utils.knee.hard_tissue import Meniscus, label_map, read_hard_tissue
from medimg_utils.knee.soft_tissue import HABITUS, build
from medimg_utils.knee.voxels import SPACES
from medimg_utils.physics import anatomy
from medimg_utils.settings import get_settings
from medimg_utils.simulation import call_in_processes

ANATOMIES = ("knee1", "knee2", "knee3")
#: Version of the prepared files: raise it when what they hold changes.
VERSION = 4


@dataclass(frozen=True)
class Knee:
    """One prepared anatomy with one habitus, on :data:`GRID`.

    Attributes:
        codes: ``(X, Y, Z)`` uint8, of :class:`Code`.
        fill: ``(X, Y, Z)`` uint8; in :data:`SPACES` 1 where fluid collects first to 255
            where it does last, 0 elsewhere.
        menisci: ``"medial"`` and ``"lateral"``.
        landmarks: points in mm.
        spaces: flat indices of the voxels in :data:`SPACES`: a fiftieth of all.
    """

    name: str
    habitus: str
    codes: NDArray[np.uint8]
    fill: NDArray[np.uint8]
    menisci: dict[str, Meniscus]
    landmarks: dict[str, NDArray[np.float32]]
    spaces: NDArray[np.intp] = field(init=False)

    def __post_init__(self) -> None:
        found = np.flatnonzero(
            (self.codes >= min(SPACES)) & (self.codes <= max(SPACES))
        )
        object.__setattr__(self, "spaces", found)


def prepare(
    builds: Mapping[str, Iterable[str]],
    data_dir: Path | None = None,
    workers: int | None = 1,
) -> None:
    """Fetch and prepare knees, unless they are in the cache.

    An anatomy takes about ten seconds on one core, each habitus of it seven more, and
    3 GiB.

    Args:
        builds: the wanted habitus of each wanted anatomy.
        data_dir: where the anatomy is.
        workers: processes at most, one a CPU core where None.

    Raises:
        InputError: a name is not one of :data:`ANATOMIES`, or a habitus not one of
            ``HABITUS``.
        AnatomyError: a label map cannot be fetched.
    """
    jobs = []
    for name, wanted in builds.items():
        if name not in ANATOMIES:
            raise InputError(
                f"unknown anatomy {name!r}: use one of {', '.join(ANATOMIES)}"
            )
        missing = []
        for habitus in wanted:
            if habitus not in HABITUS:
                raise InputError(
                    f"unknown habitus {habitus!r}: use one of {', '.join(HABITUS)}"
                )
            if not _prepared_file(name, habitus, data_dir).exists():
                missing.append(habitus)
        if missing:
            jobs.append((name, missing, data_dir))
    for name, _, _ in jobs:  # two processes must not fetch the same archive
        anatomy.path(label_map(name), data_dir)
    call_in_processes(_prepare, jobs, workers)


def _prepare(name: str, builds: list[str], data_dir: Path | None) -> None:
    hard = read_hard_tissue(name, data_dir)
    for habitus in builds:
        _save(_prepared_file(name, habitus, data_dir), build(hard, habitus))


@lru_cache(maxsize=9)  # all of them: 80 MB each, a second to read
def load_knee(name: str, habitus: str, data_dir: Path | None = None) -> Knee:
    """A prepared knee; see :func:`prepare` for errors and cost."""
    prepare({name: [habitus]}, data_dir)
    with np.load(_prepared_file(name, habitus, data_dir)) as stored:
        arrays = {key: stored[key] for key in stored.files}
    menisci = {
        side: Meniscus(
            *(
                arrays[f"{side}-{field}"]
                for field in ("voxels", "angle", "radius", "height", "thickness")
            )
        )
        for side in ("medial", "lateral")
    }
    landmarks = {
        key.removeprefix("at-"): value
        for key, value in arrays.items()
        if key.startswith("at-")
    }
    return Knee(name, habitus, arrays["codes"], arrays["fill"], menisci, landmarks)


def _prepared_file(name: str, habitus: str, data_dir: Path | None) -> Path:
    root = (data_dir or get_settings().data) / "anatomy" / "prepared"
    return root / f"{name}-{habitus}-v{VERSION}.npz"


def _save(file: Path, arrays: dict[str, NDArray]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as part, part.open("wb") as stream:
        np.savez_compressed(stream, allow_pickle=False, **arrays)
