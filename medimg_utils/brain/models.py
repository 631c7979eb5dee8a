"""The two 3-D U-Nets of Weninger et al. 2019 (doi 10.1007/978-3-030-11726-9_1).

Step 1 looks at the whole brain and finds the tumour. It pads, so that its output has
the size of its input. Step 2 looks at the tumour from near and tells its parts apart.
Its convolutions do not pad, so that its output sees no made-up border (but for one
detail, see `UnpaddedUNet`): 124³ voxels go in, the 36³ in their middle come out. Both are
built from one block, twice (convolution 3 × 3 × 3, normalisation, ReLU).

Shapes are (B, C, D, H, W). The convolutions have a bias although instance normalisation
takes it out again; the published networks count it, and fixed statistics need it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = 5  # T1, T1ce, T1ce − T1, T2, FLAIR
CLASSES = 4  # background, necrotic and non-enhancing core, oedema, enhancing tumour
MULTIPLE = 8  # three times pooled by two
BORDER = 44  # voxels that step 2 loses on each side

Normalisation = Callable[[int], nn.Module]


# ------------------------------------------------------------------------- building blocks


class InstanceNorm(nn.Module):
    r"""$(x - \mu_{bc}) / \sqrt{\sigma_{bc}^2 + \epsilon}$ over the voxels of each channel.

    No weights. (B, C, D, H, W) → the same.

    Equal to `nn.InstanceNorm3d`, but with one sample it calls batch normalisation in
    training mode, which is the same formula and, unlike the other, knows the layout
    `channels_last_3d`: in bfloat16 the whole network then runs about twice as fast on a
    CPU.

    >>> x = torch.randn(2, 3, 4, 4, 4)
    >>> torch.allclose(InstanceNorm(3)(x), F.instance_norm(x), atol=1e-6)
    True
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each sample by itself."""
        samples = [F.batch_norm(one, None, None, training=True) for one in x.split(1)]
        return samples[0] if len(samples) == 1 else torch.cat(samples)


class FixedNorm(nn.Module):
    r"""$(x - \mu_c) / \sqrt{\sigma_c^2 + \epsilon}$ with statistics that no longer move.

    A voxel's value then depends on its surroundings alone and not on which tile it was
    computed in. (B, C, D, H, W) → the same.

    Attributes:
        mean: (C,) of the activations, over many training patches.
        variance: (C,) of the activations.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every sample by the stored statistics."""
        return F.batch_norm(x, self.mean, self.variance, training=False)


def max_pool(x: Tensor) -> Tensor:
    """Maximum of each 2 × 2 × 2 block: (B, C, D, H, W) → (B, C, D/2, H/2, W/2).

    Equal to `F.max_pool3d(x, 2)`. Prediction takes the maximum of shifted views, which is
    fast in any layout and precision. Their gradient is slow, so training does not.

    >>> x = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    >>> max_pool(x).item()
    7.0
    """
    if x.requires_grad:
        return F.max_pool3d(x, 2)
    for axis in (2, 3, 4):
        index: list[slice] = [slice(None)] * 5
        views = []
        for start in (0, 1):
            index[axis] = slice(start, None, 2)
            views.append(x[tuple(index)])
        x = torch.maximum(*views)
    return x


def conv_block(
    in_channels: int, out_channels: int, norm: Normalisation, *, padding: int
) -> nn.Sequential:
    """Twice: convolution 3 × 3 × 3, normalisation, ReLU.

    (B, in, D, H, W) → (B, out, D − k, H − k, W − k); k is 0 with `padding` 1, and 4 with
    `padding` 0.
    """
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv3d(channels, out_channels, kernel_size=3, padding=padding),
            norm(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


def up_block(in_channels: int, out_channels: int, norm: Normalisation) -> nn.Sequential:
    """Transposed convolution to twice the size, normalisation, ReLU.

    (B, in, D, H, W) → (B, out, 2 D, 2 H, 2 W).
    """
    return nn.Sequential(
        nn.ConvTranspose3d(
            in_channels,
            out_channels,
            kernel_size=3,
            stride=2,
            padding=1,
            output_padding=1,
        ),
        norm(out_channels),
        nn.ReLU(inplace=True),
    )


class UNet3d(nn.Module):
    """What both steps share: contract three times, expand three times, with skips.

    Args:
        in_channels: of the image.
        out_channels: classes.
        width: channels of the first level; each level below has twice as many.
        padding: 1 keeps the size in every convolution, 0 lets it shrink.
        ups: (out channels) of the three up-convolutions, from the bottom to the top.
        norm: builds the normalisation of a number of channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        width: int,
        *,
        padding: int,
        ups: Sequence[int],
        norm: Normalisation,
    ) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.contract = nn.ModuleList(
            conv_block(above, below, norm, padding=padding)
            for above, below in pairwise([in_channels, *widths])
        )
        self.up = nn.ModuleList(
            up_block(below, up, norm)
            for below, up in zip(widths[:0:-1], ups, strict=True)
        )
        self.expand = nn.ModuleList(
            conv_block(up + skip, skip, norm, padding=padding)
            for up, skip in zip(ups, widths[-2::-1], strict=True)
        )
        self.head = nn.Conv3d(width, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, D, H, W) → logits (B, out, D', H', W')."""
        skips: list[Tensor] = []
        for level, block in enumerate(self.contract):
            x = block(x if level == 0 else max_pool(x))
            skips.append(x)
        skips.pop()  # the bridge at the bottom has nothing to skip to
        for up, expand in zip(self.up, self.expand, strict=True):
            x = up(x)
            x = expand(torch.cat([x, center_crop(skips.pop(), x.shape[2:])], dim=1))
        return self.head(x)


def center_crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The middle (D, H, W) = `shape` of (B, C, ...); the margins must be even.

    >>> center_crop(torch.zeros(1, 1, 6, 6, 8), (4, 2, 8)).shape
    torch.Size([1, 1, 4, 2, 8])
    """
    for axis, size in zip((2, 3, 4), shape, strict=True):
        x = x.narrow(axis, (x.shape[axis] - size) // 2, size)
    return x


# --------------------------------------------------------------------------- the two steps


class PaddedUNet(UNet3d):
    """Step 1, *where is the tumour*: the whole brain box at once.

    | level | channels | size |
    |---|---|---|
    | 1, 2, 3 | 16, 32, 64 | 1, 1/2, 1/4 |
    | bridge | 128 | 1/8 |

    The up-convolutions keep their channels. 2,042,162 parameters at width 16.

    >>> PaddedUNet(width=4)(torch.zeros(1, 5, 16, 24, 8)).shape
    torch.Size([1, 2, 16, 24, 8])
    """

    def __init__(self, width: int = 16, norm: Normalisation = InstanceNorm) -> None:
        ups = [8 * width, 4 * width, 2 * width]
        super().__init__(CHANNELS, 2, width, padding=1, ups=ups, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 5, D, H, W) → logits (B, 2, D, H, W); sizes are multiples of 8."""
        if any(size % MULTIPLE for size in x.shape[2:]):
            raise ValueError(
                f"depth, height and width must be multiples of {MULTIPLE}, not "
                f"{tuple(x.shape[2:])}."
            )
        return super().forward(x)


class UnpaddedUNet(UNet3d):
    """Step 2, *which tissue is it*: a box, seen with 44 voxels around it.

    | level | channels | size for 124³ | of the skip, cut on each side |
    |---|---|---|---|
    | 1 | 32 | 120 → 36 | 40 |
    | 2 | 64 | 56 → 20 | 16 |
    | 3 | 128 | 24 → 12 | 4 |
    | bridge | 256 | 8 | |

    The up-convolutions halve their channels. 6,420,420 parameters at width 32.

    One border is made up all the same. An up-convolution of stride 2 with output padding
    makes the last plane of each axis without the neighbour that lies beyond. Three times
    doubled, that reaches the last 7 of the 36 planes of each axis: they depend on where
    the tile ends, the other 29 do not.

    >>> UnpaddedUNet(width=2)(torch.zeros(1, 5, 92, 92, 100)).shape
    torch.Size([1, 4, 4, 4, 12])
    """

    def __init__(self, width: int = 32, norm: Normalisation = InstanceNorm) -> None:
        ups = [4 * width, 2 * width, width]
        super().__init__(CHANNELS, CLASSES, width, padding=0, ups=ups, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 5, D, H, W) → logits (B, 4, D − 88, H − 88, W − 88); see `valid_size`."""
        if any(
            size != valid_size(size - 2 * BORDER) + 2 * BORDER for size in x.shape[2:]
        ):
            raise ValueError(
                "depth, height and width must be 92, 100, 108 and so on, not "
                f"{tuple(x.shape[2:])}."
            )
        return super().forward(x)


def padded_twin(network: UnpaddedUNet) -> UNet3d:
    """Step 2's layers with its weights, but with padding: it keeps the size of a patch.

    An unpadded network computes 124³ voxels to learn from 36³ of them. Where time is
    short, the same weights can first learn from small patches, every voxel of which has
    an answer, and get used to real surroundings afterwards: the twin's weights fit back
    into the network.

    Args:
        network: with instance normalisation; not changed.

    >>> padded_twin(UnpaddedUNet(width=2))(torch.zeros(1, 5, 16, 24, 8)).shape
    torch.Size([1, 4, 16, 24, 8])
    """
    width = network.head.in_channels
    ups = [4 * width, 2 * width, width]
    twin = UNet3d(CHANNELS, CLASSES, width, padding=1, ups=ups, norm=InstanceNorm)
    twin.load_state_dict(network.state_dict())
    return twin


def valid_size(size: int) -> int:
    """The smallest size of step 2's output that is not below `size`: 4, 12, 20, ...

    >>> [valid_size(size) for size in (1, 4, 5, 36)]
    [4, 4, 12, 36]
    """
    return max(0, -(-(size - 4) // MULTIPLE)) * MULTIPLE + 4


def count_parameters(network: nn.Module) -> int:
    """How many numbers training adjusts."""
    return sum(parameter.numel() for parameter in network.parameters())


# -------------------------------------------------------------------- statistics, one pass


def fix_statistics(network: UnpaddedUNet, patches: Sequence[Tensor]) -> UnpaddedUNet:
    """A copy of the network whose normalisation no longer depends on the tile.

    Each instance normalisation is replaced by a fixed one that holds mean and variance
    of the activations over all the patches. The copy must be trained on for a while: it
    has never met a patch whose own statistics differ.

    Args:
        network: with instance normalisation; not changed.
        patches: (1, 5, D, H, W) inputs of training, all of one size.

    Returns:
        A network with the same parameters, and `FixedNorm` throughout.
    """
    layers = [m for m in network.modules() if isinstance(m, InstanceNorm)]
    moments: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def collect(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        variance, mean = torch.var_mean(inputs[0].float(), (0, 2, 3, 4), correction=0)
        moments[layer].append(torch.stack([mean, variance + mean**2]).cpu().double())

    hooks = [layer.register_forward_pre_hook(collect) for layer in layers]
    device = next(network.parameters()).device
    try:
        with torch.inference_mode():
            for patch in patches:
                network(patch.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    fixed = UnpaddedUNet(network.head.in_channels, FixedNorm)
    fixed.load_state_dict(network.state_dict(), strict=False)
    targets = [m for m in fixed.modules() if isinstance(m, FixedNorm)]
    for source, target in zip(layers, targets, strict=True):
        mean, square = torch.stack(moments[source]).mean(dim=0)
        target.mean.copy_(mean)
        target.variance.copy_((square - mean**2).clamp(min=1e-8))
    return fixed


def fuse(network: UnpaddedUNet) -> UnpaddedUNet:
    r"""A copy in which each convolution does the work of the fixed norm behind it.

    $w' = w / \sqrt{\sigma^2 + \epsilon}$, $b' = (b - \mu) / \sqrt{\sigma^2 +
    \epsilon}$. For prediction only; equal up to rounding.
    """
    fused = UnpaddedUNet(network.head.in_channels, FixedNorm)
    fused.load_state_dict(network.state_dict())
    for block in [*fused.contract, *fused.up, *fused.expand]:
        for place, layer in enumerate(block):
            if not isinstance(layer, FixedNorm):
                continue
            convolution = block[place - 1]
            scale = (layer.variance + 1e-5).rsqrt()
            out_axis = 1 if isinstance(convolution, nn.ConvTranspose3d) else 0
            shape = [1] * 5
            shape[out_axis] = -1
            with torch.no_grad():
                convolution.weight.mul_(scale.reshape(shape))
                convolution.bias.sub_(layer.mean).mul_(scale)
            block[place] = nn.Identity()
    return fused


# --------------------------------------------------------------------------------- losses


def find_loss(logits: Tensor, tumour: Tensor) -> Tensor:
    """Binary cross-entropy on the two channels *background* and *whole tumour*.

    Args:
        logits: (B, 2, D, H, W).
        tumour: (B, D, H, W) in [0, 1]; may be soft where voxels were averaged.
    """
    target = torch.stack([1 - tumour, tumour], dim=1).float()
    return F.binary_cross_entropy_with_logits(logits.float(), target)


def dice_loss(logits: Tensor, target: Tensor, epsilon: float = 1e-5) -> Tensor:
    r"""One minus the mean Dice of the four classes, with squared denominators.

    $$L = 1 - \frac14 \sum_c \frac{2 \sum p_c\,y_c + \epsilon}
              {\sum p_c^2 + \sum y_c^2 + \epsilon}$$

    The sums run over all voxels of the batch: a patch without enhancing tumour then does
    not count as a failure of its own. With squares the best answer to a voxel that is
    60 % oedema is 0.6; without them it would be 1.

    Args:
        logits: (B, 4, D, H, W).
        target: (B, 4, D, H, W) share of each class, sums to 1.
        epsilon: keeps a class that is absent from both at a Dice of 1.
    """
    probability, target = logits.float().softmax(dim=1), target.float()
    axes = (0, 2, 3, 4)
    both = (probability * target).sum(axes)
    either = probability.square().sum(axes) + target.square().sum(axes)
    return 1 - ((2 * both + epsilon) / (either + epsilon)).mean()
