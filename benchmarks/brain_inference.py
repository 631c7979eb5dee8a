"""Time and memory of the three ways through step 2, at the paper's width, in one run.

    python benchmarks/brain_inference.py [--box 90 90 80] [--threads 1] [--store]

Random weights do: neither time nor memory depends on them. What the modes are worth is
measured with trained networks, by `medimg_utils.brain.experiment.compare_modes`. Tiles
are all alike, so that some are timed and multiplied; `--whole` computes all of them.
Seconds are those of the processor, summed over its threads: other work on the machine
does not lengthen them. Each mode has a process of its own, so that its peak memory is
its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated, Any

import numpy as np
import torch
import typer

from medimg_utils import results
from medimg_utils.brain.inference import (
    MODES,
    RIM,
    published_tiles,
    ready,
    run_tiles,
    thinned_tiles,
    touching,
    whole_box,
)
from medimg_utils.brain.models import FixedNorm, UnpaddedUNet, fuse

NAME = "brain-inference"
SOME = 4  # tiles that are timed


def ellipsoid(shape: tuple[int, int, int]) -> np.ndarray:
    """(D, H, W) mask of the largest ellipsoid in a box: a round tumour."""
    axes = [np.linspace(-1, 1, size) for size in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    return (grid**2).sum(axis=0) <= 1


def measure(
    mode: str, shape: tuple[int, int, int], width: int, threads: int, whole: bool
) -> dict[str, Any]:
    """Tiles, seconds and peak memory of one mode on a box of `shape`."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    image = torch.randn(5, *shape)
    box = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    if mode == "one-pass":
        engine = ready(fuse(UnpaddedUNet(width, FixedNorm)))
        tiles = whole_box(shape, width, engine.dtype.itemsize)
    else:
        engine = ready(UnpaddedUNet(width), exact=mode == "reference")
        tiles = published_tiles(shape)
        if mode == "fast":
            tiles = touching(thinned_tiles(shape), ellipsoid(shape))
    timed = tiles if whole else tiles[:SOME]
    rim = RIM if mode == "one-pass" else 0
    run_tiles(engine, image, box, tiles[:1], rim=rim)  # the first call also prepares
    started = time.process_time()
    run_tiles(engine, image, box, timed, rim=rim)
    seconds = (time.process_time() - started) * len(tiles) / len(timed)
    # kilobytes on Linux, bytes on a Mac
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "tiles": len(tiles),
        "timed_tiles": len(timed),
        "seconds": seconds,
        "peak_gb": peak * (1 if sys.platform == "darwin" else 1024) / 1e9,
    }


def main(
    box: Annotated[
        tuple[int, int, int], typer.Option(help="Voxels of the tumour's box.")
    ] = (90, 90, 80),
    width: Annotated[int, typer.Option(min=1, help="32 in the paper.")] = 32,
    threads: Annotated[int, typer.Option(min=1, help="Of each mode.")] = 1,
    whole: Annotated[
        bool, typer.Option("--whole", help="All tiles, not some.")
    ] = False,
    store: Annotated[
        bool, typer.Option("--store", help="Keep the numbers for the book.")
    ] = False,
) -> None:
    """Print tiles, seconds, ratio to the reference and peak memory of each mode."""
    found: dict[str, dict[str, Any]] = {}
    spawn = multiprocessing.get_context("spawn")
    for mode in MODES:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            task = pool.submit(measure, mode, box, width, threads, whole)
            found[mode] = task.result()
        row = found[mode]
        row["times_as_fast"] = found[MODES[0]]["seconds"] / row["seconds"]
        typer.echo(
            f"{mode:10} {row['tiles']:5} tiles {row['seconds']:9.1f} s, "
            f"{row['times_as_fast']:6.1f} times as fast, {row['peak_gb']:.1f} GB"
        )
    if store:
        results.save(
            NAME,
            {"box": box, "width": width, "threads": threads, "modes": found},
            size="paper",
            data="random voxels",
            device="cpu",
            seed=0,
            n=1,
        )


if __name__ == "__main__":
    typer.run(main)
