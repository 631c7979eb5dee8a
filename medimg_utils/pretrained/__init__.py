"""The trained networks that travel with the package, so that a notebook alone has them.

Each is two files beside this module: NAME.safetensors (weights) and NAME.json
(settings).
"""

from __future__ import annotations

from pathlib import Path

from medimg_utils.errors import InputError

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
