"""The trained networks that travel with the package, so that a notebook alone has them.

Each is two files beside this module: NAME.safetensors (weights) and NAME.json
(settings).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from medimg_utils.errors import InputError
from medimg_utils.io import write_json_atomic
from medimg_utils.training import BEST, load_tensors, save_tensors

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the networks that travel with the package."""
    return sorted(
        path.stem
        for path in FOLDER.glob("*.safetensors")
        if path.with_suffix(".json").is_file()
    )


def find(name: str) -> Path:
    """Path of the weights; the settings lie beside it with the ending `.json`.

    Raises:
        InputError: no network of this name travels with the package.
    """
    if name not in names():
        raise InputError(
            f"no network {name!r} travels with the package; there are: "
            f"{', '.join(names()) or 'none'}. Train one with `python -m medimg_utils "
            "train`."
        )
    return FOLDER / f"{name}.safetensors"


def ship(run: Path, name: str, leave_out: Iterable[str] = ()) -> Path:
    """Copy a run's best weights into the package, in float16: half the size.

    Args:
        run: folder of a finished run.
        name: of the network in the package.
        leave_out: keys of the run's JSON file that nobody needs who only predicts.

    Returns:
        Path of the weights.
    """
    tensors, stored = load_tensors(run / BEST)
    small = {key: value.to(torch.float16) for key, value in tensors.items()}
    for key, value in small.items():
        if not bool(torch.isfinite(value).all()):
            raise OverflowError(f"{key} does not fit into float16")
    target = FOLDER / f"{name}.safetensors"
    save_tensors(target, small, stored)
    facts = json.loads((run / BEST).with_suffix(".json").read_text("utf-8"))
    kept = {key: value for key, value in facts.items() if key not in set(leave_out)}
    write_json_atomic(target.with_suffix(".json"), kept)
    return target
