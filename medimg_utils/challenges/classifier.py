"""A small classifier of films, and the three collections that it can learn from.

It is small on purpose: a CPU trains it in a minute, so that an experiment can be
repeated over seeds, and a page can take it apart in seconds.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from medimg_utils import metrics, pretrained
from medimg_utils.challenges.films import Films, Rows
from medimg_utils.errors import InputError
from medimg_utils.pneumothorax.preprocess import to_network
from medimg_utils.splits import one_each
from medimg_utils.training import (
    BEST,
    Batch,
    fingerprint,
    fit,
    load_weights,
    stable_seed,
)

#: Share of films with a drain (without, with pneumothorax) in each collection.
COLLECTIONS = {"shortcut": (0.05, 0.9), "balanced": (0.475, 0.475)}


class FilmNet(nn.Module):
    """Four blocks of convolutions, mean and maximum over all places, dropout, one logit.

    | step | shape |
    |---|---|
    | film | (B, 1, 96, 96) |
    | block 1, 5 × 5, stride 2 | (B, 16, 48, 48) |
    | block 2, then halved | (B, 24, 24, 24) |
    | block 3 | (B, 48, 24, 24) |
    | block 4 | (B, 48, 24, 24) |
    | mean and maximum over places | (B, 96) |
    | linear | (B,) logits |

    A side task helps to learn from few films: `where` answers for each place, and is
    used in training alone.

    >>> FilmNet()(torch.zeros(2, 1, 96, 96)).shape
    torch.Size([2])
    """

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            _block(1, 16, kernel=5, stride=2),
            _block(16, 24),
            nn.MaxPool2d(2),
            _block(24, 48),
            _block(48, 48),
        )
        self.where = nn.Conv2d(48, 1, 1)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(96, 1)
        nn.init.constant_(self.where.bias, -3.0)  # type: ignore[arg-type] # rare

    def features(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) → (B, 96), what the last layer weighs."""
        return _pooled(self.blocks(x))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) → (B,) logits of pneumothorax."""
        return self.head(self.dropout(self.features(x)))[:, 0]

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 1, H, W) → (B,) logits, and those of each place (B, 1, H/4, W/4)."""
        maps = self.blocks(x)
        return self.head(self.dropout(_pooled(maps)))[:, 0], self.where(maps)


class _Both(nn.Module):
    """What is trained: the network with its side task."""

    def __init__(self, net: FilmNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.both(x)


def _pooled(maps: Tensor) -> Tensor:
    return torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], dim=1)


def _block(inside: int, outside: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False),
        nn.GroupNorm(outside // 8, outside),
        nn.ReLU(),  # not in place: attribution methods put their hooks here
    )


# --------------------------------------------------------------------------- collections


class Collection(Rows):
    """Films as an archive would hold them, each with a drain or without.

    Attributes:
        images: (N, S, S) uint8.
        labels: (N,) 1 with pneumothorax.
        lesions: (N, S, S) bool.
        drains: (N,) int64, 1 with a drain.
        patients: (N,).
    """


def collect(films: Films, rates: tuple[float, float], seed: int = 0) -> Collection:
    """Take each film once, and let drains be as frequent as asked.

    Args:
        films: each without and with a drain.
        rates: share of films with a drain among those without and with pneumothorax;
            they are met exactly, up to rounding.
        seed: which films get the drain.

    Raises:
        InputError: a rate outside [0, 1].
    """
    if not all(0 <= rate <= 1 for rate in rates):
        raise InputError(f"the rates of drains are {rates}; 0 to 1 is needed.")
    random = np.random.default_rng([seed, 41])
    drains = np.zeros(len(films), dtype=np.int64)
    for label, rate in enumerate(rates):
        members = random.permutation(np.flatnonzero(films.labels == label))
        drains[members[: round(rate * len(members))]] = 1
    images = films.images[np.arange(len(films)), drains]
    return Collection(images, films.labels, films.lesions, drains, films.patients)


def audit(
    labels: ArrayLike, patients: ArrayLike, seed: int = 0
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """One film of each patient, so that label and drain fill four cells alike.

    That is what somebody collects who suspects drains: a plain sample of an archive in
    which they go with the disease holds hardly a film that breaks the rule. All films are
    of different people.

    Args:
        labels: (N,) 0 or 1.
        patients: (N,) whom each film belongs to.
        seed: who comes into which cell.

    Returns:
        (P,) numbers of the films, and (P,) 1 where the film with a drain is taken. Who has
        films of one label only stays with that.
    """
    truth, names = np.asarray(labels), np.asarray(patients, dtype=str)
    random = np.random.default_rng([seed, 45])
    rows, drains = [], []
    for place, name in enumerate(random.permutation(np.unique(names))):
        mine = np.flatnonzero(names == name)
        wanted = mine[truth[mine] == place % 2]
        rows.append(random.choice(wanted if wanted.size else mine))
        drains.append(place // 2 % 2)
    return np.asarray(rows, dtype=np.intp), np.asarray(drains, dtype=np.int64)


def cell_weights(
    labels: NDArray[np.int64], drains: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Weights that make drains equally frequent with and without pneumothorax.

    Each of the four cells (label, drain) weighs the same in sum, and the mean weight
    is 1.  It needs no new film, but somebody who looks for drains.

    >>> cell_weights(np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])).tolist()
    [0.625, 0.625, 1.25, 1.25, 1.25]
    """
    cells = 2 * np.asarray(labels) + np.asarray(drains)
    names, place, counts = np.unique(cells, return_inverse=True, return_counts=True)
    return np.asarray(len(cells) / (len(names) * counts[place]), dtype=np.float64)


class _Tensors(Dataset[Batch]):
    """Films in memory, indexed by (epoch, index) as `training.fit` does."""

    def __init__(self, collection: Collection, weights: NDArray[np.float64]) -> None:
        self.images = as_tensor(collection.images)
        self.labels = torch.from_numpy(collection.labels).float()
        self.masks = torch.from_numpy(collection.lesions).float()[:, None]
        self.weights = torch.from_numpy(weights).float()
        self.names = [f"film {k} of {p}" for k, p in enumerate(collection.patients)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> Batch:
        _, index = key
        return {
            "image_id": self.names[index],
            "image": self.images[index],
            "label": self.labels[index],
            "mask": self.masks[index],
            "weight": self.weights[index],
        }


def as_tensor(images: NDArray[np.uint8]) -> Tensor:
    """(N, S, S) uint8 → (N, 1, S, S) as the network takes them."""
    return to_network(torch.from_numpy(np.asarray(images)).float()[:, None] / 255)


def augment(images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Flip half of a batch, move it by up to 6 pixels, and change its contrast a little.

    Draws from torch's global generator.
    """
    flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    shift = torch.randint(-6, 7, (2,)).tolist()
    images, masks = (
        torch.roll(torch.where(flip, part.flip(-1), part), shift, dims=(-2, -1))
        for part in (images, masks)
    )
    gain = 1 + 0.15 * torch.randn(len(images), 1, 1, 1, device=images.device)
    level = 0.15 * torch.randn(len(images), 1, 1, 1, device=images.device)
    return images * gain + level, masks


# ------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained.  All values are our choice.

    Attributes:
        collection: which of `COLLECTIONS` it learns from.
        reweighted: give the four cells of label and drain equal weight.
        random_labels: one film of each patient, with shuffled labels: there is nothing to
            learn, only to memorise.
        dropout: of the features before the last layer; memorising goes without.
        side_task: weight of the loss that asks where the air is.
        epochs, batch_size, learning_rate, weight_decay: see `medimg_utils.training.fit`.
    """

    collection: str
    reweighted: bool = False
    random_labels: bool = False
    dropout: float = 0.3
    side_task: float = 0.0
    epochs: int = 12
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01


def train_classifier(
    films: Films,
    recipe: Recipe,
    out: Path,
    *,
    start: FilmNet | None = None,
    seed: int = 0,
    progress: bool = True,
) -> FilmNet:
    """Train a classifier, or read it where it was trained before.

    One in six patients chooses the epoch, from a collection of the same kind: nobody in
    a hospital has a better one. With shuffled labels nothing holds for others, and the
    films that it learns choose.

    Args:
        films: of training patients.
        recipe: what it learns from, and how.
        out: folder of the run; resumed where it was stopped.
        start: a trained network whose blocks are taken over; the last layer is new.
        seed: of the collection, the weights and the order.
        progress: show a bar.

    Returns:
        The network of the best epoch, in evaluation mode.
    """
    facts = {
        **asdict(recipe),
        "seed": seed,
        "films": fingerprint([films.images, films.labels]),
        "start": start and fingerprint(start.state_dict().values()),
    }
    if recipe.random_labels:
        training = validation = memorised_films(films, recipe, seed)
    else:
        everything = collect(films, COLLECTIONS[recipe.collection], seed)
        random = np.random.default_rng([seed, 42])
        names = np.unique(everything.patients)
        held = random.permutation(names)[: max(1, len(names) // 6)]
        is_held = np.isin(everything.patients, held)
        training, validation = everything.part(~is_held), everything.part(is_held)
    weights = np.ones(len(training))
    if recipe.reweighted:
        weights = cell_weights(training.labels, training.drains)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, 43))
        network = _Both(FilmNet(recipe.dropout))
    if start is not None:
        network.net.blocks.load_state_dict(start.blocks.state_dict())

    def loss(model: nn.Module, batch: Batch, _: float) -> Tensor:
        images, masks = batch["image"], batch["mask"]
        if not recipe.random_labels:
            images, masks = augment(images, masks)
        logits, places = model(images)
        each = F.binary_cross_entropy_with_logits(
            logits, batch["label"], reduction="none"
        )
        value = (batch["weight"] * each).mean()
        if not recipe.side_task:
            return value
        share = F.adaptive_avg_pool2d(masks, places.shape[-1])
        side_task = F.binary_cross_entropy_with_logits(
            places, share, pos_weight=share.new_tensor(10.0)
        )
        return value + recipe.side_task * side_task

    def validate(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        parts = as_tensor(validation.images).split(64)
        found = [model(part.to(device))[0] for part in parts]
        logits = torch.cat(found).float().cpu()
        truth = torch.from_numpy(validation.labels).float()
        return {
            "val_auc": metrics.auc(validation.labels, logits.numpy()),
            "val_loss": float(F.binary_cross_entropy_with_logits(logits, truth)),
        }

    fit(
        network,
        _Tensors(training, weights),
        loss=loss,
        validate=validate,
        best_by="val_loss",
        lowest=True,
        out=out,
        settings=facts,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        seed=seed,
        resume=True,
        workers=0,
        progress=progress,
    )
    return load_classifier(out / BEST)


def memorised_films(films: Films, recipe: Recipe, seed: int = 0) -> Collection:
    """One film of each patient, with labels in an order that tells nothing of the films.

    Two films of one patient differ by the disease alone, so a network that had both would
    have to look at the disease to tell them apart.
    """
    rows = one_each(films.patients, stable_seed(seed, 44))
    found = collect(films.part(rows), COLLECTIONS[recipe.collection], seed)
    return replace(found, labels=np.random.default_rng(seed).permutation(found.labels))


@torch.inference_mode()
def logits_of(network: nn.Module, images: NDArray[np.uint8]) -> Tensor:
    """Logits (N,) of films (N, S, S), on the CPU."""
    device = next(network.parameters()).device
    found = [network(part.to(device)) for part in as_tensor(images).split(64)]
    return torch.cat([one.float().cpu() for one in found])


@torch.inference_mode()
def features_of(network: FilmNet, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What the last layer weighs, (N, 96), for films (N, S, S)."""
    device = next(network.parameters()).device
    parts = as_tensor(images).split(64)
    found = [network.features(part.to(device)).float().cpu() for part in parts]
    return torch.cat(found).double().numpy()


# ------------------------------------------------------------------- the shipped networks

#: Name of the small networks in :mod:`medimg_utils.pretrained`.
SHIPPED = "challenges-films"


def load_classifier(path: Path) -> FilmNet:
    """The network of a file of weights, in evaluation mode, on the CPU.

    Raises:
        RunError: the file is missing or damaged.
    """
    network = FilmNet()
    network.load_state_dict(
        {key.removeprefix("net."): value for key, value in load_weights(path).items()}
    )
    return network.eval()


def shipped(part: str) -> FilmNet:
    """One of the networks that travel with the package, ``balanced`` or ``shortcut``.

    Raises:
        InputError: there is none of this name.
    """
    return load_classifier(pretrained.find(SHIPPED, part))
