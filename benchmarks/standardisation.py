"""Time histogram standardisation beside TorchIO's, on the same volumes in one run.

    python benchmarks/standardisation.py [--data MRNet-v1.0] [--store]

Both learn from volumes in memory and standardise volumes in memory, one after the
other, with the settings of TorchIO: landmarks of all voxels, scale 0 to 100. TorchIO
comes with the extra `test`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy import ndimage

from medimg_utils import results
from medimg_utils.errors import InputError
from medimg_utils.knee.dataset import read_mrnet, read_volume
from medimg_utils.knee.standardise import Standardiser

NAME = "knee-standardisation"
TOLERANCE = 2e-4  # between the outputs, on a scale of 0 to 100


def phantoms(count: int, dtype: type, seed: int = 0) -> list[NDArray[Any]]:
    """Volumes (32, 256, 256): background and smooth tissue, each of another gain."""
    random = np.random.default_rng(seed)
    volumes = []
    for _ in range(count):
        noise = ndimage.gaussian_filter(random.standard_normal((8, 64, 64)), (1, 4, 4))
        tissue = ndimage.zoom(noise / noise.std(), (4, 4, 4), order=1)
        signal = np.where(tissue > -0.3, 60 + 30 * tissue, 0) * random.uniform(0.6, 1.4)
        signal = np.hypot(signal + 4 * random.standard_normal(signal.shape), 4)
        if dtype is np.uint16:
            signal = signal * 16  # as 12 bit
        volumes.append(np.clip(signal, 0, np.iinfo(dtype).max).astype(dtype))
    return volumes


def of_ours(volumes: list[NDArray[Any]]) -> tuple[float, float, list[NDArray[Any]]]:
    """Seconds to learn, seconds to apply, and what came out."""
    start = time.perf_counter()
    learned = Standardiser.fit(volumes, foreground=False, scale=(0, 100))
    middle = time.perf_counter()
    found = [learned(volume) for volume in volumes]
    return middle - start, time.perf_counter() - middle, found


def of_torchio(volumes: list[NDArray[Any]]) -> tuple[float, float, list[NDArray[Any]]]:
    """The same of TorchIO; its reader is replaced, so that it opens no file either."""
    import torchio
    from torchio.transforms.preprocessing.intensity import histogram_standardization

    # It knows no uint16.
    wide = [v.astype(np.int32) if v.dtype == np.uint16 else v for v in volumes]
    tensors = {str(k): torch.from_numpy(volume)[None] for k, volume in enumerate(wide)}
    subjects = [
        torchio.Subject(exam=torchio.ScalarImage(tensor=tensor))
        for tensor in tensors.values()
    ]
    with mock.patch.object(
        histogram_standardization, "read_image", lambda path: (tensors[path], None)
    ):
        start = time.perf_counter()
        landmarks = torchio.HistogramStandardization.train(
            list(tensors), progress=False
        )
        middle = time.perf_counter()
    transform = torchio.HistogramStandardization({"exam": landmarks}, copy=False)
    found = [transform(subject).exam.data[0].numpy() for subject in subjects]
    return middle - start, time.perf_counter() - middle, found


def fastest(
    side: Callable[[list[NDArray[Any]]], tuple[float, float, list[NDArray[Any]]]],
    volumes: list[NDArray[Any]],
    repeats: int,
) -> tuple[float, float, list[NDArray[Any]]]:
    """The repeat with the lowest total: the one that other programs disturbed least."""
    return min((side(volumes) for _ in range(repeats)), key=lambda run: run[0] + run[1])


def main(
    data: Annotated[
        Path | None, typer.Option(help="MRNet-v1.0; drawn volumes unless given.")
    ] = None,
    volumes: Annotated[int, typer.Option(min=1, help="How many.")] = 30,
    repeats: Annotated[int, typer.Option(min=1, help="The fastest counts.")] = 3,
    store: Annotated[
        bool, typer.Option("--store", help="Keep the numbers for the book.")
    ] = False,
) -> None:
    """Print seconds of both, their ratio and the largest difference of their output."""
    if data is None:
        sets = {
            kind.__name__: phantoms(volumes, kind) for kind in (np.uint8, np.uint16)
        }
    else:
        try:
            exams = read_mrnet(data, "train")[:volumes]
            sets = {"MRNet": [read_volume(exam.series["sagittal"]) for exam in exams]}
        except InputError as error:
            sys.exit(f"error: {error}")
    answer: dict[str, Any] = {}
    typer.echo(f"{'':8} {'':12} {'learn':>8} {'apply':>8} {'total':>8}")
    for name, chosen in sets.items():
        ours = fastest(of_ours, chosen, repeats)
        theirs = fastest(of_torchio, chosen, repeats)
        ratio = (theirs[0] + theirs[1]) / (ours[0] + ours[1])
        far = max(
            float(np.abs(a - b).max()) for a, b in zip(ours[2], theirs[2], strict=True)
        )
        assert far <= TOLERANCE, f"{name}: the outputs differ by {far:.1e}"
        for who, run in (("this package", ours), ("TorchIO", theirs)):
            typer.echo(
                f"{name:8} {who:12} {run[0]:7.2f}s {run[1]:7.2f}s {run[0] + run[1]:7.2f}s"
            )
        typer.echo(
            f"{name:8} {len(chosen)} volumes, {ratio:.1f} times as fast; largest "
            f"difference {far:.1e} on a scale of 0 to 100"
        )
        answer[name] = {
            "volumes": len(chosen),
            "shape": list(chosen[0].shape),
            "seconds": {
                "learn": ours[0],
                "apply": ours[1],
                "torchio_learn": theirs[0],
                "torchio_apply": theirs[1],
            },
            "times_as_fast": ratio,
            "largest_difference": far,
            "tolerance": TOLERANCE,
        }
    if store:
        results.save(
            NAME,
            answer,
            size="lab",
            data="drawn volumes" if data is None else data.name,
            device="cpu",
            seed=0,
            n=volumes,
        )


if __name__ == "__main__":
    typer.run(main)
