"""What the viewers have in common: their JavaScript, their still picture, checks."""

import base64
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import numpy.typing as npt
import traitlets
from matplotlib.figure import Figure
from PIL import Image

FOLDER = Path(__file__).parent
STYLES = (FOLDER / "viewers.css").read_text(encoding="utf-8")


def javascript(name: str) -> str:
    """Return the module ``name``, with the functions that all viewers share."""
    parts = ("common.js", name)
    return "\n".join((FOLDER / part).read_text(encoding="utf-8") for part in parts)


class Viewer(anywidget.AnyWidget):
    """A widget that computes in the browser and also has a still picture.

    The still picture is a PNG in the widget's MIME bundle. It is shown where no
    JavaScript runs: in a PDF, in an EPUB and on code hosts.
    """

    _css = STYLES

    title = traitlets.Unicode().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)

    # ipywidgets 7 has such a method, which would show the widget without its still.
    _ipython_display_ = None

    def still(self) -> Figure:
        """Draw the viewer's present state as a figure."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        png = io.BytesIO()
        self.still().savefig(png, format="png", dpi=72, bbox_inches="tight")
        image = base64.b64encode(png.getvalue()).decode("ascii")
        data = {**data, "image/png": image, "text/plain": self.alt}
        return data, {**metadata, "image/png": {"alt": self.alt}}


class ImageViewer(Viewer):
    """A viewer of one image, or of several of the same size."""

    rows = traitlets.Int().tag(sync=True)
    columns = traitlets.Int().tag(sync=True)


class ScoreViewer(Viewer):
    """A viewer of scored exams, with a threshold and a prevalence that readers choose.

    Args:
        scores: (N,) in [0, 1].
        labels: (N,) 0 or 1, at least one of each.
        threshold: between 0 and 1.
        prevalence: between 0.001 and `highest`.
        highest: prevalence that can be chosen.
        others: traits of the viewer.
    """

    scores = traitlets.List(traitlets.Float()).tag(sync=True)
    labels = traitlets.List(traitlets.Int()).tag(sync=True)
    threshold = traitlets.Float().tag(sync=True)
    log_prevalence = traitlets.Float().tag(sync=True)

    def __init__(
        self,
        scores: Sequence[float] | npt.NDArray[np.floating],
        labels: Sequence[int] | npt.NDArray[np.integer],
        *,
        threshold: float,
        prevalence: float,
        highest: float,
        **others: Any,
    ) -> None:
        numbers, classes = check_scores(scores, labels, both=True)
        check_between("prevalence", prevalence, 0.001, highest)
        super().__init__(
            scores=numbers,
            labels=classes,
            threshold=check_fraction("threshold", threshold),
            log_prevalence=float(np.log10(prevalence)),
            **others,
        )


def heading(title: str, alt: str, what: str, rest: str) -> dict[str, str]:
    """Title and description of a viewer; the description is made where none is given.

    >>> heading("Chest", "", "Image", " beside its histogram.")["alt"]
    'Chest beside its histogram.'
    >>> heading("", "", "Image", " beside its histogram.")["alt"]
    'Image beside its histogram.'
    """
    return {"title": title, "alt": alt or f"{title or what}{rest}"}


def pack(array: npt.ArrayLike) -> bytes:
    """Compress an array of bytes for a Bytes trait; ``common.js`` inflates it."""
    return zlib.compress(np.ascontiguousarray(array, dtype=np.uint8).tobytes(), 9)


def pack_all(arrays: Iterable[npt.NDArray[np.uint8] | None]) -> bytes:
    """Compress arrays one after the other; nothing if there is none."""
    given = [array.ravel() for array in arrays if array is not None]
    return pack(np.concatenate(given)) if given else b""


def check_keys(
    name: str, given: Iterable[str], whole: str, expected: Iterable[str]
) -> None:
    """Raise ValueError if ``given`` names what is not in ``expected``."""
    unknown = sorted(set(given) - set(expected))
    if unknown:
        raise ValueError(
            f"{name} names {', '.join(map(repr, unknown))}, expected names that "
            f"{whole} has: {', '.join(map(repr, expected))}"
        )


def check_image(
    name: str, value: npt.ArrayLike, ndim: int, axes: str = ""
) -> npt.NDArray[np.float64]:
    """Return ``value`` as finite floats with ``ndim`` axes, or raise ValueError."""
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != ndim:
        axes = axes or {2: "(H, W)", 3: "(N, H, W)"}[ndim]
        raise ValueError(f"{name} has shape {array.shape}, expected {axes}")
    if array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: there is nothing to show")
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ValueError(f"{name} holds {bad} NaN or infinite pixels, expected none")
    return array


def check_mask(
    name: str, value: npt.ArrayLike, shape: tuple[int, ...]
) -> npt.NDArray[np.bool_]:
    """Return ``value`` as booleans of ``shape``, or raise ValueError."""
    array = check_image(name, value, len(shape))
    check_shape(name, array, shape)
    if not np.isin(array, (0, 1)).all():
        found = f"{array.min():g} to {array.max():g}"
        raise ValueError(f"{name} holds values from {found}, expected only 0 and 1")
    return array.astype(bool)


def check_probability(
    name: str, value: npt.ArrayLike, shape: tuple[int, ...]
) -> npt.NDArray[np.uint8]:
    """Return probabilities in 255 steps, or raise ValueError."""
    array = check_image(name, value, len(shape))
    check_shape(name, array, shape)
    if array.min() < 0 or array.max() > 1:
        found = f"{array.min():g} to {array.max():g}"
        raise ValueError(
            f"{name} holds values from {found}, expected 0 to 1; "
            "apply the sigmoid function to logits first"
        )
    return np.rint(255 * array).astype(np.uint8)


def check_scores(
    scores: Sequence[float] | npt.NDArray[np.floating],
    labels: Sequence[int] | npt.NDArray[np.integer],
    *,
    both: bool = False,
) -> tuple[list[float], list[int]]:
    """Return scores and labels as plain lists, or raise ValueError.

    With `both`, each of the two classes must occur.
    """
    numbers = np.asarray(scores, dtype=float)
    classes = np.asarray(labels, dtype=float)
    if numbers.ndim != 1 or numbers.shape != classes.shape:
        raise ValueError(
            f"scores have shape {numbers.shape} and labels {classes.shape}, "
            "expected one list of each, equally long"
        )
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise ValueError("scores hold values outside 0 to 1, or NaN")
    if not np.isin(classes, (0, 1)).all():
        raise ValueError("labels hold values other than 0 and 1")
    if both and len(np.unique(classes)) < 2:
        raise ValueError(
            f"all {len(classes)} labels are alike, but both classes are needed"
        )
    return numbers.tolist(), classes.astype(int).tolist()


def check_shape(name: str, array: npt.NDArray[Any], expected: tuple[int, ...]) -> None:
    """Raise ValueError unless ``array`` has the shape of the image."""
    if array.shape != expected:
        raise ValueError(
            f"{name} has shape {array.shape}, expected that of the image, {expected}"
        )


def check_labels(
    name: str, value: npt.ArrayLike, shape: tuple[int, ...] | None = None
) -> npt.NDArray[np.uint8]:
    """Return a label map (X, Y, Z), or raise ValueError."""
    array = np.asarray(value)
    # Then nothing can be NaN or a fraction.
    whole = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
    if not whole or array.ndim != 3 or array.size == 0:
        array = check_image(name, value, 3, "(X, Y, Z)")
    if shape is not None:
        check_shape(name, array, shape)
    low, high = array.min(), array.max()
    if low < 0 or high > 255 or not (whole or (array == np.rint(array)).all()):
        raise ValueError(
            f"{name} holds values from {low:g} to {high:g}, "
            "expected whole numbers from 0 to 255"
        )
    return array.astype(np.uint8)


def values_of(labels: npt.NDArray[np.uint8]) -> list[int]:
    """The labels that occur."""
    return np.flatnonzero(np.bincount(labels.ravel(order="K"))).tolist()


def name_labels(
    names: Mapping[int, str], maps: Iterable[npt.NDArray[np.uint8]]
) -> dict[int, str]:
    """What each label means, in the order of their values, 0 left out.

    A label that is found in ``maps`` and has no name is called by its value. One that
    has a name is listed even if it is not found, so that each class keeps its colour.
    """
    found = set(names).union(*(values_of(one) for one in maps)) - {0}
    return {value: names.get(value, f"label {value}") for value in sorted(found)}


def check_spacing(spacing: Sequence[float] | npt.NDArray[Any]) -> tuple[float, ...]:
    """Return the size of a voxel in mm, or raise ValueError."""
    sizes = np.asarray(spacing, dtype=float)
    if sizes.shape != (3,) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"spacing is {spacing}, expected three sizes in mm, above 0")
    return tuple(sizes.tolist())


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless ``value`` lies between ``low`` and ``high``."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {low} to {high}")


def check_fraction(name: str, value: float) -> float:
    """Return ``value`` if it lies between 0 and 1, or raise ValueError."""
    check_between(name, value, 0, 1)
    return float(value)


def to_bytes(
    image: npt.NDArray[np.float64], low: float, high: float
) -> npt.NDArray[np.uint8]:
    """Spread ``low`` to ``high`` over 0 to 255."""
    span = max(high - low, np.finfo(float).tiny)
    return np.rint(255 * np.clip((image - low) / span, 0, 1)).astype(np.uint8)


def resample(volume: npt.NDArray[Any], shape: Sequence[int]) -> npt.NDArray[np.float64]:
    """Shrink ``volume`` to ``shape``: a new voxel is the mean of what it covers.

    >>> resample(np.array([[[0.0, 3.0, 6.0]]]), (1, 1, 2)).ravel().tolist()
    [1.0, 5.0]
    """
    out = np.asarray(volume, dtype=np.float64)
    for axis, (old, new) in enumerate(zip(volume.shape, shape, strict=True)):
        edges = np.linspace(0, old, new + 1)
        low = np.maximum(edges[:-1, None], np.arange(old))
        high = np.minimum(edges[1:, None], np.arange(old) + 1)
        weights = np.clip(high - low, 0, None) * new / old
        out = np.moveaxis(np.tensordot(weights, out, (1, axis)), 0, axis)
    return out


def robust_range(image: npt.NDArray[np.float64]) -> tuple[float, float]:
    """The 0.05th and 99.95th percentile: one outlier must not make the rest black."""
    low, high = (float(value) for value in np.percentile(image, (0.05, 99.95)))
    return (low, high) if high > low else (low, low + 1.0)


def to_greys(image: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[np.uint8]:
    """Spread ``low`` to ``high`` over 64 levels among 0 to 255.

    MR is noisy: with 256 levels the packed stack would be nearly twice as large.
    """
    span = max(high - low, np.finfo(float).tiny)
    levels = np.rint(63 * np.clip((image - low) / span, 0, 1))
    return np.rint(levels * 255 / 63).astype(np.uint8)


def reduce_bytes(
    image: npt.NDArray[np.uint8], max_side: int, *, average: bool = True
) -> npt.NDArray[np.uint8]:
    """Shrink ``image`` (H, W) until its longer side is at most ``max_side``."""
    rows, columns = image.shape
    factor = max_side / max(rows, columns)
    if factor >= 1:
        return image
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    how = Image.Resampling.BOX if average else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(image).resize(size, how))
