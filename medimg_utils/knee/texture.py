"""Texture of marrow and muscle from the real multi-echo scan.

The scan of the anatomy registry is of another knee than the label maps, so only its fine
structure is used: trabeculae and fascicles, as the ratio of the picture to its
own blur.  Patches that lie wholly in one tissue are stitched into plates of any place.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from scipy import ndimage as ndi

from medimg_utils.io import atomic_path
from medimg_utils.knee.shapes import Array
from medimg_utils.physics import anatomy
from medimg_utils.physics.anatomy import AnatomyError
from medimg_utils.settings import get_settings

TISSUES = ("marrow", "muscle")
#: Version of the prepared file: raise it when this module changes what it writes.
VERSION = 1
#: Plates of each tissue, and their size in pixels of about 0.6 mm.
PLATES, SIZE = 12, 256
_PATCH = 32
#: Blur in pixels whose ratio to the picture is the texture.
_BLUR = 5.0


@lru_cache(maxsize=1)
def load_textures(data_dir: Path | None = None) -> dict[str, Array]:
    """Plates of texture of each of :data:`TISSUES`: ``(PLATES, SIZE, SIZE)`` float32.

    Relative to the local mean: mean 0, standard deviation as in the scan (about 0.06
    in marrow).  Rows run from head to foot.  Prepared on first use.

    Raises:
        AnatomyError: the scan cannot be fetched, or is damaged.
    """
    root = (data_dir or get_settings().data) / "anatomy" / "prepared"
    file = root / f"knee-textures-v{VERSION}.npz"
    if not file.exists():
        plates = make_plates(*read_echoes(data_dir), np.random.default_rng(3))
        root.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as part, part.open("wb") as stream:
            np.savez_compressed(
                stream,
                allow_pickle=False,
                **{key: value.astype(np.float16) for key, value in plates.items()},
            )
    with np.load(file) as stored:
        return {key: stored[key].astype(np.float32) for key in TISSUES}


def read_echoes(data_dir: Path | None = None) -> tuple[Array, NDArray[np.float64]]:
    """The real multi-echo spin echo.

    Returns:
        echoes: ``(S, E, H, W)`` in arbitrary units, slices from one side to the other.
        times: ``(E,)`` echo times in ms.

    Raises:
        AnatomyError: files are missing or of another size.
    """
    folder = anatomy.path("knee-echoes", data_dir)
    slices: dict[float, dict[float, NDArray]] = {}
    for file in sorted(folder.glob("*.dcm")):
        data = pydicom.dcmread(file)
        place = slices.setdefault(round(float(data.SliceLocation), 2), {})
        place[float(data.EchoTime)] = data.pixel_array
    times = sorted({time for echoes in slices.values() for time in echoes})
    shapes = {image.shape for echoes in slices.values() for image in echoes.values()}
    if len(shapes) != 1 or any(len(e) != len(times) for e in slices.values()):
        raise AnatomyError(
            f"the multi-echo scan in {folder} is not complete: {len(slices)} slices, "
            f"echo times {times}, shapes {sorted(shapes)}; delete the folder and its "
            "NOTICE.txt, and fetch it again"
        )
    volume = [[slices[place][time] for time in times] for place in sorted(slices)]
    return np.array(volume, np.float32), np.array(times)


def fit_t2(echoes: Array, times: NDArray[np.float64]) -> tuple[Array, Array]:
    """Proton density (arbitrary units) and T2 in ms of ``(S, E, H, W)`` echoes.

    Least squares of the logarithm, weighted by the squared signal.  The first echo is
    left out: in a multi-echo train it carries no stimulated echo and is too low.
    """
    signal = np.maximum(echoes[:, 1:], 1.0)
    t = times[1:, None, None].astype(np.float32)
    weight = signal**2
    total = weight.sum(1)
    log = np.log(signal)
    mean_t = (weight * t).sum(1) / total
    mean_log = (weight * log).sum(1) / total
    spread = (weight * (t - mean_t[:, None]) ** 2).sum(1)
    slope = (weight * (t - mean_t[:, None]) * (log - mean_log[:, None])).sum(1) / spread
    t2 = -1 / np.minimum(slope, -1e-3)
    return np.exp(mean_log - slope * mean_t), t2


def segment(density: Array, t2: Array) -> dict[str, NDArray[np.bool_]]:
    """Pixels that surely are marrow or muscle, ``(S, H, W)`` each.

    Fat and marrow have a long T2; marrow is what is thick and lies deep below the skin.
    """
    level = float(np.quantile(density, 0.9))
    body = ndi.gaussian_filter(density, (0, 3, 3)) > 0.12 * level
    fatty = body & (t2 > 48) & (density > 0.35 * level)
    # where the picture ends, the limb goes on
    depth = _inside(body, 40)
    core = (_inside(fatty, 10) > 9) & (depth > 20)
    marrow = fatty & (_inside(~core, 0) < 7)
    muscle = body & (t2 > 22) & (t2 < 42) & (density < 0.8 * level)
    muscle = ndi.binary_opening(muscle, np.ones((1, 7, 7)))
    return {
        "marrow": ndi.binary_closing(marrow, np.ones((1, 5, 5))),
        "muscle": ndi.binary_closing(muscle, np.ones((1, 9, 9))),
    }


def _inside(mask: NDArray[np.bool_], beyond: int) -> Array:
    """Distance in pixels to what is outside, in each slice.

    Above and below the picture the mask goes on for ``beyond`` rows.
    """
    padded = np.pad(mask, ((0, 0), (beyond, beyond), (0, 0)), mode="edge")
    distance = np.stack([ndi.distance_transform_edt(one) for one in padded])
    return distance[:, beyond : padded.shape[1] - beyond].astype(np.float32)


def make_plates(
    echoes: Array, times: NDArray[np.float64], generator: np.random.Generator
) -> dict[str, Array]:
    """Plates of texture; see :func:`load_textures`."""
    density, t2 = fit_t2(echoes, times)
    picture = echoes[:, :3].mean(1)  # three echoes have less noise than one
    out = {}
    for tissue, mask in segment(density, t2).items():
        soft = mask.astype(np.float32)
        weight = ndi.gaussian_filter(soft, (0, _BLUR, _BLUR))
        local = ndi.gaussian_filter(picture * soft, (0, _BLUR, _BLUR))
        ratio = np.where(
            mask, picture / np.maximum(local / np.maximum(weight, 1e-3), 1), 1
        )
        ratio = np.clip(ratio - 1, -0.5, 0.5)
        patches = _patches(ratio, mask)
        out[tissue] = _stitch(patches, generator, flip=tissue != "muscle")
    return out


def _patches(ratio: Array, mask: NDArray[np.bool_]) -> Array:
    """Patches that lie in a tissue, ``(N, _PATCH, _PATCH)``."""
    found = []
    for share in (0.98, 0.93, 0.85):  # less pure only where there are too few
        found = [
            ratio[s, i : i + _PATCH, j : j + _PATCH]
            for s in range(len(ratio))
            for i in range(0, ratio.shape[1] - _PATCH, _PATCH // 4)
            for j in range(0, ratio.shape[2] - _PATCH, _PATCH // 4)
            if mask[s, i : i + _PATCH, j : j + _PATCH].mean() >= share
        ]
        if len(found) >= 40:
            break
    if len(found) < 10:
        raise AnatomyError(
            f"the multi-echo scan has {len(found)} patches of one tissue where 10 or more "
            "were expected; it may be damaged: delete it and fetch it again"
        )
    # the roughest hold a vessel or the edge of another tissue
    spread = np.std(found, axis=(1, 2))
    return np.array(found)[spread <= np.quantile(spread, 0.6)]


def _stitch(patches: Array, generator: np.random.Generator, flip: bool) -> Array:
    """Overlapping random patches, weighted so that the variance stays the same."""
    half = _PATCH // 2
    window = np.hanning(_PATCH + 2)[1:-1]
    window = np.outer(window, window).astype(np.float32)
    period = SIZE // half
    plates = np.zeros((PLATES, SIZE, SIZE), np.float32)
    power = np.zeros((SIZE, SIZE), np.float32)
    for i in range(period):
        for j in range(period):
            rows = (np.arange(_PATCH) + i * half) % SIZE
            columns = (np.arange(_PATCH) + j * half) % SIZE
            where = np.ix_(rows, columns)
            power[where] += window**2
            for plate in plates:
                patch = patches[generator.integers(len(patches))]
                if generator.random() < 0.5:
                    patch = patch[:, ::-1]
                if flip and generator.random() < 0.5:
                    patch = patch[::-1]
                plate[where] += window * (patch - patch.mean())
    return (plates / np.sqrt(power)).astype(np.float32)
