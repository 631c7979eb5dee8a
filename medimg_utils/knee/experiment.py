"""The knee experiment at three sizes: train, evaluate, predict.

A run is several networks, one for each series and diagnosis (or one for each series,
with an output for each diagnosis), the standard histograms of the series, and the
regressions that make one answer of three. Its folder holds

| file | content |
|---|---|
| `landmarks-SERIES.json` | the standard histogram of a series |
| `SERIES-DIAGNOSIS/` or `SERIES/` | what `medimg_utils.training.fit` writes |
| `SERIES/rehearsal/` | the same, where places of findings were learned before |
| `best.safetensors` | the best weights of all networks |
| `best.json` | settings, exams, combinations, thresholds; written last |

Each setting says what the paper gives and, where it gives nothing or we differ, why we
chose what we chose; `medimg_utils.experiments.describe` turns that into the book's table.
"""

from __future__ import annotations

import gzip
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from medimg_utils import pretrained
from medimg_utils.errors import InputError
from medimg_utils.experiments import (
    answer_each,
    choose,
    facts_file,
    facts_of_run,
    open_facts,
    provenance,
    setting,
)
from medimg_utils.geometry import Geometry
from medimg_utils.io import (
    atomic_path,
    check_file,
    check_folder,
    write_json_atomic,
)
from medimg_utils.knee import localise, rehearsal
from medimg_utils.knee.dataset import (
    DIAGNOSES,
    SERIES,
    Exam,
    Exams,
    VolumeError,
    collate,
    listed_exams,
    read_release,
    read_volume,
)
from medimg_utils.knee.evaluation import (
    Combination,
    as_json,
    choose_thresholds,
    combine,
    fit_combinations,
    read_truth,
    series_auc,
    style_controls,
    style_features,
    subgroups,
    summarise,
    validation_auc,
)
from medimg_utils.knee.imagenet import load_imagenet
from medimg_utils.knee.models import (
    BACKBONES,
    MRNet,
    ask,
    enlarge,
    positive_share,
    weighted_loss,
)
from medimg_utils.knee.preprocess import Augment, prepare, views
from medimg_utils.knee.standardise import StandardiseError, Standardiser
from medimg_utils.release import check_listed, describe_release, left_by_simulation
from medimg_utils.settings import find_device
from medimg_utils.splits import LeakError, check_fold, patient_folds
from medimg_utils.training import (
    BEST,
    LAST,
    Batch,
    Schedule,
    count_workers,
    each_loaded,
    fit,
    load_tensors,
    load_weights,
    minutes_of,
    put_weights,
    reduce_on_plateau,
    refuse_run,
    save_tensors,
    stable_seed,
    warm_up_and_cosine,
)

REHEARSAL = "rehearsal"  # folder of what a network may learn beforehand
SCALED_ON = 64  # training exams that the pooled features are scaled on
ALGORITHMS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


# ----------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Experiment:
    """All that the trained networks depend on, beside their data and seed.

    The defaults are the paper's values where it gives them.
    """

    size: str = setting("paper", why="name of the run size")
    resize: int = setting(256, paper=256, why="side of the square slices")
    crop: int = setting(
        256, paper=256, why="side of what the network sees; the authors' code cuts 224"
    )
    backbone: str = setting("alexnet", paper="alexnet", why="features of a slice")
    imagenet: bool = setting(True, paper=True, why="start from ImageNet weights")
    shared: bool = setting(
        False,
        paper=False,
        why="one network a series with an output for each diagnosis, instead of one "
        "for each: a third of the time and of the weights",
    )
    gain: float | None = setting(
        None,
        why="spread that the pooled features are scaled to before training; none leaves "
        "them as they are, like the paper",
    )
    probe: bool = setting(
        False,
        paper=False,
        why="fit the linear layer to the features as they then are (after the rehearsal, "
        "where there is one) before training the rest",
    )
    frozen: int = setting(
        0, paper=0, why="first layers of the features that keep their ImageNet weights"
    )
    rehearse_epochs: int = setting(
        0,
        paper=0,
        why="passes in which the features first learn where findings lie, which only "
        "simulated exams tell; see `medimg_utils.knee.rehearsal`",
    )
    rehearse_rate: float = setting(3e-4, why="peak of the learning rate then")
    rehearse_slices: int = setting(10, why="slices of an exam in a pass then")
    epochs: int = setting(50, paper=50, why="passes over the training set")
    batch_size: int = setting(1, paper=1, why="exams in a step")
    algorithm: str = setting("adam", paper="adam", why="optimiser")
    learning_rate: float = setting(1e-5, paper=1e-5, why="at the start or the peak")
    weight_decay: float = setting(0.01, paper=0.01, why="of the optimiser")
    schedule: str = setting(
        "plateau",
        paper="plateau",
        why="plateau: lower the rate when the held-out loss stops falling; cosine: warm "
        "up, then lower it along half a cosine",
    )
    patience: int = setting(5, paper=5, why="epochs without progress that are waited")
    factor: float = setting(0.3, paper=0.3, why="by which the rate is lowered then")
    clip: float | None = setting(None, why="longest gradient; none leaves it")
    rotation: float = setting(25.0, paper=25.0, why="± degrees, one draw for an exam")
    shift: float = setting(25.0, paper=25.0, why="± pixels, one draw for an exam")
    flip: float = setting(0.5, paper=0.5, why="share of the draws that are mirrored")
    zoom: float = setting(
        0.0, why="a training exam is enlarged, or made smaller, by up to"
    )
    rendering: float = setting(
        0.0, why="strength of random grey curve, sharpness and noise"
    )
    slices: float = setting(
        1.0,
        paper=1.0,
        why="share of its slices that a training exam shows, others in each epoch",
    )
    twins: bool = setting(
        False,
        paper=False,
        why="a step shows simulated twins together: one knee with and without a "
        "finding, posed and rendered alike; other data have none",
    )
    folds: int = setting(
        10, why="one in this many training exams is held out and chooses the epoch"
    )
    combination: str = setting(
        "training",
        paper="training",
        why="exams that the regression of the three series is fitted on; the networks "
        "do not know those held out by heart",
    )
    views: int = setting(
        1,
        paper=1,
        why="poses in which the trained networks are asked about an exam: as it lies, "
        "smaller, larger, turned either way; their mean probability is the answer",
    )
    asked_again: int | None = setting(
        None,
        why="training exams that the trained networks answer, for what is known by "
        "heart; None is all",
    )
    specificity: float = setting(0.9, why="at which the score threshold is set")


EXPERIMENTS: dict[str, Experiment] = {
    "paper": Experiment(),
    # With the three series side by side, a pass over 1800 exams takes 2 CPU cores some
    # 5 minutes of the rehearsal.
    "lab": Experiment(
        size="lab",
        crop=160,
        backbone="squeezenet",
        shared=True,
        gain=1.0,
        probe=True,
        frozen=3,
        rehearse_epochs=16,
        epochs=3,
        batch_size=4,
        algorithm="adamw",
        learning_rate=3e-5,
        schedule="cosine",
        clip=1.0,
        rotation=10.0,
        shift=12.0,
        flip=0.0,
        zoom=0.15,
        rendering=0.4,
        slices=0.5,
        twins=True,
        folds=10,
        combination="out_of_fold",
        views=5,
        asked_again=200,
    ),
    "tiny": Experiment(
        size="tiny",
        resize=128,
        crop=112,
        backbone="small",
        imagenet=False,
        shared=True,
        gain=5.0,
        epochs=14,
        algorithm="adamw",
        learning_rate=2e-3,
        schedule="cosine",
        clip=1.0,
        rotation=0.0,
        shift=4.0,
        flip=0.0,
        folds=4,
        combination="out_of_fold",
    ),
}


def get_experiment(size: str, *, epochs: int | None = None) -> Experiment:
    """The settings of a run size; see `medimg_utils.experiments.choose`."""
    return choose(EXPERIMENTS, size, epochs=epochs, of=("epochs", "rehearse_epochs"))


def from_json(values: dict[str, Any]) -> Experiment:
    """The experiment that `dataclasses.asdict` and JSON made of one."""
    return Experiment(**values)


# -------------------------------------------------------------------------------- split


class Split(NamedTuple):
    """Exams to train on, and exams that choose the epoch."""

    train: list[Exam]
    validation: list[Exam]


def split(
    data: str | os.PathLike[str],
    experiment: Experiment,
    fold: int | None = None,
    seed: int = 0,
    *,
    allow_missing: bool = False,
) -> Split:
    """Hold one fold of the training exams out; the release's own test is not touched.

    The authors chose the epoch on the exams that are public as `valid`. Numbers
    measured there afterwards are too good, so ours are held out of `train`. KneeMRI
    brings such exams along (`tune`); then there are no folds.

    MRNet has no patient identifiers: exams of one patient may part.

    Raises:
        InputError: no such fold, or too few exams.
    """
    exams = read_release(data, "train", allow_missing=allow_missing)
    if not exams[0].labels:
        raise InputError(
            f"the tables train-*.csv of {data} are not there, but training needs labels. "
            "Download them, too."
        )
    if set(exams[0].labels) != set(DIAGNOSES):
        if fold is not None:
            raise InputError(
                f"fold {fold} was asked for, but this release has a split `tune` of "
                "its own. Leave --fold away."
            )
        return Split(exams, read_release(data, "tune", allow_missing=allow_missing))
    held = check_fold(fold, experiment.folds)
    classes = ["".join(str(exam.labels[name]) for name in DIAGNOSES) for exam in exams]
    pairs = twins(data, exams) if experiment.twins else None
    folds = patient_folds(
        [exam.exam_id for exam in exams] if pairs is None else pairs,
        classes,
        experiment.folds,
        seed,
    )
    return Split(
        [exam for exam, k in zip(exams, folds, strict=True) if k != held],
        [exam for exam, k in zip(exams, folds, strict=True) if k == held],
    )


def lesions_of(data: str | os.PathLike[str]) -> Path | None:
    """Folder of the training exams' findings; only simulated releases have one."""
    return left_by_simulation(data, "lesions/train")


def twins(data: str | os.PathLike[str], exams: Sequence[Exam]) -> list[str] | None:
    """Name of each exam's pair, where the release was simulated with twins."""
    plan = left_by_simulation(data, "simulation.json")
    if plan is None or not json.loads(plan.read_text(encoding="utf-8")).get("twins"):
        return None
    return [str(int(exam.exam_id) // 2) for exam in exams]


# -------------------------------------------------------------------------------- train


class Part(NamedTuple):
    """What one network of a run is for."""

    series: str
    diagnoses: tuple[str, ...]
    shared: bool

    @property
    def name(self) -> str:
        """Of its folder, and of its weights in the common file."""
        return self.series if self.shared else f"{self.series}-{self.diagnoses[0]}"


def parts_of(experiment: Experiment, exam: Exam) -> list[Part]:
    """The networks of a run, for exams like this one: nine in the paper."""
    groups = (
        [tuple(exam.labels)]
        if experiment.shared
        else [(diagnosis,) for diagnosis in exam.labels]
    )
    return [
        Part(series, diagnoses, experiment.shared)
        for series in exam.series
        for diagnoses in groups
    ]


def build(experiment: Experiment, part: Part) -> MRNet:
    """The network of a part, with random weights."""
    features, width = BACKBONES[experiment.backbone]()
    return MRNet(features, width, len(part.diagnoses))


def train(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    experiment: str | Experiment = "tiny",
    *,
    fold: int | None = None,
    seed: int = 0,
    resume: bool = False,
    allow_missing: bool = False,
    accelerator: str = "auto",
    devices: int | str = 1,
    precision: str | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Train the networks of all series on the `train` split of a release.

    The standard histograms are learned on the training exams; exams of the held-out
    fold choose the epoch and the thresholds. The `valid` split is not opened.

    Args:
        data: folder of a release, `MRNet-v1.0` or KneeMRI.
        out: folder of the run.
        experiment: a run size, or settings of your own.
        fold: which fold to hold out; the first where None.
        seed: of the folds, the weights, the order and the augmentation.
        resume: go on with a run that was stopped.
        allow_missing: leave out exams that a table names and the folder lacks.
        accelerator: `auto`, or `cpu` to force it.
        devices: how many, or `auto`.
        precision: see `medimg_utils.training.best_precision`.
        workers: processes that load exams.
        progress: show bars.

    Returns:
        {network: its training log, one row per epoch}.
    """
    chosen = get_experiment(experiment) if isinstance(experiment, str) else experiment
    out = Path(out)
    if not resume:
        refuse_run(out)
    sides = split(data, chosen, fold, seed, allow_missing=allow_missing)
    digests = {
        name: [exam.digest() for exam in side] for name, side in sides._asdict().items()
    }
    facts = facts_of_run(
        chosen,
        fold=fold,
        seed=seed,
        data=describe_data(data, sides.train + sides.validation),
        exams=digests,
    )
    parts = parts_of(chosen, sides.train[0])
    standardisers = {
        series: learn_landmarks(sides.train, series, progress)
        for series in sides.train[0].series
    }

    pairs = twins(data, sides.train) if chosen.twins else None
    lesions = lesions_of(data) if chosen.rehearse_epochs else None
    logs, networks, told = {}, {}, {}
    for part in parts:
        if progress:
            tqdm.write(f"{part.name}: {', '.join(part.diagnoses)}")
        networks[part], told[part], logs[part.name] = _train_part(
            part,
            sides,
            standardisers[part.series],
            chosen,
            out / part.name,
            facts,
            pairs,
            lesions,
            seed=seed,
            resume=resume,
            accelerator=accelerator,
            devices=devices,
            precision=precision,
            workers=workers,
            progress=progress,
        )
    device = find_device(accelerator)
    run = Run(
        {part: network.to(device).eval() for part, network in networks.items()},
        chosen,
        standardisers,
        {},
        {},
        {},
        out.name,
    )
    step = math.ceil(len(sides.train) / (chosen.asked_again or len(sides.train)))
    asked = sides._replace(train=sides.train[::step])
    cases = {
        name: list(_cases(run, side, name, progress))
        for name, side in asked._asdict().items()
    }
    combinations = {
        "training": fit_combinations(cases["train"]),
        "out_of_fold": fit_combinations(cases["validation"]),
    }
    tensors = {
        f"{part.name}.{name}": value
        for part, network in networks.items()
        for name, value in network.state_dict().items()
    }
    for series, standardiser in standardisers.items():
        standardiser.save(out / f"landmarks-{series}.json")
    save_tensors(out / BEST, tensors, {"parts": [part.name for part in parts]})
    write_json_atomic(
        facts_file(out),
        {
            **facts,
            "parts": [
                {"name": part.name, **part._asdict(), **told[part]} for part in parts
            ],
            "landmarks": {name: asdict(one) for name, one in standardisers.items()},
            "combinations": as_json(combinations),
            "thresholds": choose_thresholds(
                cases["validation"],
                combinations[chosen.combination],
                chosen.specificity,
            ),
            "auc": {name: series_auc(rows) for name, rows in cases.items()},
            "held_out": cases["validation"],
            "about": provenance(
                chosen,
                data=facts["data"],
                seed=seed,
                n={name: len(side) for name, side in sides._asdict().items()},
            ),
        },
    )
    return logs


def describe_data(
    root: str | os.PathLike[str], exams: Sequence[Exam]
) -> dict[str, Any]:
    """What a number was measured on: folder, counts, whether it is simulated."""
    counts = {
        name: sum(exam.labels[name] for exam in exams) for name in exams[0].labels
    }
    return describe_release(root, exams=len(exams), **counts)


def learn_landmarks(
    exams: Sequence[Exam], series: str, progress: bool = False
) -> Standardiser:
    """The standard histogram of one series, from training exams alone."""
    bar = tqdm(exams, f"landmarks {series}", disable=not progress, leave=False)
    read: list[Path] = []

    def volumes() -> Iterator[NDArray[Any]]:
        for exam in bar:
            read.append(exam.series[series])
            yield read_volume(read[-1])

    try:
        return Standardiser.fit(volumes())
    except StandardiseError as error:
        raise VolumeError(f"{read[-1]}: {error}") from error


def _train_part(
    part: Part,
    sides: Split,
    standardiser: Standardiser,
    experiment: Experiment,
    out: Path,
    facts: dict[str, Any],
    pairs: list[str] | None,
    lesions: Path | None,
    *,
    seed: int,
    accelerator: str,
    **options: Any,
) -> tuple[MRNet, dict[str, Any], list[dict[str, Any]]]:
    """Train one network; its best weights, what is told of it, and its log."""
    about: dict[str, Any] = {
        "diagnoses": part.diagnoses,
        "size": experiment.resize,
        "crop": experiment.crop,
        "seed": seed,
    }

    def opened(exams: Sequence[Exam], **how: Any) -> Exams:
        return Exams(exams, part.series, standardiser, **about, **how)

    augment = Augment(
        experiment.crop,
        experiment.rotation,
        experiment.shift,
        experiment.flip,
        experiment.rendering,
        experiment.slices,
        experiment.zoom,
    )
    groups = None if pairs is None else [int(pair) for pair in pairs]
    training = opened(sides.train, augment=augment, groups=groups)
    validation = opened(sides.validation, remember=True)
    options |= {
        "collate": collate,
        "accelerator": accelerator,
        "batch_size": experiment.batch_size,
        "weight_decay": experiment.weight_decay,
        "seed": seed,
        "algorithm": ALGORITHMS[experiment.algorithm],
        "clip": math.inf if experiment.clip is None else experiment.clip,
    }
    if pairs is not None:
        worse = _with_the_finding(sides.train, pairs)
        options |= {"labels": worse, "groups": pairs, "matched": 1.0}
    settings = {**facts, "part": part._asdict()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed))
        network = build(experiment, part)
    origin = "none: random weights, as chosen"
    if experiment.imagenet:
        origin = load_imagenet(network.features, experiment.backbone)
    network.freeze(experiment.frozen)
    rehearsed = []
    if lesions is not None:
        places = rehearsal.Places(
            sides.train,
            part.series,
            standardiser,
            lesions=lesions / part.series,
            slices=experiment.rehearse_slices,
            augment=replace(augment, slices=1.0),
            groups=groups,
            **about,
        )
        pointer = rehearsal.Pointer(network)
        rehearsed = fit(
            pointer,
            places,
            loss=rehearsal.loss_of(pointer),
            validate=lambda model: rehearsal.validate(model, validation),
            best_by="val_auc",
            out=out / REHEARSAL,
            settings={**settings, "weights": origin},
            epochs=experiment.rehearse_epochs,
            learning_rate=experiment.rehearse_rate,
            **options,
        )
        best, _ = load_tensors(out / REHEARSAL / BEST)
        network.load_state_dict(rehearsal.network_weights(best))
        origin += f"; then {experiment.rehearse_epochs} epochs with places of findings"
    elif experiment.rehearse_epochs and options["progress"]:
        tqdm.write(
            "No lesions lie beside this release, so the features do not rehearse with "
            "places: more epochs are needed."
        )
    begun = (out / LAST).is_file()  # then `fit` takes its weights from there
    if experiment.gain is not None and not begun:
        some = opened(sides.train[:: math.ceil(len(sides.train) / SCALED_ON)])
        network.scale(
            (some[k]["image"] for k in range(len(some))), gain=experiment.gain
        )
    labels = torch.tensor(
        [[float(exam.labels[name]) for name in part.diagnoses] for exam in sides.train]
    )
    if experiment.probe and not begun:
        still = Augment(experiment.crop, slices=experiment.slices)
        everyone = DataLoader(
            opened(sides.train, augment=still),
            batch_size=None,
            num_workers=count_workers(options["workers"]),
        )
        network.probe((item["image"] for item in each_loaded(everyone)), labels)
    share = positive_share(labels)

    def loss(model: nn.Module, batch: Batch, done: float) -> Tensor:
        label = batch["label"]
        return weighted_loss(model(batch["image"]), label, share.to(label.device))

    schedules: dict[str, Schedule] = {
        "plateau": reduce_on_plateau(
            "val_loss", patience=experiment.patience, factor=experiment.factor
        ),
        "cosine": warm_up_and_cosine,
    }
    history = fit(
        network,
        training,
        loss=loss,
        validate=lambda model: quick_validation(model, validation, share),
        best_by="val_loss",
        lowest=True,
        out=out,
        settings={**settings, "weights": origin},
        epochs=experiment.epochs,
        learning_rate=experiment.learning_rate,
        schedule=schedules[experiment.schedule],
        **options,
    )
    weights, stored = load_tensors(out / BEST)
    network.load_state_dict(weights)
    told = {
        "weights": origin,
        "best": stored["best"],
        "minutes": minutes_of([*rehearsed, *history]),
        "rehearsed": rehearsed,
    }
    return network, told, history


def _with_the_finding(exams: Sequence[Exam], pairs: Sequence[str]) -> list[bool]:
    """Which of two twins has more labels."""
    counts = [sum(exam.labels.values()) for exam in exams]
    least: dict[str, int] = {}
    for pair, count in zip(pairs, counts, strict=True):
        least[pair] = min(count, least.get(pair, count))
    return [count > least[pair] for pair, count in zip(pairs, counts, strict=True)]


def quick_validation(model: nn.Module, data: Exams, share: Tensor) -> dict[str, float]:
    """Loss and AUC on the exams that choose the epoch."""
    answers, labels = ask(model, data)
    logits = torch.cat(answers)
    return {
        "val_loss": float(weighted_loss(logits, labels, share)),
        **validation_auc(data.diagnoses, labels, logits),
    }


# --------------------------------------------------------------------------------- runs


@dataclass(frozen=True, eq=False)
class Run:
    """Trained networks with what belongs to them; see `load_run`.

    Attributes:
        networks: in evaluation mode, on this machine's device.
        experiment: their settings.
        standardisers: of each series.
        combinations: {way: {diagnosis: regression of the series}}.
        thresholds: of the combined probability of each diagnosis.
        facts: all of its JSON file.
        name: of the folder, or of the networks that travel with the package.
    """

    networks: dict[Part, MRNet]
    experiment: Experiment
    standardisers: dict[str, Standardiser]
    combinations: dict[str, dict[str, Combination]]
    thresholds: dict[str, float]
    facts: dict[str, Any]
    name: str


def load_run(run: str | os.PathLike[str]) -> Run:
    """Load networks from a run's folder, or those that travel with the package.

    Args:
        run: a folder that `train` wrote, or `lab` for the networks in
            `medimg_utils.pretrained`.

    Raises:
        RunError: the folder holds no finished run.
    """
    (path,), about, name = pretrained.find_run("knee", run)
    facts, experiment = open_facts(about, from_json)
    tensors = load_weights(path)
    device = find_device()
    networks = {}
    for values in facts["parts"]:
        part = Part(values["series"], tuple(values["diagnoses"]), values["shared"])
        networks[part] = build(experiment, part)
        own = {
            name.removeprefix(f"{part.name}."): value
            for name, value in tensors.items()
            if name.startswith(f"{part.name}.")
        }
        put_weights(networks[part], own, path)
        networks[part].eval().to(device)
    return Run(
        networks,
        experiment,
        {
            name: Standardiser.from_json(values)
            for name, values in facts["landmarks"].items()
        },
        {
            way: {name: Combination.from_json(one) for name, one in ways.items()}
            for way, ways in facts["combinations"].items()
        },
        facts["thresholds"],
        facts,
        name,
    )


class Answer(NamedTuple):
    """What the networks of one series say about one diagnosis of one exam.

    Attributes:
        probability: sigmoid of the logit, the mean over the views.
        as_it_lies: the same of the first view alone, as is all below.
        picked: the slice that adds most to the logit.
        shares: (S,) what each slice adds; see `models.Explanation`.
        maps: (S, h, w) class activation map, in cells.
    """

    probability: float
    as_it_lies: float
    picked: int
    shares: NDArray[np.float32]
    maps: Tensor


class Prediction(NamedTuple):
    """What a run says about one exam.

    Attributes:
        exam: the exam.
        answers: {series: {diagnosis: answer}}.
        combined: {way: {diagnosis: probability}}.
        geometry: {series: how its slices lie in the network's}.
        volumes: {series: (S, H, W) as the file holds it}.
    """

    exam: Exam
    answers: dict[str, dict[str, Answer]]
    combined: dict[str, dict[str, float]]
    geometry: dict[str, Geometry]
    volumes: dict[str, NDArray[Any]]

    @property
    def series(self) -> dict[str, dict[str, float]]:
        """{series: {diagnosis: probability}}."""
        return self._each("probability")

    @property
    def as_it_lies(self) -> dict[str, dict[str, float]]:
        """The same of the first view alone."""
        return self._each("as_it_lies")

    def _each(self, field: str) -> dict[str, dict[str, float]]:
        return {
            series: {name: getattr(answer, field) for name, answer in answers.items()}
            for series, answers in self.answers.items()
        }


def predict_exam(run: Run, exam: Exam) -> Prediction:
    """Read one exam and predict; series that the run does not know are left out.

    Raises:
        VolumeError: a series cannot be used.
    """
    answers: dict[str, dict[str, Answer]] = {}
    geometry: dict[str, Geometry] = {}
    volumes: dict[str, NDArray[Any]] = {}
    seen: dict[str, list[Tensor]] = {}
    count = run.experiment.views
    for part, network in run.networks.items():
        path = exam.series.get(part.series)
        if path is None:
            continue
        if part.series not in seen:
            volume = read_volume(path)
            try:
                ready, geometry[part.series] = prepare(
                    volume, run.standardisers[part.series], run.experiment.resize
                )
            except StandardiseError as error:
                raise VolumeError(f"{path}: {error}") from error
            volumes[part.series] = volume
            posed = views(torch.from_numpy(ready), run.experiment.crop, count)
            seen[part.series] = [view[:, None] for view in posed]
        answers.setdefault(part.series, {}).update(
            _answers(part, network, seen[part.series])
        )
    if not answers:
        raise InputError(
            f"exam {exam.exam_id} has the series {', '.join(exam.series)}, none of "
            f"which {run.name} was trained on."
        )
    series = {
        name: {diagnosis: one.probability for diagnosis, one in mine.items()}
        for name, mine in answers.items()
    }
    combined = combine(run.combinations, series)
    return Prediction(exam, answers, combined, geometry, volumes)


@torch.inference_mode()
def _answers(part: Part, network: MRNet, seen: Sequence[Tensor]) -> dict[str, Answer]:
    """What a network says about views (S, 1, H, W) of an exam; it explains the first."""
    device = next(network.parameters()).device
    found = network.explain(seen[0].to(device))
    others = [network([view.to(device)])[0].cpu() for view in seen[1:]]
    probabilities = torch.stack([found.logits, *others]).sigmoid()
    return {
        diagnosis: Answer(
            float(probabilities[:, k].mean()),
            float(probabilities[0, k]),
            int(found.picked[k]),
            found.shares[k].numpy(),
            found.maps[k],
        )
        for k, diagnosis in enumerate(part.diagnoses)
    }


def activation_map(
    run: Run,
    prediction: Prediction,
    series: str,
    diagnosis: str,
    *,
    lowest_outside: bool = False,
) -> NDArray[np.float32]:
    """Class activation map of a series, as it lies, at the size of its slices.

    Args:
        run: that made the prediction.
        prediction: of `predict_exam`.
        series: which.
        diagnosis: which.
        lowest_outside: the margin that the network did not see gets the lowest value
            of the map, so that it is never the hottest; otherwise 0.

    Returns:
        (S, H, W): what each place adds to the logit of its slice, times the number of
        places; below zero where it speaks against the diagnosis.
    """
    network = next(
        one
        for part, one in run.networks.items()
        if part.series == series and diagnosis in part.diagnoses
    )
    crop, size = run.experiment.crop, run.experiment.resize
    heat = enlarge(
        prediction.answers[series][diagnosis].maps, crop, network.start, network.step
    )
    before = (size - crop) // 2
    after = size - crop - before
    outside = float(heat.min()) if lowest_outside else 0.0
    padded = F.pad(heat, (before, after, before, after), value=outside)
    return prediction.geometry[series].restore(padded).numpy()


# ----------------------------------------------------------------------------- evaluate


def _cases(
    run: Run, exams: Sequence[Exam], what: str, progress: bool
) -> Iterator[dict[str, Any]]:
    """A row per exam; see `medimg_utils.knee.evaluation`."""
    for exam in tqdm(exams, what, disable=not progress, leave=False):
        yield _case(predict_exam(run, exam))


def _case(prediction: Prediction) -> dict[str, Any]:
    exam = prediction.exam
    return {
        "exam_id": exam.exam_id,
        "exam": exam.digest(),
        "labels": exam.labels,
        "series": prediction.series,
        "combined": prediction.combined,
        "slices": _picked(prediction),
    }


def _picked(prediction: Prediction) -> dict[str, dict[str, int]]:
    return {
        series: {name: answer.picked for name, answer in answers.items()}
        for series, answers in prediction.answers.items()
    }


def evaluate(
    data: str | os.PathLike[str],
    run: str | os.PathLike[str],
    *,
    split: str = "valid",
    out: str | os.PathLike[str] | None = None,
    truth: str | os.PathLike[str] | None = None,
    allow_missing: bool = False,
    draws: int = 1000,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure trained networks on exams they have never seen, beside trivial controls.

    Exams of the training and the held-out fold are left out, told by their images, so
    `valid` is used whole.

    Args:
        data: folder of a release.
        run: folder of a run, or `lab`.
        split: of the release: `train`, `valid`; for KneeMRI `train`, `tune`, `test`.
        out: where to write the numbers as JSON.
        truth: `simulation-truth.json` of simulated exams, with their lesions beside it;
            adds localisation and subgroups.
        allow_missing: leave out exams that a table names and the folder lacks.
        draws: of the bootstrap over exams.
        progress: show a bar.

    Returns:
        The numbers. What is undefined is NaN (null in the file).

    Raises:
        LeakError: every exam was used in training.
        InputError: the split has no labels, or `out` cannot be written.
    """
    if out is not None:
        check_file(out)
    loaded = load_run(run)
    everyone = read_release(data, split, allow_missing=allow_missing)
    if not everyone[0].labels:
        raise InputError(
            f"the labels of the split {split} of {data} are not there, so nothing can "
            "be measured. Use `predict`."
        )
    known = {*loaded.facts["exams"]["train"], *loaded.facts["exams"]["validation"]}
    exams = [exam for exam in everyone if exam.digest() not in known]
    if not exams:
        raise LeakError(
            f"every exam of the split {split} of {data} was used to train "
            f"{loaded.name}. Evaluate on other exams, e.g. on `valid`."
        )
    facts = read_truth(Path(truth), split) if truth is not None else None
    if facts is not None:  # before hours of work
        check_listed([exam.exam_id for exam in exams], facts.exams, "exams")
    way = loaded.experiment.combination
    cases, style = [], []
    where: dict[str, dict[str, list[Any]]] = {}
    for exam in tqdm(exams, "evaluate", disable=not progress, leave=False):
        prediction = predict_exam(loaded, exam)
        case = _case(prediction)
        case["as_it_lies"] = combine(loaded.combinations, prediction.as_it_lies)[way]
        if facts is not None:
            case["localisation"] = _localisation(loaded, prediction, facts)
            for diagnosis, found in case["localisation"].items():
                for series, row in found.items():
                    where.setdefault(diagnosis, {}).setdefault(series, []).append(row)
        cases.append(case)
        style.append(
            {
                f"{series} {name}": value
                for series, volume in prediction.volumes.items()
                for name, value in style_features(volume).items()
            }
        )
    diagnoses = [
        name
        for name in exams[0].labels
        if any(name in p.diagnoses for p in loaded.networks)
    ]
    for case in cases:
        case["labels"] = {name: case["labels"][name] for name in diagnoses}
        case["series"] = {
            series: {name: found[name] for name in diagnoses}
            for series, found in case["series"].items()
        }
    answer = {
        "use_case": "knee",
        "run": loaded.name,
        "split": split,
        "protocol": "exams that differ from those of training; the release has no "
        "patient identifiers, so another exam of a training patient would go unnoticed",
        "left_out": len(everyone) - len(exams),
        "n": {"exams": len(exams)},
        "combination": way,
        "thresholds": loaded.thresholds,
        "coefficients": as_json(loaded.combinations),
        "experiment": asdict(loaded.experiment),
        "diagnoses": summarise(
            cases, way, loaded.thresholds, loaded.experiment.specificity, draws
        ),
        "controls": {"style": style_controls(cases, style)},
        "localisation": {
            diagnosis: {
                series: localise.summarise(rows, draws=draws)
                for series, rows in found.items()
            }
            for diagnosis, found in where.items()
        }
        if facts is not None
        else None,
        "subgroups": subgroups(cases, facts, way) if facts is not None else None,
        "about": provenance(
            loaded.experiment,
            data=describe_data(data, exams),
            seed=loaded.facts["seed"],
            n=len(exams),
        ),
        "cases": cases,
    }
    if out is not None:
        write_json_atomic(out, answer)
    return answer


def _localisation(run: Run, prediction: Prediction, truth: Any) -> dict[str, Any]:
    """{diagnosis: {series: what `localise.measure` returns}} of the lesions shown."""
    exam = prediction.exam
    positive = [name for name, label in exam.labels.items() if label]
    answer: dict[str, Any] = {name: {} for name in positive}
    for series, answers in prediction.answers.items():
        if not positive:
            continue
        lesions = localise.read_lesions(
            truth.lesions(exam.split, series, exam.exam_id),
            prediction.volumes[series].shape,
        )
        for name in positive:
            if name not in answers or name not in lesions or not lesions[name].any():
                continue
            heat = activation_map(run, prediction, series, name, lowest_outside=True)
            # Half a cell: the map cannot point more finely.
            step = next(
                one.step for p, one in run.networks.items() if p.series == series
            )
            scale = prediction.geometry[series].side / run.experiment.resize
            answer[name][series] = localise.measure(
                heat, answers[name].picked, lesions[name], step / 2 * scale
            )
    return {name: found for name, found in answer.items() if found}


# ------------------------------------------------------------------------------ predict


def predict(
    run: str | os.PathLike[str],
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    split: str = "valid",
    allow_missing: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Write probabilities, picked slices and class activation maps of each exam.

    For exam 0042 the folder then holds

    | file | content |
    |---|---|
    | `0042.json` | `probabilities` (combined), `series` (each by itself), `slices` |
    | `0042.SERIES.DIAGNOSIS.nii.gz` | class activation map, axes as in `0042.npy` |

    `slices` counts from 0, as the arrays do; the pages of the book count from 1. Slices
    and maps are those of the exam as it lies, probabilities the mean over the views. The
    maps are stored in 8 bit with NIfTI's own scale. Each file appears whole, the JSON
    file last; those of an earlier prediction of the same exams are deleted first, so an
    exam that fails or is left out has none. Labels are not needed.

    Args:
        run: folder of a run, or `lab`.
        data: folder of a release.
        out: folder; made where it does not exist.
        split: of the release.
        allow_missing: leave out exams that a table names and the folder lacks.
        progress: show a bar.

    Returns:
        What the JSON files hold, in the order of the exams.

    Raises:
        InputError: nothing has been written then.
        VolumeError: some exams cannot be used; the others have been written.
    """
    out = Path(out)
    check_folder(out)
    exams = read_release(data, split, allow_missing=allow_missing)
    loaded = load_run(run)
    settings = {
        "use_case": "knee",
        "run": loaded.name,
        "experiment": asdict(loaded.experiment),
        "combination": loaded.experiment.combination,
        "thresholds": loaded.thresholds,
        "trained_on": loaded.facts["data"],
    }

    def write(exam: Exam, prediction: Prediction) -> dict[str, Any]:
        maps: dict[str, dict[str, str]] = {}
        for series, found in prediction.answers.items():
            for diagnosis in found:
                name = f"{exam.exam_id}{_ending(series, diagnosis)}"
                heat = activation_map(loaded, prediction, series, diagnosis)
                _write_map(out / name, heat)
                maps.setdefault(series, {})[diagnosis] = name
        combined = prediction.combined[loaded.experiment.combination]
        return {
            "exam": exam.exam_id,
            "split": exam.split,
            "probabilities": combined,
            "positive": {
                name: probability >= loaded.thresholds[name]
                for name, probability in combined.items()
            },
            "series": prediction.series,
            "slices": _picked(prediction),
            "maps": maps,
            "settings": settings,
        }

    return answer_each(
        exams,
        lambda exam: predict_exam(loaded, exam),
        write,
        out=out,
        name=lambda exam: exam.exam_id,
        endings=[_ending(*both) for both in product(SERIES, DIAGNOSES)],
        what="exams",
        kind=VolumeError,
        progress=progress,
        others=listed_exams(data, split),
    )


def _ending(series: str, diagnosis: str) -> str:
    """Of the name of an activation map."""
    return f".{series}.{diagnosis}.nii.gz"


def _write_map(path: Path, heat: NDArray[np.float32]) -> None:
    """8-bit NIfTI with scale and offset; the release knows no spacing."""
    image = nib.Nifti1Image(heat, np.eye(4))
    image.set_data_dtype(np.uint8)
    with atomic_path(path) as partial:
        partial.write_bytes(gzip.compress(image.to_bytes(), compresslevel=4, mtime=0))
