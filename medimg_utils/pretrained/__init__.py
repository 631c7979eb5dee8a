"""The trained networks that travel with the package, so that a notebook alone has them.

Each is a file NAME.json (settings) beside this module and its weights:
NAME.safetensors, or NAME.PART.safetensors where several networks work together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

from medimg_utils.errors import InputError
from medimg_utils.experiments import facts_file
from medimg_utils.io import write_json_atomic
from medimg_utils.settings import SIZES
from medimg_utils.training import BEST, RunError, load_tensors, save_tensors

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the networks that travel with the package."""
    return sorted(
        path.stem
        for path in FOLDER.glob("*.json")
        if any(FOLDER.glob(f"{path.stem}.*safetensors"))
    )


def find(name: str, part: str | None = None) -> Path:
    """Path of the weights; the settings lie beside it as `NAME.json`.

    Raises:
        InputError: no network of this name, or part of it, travels with the package.
    """
    path = FOLDER / ".".join(filter(None, [name, part, "safetensors"]))
    if name in names() and not path.is_file():
        parts = sorted(
            one.name.removeprefix(f"{name}.").removesuffix(".safetensors")
            for one in FOLDER.glob(f"{name}.*.safetensors")
        )
        raise InputError(
            f"the network {name!r} has no part {part!r}; there are: "
            f"{', '.join(parts) or 'none'}."
        )
    if name not in names():
        raise InputError(
            f"no network {name!r} travels with the package; there are: "
            f"{', '.join(names()) or 'none'}. Train one with `python -m medimg_utils "
            "train`."
        )
    return path


def find_run(
    use_case: str, run: str | os.PathLike[str], parts: Sequence[str | None] = (None,)
) -> tuple[list[Path], Path, str]:
    """Files and name of a run, or of the networks that travel with the package.

    Args:
        use_case: e.g. `pneumothorax`.
        run: the folder of a run, or `lab` for what travels with the package.
        parts: networks that work together, each in a folder of the run; None for the
            single network of a run.

    Returns:
        Weights of each part, what is said about them (JSON), and the name.

    Raises:
        RunError: the folder holds no finished run.
        InputError: no network of this size travels with the package, or a folder of
            that name holds a run.
    """
    if str(run) in SIZES:
        if facts_file(Path(run)).is_file():
            raise InputError(
                f"{run} is the network that travels with the package, but also a folder "
                "that holds a run. Give the folder's whole path, or rename it."
            )
        name = f"{use_case}-{run}"
        return [find(name, part) for part in parts], FOLDER / f"{name}.json", name
    folder = Path(run)
    about = facts_file(folder)
    paths = [folder / (part or "") / BEST for part in parts]
    missing = [path for path in (*paths, about) if not path.is_file()]
    if missing:
        raise RunError(
            f"{run} holds no finished run of {use_case} "
            f"({missing[0].relative_to(folder)} is not there). Train it, go on with "
            "`train ... --resume`, or say lab for the network of the package."
        )
    return paths, about, folder.resolve().name


def store(
    name: str,
    weights: Mapping[str | None, Path],
    about: Path,
    leave_out: Iterable[str] = (),
) -> None:
    """Copy a run's networks into the package, in float16: half the size.

    Args:
        name: e.g. `pneumothorax-lab`.
        weights: file of each part; the part of a single network is None.
        about: the run's JSON file.
        leave_out: keys of that file that nobody needs who only predicts.

    Raises:
        RunError: a weight does not fit into float16; nothing has been written then.
    """
    ready = {}
    for part, path in weights.items():
        tensors, stored = load_tensors(path)
        small = {key: value.to(torch.float16) for key, value in tensors.items()}
        for key, value in small.items():
            if not bool(torch.isfinite(value).all()):
                raise RunError(
                    f"{path}: {key} does not fit into float16, so it cannot ship"
                )
        target = FOLDER / ".".join(filter(None, [name, part, "safetensors"]))
        ready[target] = small, stored
    for target, (small, stored) in ready.items():
        save_tensors(target, small, stored)
    facts = json.loads(about.read_text(encoding="utf-8"))
    kept = {key: value for key, value in facts.items() if key not in set(leave_out)}
    write_json_atomic(FOLDER / f"{name}.json", kept)
