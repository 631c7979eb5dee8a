"""The fully convolutional network, its image score and its loss.

The U-Net (Ronneberger et al. 2015, arXiv 1505.04597) answers *where* for every pixel.
Gooßen et al. 2019 use one for pneumothorax; their blocks, loss and image score are not
published, so those below are our choices, each with its reason.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_block(
    in_channels: int, out_channels: int, convolutions: int = 2
) -> nn.Sequential:
    """Convolution 3 × 3, group normalisation, ReLU; once or twice.

    (B, in, H, W) → (B, out, H, W). Ronneberger et al. let each convolution eat its
    border; we pad instead, so that input and output have one size.

    Why group and not batch normalisation: batches are small, and the network meets
    films that look unlike its training images. Group normalisation takes mean and
    spread from the image at hand. Batch normalisation would apply those of the training
    set.
    """
    layers: list[nn.Module] = []
    for step in range(convolutions):
        first = in_channels if step == 0 else out_channels
        layers += [
            nn.Conv2d(first, out_channels, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(max(1, out_channels // 8), out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Contracting path, expanding path, and a bridge between them at every resolution.

    | step | shape |
    |---|---|
    | level 0, full resolution | (B, c0, H, W) |
    | level k of the contracting path | (B, ck, H/2^k, W/2^k) |
    | up-convolution, joined with level k | (B, 2 ck, H/2^k, W/2^k) |
    | 1 × 1 convolution | (B, out, H, W) |

    The full resolution gets one convolution instead of two: half of the time is spent
    there, while most of the learning happens below.

    With `unshuffle` = 2 each square of 2 × 2 pixels becomes four channels of one, before the
    first level, and four logits become 2 × 2 pixels again after the last (Shi et al.
    2016, arXiv 1609.05158). No pixel is lost, level 0 has a quarter of the positions,
    and training takes a fifth of the time: what a CPU needs.

    Args:
        in_channels: 1 for a radiograph.
        out_channels: 1 for one finding.
        channels: width of each level, from the top to the bottom. H and W must be
            divisible by unshuffle * 2 ** (levels - 1).
        unshuffle: side of the squares that become channels; 1 leaves the image as it is.

    >>> network = UNet(channels=(8, 16, 32))
    >>> network(torch.zeros(2, 1, 64, 96)).shape
    torch.Size([2, 1, 64, 96])
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        channels: tuple[int, ...] = (16, 16, 32, 64, 96, 128),
        unshuffle: int = 1,
    ) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.contract = nn.ModuleList(
            [conv_block(in_channels * unshuffle**2, channels[0], convolutions=1)]
        )
        self.contract.extend(
            conv_block(above, below) for above, below in pairwise(channels)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(below, above, kernel_size=2, stride=2)
            for above, below in pairwise(channels)
        )
        self.expand = nn.ModuleList(
            conv_block(2 * width, width, convolutions=1 if level == 0 else 2)
            for level, width in enumerate(channels[:-1])
        )
        self.head = nn.Conv2d(channels[0], out_channels * unshuffle**2, kernel_size=1)
        # Findings are rare: start by saying "5 %" everywhere, not "50 %". Much less than
        # that, and the gradient of the Dice term vanishes.
        nn.init.constant_(self.head.bias, -3.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) → logits (B, out, H, W); their sigmoid is a probability."""
        multiple = self.unshuffle * 2 ** len(self.up)
        if x.shape[-2] % multiple or x.shape[-1] % multiple:
            raise ValueError(
                f"height and width must be multiples of {multiple}, not "
                f"{tuple(x.shape[-2:])}."
            )
        x = F.pixel_unshuffle(x, self.unshuffle)
        bridges: list[Tensor] = []
        for level, block in enumerate(self.contract):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            bridges.append(x)
        bridges.pop()  # the bottom has nothing to bridge to
        for up, expand in zip(reversed(self.up), reversed(self.expand), strict=True):
            x = expand(torch.cat([bridges.pop(), up(x)], dim=1))
        return F.pixel_shuffle(self.head(x), self.unshuffle)


def image_logits(logits: Tensor, share: float = 0.0025) -> Tensor:
    """One logit per image: the mean of its highest pixel logits.

    A pneumothorax is small, so the mean over all pixels would drown it, and the maximum
    alone would trust one pixel. The top 0.25 % (500 pixels of 448 × 448) are the area
    of a small but certain finding. Gradients reach these pixels alone: in a negative
    they are exactly the pixels that should not have fired.

    Args:
        logits: (B, 1, H, W) or (H, W).
        share: of the pixels that count.

    Returns:
        (B,), or a scalar for one map.
    """
    flat = logits.flatten(-2) if logits.ndim == 2 else logits.flatten(1)
    count = max(1, round(share * flat.shape[-1]))
    return flat.topk(count, dim=-1, sorted=False).values.mean(dim=-1)


def image_score(probability: Tensor, share: float = 0.0025) -> float:
    """Score in [0, 1] of an image from its (H, W) map; see `image_logits`."""
    return float(image_logits(torch.logit(probability, eps=1e-6), share).sigmoid())


def segmentation_loss(
    logits: Tensor,
    mask: Tensor,
    label: Tensor,
    annotated: Tensor,
    *,
    image_weight: float = 0.5,
    pixel_weight: float = 1.0,
    positive_weight: float = 1.0,
    smallest: float = 0.0,
) -> Tensor:
    r"""Pixel-wise cross-entropy + Dice of positives + cross-entropy of the image score.

    $$L = v\,\mathrm{BCE}_\text{pixels}
          + \Big(1 - \frac{2\sum p\,y}{\sum p + \sum y}\Big)
          + w\,\mathrm{BCE}_\text{image}$$

    - The cross-entropy is calibrated but ruled by the 99 % of background; a weight of
      positive pixels above 1 gives calibration up for a louder gradient.
    - Dice is blind to background and weighs small and large findings alike. It is taken
      per image and of positives only: without foreground it is 1 whatever the network
      does.
    - The image term punishes the brightest false alarm of a negative, and is all that
      an image without a mask (a label read from a report) can teach.

    Args:
        logits: (B, 1, H, W).
        mask: (B, 1, H, W) in [0, 1], may be soft.
        label: (B,) 0 or 1 of the whole image.
        annotated: (B,) bool; False where a positive has no mask.
        image_weight: w.
        pixel_weight: v.
        positive_weight: of positive pixels in the cross-entropy of pixels.
        smallest: curriculum. Positives with a mask area (share of the image) below this
            count proportionally less in the Dice and image terms.

    Returns:
        The scalar loss, in float32.
    """
    logits, mask, label = logits.float(), mask.float(), label.float()
    with_mask = annotated.float()
    pixels = F.binary_cross_entropy_with_logits(
        logits, mask, reduction="none", pos_weight=logits.new_tensor(positive_weight)
    ).mean((1, 2, 3))
    loss = pixel_weight * (pixels * with_mask).sum() / with_mask.sum().clamp(min=1)

    probability = logits.sigmoid()
    area = mask.mean((1, 2, 3))
    overlap = 1 - 2 * (probability * mask).sum((1, 2, 3)) / (
        (probability + mask).sum((1, 2, 3)).clamp(min=1)
    )
    # A crop can lose the finding: then neither label nor mask of the crop says
    # positive.
    seen = torch.where(annotated, (area > 0).float(), label)
    weight = (area / smallest).clamp(max=1) if smallest > 0 else torch.ones_like(area)
    weight = torch.where((seen > 0) & annotated, weight, torch.ones_like(weight))
    positive = weight * (area > 0) * with_mask
    loss = loss + (overlap * positive).sum() / positive.sum().clamp(min=1)

    image = F.binary_cross_entropy_with_logits(
        image_logits(logits), seen, reduction="none"
    )
    return loss + image_weight * (image * weight).mean()
