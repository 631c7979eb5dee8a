"""What rules in the manner of nnU-Net decide from the geometry of a data set alone.

nnU-Net (Isensee et al. 2021) divides the choices of a design into three: *fixed* ones that
serve everywhere, *rule-based* ones that follow from a fingerprint of the data set, and
*empirical* ones that only validation can make. This module rebuilds the second kind: voxel
size, patch, pooling, channels and batch.

    fingerprint ──► voxel size ──► patch ⇄ pooling ──► batch
    spacing, shape    median        shrinks until 8 GB suffice

The constants are those of version 2 of the public code. Left out are the fixed choices
(loss, optimiser, augmentation), the normalisation of intensities, the kernel sizes, the
low-resolution half of the cascade, of which only the need is told, and all that is
empirical: which configuration or ensemble to use, and the post-processing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medimg_utils import results
from medimg_utils.errors import InputError
from medimg_utils.release import describe_release
from medimg_utils.settings import find_device

NAME = "challenges-plans"
ANISOTROPIC = 3  # times as far apart as along the other axes
SMALLEST = 4  # side of the deepest feature maps
FIRST_WIDTH = 32
WIDEST = {2: 512, 3: 320}
START = {2: 2048**2, 3: 256**3}  # pixels of the patch that is shrunk until it fits
#: Values in all feature maps of one image that, times the batch, fill 8 GB.
BUDGET = {2: 85_000_000, 3: 560_000_000}
REFERENCE_BATCH = {2: 12, 3: 2}
LEAST_BATCH = 2
LARGEST_SHARE = 0.05  # of all voxels of the training set in one step
CASCADE = 0.25  # a patch that sees less of an image asks for a coarse network before

Sides = tuple[int, ...]


@dataclass(frozen=True)
class Fingerprint:
    """What the rules know of a data set.

    Attributes:
        cases: number of training images.
        spacing: median distance of the voxels in mm, axis by axis.
        finest: their 10th percentile.
        shape: median number of voxels, after the empty border was cut off.
        classes: labels, the background included.
    """

    cases: int
    spacing: tuple[float, ...]
    finest: tuple[float, ...]
    shape: tuple[float, ...]
    classes: int

    def at(self, spacing: Sequence[float]) -> Fingerprint:
        """The same patients, sampled at another distance.

        >>> Fingerprint(9, (2.0, 2.0), (2.0, 2.0), (70, 80), 2).at((1.0, 1.0)).shape
        (140.0, 160.0)
        """
        steps = tuple(float(step) for step in spacing)
        sides = tuple(
            n * old / new
            for n, old, new in zip(self.shape, self.spacing, steps, strict=True)
        )
        return replace(self, spacing=steps, finest=steps, shape=sides)


@dataclass(frozen=True)
class Plan:
    """What the rules decide.

    Attributes:
        spacing: voxels that all images are resampled to, in mm.
        shape: median image at that spacing.
        patch: what the network sees in training.
        pools: how often each axis is halved.
        strides: of each stage, the first one included.
        channels: of each stage.
        batch: patches in a step.
        cascade: whether a coarse network should look first.
    """

    spacing: tuple[float, ...]
    shape: Sides
    patch: Sides
    pools: Sides
    strides: tuple[Sides, ...]
    channels: Sides
    batch: int
    cascade: bool


def fingerprint(spacings: ArrayLike, shapes: ArrayLike, classes: int) -> Fingerprint:
    """Summarise the images of a data set.

    Args:
        spacings: (N, 2) or (N, 3) mm.
        shapes: (N, 2) or (N, 3) voxels, without empty borders.
        classes: labels, the background included.

    Raises:
        InputError: shapes that do not match, or values that are not positive.
    """
    steps = np.asarray(spacings, dtype=np.float64)
    sides = np.asarray(shapes, dtype=np.float64)
    if steps.shape != sides.shape or steps.ndim != 2 or steps.shape[1] not in (2, 3):
        raise InputError(
            f"spacings {steps.shape} and shapes {sides.shape} must be (N, 2) or (N, 3) "
            "alike."
        )
    if not len(steps) or not (np.isfinite(steps).all() and (steps > 0).all()):
        raise InputError("every image needs a positive spacing along each axis.")
    if (sides < 1).any():
        raise InputError("an image has an axis without voxels.")
    return Fingerprint(
        cases=len(steps),
        spacing=tuple(np.median(steps, axis=0).tolist()),
        finest=tuple(np.percentile(steps, 10, axis=0).tolist()),
        shape=tuple(np.median(sides, axis=0).tolist()),
        classes=classes,
    )


def target_spacing(found: Fingerprint) -> tuple[float, ...]:
    """The median spacing, but finer along the axis of thick slices.

    An axis counts as that where its voxels are more than three times as far apart as along
    all others, and fewer than a third as many. There the 10th percentile is taken, though
    never less than the others have: thin slices should not be averaged away for the sake
    of the thick ones.

    >>> thick = Fingerprint(20, (10.0, 1.5, 1.5), (5.0, 1.4, 1.4), (9, 200, 220), 4)
    >>> target_spacing(thick)
    (5.0, 1.5, 1.5)
    """
    spacing = list(found.spacing)
    worst = int(np.argmax(spacing))
    others = [axis for axis in range(len(spacing)) if axis != worst]
    coarse = max(spacing[axis] for axis in others)
    fewest = min(found.shape[axis] for axis in others)
    if (
        spacing[worst] > ANISOTROPIC * coarse
        and ANISOTROPIC * found.shape[worst] < fewest
    ):
        spacing[worst] = max(found.finest[worst], coarse)
    return tuple(spacing)


def topology(spacing: Sequence[float], size: Sequence[int]) -> tuple[Sides, ...]:
    """Strides of each stage: axes are halved until they are too short.

    Only axes whose voxels are less than twice as large as the finest ones are halved, so
    that thick slices wait until the plane has become as coarse as they are. No axis falls
    below four voxels.

    >>> topology((4.0, 1.0, 1.0), (16, 64, 64))
    ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
    """
    steps, sides = list(spacing), list(size)
    strides: list[Sides] = [(1,) * len(sides)]
    while True:
        long = [k for k, side in enumerate(sides) if side >= 2 * SMALLEST]
        if not long:
            return tuple(strides)
        finest = min(steps[k] for k in long)
        halved = [k for k in long if steps[k] / finest < 2]
        if len(halved) == 1 and sides[halved[0]] < 3 * SMALLEST:
            return tuple(strides)
        for k in halved:
            steps[k] *= 2
            sides[k] = -(-sides[k] // 2)
        strides.append(tuple(2 if k in halved else 1 for k in range(len(sides))))


def pools_of(strides: Sequence[Sides]) -> Sides:
    """How often each axis is halved.

    >>> pools_of([(1, 1), (2, 2), (1, 2)])
    (1, 2)
    """
    return tuple(
        sum(stride == 2 for stride in axis) for axis in zip(*strides, strict=True)
    )


def channels_of(strides: Sequence[Sides]) -> Sides:
    """32, doubled with each stage up to a limit, for which memory is the reason.

    >>> channels_of([(1, 1, 1)] + 5 * [(2, 2, 2)])
    (32, 64, 128, 256, 320, 320)
    """
    widest = WIDEST[len(strides[0])]
    return tuple(min(widest, FIRST_WIDTH * 2**stage) for stage in range(len(strides)))


def feature_values(patch: Sequence[int], strides: Sequence[Sides], classes: int) -> int:
    """Numbers in all feature maps that a patch leaves in the network: its memory.

    Each stage on the way down computes two convolutions; each on the way up the enlarged
    map and two convolutions; the last adds a map a class.

    >>> feature_values((8, 8), [(1, 1), (2, 2)], classes=2)  # 64 · 5 · 32 + 16 · 2 · 64 + 64 · 2
    12416
    """
    sides, total = np.array(patch), 0
    channels = channels_of(strides)
    for stage, (stride, width) in enumerate(zip(strides, channels, strict=True)):
        sides = sides // np.array(stride)
        maps = 2 if stage == len(strides) - 1 else 5  # the bottom has no way up
        total += maps * width * int(sides.prod())
    return total + classes * int(np.prod(patch))


def plan(found: Fingerprint) -> Plan:
    """Apply the rules to a fingerprint of 2-D or 3-D images.

    The patch begins with the largest one that has the proportions of the image in mm, at
    most the median image. While its feature maps do not fit, the axis that covers most of
    the image gives way, and pooling is decided anew. Memory that is left over goes into
    the batch.

    Args:
        found: see `fingerprint`.
    """
    spacing = target_spacing(found)
    dimensions = len(spacing)
    shape = tuple(
        round(n * old / new)
        for n, old, new in zip(found.shape, found.spacing, spacing, strict=True)
    )
    finer = 1 / np.array(spacing)
    start = finer * (START[dimensions] / finer.prod()) ** (1 / dimensions)
    patch = tuple(min(round(side), n) for side, n in zip(start, shape, strict=True))
    strides = topology(spacing, patch)
    patch = _rounded_up(patch, strides)
    budget, reference = BUDGET[dimensions], REFERENCE_BATCH[dimensions]
    while (
        feature_values(patch, strides, found.classes) * LEAST_BATCH / reference > budget
    ):
        covered = [side / n for side, n in zip(patch, shape, strict=True)]
        axis = dimensions - 1 - int(np.argmax(covered[::-1]))
        # a whole multiple less could skip a size that the next pooling would allow
        smaller = _less(patch, axis, 2 ** pools_of(strides)[axis])
        patch = _less(patch, axis, 2 ** pools_of(topology(spacing, smaller))[axis])
        strides = topology(spacing, patch)
        patch = _rounded_up(patch, strides)
    fits = round(budget / feature_values(patch, strides, found.classes) * reference)
    voxels = float(np.prod(shape))
    most = round(LARGEST_SHARE * found.cases * voxels / float(np.prod(patch)))
    return Plan(
        spacing=spacing,
        shape=shape,
        patch=patch,
        pools=pools_of(strides),
        strides=strides,
        channels=channels_of(strides),
        batch=max(min(fits, most), LEAST_BATCH),
        cascade=float(np.prod(patch)) / voxels < CASCADE,
    )


def _rounded_up(patch: Sequence[int], strides: Sequence[Sides]) -> Sides:
    """A patch whose sides can be halved as often as the network does."""
    multiples = (2**pools for pools in pools_of(strides))
    return tuple(
        -(-side // multiple) * multiple
        for side, multiple in zip(patch, multiples, strict=True)
    )


def _less(patch: Sequence[int], axis: int, amount: int) -> Sides:
    return tuple(side - amount * (k == axis) for k, side in enumerate(patch))


# ------------------------------------------------------------------------- the use cases


def of_brains(release: Path) -> Fingerprint:
    """Of a BraTS release: the brain's box, four MR images, four labels."""
    from medimg_utils.brain.dataset import load, read_brats
    from medimg_utils.brain.preprocess import bounding_box

    spacings, shapes = [], []
    for case in read_brats(release):
        scan = load(replace(case, mask=None))
        box = bounding_box((scan.images != 0).any(axis=0))
        spacings.append(scan.spacing)
        shapes.append([side.stop - side.start for side in box])
    return fingerprint(spacings, shapes, classes=4)


def of_radiographs(release: Path) -> Fingerprint:
    """Of a SIIM-ACR release: rows, columns and pixel spacing of the headers.

    Raises:
        InputError: no radiograph tells its spacing.
    """
    from medimg_utils.io import read_image
    from medimg_utils.pneumothorax.dataset import read_release

    spacings, shapes = [], []
    for record in read_release(release):
        image = read_image(record.path)
        if image.spacing_mm is not None:
            spacings.append(image.spacing_mm)
            shapes.append(image.pixels.shape)
    if not shapes:
        raise InputError(f"no radiograph of {release} tells its pixel spacing.")
    return fingerprint(spacings, shapes, classes=2)


def of_knees(release: Path, plane: str, spacing: Sequence[float]) -> Fingerprint:
    """Of one series of an MRNet release, whose files tell no spacing: it must be given.

    Args:
        release: folder of the release.
        plane: `sagittal`, `coronal` or `axial`.
        spacing: assumed for all, of slices, rows and columns in mm.
    """
    from medimg_utils.knee.dataset import read_release, read_volume

    exams = read_release(release, "train")
    shapes = [read_volume(exam.series[plane]).shape for exam in exams]
    return fingerprint([spacing] * len(shapes), shapes, classes=2)


def run_plans(folder: Path | None = None) -> dict[str, Any]:
    """Fingerprint the releases of size `tiny`, and store fingerprints and plans.

    Args:
        folder: where the result is stored; with the package unless given.

    Returns:
        The stored result.
    """
    from medimg_utils.brain import simulate as brain
    from medimg_utils.knee import simulate as knee
    from medimg_utils.pneumothorax import simulate as pneumothorax

    films, knees, heads = (
        one.ensure_release("tiny") for one in (pneumothorax, knee, brain)
    )
    found = {
        "pneumothorax": of_radiographs(films),
        "knee": of_knees(knees, "sagittal", (1.0, 1.0, 1.0)),
        "brain": of_brains(heads),
    }
    result = {
        "fingerprints": {name: asdict(one) for name, one in found.items()},
        "about": results.provenance(
            size="tiny",
            data=[describe_release(one) for one in (films, knees, heads)],
            device=find_device().type,
            seed=0,
            n={name: one.cases for name, one in found.items()},
        ),
    }
    results.save(NAME, result, folder)
    return result
