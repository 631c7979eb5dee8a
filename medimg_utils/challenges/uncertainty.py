"""How sure is a network?  Several ways to ask, and one with a promise.

Ensembles and dropout give several answers, whose spread is a measure of doubt
(:func:`decompose`).  Split conformal prediction turns any score into a set of answers
that holds the true one as often as promised, as long as new exams are drawn like those
that it was calibrated on (:class:`Conformal`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta, betabinom
from torch import Tensor, nn

from medimg_utils.errors import InputError
from medimg_utils.metrics import Interval

# ------------------------------------------------------------------- several answers


@torch.inference_mode()
def mc_dropout(
    network: nn.Module, images: Tensor, draws: int = 20, seed: int = 0
) -> NDArray[np.float64]:
    """Probabilities (draws, B) of one network with dropout active (Gal & Ghahramani 2016).

    Only dropout is active; everything else stays in evaluation mode, and the network is
    left as it was.

    Raises:
        InputError: the network has no dropout.
    """
    kinds = (nn.Dropout, nn.Dropout2d, nn.Dropout3d)
    layers = [m for m in network.modules() if isinstance(m, kinds)]
    if not layers:
        raise InputError(
            "the network has no dropout layer, so every draw would be the same. Use an "
            "ensemble."
        )
    before = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = [network(images).float().sigmoid() for _ in range(draws)]
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer.train(was)
    return torch.stack(found).double().numpy()


def entropy(probability: ArrayLike) -> NDArray[np.float64]:
    """Entropy in bits of a yes-or-no answer: 1 at one half, 0 at certainty.

    >>> entropy([0.5, 1.0, 0.0]).tolist()
    [1.0, 0.0, 0.0]
    """
    p = np.asarray(probability, dtype=np.float64)
    terms = [
        np.where(q > 0, -q * np.log2(np.where(q > 0, q, 1)), 0.0) for q in (p, 1 - p)
    ]
    return terms[0] + terms[1]


def decompose(
    probabilities: ArrayLike,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Split doubt into what all members share and what they disagree about.

    The entropy of the mean answer is the mean entropy (doubt that each member has: the
    film is unclear) plus the mutual information (disagreement: the members have not
    learned the same).

    Args:
        probabilities: (M, B).

    Returns:
        Mean entropy (B,) and mutual information (B,), both in bits.

    >>> shared, disagreement = decompose([[0.5, 1.0], [0.5, 0.0]])
    >>> shared.tolist(), disagreement.tolist()
    ([1.0, 0.0], [0.0, 1.0])
    """
    p = np.asarray(probabilities, dtype=np.float64)
    shared = entropy(p).mean(axis=0)
    return shared, np.maximum(entropy(p.mean(axis=0)) - shared, 0.0)


def error_kept(
    wrong: ArrayLike, doubt: ArrayLike, shares: ArrayLike
) -> NDArray[np.float64]:
    """Error rate among the films that are kept when the most doubtful go to a person.

    Args:
        wrong: (N,) 1 where the answer is wrong.
        doubt: (N,) higher is handed over first.
        shares: of the films that are kept, each above 0 and at most 1.

    Returns:
        An error rate for each share.

    >>> error_kept([1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3], [1.0, 0.5]).tolist()
    [0.25, 0.0]
    """
    order = np.argsort(np.asarray(doubt, np.float64), kind="stable")
    errors = np.asarray(wrong, np.float64)[order]
    counts = np.maximum(1, np.round(np.asarray(shares) * len(errors)).astype(int))
    return np.asarray([errors[:count].mean() for count in counts])


# ---------------------------------------------------------------------- conformal sets


@dataclass(frozen=True)
class Conformal:
    """Split conformal prediction for yes or no (Angelopoulos & Bates 2023).

    Attributes:
        alpha: how often the set may miss the true answer.
        limits: an answer whose strangeness 1 − p is at most this is in the set; for "no"
            and "yes", which are the same unless the classes are calibrated apart.
        counts: exams that each limit rests on.
    """

    alpha: float
    limits: tuple[float, float]
    counts: tuple[int, int]

    @classmethod
    def fit(
        cls,
        labels: ArrayLike,
        probabilities: ArrayLike,
        alpha: float = 0.1,
        *,
        by_class: bool = False,
    ) -> Conformal:
        """Calibrate on exams that the network has not learned from.

        The limit is the ⌈(n + 1)(1 − alpha)⌉-th smallest strangeness of the true answer
        among n exams; where n is too small for that it is 1, and every set holds both.

        Args:
            labels: (N,) 0 or 1.
            probabilities: (N,) of "yes".
            alpha: above 0 and below 1.
            by_class: a limit for each class, hence the promise for each class.

        Raises:
            InputError: no exam (of a class), or alpha outside (0, 1).
        """
        if not 0 < alpha < 1:
            raise InputError(
                f"alpha is {alpha}, but a share between 0 and 1 is needed."
            )
        truth = np.asarray(labels).astype(int)
        yes = np.asarray(probabilities, dtype=np.float64)
        strange = np.where(truth == 1, 1 - yes, yes)
        groups = [truth == k for k in (0, 1)] if by_class else [truth >= 0] * 2
        limits, counts = [], []
        for group in groups:
            n = int(group.sum())
            if not n:
                raise InputError("there is no exam to calibrate on (of one class).")
            rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
            ordered = np.sort(strange[group])
            limits.append(float(ordered[rank - 1]) if rank <= n else 1.0)
            counts.append(n)
        return cls(alpha, (limits[0], limits[1]), (counts[0], counts[1]))

    def sets(self, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """(N, 2) bool: is "no", is "yes" in the set of each exam?

        >>> Conformal(0.1, (0.3, 0.3), (99, 99)).sets([0.1, 0.5, 0.9]).astype(int).tolist()
        [[1, 0], [0, 0], [0, 1]]
        """
        yes = np.asarray(probabilities, dtype=np.float64)
        return np.stack([yes <= self.limits[0], 1 - yes <= self.limits[1]], axis=1)

    def covered(self, labels: ArrayLike, probabilities: ArrayLike) -> NDArray[np.bool_]:
        """(N,) bool: does the set hold the true answer?"""
        truth = np.asarray(labels).astype(int)
        return np.asarray(self.sets(probabilities)[np.arange(len(truth)), truth])


def coverage_shape(calibration: int, alpha: float) -> tuple[int, int]:
    """The two parameters of the beta distribution of coverage.

    Drawn once, n calibration exams fix a limit, and the share of all future exams that
    it covers is Beta(n + 1 − l, l) distributed with l = ⌊(n + 1) alpha⌋ (Vovk 2012): on
    average at least 1 − alpha, but sometimes less.

    >>> coverage_shape(99, 0.1)
    (90, 10)
    """
    below = math.floor((calibration + 1) * alpha + 1e-9)
    if not below:
        raise InputError(
            f"{calibration} exams cannot carry a promise of {1 - alpha:.0%}: with so few "
            f"every set holds both answers. At least {math.ceil(1 / alpha) - 1} are needed."
        )
    return calibration + 1 - below, below


def coverage_interval(
    calibration: int, test: int | None, alpha: float, level: float = 0.95
) -> Interval:
    """Where coverage must lie if the promise holds: mean and both ends.

    Args:
        calibration: exams that the limit rests on.
        test: exams that coverage is measured on; None for infinitely many. A finite
            test adds its own luck: beta-binomial instead of beta.
        alpha: of the promise.
        level: of the interval.

    >>> found = coverage_interval(99, None, 0.1)
    >>> round(found.value, 2), round(found.low, 2), round(found.high, 2)
    (0.9, 0.83, 0.95)
    """
    a, b = coverage_shape(calibration, alpha)
    tails = (0.5 - level / 2, 0.5 + level / 2)
    if test is None:
        low, high = beta.ppf(tails, a, b)
    else:
        low, high = betabinom.ppf(tails, test, a, b) / test
    return Interval(a / (a + b), float(low), float(high))
