"""Films that are not like those of the training, and whether that can be noticed.

Each shift changes the picture and leaves the finding where it is.  :class:`Familiar`
measures how far a film lies from those of the training in what the last layer sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage as ndi
from sklearn.covariance import LedoitWolf

from medimg_utils.errors import InputError
from medimg_utils.pneumothorax.preprocess import standardise

Films = NDArray[np.uint8]


def _restandardised(films: Films, change: Callable[[NDArray, int], NDArray]) -> Films:
    """Change each film in [0, 1] and send it through the usual preprocessing again."""
    changed = [
        standardise(torch.from_numpy(change(film / 255, k).astype(np.float32)))
        for k, film in enumerate(films)
    ]
    return (torch.stack(changed) * 255).round().to(torch.uint8).numpy()


def darker(films: Films) -> Films:
    """Another display curve, ``x ** 2.5``: a scanner with other contrast."""
    return _restandardised(films, lambda film, _: film**2.5)


def blurred(films: Films) -> Films:
    """A detector of half the resolution."""
    return _restandardised(films, lambda film, _: ndi.gaussian_filter(film, 1.5))


def noisy(films: Films) -> Films:
    """A film at a fraction of the dose: grain."""

    def change(film: NDArray, k: int) -> NDArray:
        grain = np.random.default_rng([k, 51]).standard_normal(film.shape)
        return np.clip(film + 0.08 * grain, 0, 1)

    return _restandardised(films, change)


def inverted(films: Films) -> Films:
    """Black and white exchanged: MONOCHROME1 read as MONOCHROME2."""
    return _restandardised(films, lambda film, _: 1 - film)


def upside_down(films: Films) -> Films:
    """Turned by 180°."""
    return np.ascontiguousarray(films[:, ::-1, ::-1])


#: (N, H, W) uint8, standardised → the same, shifted.
SHIFTS: dict[str, Callable[[Films], Films]] = {
    "other contrast": darker,
    "blurred": blurred,
    "noisy": noisy,
    "inverted": inverted,
    "upside down": upside_down,
}


@dataclass(frozen=True, eq=False)
class Familiar:
    """How strange features are beside those of the training: Mahalanobis distance.

    Attributes:
        mean: (K,) of the training.
        precision: (K, K) inverse covariance, shrunk (Ledoit and Wolf 2004), since there
            are hardly more films than features.
    """

    mean: NDArray[np.float64]
    precision: NDArray[np.float64]

    @classmethod
    def fit(cls, features: ArrayLike) -> Familiar:
        """Learn what is usual from features (N, K) of training films.

        Raises:
            InputError: fewer than two films, or values that are not finite.
        """
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 2 or len(values) < 2 or not np.isfinite(values).all():
            raise InputError(
                f"features must be finite and (N, K) with N of 2 or more, not "
                f"{values.shape}."
            )
        found = LedoitWolf().fit(values)
        return cls(found.location_, found.precision_)

    def distance(self, features: ArrayLike) -> NDArray[np.float64]:
        """(N, K) → (N,), in standard deviations per feature: 1 is usual."""
        off = np.asarray(features, dtype=np.float64) - self.mean
        return np.sqrt(
            np.einsum("nk,kl,nl->n", off, self.precision, off) / off.shape[1]
        )


def energy(logits: ArrayLike) -> NDArray[np.float64]:
    """Strangeness of a yes-or-no answer: −log(1 + e^|z|), higher is stranger.

    The energy score of Liu et al. 2020 for the two logits ±|z|/2, which orders films as
    the distance of their probability from certainty does.
    """
    return -np.logaddexp(0.0, np.abs(np.asarray(logits, dtype=np.float64)))
