r"""Histogram-based intensity standardisation, after Nyúl & Udupa.

The grey values of MR have no unit: coil, scanner and patient set their scale, so one
tissue has another value in every exam. Nyúl & Udupa 1999 (doi
10.1002/(SICI)1522-2594(199912)42:6<1072::AID-MRM11>3.0.CO;2-M), with the deciles of
Nyúl et al. 2000 (doi 10.1109/42.836373), learn a standard histogram:

1. Of each training volume, take the landmarks $p_1 < p_{10} < \dots < p_{90} < p_{99}$:
   percentiles of its foreground, the voxels brighter than its mean.
2. Map each volume's $[p_1, p_{99}]$ linearly to the standard scale $[s_1, s_2]$ and
   average what its other landmarks become. That is the standard histogram.
3. Any volume is then mapped piecewise linearly, so that its own landmarks fall on the
   standard ones.

The map is monotone: no tissue becomes darker than one that it outshone, and the map can
be undone. A volume of whole numbers has few different values. It needs one pass to
count them and one to look up what each becomes, which is many times faster than sorting
its voxels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medimg_utils.errors import InputError
from medimg_utils.io import write_json_atomic

PERCENTILES = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)
TOP = 230.0  # grey level of the last landmark: leaves room for the brightest 1 %
LEVELS = 2**16  # more different values than this are sorted instead of counted


class StandardiseError(InputError):
    """A volume, or a file of landmarks, cannot be used for standardisation."""


# --------------------------------------------------------------------------- grey curve


@dataclass(frozen=True, eq=False)
class GreyCurve:
    """A rising, piecewise linear curve through points; straight on beyond the last.

    Where several points have one grey value (a flat part of the image has several
    percentiles), the curve jumps there, from the first of them to the last.

    Attributes:
        source: (K,) grey values, in rising order, at least two of them different.
        target: (K,) what they become, in rising order.

    >>> curve = GreyCurve([0, 10, 10, 20], [0, 50, 70, 80])
    >>> curve([-1, 5, 9, 10, 30]).tolist()
    [-5.0, 25.0, 45.0, 70.0, 90.0]
    >>> curve.inverse()(curve([-1, 5, 9, 10, 30])).tolist()
    [-1.0, 5.0, 9.0, 10.0, 30.0]
    """

    source: ArrayLike
    target: ArrayLike

    def __post_init__(self) -> None:
        x, y = np.asarray(self.source, float), np.asarray(self.target, float)
        if (np.diff(x) < 0).any() or (np.diff(y) < 0).any():
            raise StandardiseError(f"the points {x} → {y} do not rise.")
        if not ((np.diff(x) > 0) & (np.diff(y) > 0)).any():
            raise StandardiseError(
                "all landmarks have the same grey value: the volume shows nothing but "
                "one shade. Leave it out."
            )
        object.__setattr__(self, "source", x)
        object.__setattr__(self, "target", y)

    def inverse(self) -> GreyCurve:
        """The curve that leads back."""
        return GreyCurve(self.target, self.source)

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        """Values of any shape → what they become."""
        x, y = np.asarray(self.source), np.asarray(self.target)
        given = np.asarray(values, dtype=np.float64)
        rises = np.diff(x) > 0
        slope = np.diff(y)[rises] / np.diff(x)[rises]
        left_x, left_y = x[:-1][rises], y[:-1][rises]
        # Each value lies right of the last segment that starts at or before it.
        segment = np.searchsorted(left_x[1:], given, side="right")
        found = left_y[segment] + slope[segment] * (given - left_x[segment])
        # Beyond the ends, the outermost points with the outermost slopes that rise.
        rising = slope[slope > 0]
        found = np.where(given < x[0], y[0] + rising[0] * (given - x[0]), found)
        return np.where(given >= x[-1], y[-1] + rising[-1] * (given - x[-1]), found)


# --------------------------------------------------------------------------- histograms


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often each whole number occurs in a volume.

    Attributes:
        counts: (L,) how many voxels have the value `lowest`, `lowest` + 1, ...
        lowest: value of the first count.
    """

    counts: NDArray[np.int64]
    lowest: int

    @classmethod
    def of(cls, volume: NDArray[np.integer]) -> Histogram | None:
        """Count a volume of whole numbers; None where their range is too wide.

        >>> Histogram.of(np.array([[3, 5], [5, 4]])).counts.tolist()
        [1, 1, 2]
        """
        if volume.dtype == np.uint8:
            flat = torch.from_numpy(np.require(volume.ravel(), requirements="W"))
            # NumPy's own would first make eight bytes of each.
            return cls(torch.bincount(flat, minlength=256).numpy(), 0)
        if volume.dtype == np.uint16:
            return cls(np.bincount(volume.ravel(), minlength=LEVELS), 0)
        lowest, highest = int(volume.min()), int(volume.max())
        if highest - lowest >= LEVELS:
            return None
        shifted = (volume.astype(np.int64) - lowest).ravel()
        return cls(np.bincount(shifted), lowest)

    def above_mean(self) -> Histogram:
        """Of the voxels brighter than the mean."""
        values = np.arange(self.counts.size)
        mean = (self.counts @ values) / self.counts.sum()
        return Histogram(np.where(values > mean, self.counts, 0), self.lowest)

    def percentiles(self, wanted: ArrayLike) -> NDArray[np.float64]:
        """What `numpy.percentile` gives for the voxels, without sorting them.

        >>> Histogram.of(np.array([7, 3, 4, 4])).percentiles([0, 50, 90]).round(9).tolist()
        [3.0, 4.0, 6.1]
        """
        until = np.cumsum(self.counts)
        place = np.asarray(wanted, np.float64) / 100 * (until[-1] - 1)
        below = np.floor(place)
        low = np.searchsorted(until, below, side="right")
        high = np.searchsorted(until, np.ceil(place), side="right")
        return self.lowest + low + (high - low) * (place - below)


# --------------------------------------------------------------------- standardisation


@dataclass(frozen=True)
class Standardiser:
    """A standard histogram, learned with `fit`; calling it standardises a volume.

    Attributes:
        percentiles: at which the landmarks lie.
        landmarks: their grey values on the standard scale.
        foreground: landmarks are taken of voxels brighter than the mean. Zero then
            stays zero, and the background lies on the straight line from there to the
            first landmark. Without it landmarks are taken of all voxels.
        volumes: how many volumes it was learned on.

    >>> volume = np.random.default_rng(0).integers(0, 100, (4, 32, 32), dtype=np.uint8)
    >>> standardiser = Standardiser.fit([volume, volume * 2])
    >>> same = standardiser(volume), standardiser(volume * 2)
    >>> bool(np.abs(same[0] - same[1]).max() < 1e-4)
    True
    """

    percentiles: tuple[float, ...]
    landmarks: tuple[float, ...]
    foreground: bool
    volumes: int

    @classmethod
    def fit(
        cls,
        volumes: Iterable[NDArray[Any]],
        *,
        percentiles: tuple[float, ...] = PERCENTILES,
        scale: tuple[float, float] | None = None,
        foreground: bool = True,
    ) -> Standardiser:
        """Learn the standard histogram of one series from training volumes.

        Args:
            volumes: any number of arrays of any shape; looked at one after the other.
            percentiles: of the landmarks, rising.
            scale: (s1, s2) grey values of the first and the last landmark. None sets s2
                to `TOP`, and s1 so that the two keep their mean ratio in the training
                volumes.
            foreground: see the class.

        Raises:
            StandardiseError: no volume, or one that cannot be used.
        """
        found = []
        for number, volume in enumerate(volumes):
            values = np.asarray(volume)
            try:
                found.append(
                    _landmarks(values, _count(values), percentiles, foreground)
                )
                if not found[-1][-1] > found[-1][0]:
                    raise StandardiseError("its first and last landmark are equal.")
            except StandardiseError as error:
                raise StandardiseError(f"training volume {number}: {error}") from error
        if not found:
            raise StandardiseError("landmarks are learned from volumes, but none came.")
        own = np.array(found)  # (N, K)
        first, last = own[:, :1], own[:, -1:]
        low, high = scale or (TOP * float(np.mean(first / last)), TOP)
        mapped = low + (own - first) * (high - low) / (last - first)
        return cls(
            tuple(float(value) for value in percentiles),
            tuple(mapped.mean(axis=0).tolist()),
            foreground,
            len(own),
        )

    def curve(self, volume: NDArray[Any]) -> GreyCurve:
        """The grey curve that standardises this volume.

        Raises:
            StandardiseError: the volume is empty, not finite, or of one shade.
        """
        return self._through(
            _landmarks(volume, _count(volume), self.percentiles, self.foreground)
        )

    def _through(self, own: NDArray[np.float64]) -> GreyCurve:
        target = np.array(self.landmarks)
        if self.foreground and own[0] > 0 and target[0] > 0:
            own, target = np.append(0.0, own), np.append(0.0, target)
        return GreyCurve(own, target)

    def __call__(
        self, volume: NDArray[Any], dtype: type[np.float32 | np.uint8] = np.float32
    ) -> NDArray[Any]:
        """Standardise a volume of any shape and number type.

        Args:
            volume: grey values in any unit.
            dtype: `numpy.uint8` rounds and clips to 0 to 255.

        Returns:
            The same shape in grey values of the standard scale.
        """
        volume = np.asarray(volume)
        counted = _count(volume)
        own = _landmarks(volume, counted, self.percentiles, self.foreground)
        curve = self._through(own)
        if counted is None:
            return _as_type(curve(volume), dtype)
        table = _as_type(curve(counted.lowest + np.arange(counted.counts.size)), dtype)
        if counted.lowest:
            volume = volume.astype(np.int64) - counted.lowest
        # Every value is inside the table: "clip" only saves NumPy from asking.
        return np.take(table, volume, mode="clip")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the standard histogram as JSON."""
        write_json_atomic(path, asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Standardiser:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            StandardiseError: the file holds something else.
        """
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        try:
            return cls.from_json(json.loads(text))
        except (ValueError, TypeError, KeyError) as error:
            raise StandardiseError(
                f"{path} holds no landmarks of a standard histogram ({error}). Learn "
                "them with Standardiser.fit, and write them with save."
            ) from error

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Standardiser:
        """The standardiser that `dataclasses.asdict` and JSON made of one.

        Raises:
            StandardiseError: percentiles and landmarks do not fit together.
        """
        percentiles = tuple(float(value) for value in values["percentiles"])
        landmarks = tuple(float(value) for value in values["landmarks"])
        rising = all(
            np.isfinite(knots).all() and (np.diff(knots) >= 0).all()
            for knots in (percentiles, landmarks)
        )
        if len(percentiles) != len(landmarks) or len(landmarks) < 2 or not rising:
            raise StandardiseError(
                f"{len(percentiles)} percentiles and {len(landmarks)} landmarks were "
                "found, but two rising lists of the same length are needed"
            )
        if not 0 <= percentiles[0] <= percentiles[-1] <= 100:
            raise StandardiseError("percentiles lie between 0 and 100")
        return cls(
            percentiles, landmarks, bool(values["foreground"]), int(values["volumes"])
        )


def _count(volume: NDArray[Any]) -> Histogram | None:
    """The histogram of a volume of whole numbers; None where it must be sorted."""
    if not volume.size:
        raise StandardiseError(f"it holds no voxel, its shape is {volume.shape}.")
    return Histogram.of(volume) if volume.dtype.kind in "iu" else None


def _landmarks(
    volume: NDArray[Any],
    counted: Histogram | None,
    percentiles: tuple[float, ...],
    foreground: bool,
) -> NDArray[np.float64]:
    """(K,) percentiles of a volume, from its histogram where it has one."""
    if counted is not None:
        kept = counted.above_mean() if foreground else counted
        if not kept.counts.any():
            raise _one_shade(volume)
        return kept.percentiles(percentiles)
    if volume.dtype.kind not in "iuf":
        raise StandardiseError(f"it holds {volume.dtype}, not numbers.")
    finite = np.isfinite(volume)
    if not finite.all():
        raise StandardiseError(
            f"{np.count_nonzero(~finite)} of its {volume.size} voxels are not finite. "
            "Export it again."
        )
    bright = volume[volume > volume.mean(dtype=np.float64)] if foreground else volume
    if not bright.size:
        raise _one_shade(volume)
    return np.percentile(bright, percentiles)


def _one_shade(volume: NDArray[Any]) -> StandardiseError:
    return StandardiseError(
        f"all its voxels are {volume.flat[0]}, but a series shows contrast. It is "
        "blank: leave it out."
    )


def _as_type(
    values: NDArray[np.float64], dtype: type[np.float32 | np.uint8]
) -> NDArray[Any]:
    if dtype is np.uint8:
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return values.astype(dtype)
