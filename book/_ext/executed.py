"""Run copies of the notebooks, and keep their outputs for the website.

Usage: python book/_ext/executed.py copy|keep

``copy`` puts every notebook whose outputs are not kept yet into .cache/executed, where
nbmake runs it, and prints the copies, those that take longest first: the last ones to
start should be short. ``keep`` hands the outputs of those that ran to their end to the
cache that the website is built from.
"""

import math
import os
import shutil
import sys
from pathlib import Path

import nbformat
from first_cell import notebooks
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn

from medimg_utils import results

ROOT = Path(__file__).parents[2]
EXECUTED = ROOT / ".cache" / "executed"
KEPT = ROOT / ".cache" / "notebooks"


def copy() -> list[Path]:
    """Copy notebooks without kept outputs, in their folders, to where nbmake runs them."""
    shutil.rmtree(EXECUTED, ignore_errors=True)
    EXECUTED.mkdir(parents=True)
    cache = get_cache(KEPT)
    copies = []
    for source in notebooks(ROOT):
        try:
            cache.match_cache_notebook(nbformat.read(source, as_version=4))
        except KeyError:
            target = EXECUTED / source.relative_to(ROOT / "book")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copies.append(target)
    return sorted(copies, key=_minutes, reverse=True)


def _minutes(notebook: Path) -> float:
    """How long a notebook took when it was measured; a new one may take long."""
    name = f"{notebook.stem}-needs"
    if name not in results.names():
        return math.inf
    return float(results.load(name)["sizes"]["tiny"]["minutes"])


def keep() -> None:
    """Store what the executed notebooks show as outputs of their sources."""
    cache = get_cache(KEPT)
    for executed in sorted(EXECUTED.rglob("*.ipynb")):
        source = ROOT / "book" / executed.relative_to(EXECUTED)
        notebook = nbformat.read(source, as_version=4)
        done = nbformat.read(executed, as_version=4)
        if not _complete(done) or _code(done) != _code(notebook):  # edited meanwhile
            continue
        # The cache knows a notebook by its cells and their metadata, to which nbmake
        # adds times: take over nothing but the outputs.
        for cell, run in zip(notebook.cells, done.cells, strict=True):
            if cell.cell_type == "code":
                cell.outputs = run.outputs
                cell.execution_count = run.execution_count
        for key in ("language_info", "widgets"):
            if key in done.metadata:
                notebook.metadata[key] = done.metadata[key]
        bundle = CacheBundleIn(nb=notebook, uri=str(source))
        cache.cache_notebook_bundle(bundle, check_validity=True, overwrite=True)


def _code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def _complete(notebook: nbformat.NotebookNode) -> bool:
    """Did every cell run, and none of them fail?"""
    return all(
        cell.execution_count is not None
        and all(output.output_type != "error" for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source
    )


if __name__ == "__main__":
    if sys.argv[1] == "copy":
        print(
            *(os.path.relpath(one) for one in copy()), sep="\n"
        )  # for make: no spaces
    else:
        keep()
