"""Stored results: every number in the book's prose comes from a file beside this one.

A run writes a result once, with all that is needed to judge it: which data, how many
images, which size and seed, which commit, which versions, which machine. Pages only
read.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from medimg_utils.errors import InputError
from medimg_utils.io import write_json_atomic
from medimg_utils.settings import count_cores

FOLDER = Path(__file__).parent
PACKAGES = (
    "torch",
    "torchvision",
    "lightning-fabric",
    "monai",
    "numpy",
    "scikit-learn",
)


def provenance(
    *, size: str, data: Any, device: str, seed: int, n: int | Mapping[str, int]
) -> dict[str, Any]:
    """Say where a number comes from.

    Args:
        size: run size.
        data: what the numbers were measured on, in words or as facts.
        device: the kind of device, e.g. `cpu`.
        seed: of the run.
        n: how many exams (or how many of which kind).

    Returns:
        These, the hardware in words, the commit (None outside a checkout) and package
        versions.
    """
    return {
        "size": size,
        "data": data,
        "n": n,
        "device": device,
        "hardware": hardware(device),
        "seed": seed,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


def hardware(device: str) -> str:
    """What a run ran on, in words: the name of the GPU, or the number of CPU cores."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    if device != "cpu":
        return device
    cores = count_cores()
    return "1 CPU core" if cores == 1 else f"{cores} CPU cores"


#: All but what runs write, as git names it.
_SOURCES = (
    ":(top)",
    ":(top,exclude)medimg_utils/results/*.json",
    ":(top,exclude)medimg_utils/pretrained/*-*",
)


def _commit() -> str | None:
    """Commit of the checkout that holds this package; `-dirty` marks changed files.

    Results and trained networks do not count: a run that stores the first of several is
    still a run of its commit.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words],
            cwd=FOLDER,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's checkout: ask whether it is
        # tracked.
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("describe", "--always", "--abbrev=12", "--exclude=*")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *_SOURCES)
        return f"{commit}-dirty" if changed else commit or None
    except (OSError, subprocess.SubprocessError):
        return None


def _path(name: str, folder: Path | None) -> Path:
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise InputError(
            f"{name!r} is no name of a result. Use e.g. 'pneumothorax-lab'."
        )
    return (folder or FOLDER) / f"{name}.json"


def names(folder: Path | None = None) -> list[str]:
    """Names of the stored results."""
    return sorted(path.stem for path in (folder or FOLDER).glob("*.json"))


def save(
    name: str, values: Mapping[str, Any], folder: Path | None = None, **about: Any
) -> Path:
    """Store a result.

    Args:
        name: e.g. `pneumothorax-lab`.
        values: nested dict of numbers and texts. NaN becomes null.
        folder: where to; beside this module unless given.
        about: the arguments of `provenance`, unless `values` holds its answer as
            `about`.

    Returns:
        The path written.
    """
    path = _path(name, folder)
    stored = dict(values)
    if "about" not in stored:
        stored["about"] = provenance(**about)
    missing = {"size", "data", "n", "device", "seed", "commit", "versions"} - set(
        stored["about"]
    )
    if missing:
        raise InputError(
            f"the result {name!r} does not say its {', '.join(sorted(missing))}."
        )
    write_json_atomic(path, stored)
    return path


def load(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Read a stored result.

    Raises:
        InputError: there is none of this name.
    """
    path = _path(name, folder)
    if not path.is_file():
        raise InputError(
            f"there is no stored result {name!r}; there are: "
            f"{', '.join(names(folder)) or 'none'}."
        )
    return json.loads(path.read_text(encoding="utf-8"))
