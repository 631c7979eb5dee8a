"""Maps that claim to explain an answer, and the measures that test the claim.

The methods are those of captum; here they get one form, `explain(network, images)`, so
that they can be compared: maps ``(B, H, W)`` that are zero or positive, higher where the
method sees more reason for "yes".  Two more never look at the network and must lose
against those that do: the edges of the picture, and its centre.

Two kinds of test follow.  :func:`measure` asks whether the map lies on the finding, which
a simulation knows.  :func:`randomise` and :func:`similarity` ask whether the map has
anything to do with the network (Adebayo et al. 2018): a map that stays the same when the
weights are thrown away cannot explain them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from captum.attr import (
    GuidedBackprop,
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    Occlusion,
    Saliency,
)
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage as ndi
from scipy.stats import spearmanr
from torch import Tensor, nn
from torchvision.transforms.v2.functional import gaussian_blur

from medimg_utils import metrics
from medimg_utils.challenges import comparison
from medimg_utils.errors import InputError
from medimg_utils.metrics import Interval

#: images (B, C, H, W) → maps (B, H, W), zero or positive
Explainer = Callable[[Tensor], Tensor]


# ------------------------------------------------------------------------------- methods


def explainers(
    network: nn.Module,
    layer: str,
    *,
    steps: int = 24,
    window: int = 16,
    baseline: float = 0.0,
) -> dict[str, Explainer]:
    """The methods for one network, by name.

    Saliency is the absolute gradient (Simonyan et al. 2014).  Guided back-propagation
    lets only positive gradients pass each ReLU (Springenberg et al. 2015).  Integrated
    gradients add up gradients on the way from a blurred film to the film, times the
    difference (Sundararajan et al. 2017); on the usual way from an even grey one,
    normalisation layers undo every step but the first.  Grad-CAM weighs the maps of a late layer by
    their mean gradients (Selvaraju et al. 2017).  Occlusion covers a window and notes
    how much the answer falls (Zeiler and Fergus 2014).  Of the last three, what speaks
    against a finding is left out.

    Args:
        network: (B, C, H, W) → (B,) logits; in evaluation mode. A copy is used, and
            guided back-propagation wants each ReLU to be a module.
        layer: name of the late layer of Grad-CAM, with maps (B, K, h, w).
        steps: of the integral.
        window: side of the covered window in pixels; it moves by half of it.
        baseline: the grey that covers.
    """
    network = copy.deepcopy(network)
    modules = dict(network.named_modules())
    if layer not in modules:
        raise InputError(
            f"the network has no layer {layer!r}; there are: "
            f"{', '.join(name for name in modules if name)}."
        )
    for module in modules.values():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # hooks need what a ReLU was given
    gradient, guided = Saliency(network), GuidedBackprop(network)
    integrated, covered = IntegratedGradients(network), Occlusion(network)
    camera = LayerGradCam(network, modules[layer])

    def grad_cam(images: Tensor) -> Tensor:
        low = camera.attribute(images, relu_attributions=True)
        size = (images.shape[-2], images.shape[-1])
        return LayerAttribution.interpolate(low, size, "bilinear").sum(1)

    def occlusion(images: Tensor) -> Tensor:
        found = covered.attribute(
            images,
            sliding_window_shapes=(images.shape[1], window, window),
            strides=(images.shape[1], window // 2, window // 2),
            baselines=baseline,
        )
        return found.mean(1).clamp(min=0)

    def path(images: Tensor) -> Tensor:
        found = integrated.attribute(
            images, baselines=blurred(images), n_steps=steps, internal_batch_size=32
        )
        return found.sum(1).clamp(min=0)

    return {
        "saliency": lambda images: gradient.attribute(images).amax(1),
        "guided backprop": lambda images: guided.attribute(images).abs().amax(1),
        "integrated gradients": path,
        "Grad-CAM": grad_cam,
        "occlusion": occlusion,
        "edges": edges,
    }


def blurred(images: Tensor, sigma: float = 8.0) -> Tensor:
    """Films (B, C, H, W) without detail: where integrated gradients begin."""
    size = 2 * int(2.5 * sigma) + 1
    return gaussian_blur(images.detach(), [size, size], [sigma, sigma])


def edges(images: Tensor) -> Tensor:
    """Steepness of the grey values, (B, C, H, W) → (B, H, W): no network is asked."""
    down = images.diff(dim=-2, append=images[..., -1:, :])
    right = images.diff(dim=-1, append=images[..., -1:])
    return (down.square() + right.square()).sum(1).sqrt()


def explain(
    explainer: Explainer, images: Tensor, *, smooth: float = 2.0
) -> NDArray[Any]:
    """Maps (B, H, W), smoothed and scaled to sum 1.

    Gradients are grainy.  A little smoothing, the same for all methods, lets a pixel
    speak for its neighbours.

    Args:
        explainer: one of :func:`explainers`.
        images: (B, C, H, W).
        smooth: standard deviation of the Gaussian in pixels; 0 leaves the map.

    Returns:
        float64.  A map that is zero everywhere becomes even: it points nowhere.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting (forward, )?backward hooks")
        tensor = explainer(images.detach().clone().requires_grad_())
    found = tensor.detach().double().cpu().numpy()
    if smooth:
        found = ndi.gaussian_filter(found, (0, smooth, smooth))
    total = found.sum(axis=(1, 2), keepdims=True)
    flat = np.full_like(found, 1 / found[0].size)
    return np.where(total > 0, found / np.where(total > 0, total, 1), flat)


# ------------------------------------------------------------------------------ measures


def measure(
    heat: NDArray[np.floating], finding: NDArray[np.bool_], tolerance: float = 2.0
) -> dict[str, float]:
    """Does one map lie on the finding?

    Args:
        heat: (H, W), zero or positive.
        finding: (H, W) with at least one pixel.
        tolerance: pixels beside it that still count when pointing.

    Returns:
        `pointing`: 1 where the hottest pixel lies in the finding (Zhang et al. 2016).
        `inside`: share of the map's sum that lies in the finding.

    Raises:
        InputError: the shapes differ, the finding is empty, or the map is negative.

    >>> heat = np.array([[0.0, 3.0], [1.0, 0.0]])
    >>> measure(heat, np.array([[False, True], [False, False]]), tolerance=0)
    {'pointing': 1.0, 'inside': 0.75}
    """
    hit = metrics.pointing_game(heat, finding, tolerance)
    if not np.min(heat) >= 0:
        raise InputError(
            f"the lowest value of the map is {np.min(heat):.3g}, but a share of its sum "
            "needs values of 0 and more. Cut off or take absolute values first."
        )
    total = float(np.sum(heat))
    share = float(np.asarray(heat)[finding].sum()) / total if total else 0.0
    return {"pointing": float(hit), "inside": share}


def chance(finding: NDArray[np.bool_], tolerance: float = 2.0) -> dict[str, float]:
    """What a map that points anywhere reaches on average; see :func:`measure`.

    >>> chance(np.eye(4, dtype=bool), tolerance=0)
    {'pointing': 0.25, 'inside': 0.25}
    """
    near = ndi.distance_transform_edt(~finding) <= tolerance
    return {"pointing": float(near.mean()), "inside": float(finding.mean())}


def centre_map(shape: tuple[int, int]) -> NDArray[np.float64]:
    """A round hill in the middle of the picture, (H, W): no network is asked."""
    rows, columns = (np.linspace(-1, 1, n) for n in shape)
    return np.exp(-2 * (rows[:, None] ** 2 + columns[None, :] ** 2))


def mean_of(
    values: ArrayLike,
    patients: ArrayLike | None = None,
    *,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Mean of a measure, with its interval over networks and patients.

    Args:
        values: (S, N) of S networks for N films. With (N,), or one row, there is one
            network (or none was asked), and the interval is that over patients alone.
        patients: (N,) whom each film belongs to; None where each has a patient of its own.
        bounds: between which the mean must lie; (0, 1) says that it is a share. A share
            of none or of all shows no spread, which is not certainty: it gets Wilson's
            interval over patients.
    """
    table = np.atleast_2d(np.asarray(values, dtype=np.float64))
    groups = np.arange(table.shape[1]) if patients is None else patients
    by_patient = comparison.of_patients(table, groups)
    if bounds == (0, 1) and (table == table[0, 0]).all() and table[0, 0] in bounds:
        independent = by_patient.shape[1]
        return metrics.proportion(independent if table[0, 0] else 0, independent)
    if len(table) == 1:
        by_patient = np.repeat(by_patient, 2, axis=0)  # two that agree add nothing
    return comparison.interval(by_patient, bounds=bounds)


# ------------------------------------------------------------------------- sanity checks


def randomise(network: nn.Module, names: Sequence[str], seed: int = 0) -> nn.Module:
    """A copy of a network in which some modules have forgotten what they learned.

    Args:
        network: is not changed.
        names: of modules; all their weights are drawn anew as they were before training.
        seed: of the draw.

    Raises:
        InputError: there is no such module, or it has nothing to forget.
    """
    twin = copy.deepcopy(network)
    modules = dict(twin.named_modules())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            forgotten = 0
            for part in modules[name].modules() if name in modules else ():
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()
                    forgotten += 1
            if not forgotten:
                raise InputError(
                    f"the network has no module {name!r} with weights; there are: "
                    f"{', '.join(n for n in modules if n)}."
                )
    return twin


def similarity(one: NDArray[np.floating], other: NDArray[np.floating]) -> float:
    """Rank correlation (Spearman) of two maps (H, W): 1 for the same order of pixels.

    A map without any order, the same everywhere, correlates with nothing: 0.

    >>> similarity(np.arange(9.0).reshape(3, 3), np.arange(9.0).reshape(3, 3) ** 2)
    1.0
    """
    first, second = np.ravel(one), np.ravel(other)
    if not np.ptp(first) > 0 or not np.ptp(second) > 0:
        return 0.0
    return float(round(spearmanr(first, second).statistic, 12))


def compare_with(
    original: Mapping[str, NDArray[np.floating]],
    changed: Mapping[str, NDArray[np.floating]],
) -> dict[str, list[float]]:
    """Similarity of each method's maps (B, H, W) before and after: {method: B values}."""
    return {
        name: [similarity(a, b) for a, b in zip(maps, changed[name], strict=True)]
        for name, maps in original.items()
    }


class SanityChecks(NamedTuple):
    """What the maps of one method have to do with the network; see `sanity_checks`.

    Attributes:
        seeds: similarity of the maps of two honest networks.
        weights: how much higher this is than that with networks that forgot everything.
        labels: how much higher it is than that with networks that learned shuffled labels.
    """

    seeds: Interval
    weights: Interval
    labels: Interval

    def passed(self, bar: float = 0.5) -> tuple[bool, bool, bool]:
        """Is each shown: similarity above the bar, and both differences above zero?"""
        return self.seeds.low > bar, self.weights.low > 0, self.labels.low > 0


def sanity_checks(
    honest: ArrayLike, forgotten: ArrayLike, by_heart: ArrayLike
) -> SanityChecks:
    """Put the similarities of one method's maps together.

    Args:
        honest: (S, S, P) between the maps of S honest networks, of P patients.
        forgotten: (S, P) between each and what is left of it without its weights.
        by_heart: (S, P) between each and a network that learned shuffled labels.

    Returns:
        Each with its interval over networks and patients.

    Raises:
        InputError: the shapes do not belong together.
    """
    pairs, blank, heart = (
        np.asarray(values, dtype=np.float64) for values in (honest, forgotten, by_heart)
    )
    if not pairs.shape[1:] == blank.shape == heart.shape or pairs.ndim != 3:
        raise InputError(
            f"similarities {pairs.shape}, {blank.shape} and {heart.shape} were given, but "
            "(S, S, P), (S, P) and (S, P) are needed."
        )

    def alike(s: NDArray[np.intp], k: NDArray[np.intp]) -> float:
        """Mean over pairs of different networks; NaN where there is one alone."""
        different = s[:, None] != s[None, :]
        means = pairs[np.ix_(s, s, k)].mean(axis=2)
        return float(means[different].mean()) if different.any() else float("nan")

    def interval(than: NDArray[np.float64] | None) -> Interval:
        found = comparison.jackknife(
            lambda s, k: (
                alike(s, k) - (than[np.ix_(s, k)].mean() if than is not None else 0)
            ),
            len(pairs),
            np.arange(pairs.shape[2]),
        )
        return Interval(*found.tolist())

    return SanityChecks(interval(None), interval(blank), interval(heart))
