"""Which design is better? One small U-Net, a dozen designs, several seeds.

The task is small enough to be repeated: mark the tumour core in axial slices of simulated
brains. A design differs from the baseline in one choice. A seed decides all that is left
to chance: which patients train, the initial weights, the order of the slices and what
augmentation does to them. :func:`run_ablation` trains every design with every seed and
keeps the Dice of every test patient; `medimg_utils.challenges.comparison` says what these
scores can tell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.losses import DiceLoss
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from medimg_utils import results
from medimg_utils.brain.dataset import load, prepare_scan, read_brats
from medimg_utils.brain.preprocess import Prepared, augment
from medimg_utils.brain.simulate import ensure_release
from medimg_utils.errors import InputError
from medimg_utils.io import to_json, write_json_atomic
from medimg_utils.metrics import dice
from medimg_utils.pneumothorax.models import UNet
from medimg_utils.release import describe_release
from medimg_utils.settings import find_device
from medimg_utils.training import fingerprint, fit, read_log, stable_seed

NAME = "challenges-ablation"
WIDTHS = (16, 32, 64, 96)  # channels of the levels, from the top
SLICES = 6  # of a patient
FOREGROUND = 1 / 3  # share of the small patches that are centred on tumour
NORMS = ("none", "batch", "instance", "group")
LOSSES = ("cross-entropy", "Dice", "both")


# ------------------------------------------------------------------------------- designs


@dataclass(frozen=True)
class Design:
    """What a team decides before it trains.

    Attributes:
        norm: one of `NORMS`.
        loss: one of `LOSSES`.
        augment: strength of `brain.preprocess.augment`; 0 leaves it out.
        shrink: whole slices are this many times as wide as the patches. The number of
            patches in a step grows with its square, so a step sees as many pixels.
        levels: resolutions of the U-Net, 2 to 4.
        pretrained: begin with the weights that filled in a withheld image.
    """

    norm: str = "group"
    loss: str = "both"
    augment: float = 1.0
    shrink: int = 1
    levels: int = 4
    pretrained: bool = False

    def __post_init__(self) -> None:
        for name, value, known in (
            ("norm", self.norm, NORMS),
            ("loss", self.loss, LOSSES),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}, but one of {known} is needed.")
        if not 2 <= self.levels <= len(WIDTHS):
            raise InputError(f"levels is {self.levels}, but 2 to 4 are possible.")
        if self.shrink < 1:
            raise InputError(f"shrink is {self.shrink}, but 1 is the least.")


BASELINE = "baseline"
DESIGNS = {
    BASELINE: Design(),
    "no normalisation": Design(norm="none"),
    "batch normalisation": Design(norm="batch"),
    "instance normalisation": Design(norm="instance"),
    "cross-entropy alone": Design(loss="cross-entropy"),
    "Dice alone": Design(loss="Dice"),
    "no augmentation": Design(augment=0),
    "patches of a half": Design(shrink=2),
    "patches of a quarter": Design(shrink=4),
    "three levels": Design(levels=3),
    "two levels": Design(levels=2),
    "pre-trained": Design(pretrained=True),
}


class Chance(NamedTuple):
    """The seeds of what no design decides.

    Attributes:
        patients: which patients train, and which are left for validation.
        weights: the initial ones.
        order: which slices make up a step, where patches lie, and augmentation.
    """

    patients: int
    weights: int
    order: int


class Affine(nn.Module):
    """What is left of a normalisation without its statistics: a scale and a shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same shape."""
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def normalise_with(network: nn.Module, norm: str) -> None:
    """Replace every group normalisation by another one with as many parameters.

    | norm | mean and spread are taken over |
    |---|---|
    | `none` | nothing |
    | `batch` | the batch, H and W; when predicting, their running averages |
    | `instance` | H and W of one image and channel |
    | `group` | H, W and the channels of a group, of one image |

    >>> network = UNet(channels=(8, 16))
    >>> normalise_with(network, "instance")
    >>> type(network.contract[0][1]).__name__
    'InstanceNorm2d'
    """
    if norm == "group":
        return
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            if not isinstance(layer, nn.GroupNorm):
                continue
            channels = layer.num_channels
            other = {
                "none": Affine(channels),
                "batch": nn.BatchNorm2d(channels),
                "instance": nn.InstanceNorm2d(channels, affine=True),
            }[norm]
            setattr(parent, name, other)


def build(design: Design, seed: int, *, outputs: int = 1) -> UNet:
    """The network of a design: 4 MR images in, logits of the tumour core out.

    Two by two pixels become channels first (`unshuffle`), which is what makes a training
    of seconds possible.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed))
        network = UNet(4, outputs, WIDTHS[: design.levels], unshuffle=2)
        normalise_with(network, design.norm)
    return network


# ---------------------------------------------------------------------------------- data


@dataclass(frozen=True, eq=False)
class Patient:
    """The slices of one patient.

    Attributes:
        name: id of the case.
        images: (S, 4, H, W) float16 z-scores in the order of `brain.MODALITIES`.
        core: (S, H, W) tumour core: all tumour but the oedema.
    """

    name: str
    images: NDArray[np.float16]
    core: NDArray[np.bool_]


def slices_of(
    prepared: Prepared, name: str, side: int, *, masked: bool = True
) -> Patient:
    """Axial slices at equal distances, the brain in the middle of a square.

    Args:
        prepared: the volumes of a patient with its truth.
        name: of the patient.
        side: of the square in voxels.
        masked: slices run through the tumour; False takes the middle third of the brain,
            as one must where nobody drew a mask, and leaves `core` empty.

    Raises:
        InputError: the brain is larger than the square, or there is no tumour.
    """
    channels, target = prepared.channels, prepared.target
    depth, height = channels.shape[1:3]
    if max(depth, height) > side:
        raise InputError(
            f"{name}: a slice has {depth} × {height} voxels, but the square has {side}. "
            "Give a larger side, or coarser voxels."
        )
    if masked:
        if target is None or not target.any():
            raise InputError(f"{name}: there is no tumour to put slices through.")
        planes = np.flatnonzero(target.any(axis=(0, 1, 2)))
        places = np.linspace(planes[0], planes[-1], SLICES + 2)[1:-1]
    else:
        places = channels.shape[3] * np.linspace(1 / 3, 2 / 3, SLICES)
    chosen = places.round().astype(int)
    left, below = (side - depth) // 2, (side - height) // 2
    box = (slice(left, left + depth), slice(below, below + height))
    images = np.zeros((SLICES, 4, side, side), np.float16)
    images[(slice(None), slice(None), *box)] = np.moveaxis(channels[..., chosen], 3, 0)
    core = np.zeros((SLICES, side, side), bool)
    if masked and target is not None:
        shares = target[0].astype(int) + target[2]  # core and enhancing, 255 = all
        core[(slice(None), *box)] = np.moveaxis(shares[..., chosen] >= 128, 2, 0)
    return Patient(name, images, core)


class Draws(Dataset):
    """A fixed number of random slices or patches; each follows from the seed and its place.

    Args:
        patients: whose slices are drawn, each with the same chance.
        design: its `augment` and `shrink` count.
        count: how many items there are.
        seed: of the draws.

    An item is a dict: `image` (4, h, w), `mask` (1, h, w) and `image_id`.
    """

    def __init__(
        self, patients: Sequence[Patient], design: Design, count: int, seed: int
    ) -> None:
        self.patients, self.design, self.count, self.seed = (
            patients,
            design,
            count,
            seed,
        )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, Any]:
        place = key[1] if isinstance(key, tuple) else key
        generator = torch.Generator().manual_seed(stable_seed(self.seed, place))
        total = len(self.patients) * SLICES
        number = int(torch.randint(total, (), generator=generator))
        patient, k = self.patients[number // SLICES], number % SLICES
        image = torch.from_numpy(patient.images[k].astype(np.float32))
        mask = torch.from_numpy(patient.core[k])[None].float()
        image, mask = patch(image, mask, self.design.shrink, generator)
        image, mask = augment(  # of volumes: a slice is one of a single plane
            image[..., None], mask[..., None], self.design.augment, generator
        )
        return {"image": image[..., 0], "mask": mask[..., 0], "image_id": patient.name}


def patch(
    image: Tensor, mask: Tensor, shrink: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random square of a slice; one in three is centred on tumour, where there is some.

    Args:
        image: (C, H, H).
        mask: (1, H, H).
        shrink: the patch has the side H / shrink.
        generator: decides.
    """
    if shrink == 1:
        return image, mask
    side = image.shape[-1] // shrink
    lucky, *corner = torch.rand(3, generator=generator).tolist()
    inside = mask[0].nonzero()
    if lucky < FOREGROUND and len(inside):
        centre = inside[int(torch.randint(len(inside), (), generator=generator))]
        start = (centre - side // 2).clamp(0, image.shape[-1] - side).tolist()
    else:
        start = [int(share * (image.shape[-1] - side + 1)) for share in corner]
    rows, columns = (slice(first, first + side) for first in start)
    return image[:, rows, columns], mask[:, rows, columns]


# ------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Experiment:
    """How large the ablation is; the same for all designs.

    Attributes:
        side: of the slices in voxels.
        voxel: side of a voxel in mm.
        training: patients of a seed's training set.
        validation: patients left over, on whom one may choose.
        test: patients that no seed trains on.
        archive: patients whose masks nobody drew: for pre-training.
        seeds: of each design.
        steps: of a training.
        batch: whole slices in a step.
        learning_rate: its peak.
    """

    side: int
    voxel: float
    training: int
    validation: int
    test: int
    archive: int
    seeds: int
    steps: int
    batch: int = 8
    learning_rate: float = 3e-3


EXPERIMENTS = {
    "tiny": Experiment(
        side=48, voxel=4.0, training=10, validation=2, test=12, archive=0, seeds=2,
        steps=120,
    ),
    "lab": Experiment(
        side=64, voxel=3.0, training=48, validation=32, test=112, archive=60, seeds=5,
        steps=300,
    ),
}  # fmt: skip
#: The releases of a size: patients of the first are never tested on.
RELEASES = {"tiny": ("tiny",), "lab": ("lab", "ablation", "ablation-more")}


class Cohorts(NamedTuple):
    """The patients of an experiment, apart from each other.

    Attributes:
        pool: of whom each seed draws its training set and leaves its validation set.
        archive: without masks, for pre-training.
        test: for the end.
    """

    pool: list[Patient]
    archive: list[Patient]
    test: list[Patient]


def read_cohorts(
    releases: Sequence[Path], chosen: Experiment, *, progress: bool = True
) -> Cohorts:
    """Read the slices of the patients that are needed, and keep the cohorts apart.

    Args:
        releases: the pool and the archive come out of the first one, in the order of the
            patients' numbers, and the test patients out of the others; all out of the
            first, where it is the only one.
        chosen: how many are needed.
        progress: show a bar.

    Raises:
        InputError: there are too few patients.
    """
    wanted = {
        "pool": chosen.training + chosen.validation,
        "archive": chosen.archive,
        "test": chosen.test,
    }
    # grades lie in folders of their own: by number, both are mixed
    known = [sorted(read_brats(one), key=lambda case: case.case_id) for one in releases]
    queue = [case for cases in known for case in cases]
    found: dict[str, list[Patient]] = {name: [] for name in wanted}
    with tqdm(total=sum(wanted.values()), desc="read", disable=not progress) as bar:
        for name, count in wanted.items():
            if name == "test" and known[1:]:
                queue = [case for cases in known[1:] for case in cases]
            if len(queue) < count:
                raise InputError(
                    f"{count} patients are needed for the {name}, but {len(queue)} are "
                    f"left in {', '.join(map(str, releases))}."
                )
            for case in queue[:count]:
                prepared = prepare_scan(case, load(case), chosen.voxel)
                found[name].append(
                    slices_of(
                        prepared, case.case_id, chosen.side, masked=name != "archive"
                    )
                )
                bar.update()
            queue = queue[count:]
    return Cohorts(**found)


def divide(pool: Sequence[Patient], training: int, seed: int) -> tuple[list, list]:
    """Training and validation patients of a seed."""
    order = np.random.default_rng([seed, 77]).permutation(len(pool))
    drawn = [pool[k] for k in order]
    return drawn[:training], drawn[training:]


def core_loss(logits: Tensor, mask: Tensor, kind: str) -> Tensor:
    r"""Cross-entropy of pixels, one minus the Dice of the batch, or the sum of both.

    Args:
        logits: (B, 1, H, W).
        mask: (B, 1, H, W) of 0 and 1.
        kind: one of `LOSSES`.
    """
    logits = logits.float()
    value = logits.new_zeros(())
    if kind != "Dice":
        value = value + F.binary_cross_entropy_with_logits(logits, mask)
    if kind != "cross-entropy":
        value = value + DiceLoss(sigmoid=True, batch=True)(logits, mask)
    return value


def fill_in_loss(model: nn.Module, images: Tensor) -> Tensor:
    """Withhold one of the four MR images of each slice, and ask for it.

    Args:
        model: (B, 4, H, W) → (B, 4, H, W).
        images: (B, 4, H, W); 0 is outside the brain, where nothing is asked.

    Returns:
        The mean absolute error inside the brain, in standard deviations.
    """
    which = torch.randint(4, (len(images),))
    rows = torch.arange(len(images))
    seen = images.clone()
    seen[rows, which] = 0
    guess = model(seen).float()[rows, which]
    wanted = images[rows, which]
    brain = (images != 0).any(dim=1)
    return ((guess - wanted).abs() * brain).sum() / brain.sum().clamp(min=1)


def train_network(
    design: Design,
    chance: Chance,
    cohorts: Cohorts,
    chosen: Experiment,
    out: Path,
    *,
    start: Mapping[str, Tensor] | None = None,
    progress: bool = False,
) -> UNet:
    """Train one network; the learning rate falls to nearly 0, and the last state counts.

    Args:
        design: what is compared.
        chance: its seeds.
        cohorts: of which `pool` is divided.
        chosen: steps, batch and learning rate.
        out: folder of the run; resumed where it was stopped.
        start: weights to begin with, where the design is `pretrained`.
        progress: show a bar.

    Returns:
        The network, ready to predict.

    Raises:
        InputError: a pre-trained design without weights to begin with.
    """
    network = build(design, chance.weights)
    if design.pretrained:
        if start is None:
            raise InputError(
                "the design is pre-trained, but there are no weights to begin with: give "
                "the answer of `pretrain` as start."
            )
        network.load_state_dict(
            {name: value for name, value in start.items() if "head" not in name},
            strict=False,
        )
    training, _ = divide(cohorts.pool, chosen.training, chance.patients)
    _fit(
        network,
        training,
        replace(design, pretrained=False),
        chance.order,
        chosen,
        out,
        lambda model, batch, done: core_loss(
            model(batch["image"]), batch["mask"], design.loss
        ),
        {"design": asdict(design), "chance": chance._asdict()},
        progress,
    )
    return network


def pretrain(
    seed: int, cohorts: Cohorts, chosen: Experiment, out: Path
) -> dict[str, Tensor]:
    """Weights of a network that learned to fill in a withheld MR image, without masks.

    Args:
        seed: of weights and order.
        cohorts: of which `archive` is used.
        chosen: steps, batch and learning rate.
        out: folder of the run.
    """
    design = Design()
    network = build(design, seed, outputs=4)
    _fit(
        network,
        cohorts.archive,
        design,
        stable_seed(seed, 1),
        chosen,
        out,
        lambda model, batch, done: fill_in_loss(model, batch["image"]),
        {"seed": seed},
        False,
    )
    return network.state_dict()


def _fit(
    network: UNet,
    patients: Sequence[Patient],
    design: Design,
    seed: int,
    chosen: Experiment,
    out: Path,
    loss: Any,
    settings: Mapping[str, Any],
    progress: bool,
) -> None:
    """One epoch of `steps` batches of random draws; another run in `out` makes room."""
    batch = chosen.batch * design.shrink**2
    told = out / "settings.json"
    wanted = to_json(
        {
            **settings,
            "experiment": asdict(replace(chosen, seeds=1)),
            "patients": fingerprint(
                array for one in patients for array in (one.images, one.core)
            ),
        }
    )
    if told.is_file() and json.loads(told.read_text(encoding="utf-8")) != wanted:
        for file in out.iterdir():
            file.unlink()
    fit(
        network,
        Draws(patients, design, chosen.steps * batch, seed),
        loss=loss,
        validate=lambda model: {"done": 1.0},  # no epoch is chosen: the last one counts
        best_by="done",
        out=out,
        settings=wanted,
        epochs=1,
        batch_size=batch,
        learning_rate=chosen.learning_rate,
        seed=seed,
        resume=True,
        precision="32-true",  # as quick at this size, and the same everywhere
        workers=0,
        progress=progress,
    )
    network.eval()


@torch.inference_mode()
def predict(network: nn.Module, patient: Patient) -> NDArray[np.bool_]:
    """(S, H, W) mask of the tumour core in all slices of a patient."""
    device = next(network.parameters()).device
    images = torch.from_numpy(patient.images.astype(np.float32)).to(device)
    return (network(images)[:, 0] >= 0).cpu().numpy()


def scores_of(network: nn.Module, patients: Sequence[Patient]) -> NDArray[np.float64]:
    """(P,) Dice of each patient, over all of its slices together."""
    return np.array([dice(predict(network, one), one.core) for one in patients])


# -------------------------------------------------------------------------- the whole run


def sources(seeds: int) -> dict[str, list[Chance]]:
    """The baseline with one source of chance at work at a time, all others at seed 0."""
    return {
        name: [Chance(**{**Chance(0, 0, 0)._asdict(), name: k}) for k in range(seeds)]
        for name in Chance._fields
    }


def run_ablation(
    runs: Path,
    size: str = "lab",
    *,
    experiment: Experiment | None = None,
    designs: Mapping[str, Design] = DESIGNS,
    folder: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train all designs with all seeds, and store the Dice of every test patient.

    A network that was trained and measured is not trained again, so the run can be
    stopped and called anew; another simulation, design or experiment is measured anew.

    Args:
        runs: folder of the notes, one file a network.
        size: of the release and the experiment.
        experiment: other settings than those of the size.
        designs: what is compared, by name; the first is the baseline.
        folder: where the result is stored; with the package unless given.
        progress: show bars.

    Returns:
        The stored result.
    """
    chosen = experiment or EXPERIMENTS[size]
    releases = [ensure_release(name, progress=progress) for name in RELEASES[size]]
    cohorts = read_cohorts(releases, chosen, progress=progress)
    data = [describe_release(one) for one in releases]
    first = next(iter(designs))
    plan = [  # seed by seed, so that a run that was stopped is a run of fewer seeds
        (name, design, Chance(k, k, k))
        for k in range(chosen.seeds)
        for name, design in designs.items()
    ]
    apart = sources(chosen.seeds)
    plan += [(first, designs[first], one) for row in apart.values() for one in row]
    found: dict[tuple[str, Chance], dict[str, Any]] = {}
    for name, design, chance in tqdm(plan, "networks", disable=not progress):
        if (name, chance) not in found:
            found[name, chance] = _once(
                runs, name, design, chance, cohorts, chosen, data
            )
    same = [Chance(k, k, k) for k in range(chosen.seeds)]
    result = {
        "experiment": asdict(chosen),
        "designs": {
            name: {
                "settings": asdict(design),
                "weights": sum(w.numel() for w in build(design, 0).parameters()),
                "seconds": _mean([found[name, one]["seconds"] for one in same]),
                "validation": [found[name, one]["validation"] for one in same],
                "scores": [found[name, one]["scores"] for one in same],
            }
            for name, design in designs.items()
        },
        "sources": {
            name: [found[first, one]["scores"] for one in row]
            for name, row in apart.items()
        },
        "patients": " ".join(one.name for one in cohorts.test),
        "minutes": sum(one["seconds"] for one in found.values()) / 60,
        "hardware": results.hardware(find_device().type),
        "about": results.provenance(
            size=size,
            data=data,
            device=find_device().type,
            seed=0,
            n={
                "test patients": chosen.test,
                "networks": len(found),
                "seeds": chosen.seeds,
            },
        ),
    }
    results.save(NAME, result, folder)
    return result


def _mean(values: Sequence[float], digits: int = 1) -> float:
    return round(float(np.mean(values)), digits)


def _once(
    runs: Path,
    name: str,
    design: Design,
    chance: Chance,
    cohorts: Cohorts,
    chosen: Experiment,
    data: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The scores of one network: read where they are noted, measured where not."""
    settings = {
        "design": asdict(design),
        "chance": chance._asdict(),
        "experiment": asdict(replace(chosen, seeds=1)),  # more seeds change no network
        "data": data,
    }
    place = runs / f"{name.replace(' ', '-')}-{'-'.join(map(str, chance))}"
    note = place / "scores.json"
    if note.is_file():
        stored = json.loads(note.read_text(encoding="utf-8"))
        if stored["settings"] == settings:
            return stored
    start = None
    if design.pretrained:
        start = pretrain(
            chance.weights, cohorts, chosen, runs / f"pre-{chance.weights}"
        )
    network = train_network(design, chance, cohorts, chosen, place, start=start)
    _, rest = divide(cohorts.pool, chosen.training, chance.patients)
    answer = {
        "settings": settings,
        "seconds": round(sum(row["seconds"] for row in read_log(place)), 1),
        "validation": _mean(scores_of(network, rest).tolist(), 4),
        "scores": pack(scores_of(network, cohorts.test)),
    }
    write_json_atomic(note, answer)
    return answer


def pack(scores: NDArray[np.float64]) -> str:
    """Scores in thousandths, as one short line.

    >>> pack(np.array([0.5, 1.0, 0.0304]))
    '500 1000 30'
    """
    return " ".join(str(round(1000 * score)) for score in scores.tolist())


def unpack(lines: Sequence[str]) -> NDArray[np.float64]:
    """(S, P) scores of S lines; see `pack`.

    >>> unpack(["500 1000", "30 7"]).tolist()
    [[0.5, 1.0], [0.03, 0.007]]
    """
    return np.array([[int(number) for number in line.split()] for line in lines]) / 1000
