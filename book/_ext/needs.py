"""Measure what notebooks need, for the box at the top of each chapter.

Usage: python book/_ext/needs.py NOTEBOOK...

Runs each notebook in an empty folder at the present MEDIMG_SIZE and stores minutes and
memory as the result NAME-needs. Measure on a machine that does nothing else.
"""

import multiprocessing
import os
import platform
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from medimg_utils import results
from medimg_utils.physics.anatomy import REGISTRY
from medimg_utils.settings import get_settings

#: The group of anatomy behind the simulated exams of each use case.
MADE_FROM = {"pneumothorax": "chest", "knee": "knee", "brain": "brain"}


def download_mb(text: str) -> float:
    """Size of the anatomy that a notebook of this text fetches on a fresh machine.

    It names a file of the registry, or simulates exams that are made from a group of
    them.
    """
    groups = {
        group
        for use_case, group in MADE_FROM.items()
        if f"medimg_utils.{use_case}.simulate" in text
    }
    return sum(
        source.megabytes
        for source in REGISTRY
        if groups & set(source.groups)
        or any(f'"{name}"' in text for name in source.members)
    )


def measure(path: Path) -> dict[str, object]:
    """Run the notebook; return minutes, peak memory, device and download."""
    notebook = nbformat.read(path, as_version=4)
    # All but the box itself, which has nothing to show before the first measurement.
    box = f"{path.stem}-needs"
    notebook.cells = [cell for cell in notebook.cells if box not in cell.source]
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=3600, resources=resources).execute()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    device = get_settings().device.type
    return {
        "minutes": round(seconds / 60, 2),
        "memory_gb": round(
            peak * (1 if platform.system() == "Darwin" else 1024) / 1e9, 2
        ),
        "device": results.hardware(device),
        "download_mb": round(download_mb("\n".join(c.source for c in notebook.cells))),
    }


def main(arguments: list[str]) -> int:
    """Run the command line."""
    settings = get_settings()
    os.environ["MEDIMG_DATA"] = str(settings.data.resolve())
    for path in map(Path, arguments):
        name = f"{path.stem}-needs"
        stored = results.load(name)["sizes"] if name in results.names() else {}
        # in a process of its own, whose peak memory is that of this notebook alone
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            sizes = {**stored, settings.size: pool.submit(measure, path).result()}
        results.save(
            name,
            {"sizes": sizes},
            size=settings.size,
            data=f"the notebook {path.name}",
            device=settings.device.type,
            seed=settings.seed,
            n=1,
        )
        print(name, sizes[settings.size])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
