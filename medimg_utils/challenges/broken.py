"""A small pipeline with six planted defects, and the examination that finds them.

Nothing crashes: the pipeline trains, prints a number, and the number is wrong.  Each step
can be replaced by another function; :func:`examine` then says, step by step, what is seen
and what should be seen, and :func:`outcome` what the pipeline claims and what it does for
the patients of next year.

The pictures are drawings of 32 × 32 pixels: a soft background, which is the patient's own,
and in the sick a thin dark rim on one side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage as ndi
from torch import Tensor, nn
from torch.nn import functional as F

from medimg_utils import metrics
from medimg_utils.errors import InputError

SIDE = 32
Image = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Film:
    """A drawing: file name, patient, image (32, 32) in [0, 1], and where the rim is."""

    name: str
    patient: str
    image: Image
    mask: Mask

    @property
    def label(self) -> int:
        """1 where there is a rim."""
        return int(self.mask.any())


def archive(patients: int = 48, seed: int = 0, first: int = 1) -> list[Film]:
    """Three films of each patient; half of the patients are sick, on all of their films.

    >>> films = archive(2)
    >>> [film.name for film in films][:3], films[0].image.shape
    (['film-1', 'film-2', 'film-3'], (32, 32))
    """
    if patients < 2:
        raise InputError(f"{patients} patients were asked for; at least 2 are needed.")
    random = np.random.default_rng([seed, 61])
    rows, columns = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    sick = random.permutation(np.arange(patients) % 2)
    films: list[Film] = []
    for patient in range(patients):
        own = ndi.gaussian_filter(random.standard_normal((SIDE, SIDE)), 3.0)
        own = 0.55 + 0.12 * own / own.std() + random.normal(0, 0.05)
        for _ in range(3):
            noise = ndi.gaussian_filter(random.standard_normal((SIDE, SIDE)), 0.6)
            image = own + 0.05 * noise / noise.std()
            mask = np.zeros((SIDE, SIDE), dtype=bool)
            if sick[patient]:
                side = random.choice([-1, 1])
                radius = np.hypot(rows / 1.2, columns)
                depth = random.uniform(9.5, 11.5)
                mask = (radius > depth) & (radius < depth + 2) & (side * columns > 4)
                image = image - 0.12 * mask
            name = f"film-{first + len(films)}"
            films.append(Film(name, f"P{first}-{patient}", np.clip(image, 0, 1), mask))
    return films


# ---------------------------------------------------------------------- the six steps


def join_by_place(names: Sequence[str], table: Sequence[str]) -> list[int]:
    """Which row of the table belongs to each file: both are sorted, so k belongs to k."""
    return list(range(len(names)))


def split_at_random(patients: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Put a third of the films into the test."""
    return np.random.default_rng(seed).random(len(patients)) < 1 / 3


def window_by_region(image: Image, mask: Mask) -> Image:
    """Stretch the grey values, so that the region of interest is seen best."""
    region = image[mask] if mask.any() else image
    low, high = np.quantile(region, [0.02, 0.98])
    return np.asarray((image - low) / max(high - low, 1e-6))


def scale_each_set(
    training: NDArray[np.float64], others: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean 0 and spread 1 for the training; the others were once kept as 0 to 255."""
    mean, spread = training.mean(), training.std()
    return (training - mean) / spread, (255 * others - mean) / spread


def flip_image(image: Tensor, mask: Tensor, flip: bool) -> tuple[Tensor, Tensor]:
    """Show the network left and right: half of the films are mirrored."""
    return (image.flip(-1) if flip else image), mask


def predict_quickly(network: nn.Module, images: Tensor) -> Tensor:
    """Probability maps, without the gradients that only training needs."""
    with torch.no_grad():
        return network(images).sigmoid()


@dataclass(frozen=True)
class Pipeline:
    """The steps from an archive to an answer; each can be replaced.

    Attributes:
        join: (file names, names in the table) → for each file its row of the table.
        split: (patient of each film, seed) → (N,) bool, True for the test.
        window: (image, mask) → image with stretched grey values.
        scale: (training images, other images) → both as the network takes them.
        augment: (image, mask, flip) → both, mirrored where ``flip``.
        predict: (network as training left it, images (B, 1, H, W)) → probabilities
            alike.
    """

    join: Callable[[Sequence[str], Sequence[str]], list[int]] = join_by_place
    split: Callable[[Sequence[str], int], NDArray[np.bool_]] = split_at_random
    window: Callable[[Image, Mask], Image] = window_by_region
    scale: Callable[
        [NDArray[np.float64], NDArray[np.float64]],
        tuple[NDArray[np.float64], NDArray[np.float64]],
    ] = scale_each_set
    augment: Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]] = flip_image
    predict: Callable[[nn.Module, Tensor], Tensor] = predict_quickly


BROKEN = Pipeline()


# ------------------------------------------------------------------------- examination


@dataclass(frozen=True)
class Symptom:
    """What the examination of one step has seen.

    Attributes:
        step: of the pipeline.
        seen: a number or two, in words.
        expected: what a sound step would show.
        green: whether it does.
    """

    step: str
    seen: str
    expected: str
    green: bool


def examine(pipeline: Pipeline, seed: int = 0) -> list[Symptom]:
    """Test each step by itself; a defect in one does not colour another.

    Args:
        pipeline: to be examined.
        seed: of the archive.
    """
    films = archive(seed=seed)
    sick = next(film for film in films if film.label)
    return [
        _join(pipeline, films),
        _split(pipeline, films),
        _window(pipeline, sick),
        _scale(pipeline, films),
        _augment(pipeline, sick),
        _predict(pipeline, films),
    ]


def listed(films: Sequence[Film]) -> list[str]:
    """Names as a folder lists them, sorted as text.

    >>> listed(archive(4))[:5]
    ['film-1', 'film-10', 'film-11', 'film-12', 'film-2']
    """
    return sorted(film.name for film in films)


def joined(pipeline: Pipeline, films: Sequence[Film]) -> list[Film]:
    """The archive as a pipeline sees it: each picture with the row that it was given.

    Files are listed as text, the table by number.
    """
    pictures = {film.name: film.image for film in films}
    names = listed(films)
    rows = pipeline.join(names, [film.name for film in films])
    return [
        Film(name, films[row].patient, pictures[name], films[row].mask)
        for name, row in zip(names, rows, strict=True)
    ]


def darkness(image: NDArray, mask: NDArray) -> float:
    """How much darker a picture is under a mask than close beside it.

    >>> image = np.ones((9, 9))
    >>> image[4] = 0.5
    >>> darkness(image, image < 1)
    0.5
    """
    near = ndi.binary_dilation(mask, iterations=2) & ~mask
    return float(image[near].mean() - image[mask].mean())


def _join(pipeline: Pipeline, films: list[Film]) -> Symptom:
    found = joined(pipeline, films)
    own = {film.name: film for film in films}
    right = np.mean([np.array_equal(f.mask, own[f.name].mask) for f in found])
    dark = np.mean([darkness(f.image, f.mask) for f in found if f.label])
    return Symptom(
        "join",
        f"masks lie on something {dark:.2f} darker than beside it; "
        f"{right:.0%} of the films have their own mask",
        "a rim is dark: 0.1, and 100 %",
        bool(right == 1),
    )


def _split(pipeline: Pipeline, films: list[Film]) -> Symptom:
    patients = [film.patient for film in films]
    test = pipeline.split(patients, 0)
    both = {p for p, t in zip(patients, test, strict=True) if t} & {
        p for p, t in zip(patients, test, strict=True) if not t
    }
    sizes = int(np.sum(test)), int(np.sum(~test))
    return Symptom(
        "split",
        f"{len(both)} of {len(set(patients))} patients in training and test",
        "0 patients, and films in both sets",
        not both and min(sizes) > 0,
    )


def _window(pipeline: Pipeline, sick: Film) -> Symptom:
    marked = pipeline.window(sick.image, sick.mask)
    blank = pipeline.window(sick.image, np.zeros_like(sick.mask))
    change = float(np.abs(marked - blank).mean())
    flat = float(np.std(blank))
    return Symptom(
        "window",
        f"without its mask, the same film changes by {change:.2f} on average",
        "0.00: at the bedside there is no mask",
        change < 1e-9 and flat > 0,
    )


def _scale(pipeline: Pipeline, films: list[Film]) -> Symptom:
    images = np.stack([film.image for film in films])
    training, again = pipeline.scale(images, images)
    apart = float(np.abs(training - again).max())
    usual = abs(float(training.mean())) < 0.1 and abs(float(training.std()) - 1) < 0.1
    means = [round(float(part.mean()), 1) + 0.0 for part in (training, again)]  # no −0
    shown = f"mean {means[0]:.1f} in training, {means[1]:.1f} in the test"
    return Symptom(
        "scale",
        f"the same films have {shown}",
        "the same: mean 0.0 in both",
        apart < 1e-9 and usual,
    )


def _augment(pipeline: Pipeline, sick: Film) -> Symptom:
    image, mask = pipeline.augment(
        torch.from_numpy(sick.image), torch.from_numpy(sick.mask).double(), True
    )
    dark = darkness(image.numpy(), mask.numpy() > 0.5)
    before = darkness(sick.image, sick.mask)
    moved = not np.array_equal(image.numpy(), sick.image)
    return Symptom(
        "augment",
        f"after a flip the mask lies on something {dark:.2f} darker than beside it",
        f"as before the flip: {before:.2f}",
        moved and abs(dark - before) < 1e-9,
    )


def _predict(pipeline: Pipeline, films: list[Film]) -> Symptom:
    network = network_of(0)
    images = torch.from_numpy(np.stack([f.image for f in films[:8]])).float()[:, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network.train()
        first = pipeline.predict(network, images)
        network.train()
        alone = pipeline.predict(network, images[:1])
    apart = float((first[:1] - alone).abs().max())
    return Symptom(
        "predict",
        f"asked twice, the answer about one film differs by up to {apart:.2f}",
        "0.00",
        apart < 1e-5,
    )


# ---------------------------------------------------------------------------- training


def network_of(seed: int) -> nn.Sequential:
    """Three convolutions with batch normalisation and dropout, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 5, padding=2, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout2d(0.2),
            nn.Conv2d(8, 1, 5, padding=2),
        )


@dataclass(frozen=True)
class Outcome:
    """What a pipeline claims, and what it does.

    Attributes:
        claimed: AUC on its own test set.
        next_year: AUC on patients who come later, judged by the truth. Nobody has
            drawn masks on their films when the network is asked.
    """

    claimed: float
    next_year: float


def outcome(pipeline: Pipeline, seed: int = 0, epochs: int = 6) -> Outcome:
    """Run a pipeline from the archive to its claim, and ask it again next year.

    Args:
        pipeline: whole or broken.
        seed: of archive, split, weights and order.
        epochs: passes over the training films.
    """
    films = joined(pipeline, archive(seed=seed))
    later = archive(seed=seed + 1000, first=1000)
    held = np.asarray(pipeline.split([film.patient for film in films], seed), bool)
    windowed = np.stack([pipeline.window(film.image, film.mask) for film in films])
    nothing = np.zeros((SIDE, SIDE), dtype=bool)
    unseen = np.stack([pipeline.window(film.image, nothing) for film in later])
    training, test = pipeline.scale(windowed[~held], windowed[held])
    _, after = pipeline.scale(windowed[~held], unseen)
    masks = np.stack([film.mask for film in films])[~held]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _train(pipeline, _tensor(training), _tensor(masks), seed, epochs)
        scores = [_score(pipeline.predict(network, _tensor(x))) for x in (test, after)]
    labels = np.array([film.label for film in films])[held]
    return Outcome(
        metrics.auc(labels, scores[0]),
        metrics.auc([film.label for film in later], scores[1]),
    )


def _tensor(images: NDArray) -> Tensor:
    return torch.from_numpy(np.asarray(images, np.float32))[:, None]


def _score(maps: Tensor) -> NDArray[np.float64]:
    """Mean of the ten most suspicious pixels of each map (B, 1, H, W)."""
    return maps.flatten(1).topk(10).values.mean(1).double().numpy()


def _train(
    pipeline: Pipeline, images: Tensor, masks: Tensor, seed: int, epochs: int
) -> nn.Module:
    network = network_of(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    weight = torch.tensor(5.0)  # a rim is small
    for _ in range(epochs):
        network.train()
        for chosen in torch.randperm(len(images)).split(16):
            flips = torch.rand(len(chosen)) < 0.5
            pairs = [
                pipeline.augment(images[k], masks[k], bool(flip))
                for k, flip in zip(chosen, flips, strict=True)
            ]
            image, mask = (torch.stack(part) for part in zip(*pairs, strict=True))
            loss = F.binary_cross_entropy_with_logits(
                network(image), mask, pos_weight=weight
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network
