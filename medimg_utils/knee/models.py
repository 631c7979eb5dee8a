r"""MRNet (Bien et al. 2018): one network looks at all slices of one series.

    (S, 1, H, W)  slices
        │ features of each slice: AlexNet's convolutions
    (S, C, h, w)  feature maps
        │ mean over h × w: global average pooling
    (S, C)        one vector a slice
        │ maximum over the slices, each channel for itself
    (C,)          one vector an exam
        │ linear layer
    logit         its sigmoid is the probability

The number of slices does not matter: the maximum takes any. It also tells where the
answer comes from. With $m_c = \max_s z_{sc}$ the logit is $b + \sum_c w_c m_c$, and each
$m_c$ comes from one slice, so the logit is a sum over slices (`MRNet.explain`).

Bien et al. train nine such networks, one for each series and diagnosis, from AlexNet's
ImageNet weights. SqueezeNet 1.1 (Iandola et al. 2016, arXiv 1602.07360) has the same
place in `lab`: as accurate on ImageNet with a fiftieth of the weights, three of
which fit into a small download. A network may have one output for each of several
diagnoses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import models

from medimg_utils.knee.preprocess import to_network

IMAGENET_SPREAD = 58.0  # grey levels, the mean over the three colours


class Explanation(NamedTuple):
    """What a network says about one exam, and where that comes from.

    Attributes:
        logits: (D,) one a diagnosis.
        maps: (D, S, h, w) class activation maps: feature maps weighted by the linear
            layer. Their mean over h × w is what a slice alone would say, up to the bias.
        shares: (D, S) what each slice adds to the logit through the maximum; with the
            bias they sum up to the logit.
        bias: (D,) of the linear layer.
    """

    logits: Tensor
    maps: Tensor
    shares: Tensor
    bias: Tensor

    @property
    def picked(self) -> Tensor:
        """(D,) the slice that adds most to the logit."""
        return self.shares.argmax(dim=1)


class MRNet(nn.Module):
    """Features, global average pooling, maximum over slices, linear layer.

    The linear layer sees the pooled features as they are, like the paper's, unless
    `scale` was called.

    Args:
        features: (S, in, H, W) → (S, width, h, w).
        width: its channels.
        outputs: diagnoses; 1 in the paper.

    >>> network = MRNet(*small())
    >>> exams = [torch.zeros(slices, 1, 64, 64) for slices in (5, 9)]
    >>> network(exams).shape
    torch.Size([2, 1])
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, features: nn.Sequential, width: int, outputs: int = 1) -> None:
        super().__init__()
        # convolutions of slices are two to five times as fast in this layout on a CPU
        self.features = features.to(memory_format=torch.channels_last)
        self.classifier = nn.Linear(width, outputs)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        first = next(m for m in features.modules() if isinstance(m, nn.Conv2d))
        self.colours = first.in_channels
        self.start, self.step = lattice(features)

    def freeze(self, layers: int) -> None:
        """Leave the weights of the first layers of `features` as they are."""
        for parameter in self.features[:layers].parameters():
            parameter.requires_grad_(False)

    @torch.no_grad()
    def scale(self, exams: Iterable[Tensor], gain: float = 1.0) -> None:
        """Let the linear layer start from features of zero mean and one spread.

        A lesion of a hundred pixels changes the mean of a slice by little, and every
        exam shares most of what is left: gradient descent on the pooled features first
        spends its steps on what tells no exam from another. Subtracting their mean and
        dividing by their standard deviation over training exams changes what is learned
        first, and nothing that can be learned: both could be moved into the weights and
        the bias.

        Args:
            exams: (S, 1, H, W) each; some dozens are enough.
            gain: the spread; more makes the linear layer learn faster than the features.
        """
        pooled = self.pooled(exams)
        deviation = pooled.std(dim=0, correction=0)
        self.mean.copy_(pooled.mean(dim=0))
        # Channels that hardly vary are noise: they are not blown up.
        self.spread.copy_((deviation + 0.01 * deviation.max()) / gain)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    @torch.no_grad()
    def probe(
        self, exams: Iterable[Tensor], labels: Tensor, strength: float = 0.01
    ) -> None:
        """Fit the linear layer to features that are not trained yet.

        A random linear layer first pulls the features in random directions; one that
        fits tells them what to look for from the first step on (Kumar et al. 2022,
        arXiv 2202.10054: linear probing, then fine-tuning).

        Args:
            exams: (S, 1, H, W) each.
            labels: (N, outputs) of the exams, 0 or 1; an output whose labels are all
                alike stays at 0.
            strength: of the fit, the inverse of its quadratic penalty.
        """
        scaled = ((self.pooled(exams) - self.mean) / self.spread).cpu().numpy()
        for k, column in enumerate(labels.T):
            if len(column.unique()) < 2:
                continue
            model = LogisticRegression(
                C=strength, class_weight="balanced", max_iter=1000
            ).fit(scaled, column.numpy())
            self.classifier.weight[k] = torch.from_numpy(model.coef_[0])
            self.classifier.bias[k] = float(model.intercept_[0])

    def pooled(self, exams: Iterable[Tensor]) -> Tensor:
        """Exams of (S, 1, H, W) on any device → (N, C): the largest mean of a slice."""
        return torch.stack(
            [
                self.feature_maps(exam.to(self.mean.device))
                .mean((2, 3), dtype=torch.float32)
                .amax(dim=0)
                for exam in exams
            ]
        )

    def feature_maps(self, slices: Tensor) -> Tensor:
        """(S, 1, H, W) grey levels 0 to 255 → (S, C, h, w); grey is repeated to RGB."""
        grey = to_network(slices)
        colours = grey.expand(-1, self.colours, -1, -1)
        return self.features(colours.contiguous(memory_format=torch.channels_last))

    def forward(self, exams: Sequence[Tensor]) -> Tensor:
        """B exams of (S, 1, H, W), S may differ → logits (B, outputs), float32."""
        maps = self.feature_maps(torch.cat(list(exams)))
        slices = maps.mean((2, 3), dtype=torch.float32)
        parts = slices.split([len(exam) for exam in exams])
        return self._classify(torch.stack([part.amax(dim=0) for part in parts]))

    def _classify(self, pooled: Tensor) -> Tensor:
        """(..., C) → (..., outputs).

        Not `nn.Linear`: autocast would round logits to bfloat16, and two exams in three
        hundred would share a score.
        """
        scaled = (pooled - self.mean) / self.spread
        weight, bias = self.classifier.weight.float(), self.classifier.bias.float()
        return (scaled[..., None, :] * weight).sum(-1) + bias

    def _linear(self) -> tuple[Tensor, Tensor]:
        """Weights (outputs, C) and bias (outputs,) for pooled features as they are."""
        weight = self.classifier.weight.float() / self.spread
        return weight, self.classifier.bias.float() - (weight * self.mean).sum(-1)

    @torch.inference_mode()
    def explain(self, exam: Tensor) -> Explanation:
        """One exam (S, 1, H, W) → logits, maps and shares, on the CPU."""
        maps = self.feature_maps(exam).float()
        slices = maps.mean((2, 3))
        pooled, source = slices.max(dim=0)
        weight, bias = self._linear()
        shares = torch.zeros(len(weight), len(exam), device=maps.device)
        shares.index_add_(1, source, weight * pooled)
        return Explanation(
            self._classify(pooled).cpu(),
            torch.einsum("dc,schw->dshw", weight, maps).cpu(),
            shares.cpu(),
            bias.cpu(),
        )


@torch.inference_mode()
def ask(model: nn.Module, data: Dataset) -> tuple[list[Tensor], Tensor]:
    """What a model answers about each exam alone, in float32 on the CPU, and the labels.

    Args:
        model: takes a list of exams (S, 1, H, W).
        data: items with `image` and `label` (D,); it has a length.

    Returns:
        N answers, and (N, D).
    """
    device = next(model.parameters()).device
    items = (data[k] for k in range(len(data)))  # type: ignore[arg-type]
    found = [
        (model([item["image"].to(device)]).float().cpu(), item["label"])
        for item in items
    ]
    answers, labels = zip(*found, strict=True)
    return list(answers), torch.stack(list(labels))


# -------------------------------------------------------------------------------- places


def lattice(features: nn.Module) -> tuple[float, int]:
    """Where the cells of the feature maps lie: pixel of the first one, distance.

    A convolution or pooling of size k, stride s and padding p moves the centre of the
    first cell by (k - 1)/2 - p cells of its input, and makes cells s times as far
    apart. For layers in a row; branches must not shift (as in SqueezeNet).

    >>> lattice(alexnet()[0]), lattice(squeezenet()[0])
    ((31.0, 32), (15.0, 16))
    """
    start, step = 0.0, 1
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            size, stride, padding = (
                value[0] if isinstance(value, tuple) else value
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            start += step * ((int(size) - 1) / 2 - int(padding))
            step *= int(stride)
    return start, step


def enlarge(maps: Tensor, side: int, start: float, step: int) -> Tensor:
    """Feature maps → pixels, bilinear between the cells' true centres.

    The usual way, stretching the map to the size of the image, puts cells up to half
    their size beside where they looked. Beyond the outermost centres the map goes on
    level.

    Args:
        maps: (..., h, w).
        side: of the square slices.
        start: see `lattice`.
        step: see `lattice`.

    Returns:
        (..., side, side).
    """

    def weights(cells: int) -> Tensor:
        place = ((torch.arange(side) - start) / step).clamp(0, cells - 1)
        distance = (place[:, None] - torch.arange(cells)).abs()
        return (1 - distance).clamp(min=0)

    rows, columns = weights(maps.shape[-2]), weights(maps.shape[-1])
    return rows @ maps.float() @ columns.T


# ----------------------------------------------------------------------------- features


def alexnet() -> tuple[nn.Sequential, int]:
    """AlexNet's convolutions: (S, 3, 256, 256) → (S, 256, 7, 7)."""
    return models.alexnet(weights=None).features, 256


def squeezenet() -> tuple[nn.Sequential, int]:
    """SqueezeNet 1.1 for grey slices: (S, 1, 256, 256) → (S, 512, 15, 15)."""
    features = models.squeezenet1_1(weights=None).features
    features[0] = nn.Conv2d(1, 64, kernel_size=3, stride=2)
    return features, 512


def small(channels: Sequence[int] = (16, 16, 32)) -> tuple[nn.Sequential, int]:
    """Three halvings, for `tiny`: (S, 1, 112, 112) → (S, 32, 14, 14).

    No normalisation: what follows is a mean over the slice, and a layer that sets this
    mean to a fixed value leaves it nothing to say.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise((1, *channels)):
        convolution = nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        layers += [convolution, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers), channels[-1]


BACKBONES: dict[str, Callable[[], tuple[nn.Sequential, int]]] = {
    "alexnet": alexnet,
    "squeezenet": squeezenet,
    "small": small,
}


def grey_input(weight: Tensor) -> Tensor:
    """First kernels of a network for colours → for grey slices.

    A grey picture has the same value in every colour, so the kernels of the colours can
    be added: (C, 3, k, k) → (C, 1, k, k). The network was trained on grey levels of
    ± 128 and gets values of unit spread, so the sum is enlarged by the spread of
    photographs.
    """
    return weight.sum(dim=1, keepdim=True) * IMAGENET_SPREAD


def squeezenet_state(arrays: Mapping[str, Sequence[Tensor]]) -> dict[str, Tensor]:
    """Weights under Keras' names → those of torchvision's `squeezenet1_1().features`.

    Kernels (k, k, in, out) become (out, in, k, k). The colours stay in the order of the
    file: blue, green, red, as grey levels minus (103.939, 116.779, 123.68).

    Args:
        arrays: {`conv1`, `fire2/squeeze1x1` ...: (kernel, bias)}.
    """
    places = (3, 4, 6, 7, 9, 10, 11, 12)  # fire2 to fire9, with poolings between them
    parts = {
        "squeeze1x1": "squeeze",
        "expand1x1": "expand1x1",
        "expand3x3": "expand3x3",
    }
    names = {"conv1": "0"} | {
        f"fire{number}/{theirs}": f"{place}.{ours}"
        for number, place in enumerate(places, start=2)
        for theirs, ours in parts.items()
    }
    state = {}
    for theirs, ours in names.items():
        kernel, bias = arrays[theirs]
        state[f"{ours}.weight"] = kernel.permute(3, 2, 0, 1).contiguous()
        state[f"{ours}.bias"] = bias
    return state


# --------------------------------------------------------------------------------- loss


def positive_share(labels: Tensor) -> Tensor:
    """(N, D) labels of the training exams → (D,) share of positives of each diagnosis.

    A diagnosis without positives or without negatives counts as even.
    """
    share = labels.float().mean(dim=0)
    return torch.where((share > 0) & (share < 1), share, torch.full_like(share, 0.5))


def weighted_loss(logits: Tensor, labels: Tensor, share: Tensor) -> Tensor:
    r"""Cross-entropy in which both classes of a diagnosis weigh the same in total.

    $$L = -\big[(1 - \bar y)\, y \log p + \bar y\, (1 - y) \log (1 - p)\big]$$

    with the share $\bar y$ of positives among the training exams. The weight belongs to
    the example. A known fault of re-implementations is to hand the two weights to the
    two columns of an output, which weighs nothing at all.

    Args:
        logits: (B, D).
        labels: (B, D), 0 or 1.
        share: (D,) see `positive_share`.

    Returns:
        The mean over exams and diagnoses, in float32.
    """
    weight = torch.where(labels > 0.5, 1 - share, share)
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), weight)
