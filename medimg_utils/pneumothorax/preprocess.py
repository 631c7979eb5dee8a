"""From a radiograph of any size and exposure to the network's input, and back.

Gooßen et al. 2019 rescale to 480 × 480 and train on random crops of 448 × 448. What the
paper does not tell is our choice and said here:

1. **Square.** A film is rarely square. Stretching it would change the shape of lungs
   and ribs, so it is padded with black to a square first; `Geometry.restore` undoes
   this exactly.
2. **Grey values.** Two machines show the same chest with different curves.
   Standardising by a contrast-limited histogram equalisation removes every monotone
   change of the grey curve as far as the limit allows, and treats a black collimation
   border or a white margin as what it is in a histogram: one tall bin, which the limit
   cuts.
3. **Masks** are shrunk by area and stay soft: a pixel that is half covered is half
   positive. A threshold would delete the thin rims that make up most small
   pneumothoraces.
4. **Augmentation** moves image and mask together and changes the rendering of the image
   alone, broadly, because scanners differ more than patients do.
5. **Prediction** averages over overlapping crops, so each pixel of the square has a
   value, and, where the experiment asks for it, over each crop and its mirror image and
   over the square at several sizes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from medimg_utils.errors import InputError
from medimg_utils.geometry import Geometry
from medimg_utils.physics.xray import convolve


class ContrastError(InputError):
    """An image shows nothing: all its pixels have the same value, or it is a strip."""


# -------------------------------------------------------------------------- grey values


def standardise(image: Tensor, *, limit: float = 3.0, bins: int = 256) -> Tensor:
    r"""Contrast-limited histogram equalisation of one image.

    With the histogram $h$ of the values between the 0.5th and the 99.5th percentile,
    cut at `limit` times its mean and topped up evenly, the new value is the share of
    the histogram below the old one:

    $$y = \sum_{b \le x} \tilde h_b, \qquad \tilde h = \min(h, c) + \text{const}$$

    Args:
        image: (H, W), any unit.
        limit: steepest slope of the new grey curve; 1 keeps the curve linear, infinity
            makes every grey value equally frequent.
        bins: of the histogram.

    Returns:
        (H, W) in [0, 1]. Linear changes of `image` change nothing.

    Raises:
        ContrastError: all pixels are equal.
    """
    ordered = image.flatten().sort().values
    last = ordered.numel() - 1
    low, high = ordered[int(0.005 * last)], ordered[math.ceil(0.995 * last)]
    if not high > low:  # nearly everything is border: fall back to the full range
        low, high = ordered[0], ordered[-1]
    if not high > low:
        raise _blank(float(low))
    scaled = ((image - low) / (high - low)).clamp(0, 1)
    place = (scaled * (bins - 1)).round().long()
    histogram = torch.bincount(place.flatten(), minlength=bins).double()
    histogram[[0, -1]] = 0  # both ends hold borders and saturation, not tissue
    histogram = histogram / histogram.sum().clamp(min=1)
    cut = histogram.clamp(max=limit / bins)
    cut = cut + (1 - cut.sum()) / bins  # what was cut off is spread evenly
    knots = torch.cat([torch.zeros(1, dtype=torch.double), cut.cumsum(0)])
    # Between the knots the curve is linear: no banding where few bins are used.
    position = scaled.double() * bins
    left = position.floor().clamp(max=bins - 1).long()
    return torch.lerp(knots[left], knots[left + 1], position - left).float()


def _blank(value: float) -> ContrastError:
    return ContrastError(
        f"every pixel of the image is {value:.3g}, but a radiograph has contrast. "
        "The file is blank."
    )


def check_film(pixels: NDArray[np.floating]) -> None:
    """Refuse (H, W) pixels that cannot be a radiograph.

    Raises:
        ContrastError: all pixels are equal, or one side is more than ten times the other.
    """
    if min(pixels.shape) * 10 < max(pixels.shape):
        raise ContrastError(
            f"an image of {pixels.shape[0]} × {pixels.shape[1]} pixels is a strip, not a "
            "radiograph. Check the file."
        )
    if not np.ptp(pixels) > 0:
        raise _blank(float(pixels.flat[0]))


def prepare(
    pixels: NDArray[np.floating], size: int = 480
) -> tuple[NDArray[np.uint8], Geometry]:
    """A radiograph as the network's data set keeps it: square, standardised, 8 bit.

    Training, evaluation and prediction all start from here, so they see the same
    picture.

    Args:
        pixels: (H, W) in [0, 1], bright is absorbing, as `medimg_utils.io.read_image`
            gives it.
        size: side of the square.

    Returns:
        (size, size) uint8, and the geometry that leads back.

    Raises:
        ContrastError: see `check_film`.
    """
    check_film(pixels)  # before rescaling, which leaves rounding errors
    geometry = Geometry((pixels.shape[0], pixels.shape[1]), size)
    square = geometry.to_square(
        torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    )
    # The padding is not part of the film: it stays black and out of the histogram.
    top, left = (math.ceil(offset * size / geometry.side) for offset in geometry.offset)
    film = square[top : size - top, left : size - left]
    film.copy_(standardise(film))
    return (square * 255).round().to(torch.uint8).numpy(), geometry


def prepare_mask(mask: NDArray[np.bool_], size: int = 480) -> NDArray[np.uint8]:
    """(H, W) mask → (size, size) uint8: covered share of each pixel, 255 = all."""
    geometry = Geometry((mask.shape[0], mask.shape[1]), size)
    square = geometry.to_square(torch.from_numpy(mask.astype(np.float32)))
    return (square * 255).round().to(torch.uint8).numpy()


def to_network(image: Tensor) -> Tensor:
    """[0, 1] → roughly zero mean and unit spread, which first layers like best.

    An equalised image is near uniform: mean 0.5, standard deviation 0.29.
    """
    return (image - 0.5) / 0.29


# ------------------------------------------------------------------------- augmentation


class Augment(nn.Module):
    """Random crop, pose, rendering and clutter for one image and its mask.

    Every step draws from torch's global generator, so that a seed set before the call
    decides the outcome.

    Args:
        crop: side of the random crop.
        strength: scales every amount; 0 leaves only the crop, 1 is meant for training.
        flip: probability of a left-right flip. It puts the heart on the wrong side,
            which is rare in patients; but side is no clue to a pneumothorax, and a
            network that knows both sides equally well is worth more than one that knows
            hearts.

    >>> augment = Augment(448)
    >>> image, mask = augment(torch.rand(1, 480, 480), torch.zeros(1, 480, 480))
    >>> image.shape, mask.shape
    (torch.Size([1, 448, 448]), torch.Size([1, 448, 448]))
    """

    def __init__(self, crop: int, strength: float = 1.0, flip: float = 0.5) -> None:
        from torchvision.transforms import v2  # only here: it takes two seconds

        super().__init__()
        self.strength = strength
        steps: list[nn.Module] = [v2.RandomCrop(crop)]
        if strength > 0:
            pose = v2.RandomAffine(
                degrees=8 * strength,
                translate=(0.06 * strength, 0.06 * strength),
                scale=(1 - 0.15 * strength, 1 + 0.15 * strength),
                shear=3 * strength,
                interpolation=v2.InterpolationMode.BILINEAR,
            )
            steps = [
                v2.RandomApply([pose], p=0.8),
                *steps,
                v2.RandomHorizontalFlip(flip),
            ]
        self.geometry = v2.Compose(steps)
        self.rendering: tuple[tuple[float, Callable[[Tensor, float], Tensor]], ...] = (
            (0.8, grey_curve),
            (0.5, uneven_exposure),
            (0.3, resolution_loss),
            (0.5, sharpen_or_blur),
            (0.5, noise),
            (0.2, jpeg),
            (0.4, clutter),
        )

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(1, H, W) in [0, 1] and mask in [0, 1] → both (1, crop, crop)."""
        image, mask = self.geometry(torch.cat([image, mask])).split(1)
        for probability, change in self.rendering:
            if torch.rand(()) < probability * min(self.strength, 1):
                image = change(image, self.strength).clamp(0, 1)
        return image, mask


def _between(low: float, high: float) -> float:
    return float(torch.empty(()).uniform_(low, high))


def grey_curve(image: Tensor, strength: float) -> Tensor:
    """A random rising grey curve: six steps of random height, mixed with a gamma.

    It is looked up in a table of 4096 greys, which costs a tenth of working it out.
    """
    steps = torch.empty(6).uniform_(-1, 1).mul(0.8 * strength).exp()
    knots = F.pad(steps.cumsum(0), (1, 0)) / steps.sum()
    greys = torch.linspace(0, 1, 4096)
    position = greys ** math.exp(_between(-0.4, 0.4) * strength) * 6
    left = position.long().clamp(max=5)
    table = torch.lerp(knots[left], knots[left + 1], position - left)
    places = (image.clamp(0, 1) * (len(table) - 1)).round().int()
    return table.index_select(0, places.flatten()).view_as(image)


def uneven_exposure(image: Tensor, strength: float) -> Tensor:
    """Add a smooth field of blobs, a sixth of the film wide or more: scatter, soft parts.

    An apex that is merely darker than its surroundings is then no clue any more.
    """
    side = int(torch.randint(3, 7, ()))
    coarse = torch.randn(side, side) * 0.12 * strength
    one = torch.eye(side)[None, None]
    rows, columns = (
        F.interpolate(one, size=(length, side), mode="bicubic")[0, 0]
        for length in image.shape[-2:]
    )
    return image + rows @ coarse @ columns.T


def resolution_loss(image: Tensor, strength: float) -> Tensor:
    """Down to as little as 45 % of the pixels a side, and up again."""
    share = 1 - _between(0.1, 0.55) * min(strength, 1)
    size = [max(8, round(side * share)) for side in image.shape[-2:]]
    small = F.interpolate(image[None], size=size, mode="bilinear", antialias=True)
    return F.interpolate(small, size=image.shape[-2:], mode="bilinear")[0]


def sharpen_or_blur(image: Tensor, strength: float) -> Tensor:
    """Unsharp masking, x + a (x - blurred x): a > 0 sharpens, a < 0 blurs."""
    sigma = _between(0.7, 4)
    radius = math.ceil(2.5 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(image[None], (radius,) * 4, mode="reflect")[0]
    blurred = convolve(convolve(padded, kernel, -1), kernel, -2)
    amount = _between(-0.7, 1.8) * strength
    return image + max(amount, -1.0) * (image - blurred)


def noise(image: Tensor, strength: float) -> Tensor:
    """Quantum noise: grains of one or two pixels."""
    grain = torch.randn_like(image)
    if torch.rand(()) < 0.5:  # a detector blurs its noise
        thirds = torch.full((3,), 1 / 3)
        padded = F.pad(grain, (1, 1, 1, 1))
        grain = convolve(convolve(padded, thirds, -1), thirds, -2) * 2
    return image + grain * _between(0.005, 0.05) * strength


def jpeg(image: Tensor, strength: float) -> Tensor:
    """Compression with loss; releases are often JPEG of unknown quality."""
    stored = io.BytesIO()
    grey = (image[0].clamp(0, 1) * 255).to(torch.uint8).numpy()
    Image.fromarray(grey).save(
        stored, "JPEG", quality=int(_between(95 - 60 * strength, 95))
    )
    return torch.from_numpy(np.array(Image.open(stored), dtype=np.float32))[None] / 255


def clutter(image: Tensor, strength: float) -> Tensor:
    """Leads, tubes and markers: up to four lines and a small box, brighter or darker.

    A line that is no pleura, and a box that hides one, teach not to trust lines alone.
    """
    height, width = image.shape[-2:]
    rows = torch.linspace(0, 1, height)[:, None]
    columns = torch.linspace(0, 1, width)[None, :]
    image = image.clone()
    for _ in range(int(torch.randint(0, 5, ()))):
        angle, bend = _between(0, math.pi), _between(-0.6, 0.6)
        x, y = columns - _between(0.1, 0.9), rows - _between(0.1, 0.9)
        along = x * math.cos(angle) + y * math.sin(angle)
        across = y * math.cos(angle) - x * math.sin(angle) - bend * along**2
        on = (across.abs() < _between(0.001, 0.006)) & (
            along.abs() < _between(0.05, 0.5)
        )
        image = image + on * _between(-0.15, 0.45) * strength
    if torch.rand(()) < 0.5:
        tall, wide = (
            max(2, int(side * _between(0.02, 0.12))) for side in (height, width)
        )
        top = int(_between(0, height - tall))
        left = int(_between(0, width - wide))
        image[:, top : top + tall, left : left + wide] = _between(0, 1)
    return image


# --------------------------------------------------------------------------- prediction


@torch.inference_mode()
def tiled_probability(
    network: nn.Module,
    image: Tensor,
    *,
    crop: int = 448,
    positions: int = 2,
    mirror: bool = False,
    zooms: Sequence[float] = (1.0,),
) -> Tensor:
    """Mean probability over overlapping crops that together cover the whole square.

    Args:
        network: (B, 1, crop, crop) → logits of the same shape.
        image: (1, S, S) in [0, 1], as the data set keeps it.
        crop: side of the crops, at most S.
        positions: places along each axis; 2 are the four corners.
        mirror: take the mean of the logits of each crop and of its mirror image.
        zooms: factors by which the square is enlarged before it is cropped; the mean of
            the logits of all of them counts.

    Returns:
        (S, S) float32 in [0, 1] on the CPU.

    Raises:
        InputError: the crops would leave pixels uncovered.

    >>> tiled_probability(nn.Conv2d(1, 1, 1), torch.rand(1, 480, 480)).shape
    torch.Size([480, 480])
    """
    size = image.shape[-1]
    maps = []
    for zoom in zooms:
        side = round(zoom * size)
        larger = image if side == size else _resized(image, side)
        found = _tiled(network, larger, crop, positions, mirror)
        maps.append(found if side == size else _resized(found[None], size)[0])
    if len(maps) == 1:
        return maps[0]
    return torch.stack(maps).logit(eps=1e-5).mean(dim=0).sigmoid()


def _resized(image: Tensor, side: int) -> Tensor:
    return F.interpolate(
        image[None], size=(side, side), mode="bilinear", antialias=True
    )[0]


def _tiled(
    network: nn.Module, image: Tensor, crop: int, positions: int, mirror: bool
) -> Tensor:
    """See `tiled_probability`; one zoom."""
    size = image.shape[-1]
    if crop > size:
        raise InputError(
            f"a square of {size} pixels a side is smaller than a crop of {crop}. Use "
            "smaller crops or larger zooms."
        )
    if crop < 1 or (size - crop) > crop * (positions - 1):
        raise InputError(
            f"{positions} crops of {crop} pixels along an axis do not cover {size} "
            "pixels. Use more positions or larger crops."
        )
    device = next(
        (weight.device for weight in network.parameters()), torch.device("cpu")
    )
    starts = (
        torch.linspace(0, size - crop, positions if size > crop else 1)
        .round()
        .int()
        .tolist()
    )
    corners = [(top, left) for top in starts for left in starts]
    ready = to_network(image)
    crops = torch.stack([ready[:, y : y + crop, x : x + crop] for y, x in corners])
    crops = crops.to(device)
    logits = network(crops).float()
    if mirror:
        logits = (logits + network(crops.flip(-1)).float().flip(-1)) / 2
    found = logits.sigmoid().cpu()[:, 0]
    total, count = torch.zeros(size, size), torch.zeros(size, size)
    for (top, left), probability in zip(corners, found, strict=True):
        total[top : top + crop, left : left + crop] += probability
        count[top : top + crop, left : left + crop] += 1
    return total / count
