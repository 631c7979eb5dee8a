"""Readers who disagree: simulated, measured, and brought to one opinion.

The readers differ in habits that are known here and unknown in a hospital: how large
they draw, how steady, what they overlook. Kappa measures agreement on yes or no, Dice on
outlines; STAPLE guesses the true mask and everyone's error rates from the masks alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from medimg_utils.errors import InputError


@dataclass(frozen=True)
class Reader:
    """The habits of somebody who outlines findings.

    Attributes:
        name: whose.
        size_bias: pixels by which every outline is drawn too far out; negative: in.
        jitter: standard deviation, in pixels, of the wandering of the hand.
        overlooked: area in pixels of a finding that is overlooked half of the time;
            0 overlooks nothing.
        invented: probability that a place that is none is outlined.
    """

    name: str
    size_bias: float = 0.0
    jitter: float = 0.0
    overlooked: float = 0.0
    invented: float = 0.0

    def __post_init__(self) -> None:
        if self.jitter < 0 or self.overlooked < 0 or not 0 <= self.invented <= 1:
            raise InputError(
                f"{self.name}: jitter and overlooked must not be negative, and invented "
                "is a probability."
            )


def draw(
    truth: ArrayLike, reader: Reader, random: np.random.Generator, *, smooth: float = 8
) -> NDArray[np.bool_]:
    """What a reader outlines of a true mask.

    The outline is moved by the reader's bias and by a smooth random field along it.
    Each connected finding is seen or overlooked as a whole, the small ones more often:
    one of $a$ pixels with probability $a / (a + a_{1/2})$.

    Args:
        truth: (H, W) mask.
        reader: whose habits.
        random: where chance comes from.
        smooth: pixels over which the hand wanders.

    Returns:
        (H, W) bool.
    """
    mask = np.asarray(truth).astype(bool)
    if mask.ndim != 2:
        raise InputError(f"the mask has shape {mask.shape}, expected (H, W).")
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    seen = random.random(count) < areas / (areas + reader.overlooked)
    drawn = np.concatenate([[False], seen])[labels]
    wander = ndimage.gaussian_filter(random.standard_normal(mask.shape), smooth)
    wander *= reader.jitter / max(wander.std(), 1e-12)
    place = random.integers(0, mask.shape)
    if random.random() < reader.invented:
        y, x = np.indices(mask.shape)
        drawn |= np.hypot(y - place[0], x - place[1]) < 0.04 * min(mask.shape)
    if not drawn.any():
        return drawn
    # Positive inside, in pixels from the outline, which runs between pixels.
    inside = ndimage.distance_transform_edt(drawn)
    outside = ndimage.distance_transform_edt(~drawn)
    depth = np.where(drawn, inside - 0.5, 0.5 - outside)
    return depth + reader.size_bias + wander > 0


# -------------------------------------------------------------------------------- kappa


def cohen_kappa(first: ArrayLike, second: ArrayLike) -> float:
    r"""Agreement of two readers beyond chance (Cohen 1960).

    $$\kappa = \frac{p_o - p_e}{1 - p_e}$$

    with the share of equal answers $p_o$ and the share $p_e$ that two readers with
    these habits of saying each answer would reach by chance. NaN where both always say
    the same.

    Args:
        first: (N,) answers of one reader.
        second: (N,) answers of the other.

    >>> cohen_kappa([1, 1, 0, 0], [1, 0, 0, 0])
    0.5
    """
    a, b = np.asarray(first), np.asarray(second)
    if a.shape != b.shape or a.ndim != 1 or not a.size:
        raise InputError(f"answers {a.shape} and {b.shape} must be lists alike.")
    names = np.union1d(a, b)
    observed = float(np.mean(a == b))
    chance = float(sum(np.mean(a == name) * np.mean(b == name) for name in names))
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


def fleiss_kappa(counts: ArrayLike) -> float:
    r"""Agreement of several readers beyond chance (Fleiss 1971).

    Of an exam with $n_{ij}$ answers $j$ among $n$, the share of agreeing pairs of
    readers is $\frac{1}{n(n-1)} \sum_j n_{ij}(n_{ij} - 1)$; chance is $\sum_j p_j^2$
    with the share $p_j$ of all answers.

    Args:
        counts: (N, K), how many readers gave each of K answers to each of N exams; the
            same number of readers, two or more, for each.

    >>> fleiss_kappa([[2, 0], [0, 2], [2, 0], [0, 2]])
    1.0
    """
    table = np.asarray(counts, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise InputError(f"counts have shape {table.shape}, expected (exams, answers).")
    readers = table.sum(axis=1)
    if (readers != readers[0]).any() or readers[0] < 2 or (table < 0).any():
        raise InputError(
            f"{readers.min():g} to {readers.max():g} readers answered, but each exam "
            "needs the same number, at least two."
        )
    n = readers[0]
    observed = float((table * (table - 1)).sum(axis=1).mean() / (n * (n - 1)))
    chance = float(((table.sum(axis=0) / table.sum()) ** 2).sum())
    return (observed - chance) / (1 - chance) if chance < 1 else float("nan")


# ------------------------------------------------------------------------------- STAPLE


class Consensus(NamedTuple):
    """What STAPLE believes.

    Attributes:
        probability: (H, W), or of any shape, that a pixel belongs to the true mask.
        sensitivity: (R,) share of the true mask that each reader outlines.
        specificity: (R,) share of the rest that each reader leaves alone.
    """

    probability: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    specificity: NDArray[np.float64]


def staple(
    masks: Sequence[ArrayLike] | NDArray[np.bool_],
    *,
    prior: float | None = None,
    steps: int = 200,
    tolerance: float = 1e-7,
) -> Consensus:
    r"""Simultaneous truth and performance level estimation (Warfield et al. 2004).

    Truth and error rates are unknown, but each would follow from the other. So they are
    guessed in turn. With the reader's sensitivity $p_r$ and specificity $q_r$ and the
    prior $\gamma$ a pixel with the answers $d_r$ is foreground with the probability

    $$w = \frac{\gamma \prod_r p_r^{d_r} (1 - p_r)^{1 - d_r}}
    {\gamma \prod_r p_r^{d_r} (1 - p_r)^{1 - d_r}
    + (1 - \gamma) \prod_r q_r^{1 - d_r} (1 - q_r)^{d_r}}$$

    and with these probabilities $p_r = \sum w d_r / \sum w$ and
    $q_r = \sum (1 - w)(1 - d_r) / \sum (1 - w)$. Each step makes the masks more
    probable (expectation maximisation). Pixels are taken for independent, and errors of
    readers, too.

    Args:
        masks: (R, ...) of two or more readers.
        prior: share of foreground; that of all answers unless given.
        steps: at most so many.
        tolerance: stop when no rate changes by more.
    """
    answers = np.array([np.asarray(mask).astype(bool) for mask in masks])
    if len(answers) < 2 or answers[0].size == 0:
        raise InputError(
            f"{len(answers)} masks were given, but two or more are needed."
        )
    shape = answers.shape[1:]
    # Pixels with the same answers are alike: compute each pattern of answers once.
    patterns, place, count = np.unique(
        answers.reshape(len(answers), -1),
        axis=1,
        return_inverse=True,
        return_counts=True,
    )
    d = patterns.astype(np.float64)
    share = float(answers.mean()) if prior is None else prior
    if not 0 < share < 1:
        raise InputError(
            f"the share of foreground is {share:g}: where everything or nothing is "
            "outlined there is nothing to estimate."
        )
    p = np.full(len(d), 0.99999)
    q = p.copy()
    tiny = np.finfo(float).tiny
    for _ in range(steps):
        p_, q_ = (np.clip(rate, 1e-12, 1 - 1e-12)[:, None] for rate in (p, q))
        ill = np.log(share) + (d * np.log(p_) + (1 - d) * np.log1p(-p_)).sum(axis=0)
        well = np.log1p(-share) + ((1 - d) * np.log(q_) + d * np.log1p(-q_)).sum(axis=0)
        w = 1 / (1 + np.exp(np.clip(well - ill, -700, 700)))
        before = np.concatenate([p, q])
        p = (d * (w * count)).sum(axis=1) / max((w * count).sum(), tiny)
        other = (1 - w) * count
        q = ((1 - d) * other).sum(axis=1) / max(other.sum(), tiny)
        if np.abs(np.concatenate([p, q]) - before).max() < tolerance:
            break
    return Consensus(w[place.ravel()].reshape(shape), p, q)
