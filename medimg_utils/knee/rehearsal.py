r"""Before MRNet learns from one label an exam, its features may learn from places.

A label says that thirty slices somewhere show a torn ligament. The maximum over the
slices lets a network learn from one place of one slice at a time, and at first from a
wrong one, so it takes many exams until it finds the right one: Bien et al. had 1,130, and
the weights of a million photographs. A simulated exam knows where its findings lie.
The rehearsal uses that:

    (S, 1, H, W)     some slices
        │ features: those of MRNet
    (S, C, h, w)     feature maps
        │ 1 × 1 convolution
    (S, D, h, w)     does this cell see a finding of diagnosis d?

Each cell is a labelled example. Afterwards the 1 × 1 convolution is thrown away, and
MRNet begins with these features. Real exams are not outlined, so there is no rehearsal on
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from medimg_utils.knee.dataset import Exam, Exams
from medimg_utils.knee.evaluation import validation_auc
from medimg_utils.knee.localise import read_lesions
from medimg_utils.knee.models import MRNet, ask
from medimg_utils.training import Batch, stable_seed

WINDOW = 24  # side of the square, in pixels, in which a cell should see a finding
ENOUGH = 10.0  # pixels of a finding in this square that a cell must see
WEIGHT = 8.0  # of a cell that sees a finding; of a hundred cells, one or two do
RARE = -4.0  # logit of such a cell before anything is learned
WITH = 0.6  # largest share of the slices that show a finding


class Places(Exams):
    """Some slices of simulated exams, with the places of their findings.

    Exams of one group (twins) give the same slices: what one shows, the other lacks.

    Args:
        exams: as for `Exams`, and so are the other arguments.
        lesions: folder of the masks of the series; see `localise.read_lesions`.
        slices: how many of an exam.

    Each item is a dict: `image` (K, 1, crop, crop) uint8, `places` (K, D, crop, crop)
    float32 in [0, 1], `image_id`.
    """

    def __init__(
        self,
        exams: Sequence[Exam],
        *args: Any,
        lesions: Path,
        slices: int,
        **others: Any,
    ) -> None:
        super().__init__(exams, *args, **others)
        self.lesions = lesions
        self.slices = slices
        self.members: dict[int, list[int]] = {}
        for index, group in enumerate(self.groups):
            self.members.setdefault(group, []).append(index)

    def findings(
        self, index: int, shape: tuple[int, ...]
    ) -> dict[str, NDArray[np.bool_]]:
        """{diagnosis: (S, H, W)} of an exam of this shape, of those that it shows."""
        path = self.lesions / f"{self.exams[index].exam_id}.npz"
        found = read_lesions(path, shape)
        return {
            name: found[name]
            for name in self.diagnoses
            if name in found and found[name].any()
        }

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        group = self.groups[index]
        random = torch.Generator().manual_seed(stable_seed(self.seed, epoch, group))
        volume = torch.from_numpy(self.volume(index))
        shape = tuple(volume.shape)
        found = {k: self.findings(k, shape) for k in self.members[group]}
        shown = np.zeros(len(volume), bool)
        for mask in (mask for masks in found.values() for mask in masks.values()):
            shown |= mask.any((1, 2))
        kept = some_of_both(torch.from_numpy(shown), self.slices, random)
        # a diagnosis that this exam does not show has nothing to be posed
        masks = torch.zeros(len(kept), len(found[index]), *shape[1:], dtype=torch.bool)
        for column, mask in enumerate(found[index].values()):
            masks[:, column] = torch.from_numpy(mask)[kept]
        image, seen = self.augment.with_places(volume[kept], masks, random)
        places = image.new_zeros(
            len(kept), len(self.diagnoses), *image.shape[1:], dtype=torch.float32
        )
        rows = [self.diagnoses.index(name) for name in found[index]]
        if rows:
            places[:, rows] = seen
        return {
            "image": image[:, None],
            "places": places,
            "image_id": self.exams[index].exam_id,
        }


def some_of_both(shown: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Indices of `count` slices: up to 60 % with a finding, others without.

    Args:
        shown: (S,) bool, which slices show one.
        count: how many; fewer where there are fewer.
        random: of the choice.

    >>> shown = torch.arange(20) < 8
    >>> kept = some_of_both(shown, 10, torch.Generator().manual_seed(0))
    >>> len(kept), int(shown[kept].sum())
    (10, 6)
    """
    some = [
        torch.nonzero(side)[:, 0][torch.randperm(int(side.sum()), generator=random)]
        for side in (shown, ~shown)
    ]
    first = some[0][: round(WITH * count)]
    return torch.cat([first, some[1][: count - len(first)]]).sort().values


class Pointer(nn.Module):
    """The features of an MRNet, and a 1 × 1 convolution that points at findings.

    Args:
        network: whose features are trained, in place.
    """

    def __init__(self, network: MRNet) -> None:
        super().__init__()
        self.network = network
        outputs, width = network.classifier.weight.shape
        self.head = nn.Conv2d(width, outputs, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, RARE)  # type: ignore[arg-type]

    def forward(self, exams: Sequence[Tensor]) -> Tensor:
        """B exams of (S, 1, H, W) → (sum of S, D, h, w) logits of cells, float32."""
        maps = self.network.feature_maps(torch.cat(list(exams)))
        # Not in bfloat16: the rarest cells decide.
        with torch.autocast(maps.device.type, enabled=False):
            return self.head(maps.float())


def in_cells(places: Tensor, start: float, step: int, cells: int) -> Tensor:
    """Pixels of a finding in the square around each cell's centre.

    Args:
        places: (S, D, H, W) in [0, 1].
        start, step: see `models.lattice`.
        cells: along each side.

    Returns:
        (S, D, cells, cells).

    >>> places = torch.zeros(1, 1, 64, 64)
    >>> places[..., 15:17, 31:33] = 1
    >>> in_cells(places, 15, 16, 3)[0, 0].long().tolist()
    [[0, 4, 0], [0, 0, 0], [0, 0, 0]]
    """
    before = WINDOW // 2 - 1 - int(start)  # pixels of the first square outside
    height, width = places.shape[-2:]
    length = WINDOW + step * (cells - 1)
    around = (before, length - before - width, before, length - before - height)
    return F.avg_pool2d(F.pad(places, around), WINDOW, step, divisor_override=1)


def place_loss(logits: Tensor, seen: Tensor) -> Tensor:
    """Cross-entropy of cells; those that see a finding weigh more.

    Args:
        logits: (S, D, h, w).
        seen: (S, D, h, w) pixels of a finding; see `in_cells`. Cells with a few pixels
            only are left out.
    """
    positive = (seen >= ENOUGH).float()
    weight = 1 + (WEIGHT - 1) * positive
    weight = weight * ((seen == 0) | (seen >= ENOUGH))
    each = F.binary_cross_entropy_with_logits(logits, positive, reduction="none")
    return (weight * each).sum() / weight.sum().clamp(min=1)


def loss_of(pointer: Pointer) -> Callable[[nn.Module, Batch, float], Tensor]:
    """The loss of a batch of `Places`, for `training.fit` of this pointer."""
    start, step = pointer.network.start, pointer.network.step

    def loss(model: nn.Module, batch: Batch, done: float) -> Tensor:
        logits = model(batch["image"])
        places = torch.cat(batch["places"])
        return place_loss(logits, in_cells(places, start, step, logits.shape[-1]))

    return loss


def network_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the MRNet alone, from the weights of its `Pointer`."""
    return {
        name.removeprefix("network."): value
        for name, value in tensors.items()
        if name.startswith("network.")
    }


def validate(model: nn.Module, data: Exams) -> dict[str, float]:
    """AUC of the exams when the highest cell of an exam is its score."""
    answers, labels = ask(model, data)
    scores = torch.stack([cells.amax((0, 2, 3)) for cells in answers])
    return validation_auc(data.diagnoses, labels, scores)
