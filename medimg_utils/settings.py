"""Run size, data directory, device and seed: what differs between machines.

>>> import os
>>> os.environ["MEDIMG_SIZE"] = "tiny"
>>> get_settings().size
'tiny'
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medimg_utils.errors import InputError

if TYPE_CHECKING:
    import torch

LARGEST_SEED = 2**32 - 1  # of NumPy
SIZES = ("tiny", "lab", "paper")


@dataclass(frozen=True)
class Settings:
    """Where and how large to run.

    Attributes:
        size: one of `SIZES`.
        data: folder that holds anatomy, simulated releases and the reader's own
            downloads.
        device: the accelerator of this machine, or the CPU where it has none.
        seed: the number that every random choice is derived from.
    """

    size: str
    data: Path
    device: torch.device
    seed: int


def count_cores() -> int:
    """CPU cores that this process may use; a cluster or a container gives some of all."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def find_device(accelerator: str = "auto") -> torch.device:
    """The accelerator of this machine, or the CPU where it has none.

    Training asks Lightning Fabric instead, which chooses the same on CUDA and Apple's MPS
    and takes two seconds to import.

    Args:
        accelerator: `auto` takes what the machine has, `cpu` forces the CPU.
    """
    import torch  # only here: it takes two seconds

    accelerated = accelerator != "cpu" and torch.accelerator.is_available()
    found = torch.accelerator.current_accelerator() if accelerated else None
    return found or torch.device("cpu")


def get_settings() -> Settings:
    """Read the settings from the environment.

    `MEDIMG_SIZE` is `tiny` unless set, `MEDIMG_DATA` is `data/`, `MEDIMG_SEED` is 0; one
    that is empty counts as not set. The device is that of `find_device`.

    Raises:
        InputError: an environment variable holds a value that cannot be used.
    """
    size = os.environ.get("MEDIMG_SIZE") or "tiny"
    if size not in SIZES:
        raise InputError(
            f"MEDIMG_SIZE is {size!r}, but the run sizes are {', '.join(SIZES)}. Set "
            "one of these."
        )
    text = os.environ.get("MEDIMG_SEED") or "0"
    if not text.strip().isdecimal() or int(text) > LARGEST_SEED:
        raise InputError(
            f"MEDIMG_SEED is {text!r}, but a whole number from 0 to {LARGEST_SEED} is "
            "needed."
        )
    return Settings(
        size=size,
        data=Path(os.environ.get("MEDIMG_DATA") or "data").expanduser(),
        device=find_device(),
        seed=int(text),
    )
