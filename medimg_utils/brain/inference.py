"""From five channels to labels: three ways through step 2, and the rules around it.

Instance normalisation takes mean and spread from the tile at hand, so a voxel's answer
depends on where the tiles lie. That leaves three ways, and their price differs a
hundredfold:

| mode | tiles | statistics | numbers |
|---|---|---|---|
| `reference` | each 9 voxels, as published | of the tile | float32 |
| `fast` | every fourth of these; only what meets the tumour | of the tile | bfloat16 |
| `one-pass` | the whole box at once | fixed in training | bfloat16 |

bfloat16 is used where the processor computes in it, with the channels of a voxel side by
side in memory (`channels_last_3d`); elsewhere all modes compute in float32.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from medimg_utils.brain.models import (
    BORDER,
    CLASSES,
    MULTIPLE,
    PaddedUNet,
    UnpaddedUNet,
    fuse,
    valid_size,
)
from medimg_utils.brain.preprocess import Box, Prepared, bounding_box, cut
from medimg_utils.errors import InputError
from medimg_utils.training import best_precision

MODES = ("reference", "fast", "one-pass")  # from slow to quick
SIDE = 36  # side of step 2's output, published
STRIDE = 9  # of the published tiling
RIM = 7  # last planes of a tile that depend on where it ends; see `UnpaddedUNet`
CORE, OEDEMA, ENHANCING = 1, 2, 3
CERTAIN = 0.9  # probability from which a voxel of enhancing tumour counts as certain
TOUCHING = np.ones((3, 3, 3))  # by faces, edges or corners
MEMORY = 2**31  # bytes that the activations of one piece may take in one pass
Triple = tuple[int, int, int]
Tile = tuple[Triple, Triple]  # start and size of the output


# ---------------------------------------------------------------------------- arithmetic


@dataclass(frozen=True, eq=False)
class Engine:
    """A network in the arithmetic that suits its device; see `ready`."""

    network: nn.Module
    device: torch.device
    dtype: torch.dtype
    layout: torch.memory_format

    @torch.inference_mode()
    def probabilities(self, image: Tensor) -> Tensor:
        """(5, D, H, W) → (classes, d, h, w) float32 on the CPU, sums to 1."""
        x = image[None].to(self.device, self.dtype, memory_format=self.layout)
        return self.network(x).float().softmax(dim=1)[0].cpu()


def ready(network: nn.Module, *, exact: bool = False) -> Engine:
    """Bring a network into the fastest arithmetic of its device, or into float32.

    Args:
        network: on its device; not changed.
        exact: float32 in the usual layout, as published.
    """
    device = next(network.parameters()).device
    half = not exact and best_precision(device) == "bf16-mixed"
    dtype = torch.bfloat16 if half else torch.float32
    layout = torch.contiguous_format if exact else torch.channels_last_3d
    own = copy.deepcopy(network).eval().to(device, dtype)
    return Engine(own.to(memory_format=layout), device, dtype, layout)


# --------------------------------------------------------------------------------- step 1


def coarsen(image: Tensor, factor: int) -> Tensor:
    """(C, D, H, W) → means of cubes of `factor` voxels, 0 beyond the end."""
    if factor == 1:
        return image
    pad = [side for size in image.shape[:0:-1] for side in (0, -size % factor)]
    return F.avg_pool3d(F.pad(image, pad), factor)


def pad_to_multiple(image: Tensor) -> Tensor:
    """(C, D, H, W) → zeros behind, so that sizes are multiples of 8."""
    pad = [side for size in image.shape[:0:-1] for side in (0, -size % MULTIPLE)]
    return F.pad(image, pad)


def find(
    engine: Engine, image: Tensor, factor: int = 1, parts: float = 1.0
) -> NDArray[np.bool_]:
    """Step 1: what the network calls tumour, without its small parts.

    Args:
        engine: with a `PaddedUNet`.
        image: (5, D, H, W) of the whole brain.
        factor: side of step 1's voxels in voxels of the image.
        parts: see `large_parts`.

    Returns:
        (D, H, W) mask; empty where nothing was found.

    Raises:
        InputError: the brain is too small to be one.
    """
    small = coarsen(image, factor)
    depth, height, width = small.shape[1:]
    padded = pad_to_multiple(small)
    if padded[0].numel() <= MULTIPLE**3:  # a single cell of the coarsest map
        raise InputError(
            f"the brain is only {depth} × {height} × {width} voxels of the network large. "
            "Is the skull removed well, and the size of the voxels right?"
        )
    probability = engine.probabilities(padded)
    mask = probability.argmax(dim=0)[:depth, :height, :width].bool().numpy()
    mask = large_parts(mask, parts)
    for axis in range(3):
        mask = mask.repeat(factor, axis=axis)
    depth, height, width = image.shape[1:]
    return mask[:depth, :height, :width]


def large_parts(mask: NDArray[np.bool_], share: float = 1.0) -> NDArray[np.bool_]:
    """Parts whose voxels touch by faces, edges or corners, if they are large enough.

    Args:
        mask: (D, H, W).
        share: of the size of the largest part; 1 keeps that one alone.

    >>> mask = np.array([[[1, 0, 1, 1]]], bool)
    >>> large_parts(mask).astype(int).tolist()
    [[[0, 0, 1, 1]]]
    >>> large_parts(mask, 0.5).astype(int).tolist()
    [[[1, 0, 1, 1]]]
    """
    parts, count = ndimage.label(mask, TOUCHING)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if share >= 1:
        return parts == sizes.argmax()
    return (sizes >= share * sizes.max())[parts] & mask


def dilate(mask: NDArray[np.bool_], voxels: int) -> NDArray[np.bool_]:
    """All within `voxels` (rounded ball) of the mask."""
    if not voxels or not mask.any():
        return mask
    box = tuple(
        slice(max(0, side.start - voxels), side.stop + voxels)
        for side in bounding_box(mask)
    )
    near = ndimage.distance_transform_edt(~mask[box]) <= voxels
    out = np.zeros_like(mask)
    out[box] = near
    return out


# --------------------------------------------------------------------------------- step 2


def published_tiles(
    shape: Sequence[int], stride: int = STRIDE, side: int = SIDE
) -> list[Tile]:
    """Tiles over a box of `shape` that start at 0, 9, 18 ... along each axis.

    >>> len(published_tiles((90, 90, 80)))
    900
    """
    return _grid([range(0, size, stride) for size in shape], side)


def thinned_tiles(
    shape: Sequence[int], stride: int = STRIDE, side: int = SIDE
) -> list[Tile]:
    """Every fourth of the published tiles.

    Their numbers along the first two axes, less that along the third, are divisible by 4.
    That is a Latin square: where 4 × 4 × 4 published tiles overlap, 16 are left, and each
    pair of starts along two axes is there exactly once. The third number is subtracted
    for the sake of the box's beginning, where few tiles overlap: of the eight in its
    second voxels along each axis three are left, of which a plain sum would leave one.
    Like the published ones, tiles begin anywhere in the box, even if most of them lies
    beyond its end: there a tile takes its statistics from other tissue, and without them
    the mean would be another one.

    >>> len(thinned_tiles((90, 90, 80)))
    225
    >>> [start for start, _ in thinned_tiles((18, 18, 45))]
    [(0, 0, 0), (0, 0, 36), (0, 9, 9), (9, 0, 9), (9, 9, 18)]
    """
    return [
        (start, size)
        for start, size in published_tiles(shape, stride, side)
        if (start[0] + start[1] - start[2]) // stride % 4 == 0
    ]


def _grid(starts: Sequence[range], side: int) -> list[Tile]:
    return [((a, b, c), (side, side, side)) for a, b, c in product(*starts)]


def touching(tiles: Iterable[Tile], mask: NDArray[np.bool_]) -> list[Tile]:
    """Those tiles whose output holds a voxel of the mask; the others change nothing."""
    kept = []
    for start, size in tiles:
        inside = tuple(slice(b, b + n) for b, n in zip(start, size, strict=True))
        if mask[inside].any():
            kept.append((start, size))
    return kept


def run_tiles(
    engine: Engine, image: Tensor, box: Box, tiles: Iterable[Tile], *, rim: int = 0
) -> Tensor:
    """Mean softmax of all tiles that cover a voxel.

    Args:
        engine: with an `UnpaddedUNet`.
        image: (5, D, H, W) of the whole brain.
        box: that is wanted.
        tiles: (start of the output, counted from the box's corner; size of the output).
        rim: planes at the end of each tile's axes that are not used.

    Returns:
        (4, d, h, w) of the box. Where no tile came, background is certain.
    """
    shape = [side.stop - side.start for side in box]
    total = torch.zeros(CLASSES, *shape)
    for start, size in tiles:
        first = [
            side.start + begin - BORDER for side, begin in zip(box, start, strict=True)
        ]
        one = engine.probabilities(cut(image, first, [n + 2 * BORDER for n in size]))
        inside = [
            min(n - rim, s - b) for n, s, b in zip(size, shape, start, strict=True)
        ]
        there = [slice(b, b + n) for b, n in zip(start, inside, strict=True)]
        here = [slice(0, n) for n in inside]
        total[(slice(None), *there)] += one[(slice(None), *here)]
    weight = total.sum(dim=0)
    total[0][weight == 0] = 1
    return total / weight.where(weight > 0, 1)


def whole_box(
    shape: Sequence[int], width: int, bytes_per_value: int, memory: int = MEMORY
) -> list[Tile]:
    """A box in one piece, or in as few pieces side by side as memory allows.

    For a network with fixed statistics. How the box is cut does not matter then, if two
    things are minded: pieces begin a multiple of 8 apart (three times pooled by two, the
    network answers alike only to shifts by 8), and the last `RIM` planes of a piece are
    not used. They overlap therefore.

    The widest moment of the network is its first level: input and output of one
    convolution and the copy that waits for the skip, each `width` channels at full size.

    >>> whole_box((29, 25, 30), width=32, bytes_per_value=2)
    [((0, 0, 0), (36, 36, 44))]
    """
    parts = [1, 1, 1]

    def sizes() -> list[int]:
        return [
            valid_size(math.ceil((size - 5) / part) + 12)
            for size, part in zip(shape, parts, strict=True)
        ]

    def needed() -> int:
        return 3 * width * bytes_per_value * math.prod(s + 2 * BORDER for s in sizes())

    while needed() > memory and max(sizes()) > 2 * MULTIPLE + 4:
        parts[int(np.argmax(sizes()))] += 1
    depth, height, width = sizes()
    starts = [
        range(0, max(size - 5, 1), max(side - 12, MULTIPLE))
        for size, side in zip(shape, (depth, height, width), strict=True)
    ]
    return [((a, b, c), (depth, height, width)) for a, b, c in product(*starts)]


# --------------------------------------------------------------------------------- together


@dataclass(frozen=True, eq=False)
class Networks:
    """The trained networks of a run.

    Attributes:
        find: step 1.
        segment: step 2 with instance normalisation.
        one_pass: step 2 with fixed statistics.
        factor: side of step 1's voxels in voxels of step 2.
        margin: voxels by which the found tumour is grown before step 2 looks at it.
        parts: share of the largest part of the found tumour that others must have, to
            be looked at as well.
    """

    find: PaddedUNet
    segment: UnpaddedUNet
    one_pass: UnpaddedUNet
    factor: int
    margin: int
    parts: float = 1.0


class Segmentation(NamedTuple):
    """What both steps say about one case.

    Attributes:
        labels: (D, H, W) uint8 0 to 3 of the whole volume, in its own voxels.
        certain: how many of its voxels are enhancing tumour with at least `CERTAIN`.
        parts: how many separate parts of step 1's tumour step 2 looked at; 0 where
            step 1 found nothing.
    """

    labels: NDArray[np.uint8]
    certain: int
    parts: int


class Segmenter:
    """Both steps in one of the `MODES`, ready for case after case.

    Args:
        networks: of a run.
        mode: one of `MODES`.
    """

    def __init__(self, networks: Networks, mode: str) -> None:
        if mode not in MODES:
            raise InputError(f"{mode!r} is no mode; there are: {', '.join(MODES)}.")
        self.mode = mode
        self.networks = networks
        self.finder = ready(networks.find, exact=mode == "reference")
        self.engine = (
            ready(fuse(networks.one_pass))
            if mode == "one-pass"
            else ready(networks.segment, exact=mode == "reference")
        )

    def probabilities(self, image: Tensor) -> tuple[Tensor, NDArray[np.bool_], int]:
        """(4, D, H, W) softmax of step 2, the (D, H, W) mask step 1 allows, its parts.

        Where step 1 finds nothing, step 2 looks at the whole brain.
        """
        networks = self.networks
        found = find(self.finder, image, networks.factor, networks.parts)
        brain = (image != 0).any(dim=0).numpy()
        allowed = dilate(found, networks.margin) & brain if found.any() else brain
        box = bounding_box(allowed)
        shape = [side.stop - side.start for side in box]
        out = torch.zeros(CLASSES, *image.shape[1:])
        out[0] = 1
        out[(slice(None), *box)] = run_tiles(
            self.engine,
            image,
            box,
            self.tiles(shape, allowed[box]),
            rim=RIM if self.mode == "one-pass" else 0,
        )
        return out, allowed, ndimage.label(found, TOUCHING)[1]

    def tiles(self, shape: Sequence[int], allowed: NDArray[np.bool_]) -> list[Tile]:
        """What step 2 computes for a box of `shape` with this part of it allowed."""
        if self.mode == "reference":
            return published_tiles(shape)
        if self.mode == "fast":
            return touching(thinned_tiles(shape), allowed)
        width = self.networks.one_pass.head.in_channels
        return whole_box(shape, width, self.engine.dtype.itemsize)

    def segment(self, prepared: Prepared) -> Segmentation:
        """Labels of one case, and how much of its enhancing tumour is certain.

        Probabilities go back to the scanner's voxels before the largest one is taken: an
        outline between two network voxels then stays between them.
        """
        probability, allowed, parts = self.probabilities(prepared.image())
        probability[0][~torch.from_numpy(allowed)] = 1
        probability[1:, ~torch.from_numpy(allowed)] = 0
        native = prepared.grid.to_box(probability.numpy())
        labels = prepared.grid.to_volume(native.argmax(axis=0).astype(np.uint8))
        certain = int((native[ENHANCING] >= CERTAIN).sum())
        return Segmentation(labels, certain, parts)


def without_doubtful_enhancing(
    found: Segmentation, voxel_cm3: float, least_cm3: float
) -> NDArray[np.uint8]:
    """Call enhancing tumour core where less than `least_cm3` of it is certain.

    A few false voxels in a tumour that does not enhance cost the whole Dice of that
    region: 0 instead of 1. Their volume alone does not betray them, for a small tumour
    that does enhance is as small; but of such specks the network is rarely certain.

    Args:
        found: by a `Segmenter`.
        voxel_cm3: volume of a voxel.
        least_cm3: below it all enhancing tumour becomes core; 0 changes nothing.
    """
    if found.certain * voxel_cm3 >= least_cm3:
        return found.labels
    enhancing = found.labels == ENHANCING
    return np.where(enhancing, np.uint8(CORE), found.labels)
