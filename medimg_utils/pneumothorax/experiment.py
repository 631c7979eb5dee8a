"""The pneumothorax experiment at three sizes: train, evaluate, predict.

Each setting says what the paper gives and, where it gives nothing or we differ, why we
chose what we chose; `describe` turns that into the book's table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from medimg_utils import metrics, pretrained
from medimg_utils.experiments import (
    answer_each,
    choose,
    facts_file,
    facts_of_run,
    open_facts,
    protocol,
    provenance,
    setting,
)
from medimg_utils.io import (
    Image2D,
    ImageError,
    bare_name,
    check_file,
    check_outputs,
    read_image,
    write_json_atomic,
    write_png_atomic,
)
from medimg_utils.pneumothorax.dataset import Radiographs, Record, read_release
from medimg_utils.pneumothorax.evaluation import (
    measure,
    overlap_controls,
    style_control,
    style_features,
    subgroups,
    summarise,
)
from medimg_utils.pneumothorax.models import (
    UNet,
    image_logits,
    image_score,
    segmentation_loss,
)
from medimg_utils.pneumothorax.preprocess import (
    Augment,
    ContrastError,
    Geometry,
    prepare,
    tiled_probability,
)
from medimg_utils.release import check_listed, describe_release, read_truth
from medimg_utils.settings import find_device
from medimg_utils.splits import (
    Split,
    check_held_out,
    hold_out,
    never_seen,
    patient_digest,
)
from medimg_utils.training import (
    BEST,
    Batch,
    RunError,
    fit,
    load_tensors,
    load_weights,
    put_weights,
    refuse_run,
    stable_seed,
    warm_restart,
    warm_up_and_cosine,
)

ENDINGS = (
    ".probability.png",
    ".overlay.png",
    ".json",
)  # of the files that predict writes
PRIOR = "prior_mask"  # mean training mask, kept beside the weights for a control


# ----------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Experiment:
    """All that a trained network depends on, beside its data and seed.

    The defaults are the paper's values where it gives them. `describe` prints the
    table.
    """

    size: str = setting("paper", why="name of the run size")
    images: int | None = setting(
        871,
        paper=871,
        why="annotated radiographs, drawn by patient; other sizes take all of the folder",
    )
    resize: int = setting(480, paper=480, why="side of the square image")
    crop: int = setting(448, paper=448, why="side of the random training crop")
    epochs: int = setting(400, paper=400, why="passes over the training set")
    folds: int = setting(5, paper=5, why="patient-wise, stratified cross-validation")
    validation_folds: int = setting(
        8, why="one in this many training patients chooses the epoch and the thresholds"
    )
    channels: tuple[int, ...] = setting(
        (64, 128, 256, 512, 1024), why="width of each level; the original U-Net's"
    )
    unshuffle: int = setting(
        1, why="4 turns 4 × 4 pixels into channels, so that a CPU can train"
    )
    batch_size: int = setting(8, why="fits a GPU of 16 GB")
    learning_rate: float = setting(1e-3, why="peak for AdamW, warm-up then cosine")
    weight_decay: float = setting(0.01, why="AdamW's usual value")
    restart: float | None = setting(
        None,
        why="share of training after which the learning rate rises once more, to half "
        "its peak; None lets it fall all the time",
    )
    augmentation: float = setting(
        1.0, why="strength; broad, because scanners differ more than patients"
    )
    flip: float = setting(
        0.5, why="left-right flips; side is no clue to a pneumothorax"
    )
    image_weight: float = setting(
        0.2,
        why="weight of the image score in the loss; with 0.5 it pushes all logits down "
        "before the other terms have found anything",
    )
    pixel_weight: float = setting(1.0, why="weight of the pixels' cross-entropy")
    positive_weight: float = setting(
        1.0, why="weight of a positive pixel in it; 1 keeps probabilities calibrated"
    )
    curriculum: float = setting(
        0.3,
        why="share of training over which masks below 1 % of the image, and the image "
        "score, come to count fully",
    )
    positive_share: float | None = setting(
        None, why="share of positives an epoch draws; None takes the data as they are"
    )
    matched: float = setting(
        0.0,
        why="share of positives that share a batch, and their augmentation, with a "
        "negative of the same patient: what differs between the two is the disease; "
        "half of the draws are positive then",
    )
    positions: int = setting(
        2, why="overlapping crops along each axis at prediction", asked=True
    )
    mirror: bool = setting(
        False,
        why="at prediction, the mean of the logits of a film and its mirror image",
        asked=True,
    )
    zooms: tuple[float, ...] = setting(
        (1.0,),
        why="at prediction, the mean of the logits of a film at these sizes",
        asked=True,
    )
    specificity: float = setting(0.9, why="at which the score threshold is set")


EXPERIMENTS: dict[str, Experiment] = {
    "paper": Experiment(),
    "lab": Experiment(
        size="lab",
        images=None,
        epochs=100,
        channels=(32, 64, 96, 160),
        unshuffle=4,
        batch_size=8,
        learning_rate=3e-3,
        restart=0.68,
        augmentation=0.7,
        pixel_weight=5.0,
        positive_weight=10.0,
        curriculum=0.34,
        matched=0.75,
        # each puts the validation patients into a better order
        mirror=True,
        zooms=(1.0, 1.2),
    ),
    "tiny": Experiment(
        size="tiny",
        images=None,
        resize=128,
        crop=112,
        epochs=60,
        validation_folds=4,
        channels=(16, 16, 32, 64, 96),
        batch_size=2,
        learning_rate=1e-3,
        augmentation=0.0,
        image_weight=0.05,  # more of it, and a handful of films teaches nothing else
        curriculum=0.0,
        positive_share=0.5,
    ),
}


def get_experiment(size: str, *, epochs: int | None = None) -> Experiment:
    """The settings of a run size; see `medimg_utils.experiments.choose`."""
    return choose(EXPERIMENTS, size, epochs=epochs)


def from_json(values: dict[str, Any]) -> Experiment:
    """The experiment that `dataclasses.asdict` and JSON made of one."""
    several = ("channels", "zooms")
    return Experiment(**values | {k: tuple(values[k]) for k in several if k in values})


# -------------------------------------------------------------------------------- split


def split(
    records: Sequence[Record],
    experiment: Experiment,
    fold: int | None = None,
    seed: int = 0,
) -> Split[Record]:
    """Hold one fold out for the test, and some of the other patients for validation.

    Without a fold there is a single hold-out: the first of the folds.

    Raises:
        InputError: no such fold, or too few patients.
    """
    return hold_out(
        records,
        lambda record: record.label,
        fold=fold,
        n_folds=experiment.folds,
        validation_folds=experiment.validation_folds,
        seed=seed,
    )


def limit(records: list[Record], images: int | None, seed: int = 0) -> list[Record]:
    """Whole patients, drawn at random, until there are this many images.

    Args:
        records: of a release.
        images: how many, or a few more; all where None or where there are fewer.
        seed: of the draw.
    """
    if images is None or images >= len(records):
        return records
    of_patient: dict[str, list[Record]] = {}
    for record in records:
        of_patient.setdefault(record.patient, []).append(record)
    names = sorted(of_patient)
    drawn: list[Record] = []
    for k in np.random.default_rng(stable_seed(seed, images)).permutation(len(names)):
        if len(drawn) >= images:
            break
        drawn += of_patient[names[k]]
    return drawn


# -------------------------------------------------------------------------------- train


def train(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    experiment: str | Experiment = "tiny",
    *,
    fold: int | None = None,
    seed: int = 0,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    precision: str | None = None,
    workers: int | None = None,
    cache: Path | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Train the fully convolutional network on a release.

    Patients of the test fold are never touched. The best epoch and the thresholds are
    chosen on validation patients. The folder holds what `medimg_utils.training.fit`
    writes, and `best.json` once training has finished.

    Args:
        data: folder of a release, SIIM-ACR or ChestX-ray14.
        out: folder of the run.
        experiment: a run size, or settings of your own.
        fold: which fold to hold out; a single hold-out (the first) where None.
        seed: of the split, the weights, the order and the augmentation.
        resume: go on with a run that was stopped.
        accelerator: `auto`, or `cpu` to force it.
        devices: how many, or `auto`.
        precision: see `medimg_utils.training.best_precision`.
        workers: processes that load images.
        cache: folder for decoded images; in memory where None.
        progress: show bars.

    Returns:
        The training log, one row per epoch.
    """
    chosen = get_experiment(experiment) if isinstance(experiment, str) else experiment
    out = Path(out)
    if not resume:
        refuse_run(out)
    records = limit(read_release(data), chosen.images, seed)
    parts = split(records, chosen, fold, seed)

    def square(records: list[Record], augment: Augment | None) -> Radiographs:
        return Radiographs(
            records,
            size=chosen.resize,
            augment=augment,
            seed=seed,
            cache=cache,
            progress=progress,
        )

    training = square(
        parts.train, Augment(chosen.crop, chosen.augmentation, chosen.flip)
    )
    validation = square(parts.validation, None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed))
        network = UNet(channels=chosen.channels, unshuffle=chosen.unshuffle)

    def loss(model: nn.Module, batch: Batch, done: float) -> Tensor:
        entered = min(1.0, done / chosen.curriculum) if chosen.curriculum else 1.0
        return segmentation_loss(
            model(batch["image"]),
            batch["mask"],
            batch["label"],
            batch["annotated"],
            image_weight=chosen.image_weight * entered,
            pixel_weight=chosen.pixel_weight,
            positive_weight=chosen.positive_weight,
            smallest=0.01 * (1 - entered),
        )

    facts = facts_of_run(
        chosen,
        fold=fold,
        seed=seed,
        data=describe_data(data, records),
        patients=parts.met(),
    )
    history = fit(
        network,
        training,
        loss=loss,
        validate=lambda model: quick_validation(model, validation),
        best_by="val_selection",
        out=out,
        settings=facts,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        weight_decay=chosen.weight_decay,
        seed=seed,
        labels=[record.label for record in parts.train],
        positive_share=chosen.positive_share,
        groups=[record.patient for record in parts.train],
        matched=chosen.matched,
        schedule=warm_up_and_cosine
        if chosen.restart is None
        else warm_restart(chosen.restart),
        extra={PRIOR: mean_mask(training)},
        resume=resume,
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        workers=workers,
        progress=progress,
    )
    weights, stored = load_tensors(out / BEST)
    prior = weights.pop(PRIOR)
    network.load_state_dict(weights)
    network.to(find_device(accelerator))
    thresholds = choose_thresholds(network, validation, chosen, prior, progress)
    n = {name: len(part) for name, part in parts._asdict().items()}
    write_json_atomic(
        facts_file(out),
        {
            **facts,
            "best": stored["best"],
            "thresholds": thresholds,
            "about": provenance(chosen, data=facts["data"], seed=seed, n=n),
        },
    )
    return history


def describe_data(
    root: str | os.PathLike[str], records: Sequence[Record]
) -> dict[str, Any]:
    """What a number was measured on: folder, counts, whether it is simulated."""
    return describe_release(
        root,
        images=len(records),
        patients=len({record.patient for record in records}),
        positives=sum(record.label for record in records),
    )


def mean_mask(data: Radiographs, side: int = 120) -> Tensor:
    """(side, side): how often each place is inside a mask, among positives."""
    positives = [
        k for k, record in enumerate(data.records) if record.label and record.rle
    ]
    total = torch.zeros(side, side)
    for index in positives:
        total += F.adaptive_avg_pool2d(data.mask(index), side)[0]
    return total / max(1, len(positives))


@torch.inference_mode()
def quick_validation(
    model: nn.Module, data: Radiographs, batch_size: int = 8
) -> dict[str, float]:
    """AUC and Dice in one pass over whole squares: enough to choose an epoch."""
    device = next(model.parameters()).device
    scores: list[float] = []
    overlaps: list[float] = []
    for start in range(0, len(data), batch_size):
        items = [data[k] for k in range(start, min(start + batch_size, len(data)))]
        logits = (
            model(torch.stack([item["image"] for item in items]).to(device))
            .float()
            .cpu()
        )
        scores += image_logits(logits).sigmoid().tolist()
        overlaps += [
            metrics.dice(logits[k, 0] > 0, item["mask"][0] >= 0.5)
            for k, item in enumerate(items)
            if item["mask"].any()
        ]
    area = metrics.auc([record.label for record in data.records], scores)
    overlap = float(np.mean(overlaps)) if overlaps else float("nan")
    known = [value for value in (area, overlap) if not np.isnan(value)]
    selection = float(np.mean(known)) if known else float("nan")
    return {"val_auc": area, "val_dice": overlap, "val_selection": selection}


def ask(network: nn.Module, image: Tensor, experiment: Experiment) -> Tensor:
    """Probability (S, S) of each pixel of a square image (1, S, S), as a run predicts."""
    return tiled_probability(
        network,
        image,
        crop=experiment.crop,
        positions=experiment.positions,
        mirror=experiment.mirror,
        zooms=experiment.zooms,
    )


def choose_thresholds(
    network: nn.Module,
    data: Radiographs,
    experiment: Experiment,
    prior: Tensor,
    progress: bool = False,
) -> dict[str, float]:
    """Thresholds of pixel, score and position prior, from validation images alone.

    The pixel's is the one of 19 with the best mean Dice of positives. The score's gives
    the wanted specificity. Where the validation set has no positives or no negatives it
    is 0.5.
    """
    network.eval()
    grid = np.round(np.linspace(0.05, 0.95, 19), 2)
    scores, overlaps, overlaps_of_prior = [], [], []
    static = _enlarge(prior, experiment.resize)
    levels = grid * max(float(static.max()), 1e-6)  # a mean mask never comes near 1
    for index in tqdm(
        range(len(data)), "thresholds", disable=not progress, leave=False
    ):
        probability = ask(network, data.image(index), experiment)
        scores.append(image_score(probability))
        mask = data.mask(index)[0] >= 0.5
        if mask.any():
            overlaps.append(
                [metrics.dice(probability >= level, mask) for level in grid]
            )
            overlaps_of_prior.append(
                [metrics.dice(static >= level, mask) for level in levels]
            )
    labels = [record.label for record in data.records]
    return {
        "mask": float(grid[np.mean(overlaps, axis=0).argmax()]) if overlaps else 0.5,
        "score": metrics.choose_threshold(labels, scores, experiment.specificity),
        "prior": float(levels[np.mean(overlaps_of_prior, axis=0).argmax()])
        if overlaps
        else 0.5,
    }


def _enlarge(prior: Tensor, size: int) -> Tensor:
    return F.interpolate(prior[None, None], size=(size, size), mode="bilinear")[0, 0]


# --------------------------------------------------------------------------------- runs


@dataclass(frozen=True, eq=False)
class Run:
    """A trained network with what belongs to it; see `load_run`.

    Attributes:
        network: in evaluation mode, on this machine's device.
        experiment: its settings.
        thresholds: of `mask`, `score` and `prior`, chosen on validation patients.
        prior: (120, 120) mean training mask.
        facts: all of its JSON file.
        name: of the folder, or of the network that travels with the package.
    """

    network: UNet
    experiment: Experiment
    thresholds: dict[str, float]
    prior: Tensor
    facts: dict[str, Any]
    name: str


def load_run(run: str | os.PathLike[str]) -> Run:
    """Load a network from a run's folder, or the one that travels with the package.

    Args:
        run: a folder that `train` wrote, or `lab` for the network in
            `medimg_utils.pretrained`.

    Raises:
        RunError: the folder holds no finished run.
    """
    (path,), about, name = pretrained.find_run("pneumothorax", run)
    facts, experiment = open_facts(about, from_json)
    network = UNet(channels=experiment.channels, unshuffle=experiment.unshuffle)
    tensors = load_weights(path)
    prior = tensors.pop(PRIOR, None)
    put_weights(network, tensors, path)
    if prior is None:
        raise RunError(f"{path} lacks {PRIOR}. Copy or train the run again.")
    network.eval().to(find_device())
    return Run(network, experiment, facts["thresholds"], prior, facts, name)


class Prediction(NamedTuple):
    """What the network says about one radiograph.

    Attributes:
        image: the radiograph.
        probability: (H, W) float32 at the image's own size.
        score: of the whole image, in [0, 1].
        mask: (H, W) bool, probability at or above the run's threshold.
    """

    image: Image2D
    probability: NDArray[np.float32]
    score: float
    mask: NDArray[np.bool_]


def predict_image(run: Run, path: str | os.PathLike[str]) -> Prediction:
    """Read one radiograph and predict.

    Raises:
        ImageError: the file cannot be used.
    """
    image = read_image(path)
    try:
        square, geometry = prepare(image.pixels, run.experiment.resize)
    except ContrastError as error:
        raise ImageError(f"{path}: {error}") from error
    ready = torch.from_numpy(square / np.float32(255))[None]
    probability = ask(run.network, ready, run.experiment)
    restored = geometry.restore(probability).clamp(0, 1).numpy()
    mask = restored >= run.thresholds["mask"]
    return Prediction(image, restored, image_score(probability), mask)


def mask_area_mm2(
    mask: NDArray[np.bool_], spacing_mm: tuple[float, float] | None
) -> float | None:
    """Area of a mask in mm², None where the spacing is unknown.

    >>> mask_area_mm2(np.ones((2, 3), bool), (0.5, 0.2))
    0.6
    """
    if spacing_mm is None:
        return None
    return round(int(mask.sum()) * spacing_mm[0] * spacing_mm[1], 3)


# ----------------------------------------------------------------------------- evaluate


def evaluate(
    data: str | os.PathLike[str],
    run: str | os.PathLike[str],
    *,
    fold: int | None = None,
    out: str | os.PathLike[str] | None = None,
    truth: str | os.PathLike[str] | None = None,
    draws: int = 1000,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure a trained network on patients it has never seen, beside trivial controls.

    Patients of the training and validation sets are left out, so the release that a
    network was trained on leaves the held-out fold, and a release of other patients is
    used whole.

    Args:
        data: folder of a release.
        run: folder of a run, or `lab`.
        fold: must be the fold that the run held out; None takes whichever it was.
        out: where to write the numbers as JSON.
        truth: csv with `ImageId` and columns that only a simulation knows; adds
            subgroups.
        draws: of the bootstrap over patients.
        progress: show a bar.

    Returns:
        The numbers. What is undefined is NaN (null in the file).

    Raises:
        InputError: `out` cannot be written.
        LeakError: no patient is left, or the fold is one that the run was trained on.
    """
    if out is not None:
        check_file(out)
    known = read_truth(Path(truth), "ImageId") if truth is not None else None
    loaded = load_run(run)
    check_held_out(loaded.name, loaded.facts, fold)
    everyone = read_release(data)
    records = never_seen(everyone, loaded.name, loaded.facts, data)
    held_out = len(records) < len(everyone)
    if held_out:  # of the images that the run drew, the fold that it left
        drawn = limit(everyone, loaded.experiment.images, loaded.facts["seed"])
        records = never_seen(drawn, loaded.name, loaded.facts, data)
    if known is not None:  # before hours of work
        check_listed([record.image_id for record in records], known, "images")

    cases = []
    style = []
    for record in tqdm(records, "evaluate", disable=not progress, leave=False):
        prediction = predict_image(loaded, record.path)
        cases.append(_case(record, prediction, loaded))
        style.append(style_features(prediction.image.pixels))
    answer = {
        "use_case": "pneumothorax",
        "run": loaded.name,
        "fold": loaded.facts["fold"] if held_out else None,
        "protocol": protocol(held_out),
        "thresholds": loaded.thresholds,
        "experiment": asdict(loaded.experiment),
        **summarise(
            cases, loaded.thresholds["score"], loaded.experiment.specificity, draws
        ),
        "controls": {
            **overlap_controls(cases),
            "style": style_control(cases, np.array(style)),
        },
        "subgroups": subgroups(cases, known) if known is not None else None,
        "about": provenance(
            loaded.experiment,
            data=describe_data(data, records),
            seed=loaded.facts["seed"],
            n=len(records),
        ),
        "cases": cases,
    }
    if out is not None:
        write_json_atomic(out, answer)
    return answer


def _case(record: Record, prediction: Prediction, run: Run) -> dict[str, Any]:
    """One row of the evaluation; see `medimg_utils.pneumothorax.evaluation`."""
    image, probability, score, mask = prediction
    case: dict[str, Any] = {
        "image_id": record.image_id,
        "patient": patient_digest(record.patient),
        "label": record.label,
        "score": round(score, 6),
        "predicted_area": float(mask.mean()),
    }
    if not (record.label and record.rle):
        return case
    size = run.experiment.resize
    shape = (mask.shape[0], mask.shape[1])
    static = Geometry(shape, size).restore(_enlarge(run.prior, size)).clamp(0, 1)
    return case | measure(
        record.mask(shape),
        probability,
        mask,
        static.numpy(),
        run.thresholds["prior"],
        image.spacing_mm,
    )


# ------------------------------------------------------------------------------ predict


def predict(
    run: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Write probability map, overlay and score of each radiograph.

    For an input file NAME.ending the folder then holds

    | file | content |
    |---|---|
    | `NAME.probability.png` | (H, W) 16 bit at the input's size, 65535 = 1 |
    | `NAME.overlay.png` | (H, W, 3) the radiograph, with the probability in orange |
    | `NAME.json` | `score`, `mask_area_mm2` (null where spacing is unknown), `settings` |

    Nothing from the input's header is copied. Each file appears whole, NAME.json last;
    those of an earlier prediction are deleted first, so a file that fails has none.

    Args:
        run: folder of a run, or `lab`.
        files: DICOM, PNG or JPEG.
        out: folder; made where it does not exist.
        progress: show a bar.

    Returns:
        What the JSON files hold, in the order of `files`.

    Raises:
        InputError: names that cannot become output files; nothing has been written
            then.
        ImageError: some files cannot be read; the others have been written.
    """
    out = Path(out)
    inputs = [Path(file) for file in files]
    check_outputs(inputs, out, ENDINGS)
    loaded = load_run(run)
    settings = {
        "use_case": "pneumothorax",
        "run": loaded.name,
        "experiment": asdict(loaded.experiment),
        "thresholds": loaded.thresholds,
        "trained_on": loaded.facts["data"],
    }

    def write(path: Path, prediction: Prediction) -> dict[str, Any]:
        deep = np.round(prediction.probability * 65535).astype(np.uint16)
        name = bare_name(path)
        write_png_atomic(out / f"{name}.probability.png", deep)
        write_png_atomic(out / f"{name}.overlay.png", overlay(prediction))
        return {
            "score": prediction.score,
            "positive": prediction.score >= loaded.thresholds["score"],
            "mask_area_mm2": mask_area_mm2(
                prediction.mask, prediction.image.spacing_mm
            ),
            "mask_area_share": float(prediction.mask.mean()),
            "spacing_mm": prediction.image.spacing_mm,
            "shape": list(prediction.mask.shape),
            "settings": settings,
        }

    return answer_each(
        inputs,
        lambda path: predict_image(loaded, path),
        write,
        out=out,
        name=bare_name,
        endings=ENDINGS[:-1],
        what="files",
        kind=ImageError,
        progress=progress,
    )


def overlay(prediction: Prediction) -> NDArray[np.uint8]:
    """(H, W, 3) radiograph, the probability as orange tint, the mask's outline."""
    grey = prediction.image.pixels[..., None]
    orange = np.array([0.90, 0.62, 0.0])  # told apart with any colour vision
    tint = 0.6 * np.clip(prediction.probability, 0, 1)[..., None]
    picture = grey * (1 - tint) + orange * tint
    mask = torch.from_numpy(prediction.mask).float()[None, None]
    width = max(1, round(max(prediction.mask.shape) / 500))
    grown = F.max_pool2d(mask, 2 * width + 1, stride=1, padding=width)[0, 0].numpy() > 0
    picture[grown & ~prediction.mask] = orange
    return np.round(picture * 255).astype(np.uint8)
