"""The brain experiment at three sizes: train, evaluate, predict.

Each setting says what the paper or its published code gives and, where they give nothing
or we differ, why we chose what we chose; `medimg_utils.experiments.describe` turns that
into the book's table. `FAULTS` lists what is wrong in the published code and where it is
put right here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from medimg_utils import pretrained
from medimg_utils.brain import survival
from medimg_utils.brain.dataset import (
    Case,
    Patches,
    Scan,
    WholeBrains,
    load,
    prepare_cases,
    prepare_scan,
    read_case,
    read_release,
    to_release,
)
from medimg_utils.brain.evaluation import (
    REGIONS,
    dices,
    flair_threshold,
    measure_all,
    region,
    subgroups,
    summarise,
    summary,
)
from medimg_utils.brain.inference import (
    MODES,
    SIDE,
    Networks,
    Segmentation,
    Segmenter,
    without_doubtful_enhancing,
)
from medimg_utils.brain.models import (
    BORDER,
    FixedNorm,
    PaddedUNet,
    UnpaddedUNet,
    dice_loss,
    find_loss,
    fix_statistics,
    padded_twin,
)
from medimg_utils.brain.preprocess import Prepared
from medimg_utils.errors import InputError
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
    ImageError,
    check_file,
    check_outputs,
    write_json_atomic,
    write_nifti_atomic,
)
from medimg_utils.release import (
    DatasetError,
    check_listed,
    describe_release,
    read_truth,
)
from medimg_utils.settings import find_device
from medimg_utils.splits import (
    Split,
    check_held_out,
    hold_out,
    never_seen,
    patient_digest,
    patient_digests,
)
from medimg_utils.training import (
    BEST,
    Batch,
    Schedule,
    fit,
    load_tensors,
    load_weights,
    put_weights,
    refuse_run,
    stable_seed,
)

Network = TypeVar("Network", bound=nn.Module)
STAGES = ("find", "segment", "one-pass")  # folders of a run, one a network
REHEARSE = "rehearse"  # folder of what the second network may learn beforehand
ENDINGS = ("_seg.nii.gz", ".json")  # of the files that predict writes
TIE = 0.005  # of mean Dice: what two modes may differ by and count as equally good
LEAST_CERTAIN = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # certain cm³ to choose from
SHARES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)  # of the largest part, to compare

FAULTS = (
    {
        "fault": "the gradient is never set to zero between steps",
        "effect": "each step follows the sum of all gradients so far",
        "here": "medimg_utils.training.fit calls zero_grad in every step",
    },
    {
        "fault": "what is called validation runs on the training set",
        "effect": "the kept epoch is the one that remembers best",
        "here": "split: validation and test patients are never trained on",
    },
    {
        "fault": "the box around the brain ends one voxel early on each axis",
        "effect": "the last plane of brain is cut off",
        "here": "preprocess.bounding_box includes the last plane",
    },
    {
        "fault": "one axis of the patch grid takes the length of another axis",
        "effect": "patches of a tumour that is not a cube miss part of it or leave it",
        "here": "dataset.grid_places cuts each axis by its own length",
    },
)


# --------------------------------------------------------------------------------- settings


@dataclass(frozen=True)
class Experiment:
    """All that the trained networks depend on, beside their data and seed.

    The defaults are the paper's values where it or its code gives them.
    """

    size: str = setting("paper", why="name of the run size")
    voxel: float = setting(1.0, paper=1.0, why="side of step 2's voxels in mm")
    factor: int = setting(1, paper=1, why="side of step 1's voxels in voxels of step 2")
    margin: int = setting(
        0,
        paper=0,
        why="voxels by which step 1's tumour is grown; more where it is coarse",
    )
    parts: float = setting(
        1.0,
        paper=1.0,
        why="connected parts of step 1's tumour that are kept, as a share of the "
        "largest; 1 is that one alone, and loses the second of two tumours",
        asked=True,
    )
    find_width: int = setting(16, paper=16, why="first level's channels in step 1")
    segment_width: int = setting(32, paper=32, why="first level's channels in step 2")
    find_epochs: int = setting(300, paper=300, why="passes of step 1")
    rehearse_epochs: int = setting(
        0,
        paper=0,
        why="passes that step 2 first learns with padding, on patches without a border: "
        "on a CPU the only way to see enough of them",
    )
    segment_epochs: int = setting(300, paper=300, why="passes of step 2")
    one_pass_epochs: int = setting(
        60,
        why="passes that step 2 goes on with fixed statistics, for the one-pass mode",
    )
    find_rate: float = setting(1e-3, paper=1e-3, why="Adam's learning rate in step 1")
    rehearse_rate: float = setting(2e-3, why="Adam's learning rate when it rehearses")
    segment_rate: float = setting(
        5e-3, paper=5e-3, why="Adam's learning rate in step 2"
    )
    one_pass_rate: float = setting(5e-4, why="a tenth: these weights only adapt")
    decay: float = setting(
        0.985, paper=0.985, why="of the learning rate, in each 300th part of training"
    )
    weight_decay: float = setting(1e-5, paper=1e-5, why="of Adam")
    find_batch: int = setting(1, why="whole brains differ in size")
    segment_batch: int = setting(2, paper=2, why="patches in a step")
    side: int = setting(
        SIDE, paper=SIDE, why="side of the part of a patch that is learnt"
    )
    rehearse_side: int = setting(48, why="side of the patches that it rehearses on")
    least: float = setting(320, paper=320, why="voxels of each class in a grid patch")
    around: int = setting(
        20, paper=20, why="voxels around the tumour for random patches"
    )
    grid_share: float = setting(
        0.5,
        why="of the patches; the code offers grid or random patches, not their mixture",
    )
    patches: int = setting(4, why="of each case in an epoch")
    augmentation: float = setting(
        0.0, why="strength; 0 in the published code, more where scanners are simulated"
    )
    folds: int = setting(5, why="by patient; the published code has no test set")
    validation_folds: int = setting(
        8, why="one in this many training patients chooses epochs, mode and thresholds"
    )
    validation_patches: int = setting(2, why="of each validation case after an epoch")
    statistics_patches: int = setting(
        64, why="whose activations the one-pass mode fixes"
    )


EXPERIMENTS: dict[str, Experiment] = {
    "paper": Experiment(),
    # One core of a CPU that computes in bfloat16 takes about 0.15 s for a brain of step 1
    # (4 mm, 60,000 voxels), 0.2 s for a small patch of step 2 (2 mm, 48³, half the width)
    # and 1.3 s for a patch with its border (124³). With 220 training patients: step 1
    # 9 × 220 × 0.15 s = 5 min, rehearsal 10 × 220 × 0.2 s = 7 min, step 2
    # 50 × 220 × 1.3 s = 4 hours, one-pass 20 × 220 × 1.3 s = an hour and a half. A
    # data-centre GPU takes 0.03 to 0.05 s for either patch: 20 minutes in all.
    "lab": Experiment(
        size="lab",
        voxel=2.0,
        factor=2,
        margin=4,
        parts=0.1,
        segment_width=16,
        find_epochs=9,
        rehearse_epochs=10,
        segment_epochs=50,
        one_pass_epochs=20,
        find_rate=2e-3,
        segment_rate=1e-3,
        segment_batch=1,
        least=40,
        around=10,
        patches=1,
        augmentation=1.0,
        folds=24,
        validation_folds=23,
        validation_patches=4,
        statistics_patches=24,
    ),
    "tiny": Experiment(
        size="tiny",
        voxel=4.0,
        factor=1,
        margin=2,
        find_width=8,
        segment_width=8,
        find_epochs=3,
        rehearse_epochs=18,
        segment_epochs=1,
        one_pass_epochs=0,  # with so few patients more passes made it no better
        find_rate=5e-3,
        rehearse_rate=8e-3,
        segment_rate=1e-3,
        decay=0.992,
        segment_batch=1,
        side=20,
        rehearse_side=24,
        least=10,
        around=4,
        patches=1,
        validation_folds=5,
        validation_patches=1,
        statistics_patches=4,
    ),
}


def get_experiment(size: str, *, epochs: int | None = None) -> Experiment:
    """The settings of a run size; see `medimg_utils.experiments.choose`."""
    stages = ("find", "rehearse", "segment", "one_pass")
    return choose(
        EXPERIMENTS, size, epochs=epochs, of=[f"{name}_epochs" for name in stages]
    )


def from_json(values: Mapping[str, Any]) -> Experiment:
    """The experiment that `dataclasses.asdict` and JSON made of one."""
    return Experiment(**values)


# ------------------------------------------------------------------------------------ split


def split(
    cases: Sequence[Case],
    experiment: Experiment,
    fold: int | None = None,
    seed: int = 0,
) -> Split[Case]:
    """Hold one fold out for the test, and some of the other patients for validation.

    Grades are spread evenly where they are known. Without a fold there is a single
    hold-out: the first of the folds.

    Raises:
        InputError: no such fold, or too few patients.
    """
    return hold_out(
        cases,
        lambda case: int(case.grade == "LGG"),
        fold=fold,
        n_folds=experiment.folds,
        validation_folds=experiment.validation_folds,
        seed=seed,
    )


# ------------------------------------------------------------------------------------ train


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
) -> dict[str, list[dict[str, Any]]]:
    """Train the three networks on a release, one after the other.

    Patients of the test fold are never touched. Epochs, the mode of inference and the rule
    for doubtful enhancing tumours are chosen on validation patients. The folder then holds

    | file | content |
    |---|---|
    | `find/`, `segment/`, `one-pass/` | what `medimg_utils.training.fit` writes |
    | `rehearse/` | the same, where the settings ask for it |
    | `best.json` | settings, choices and survival models, once training has finished |

    Args:
        data: folder of a release with masks.
        out: folder of the run.
        experiment: a run size, or settings of your own.
        fold: which fold to hold out; a single hold-out (the first) where None.
        seed: of the split, the weights, the order and the augmentation.
        resume: go on with a run that was stopped.
        accelerator: `auto`, or `cpu` to force it.
        devices: how many, or `auto`.
        precision: see `medimg_utils.training.best_precision`.
        workers: processes that load patches.
        cache: folder for prepared cases; in memory where None.
        progress: show bars.

    Returns:
        The training log of each of the `STAGES` (and of `REHEARSE`), one row per epoch:
        none of a stage that the settings give no pass.
    """
    chosen = get_experiment(experiment) if isinstance(experiment, str) else experiment
    out = Path(out)
    if not resume:
        refuse_run(out)
    cases = [case for case in read_release(data) if case.mask is not None]
    if not cases:
        raise DatasetError(f"no case of {data} has a mask, but training needs them.")
    parts = split(cases, chosen, fold, seed)
    training = prepare_cases(parts.train, chosen.voxel, cache, progress=progress)
    validation = prepare_cases(parts.validation, chosen.voxel, cache, progress=progress)
    facts = facts_of_run(
        chosen,
        fold=fold,
        seed=seed,
        data=describe_data(data, cases),
        patients=parts.met(),
    )
    options: dict[str, Any] = {
        "settings": facts,
        "algorithm": torch.optim.Adam,
        "weight_decay": chosen.weight_decay,
        "schedule": exponential(chosen.decay),
        "best_by": "val_dice",
        "seed": seed,
        "resume": resume,
        "accelerator": accelerator,
        "devices": devices,
        "precision": precision,
        "workers": workers,
        "progress": progress,
    }
    logs = {}
    seen = _brains(training, parts.train, chosen, seed)
    unseen = _brains(validation, parts.validation, replace(chosen, augmentation=0.0), 0)
    find_network = _initial(lambda: PaddedUNet(chosen.find_width), seed)
    logs["find"] = fit(
        find_network,
        seen,
        loss=lambda model, batch, done: find_loss(
            model(batch["image"]), batch["tumour"]
        ),
        validate=lambda model: validate_find(model, unseen),
        out=out / "find",
        epochs=chosen.find_epochs,
        batch_size=chosen.find_batch,
        learning_rate=chosen.find_rate,
        **options,
    )
    patches = _patches(training, parts.train, chosen, seed)
    calm = replace(chosen, augmentation=0.0, patches=chosen.validation_patches)
    unseen_patches = _patches(validation, parts.validation, calm, 0)
    options |= {
        "loss": lambda model, batch, done: dice_loss(
            model(batch["image"]), batch["target"]
        ),
        "validate": lambda model: validate_segment(model, unseen_patches),
        "batch_size": chosen.segment_batch,
    }
    segment = _initial(lambda: UnpaddedUNet(chosen.segment_width), seed + 1)
    if chosen.rehearse_epochs:
        small = {"side": chosen.rehearse_side, "border": 0}
        close = _patches(training, parts.train, chosen, seed, **small)
        unseen_close = _patches(validation, parts.validation, calm, 0, **small)
        logs[REHEARSE] = fit(
            padded_twin(segment),
            close,
            out=out / REHEARSE,
            epochs=chosen.rehearse_epochs,
            learning_rate=chosen.rehearse_rate,
            **options
            | {"validate": lambda model: validate_segment(model, unseen_close)},
        )
        segment.load_state_dict(load_weights(out / REHEARSE / BEST))
    logs["segment"] = fit(
        segment,
        patches,
        out=out / "segment",
        epochs=chosen.segment_epochs,
        learning_rate=chosen.segment_rate,
        **options,
    )
    segment.load_state_dict(load_weights(out / "segment" / BEST))
    one_pass = _fixed(segment, patches, chosen.statistics_patches)
    logs["one-pass"] = fit(
        one_pass,
        patches,
        out=out / "one-pass",
        epochs=chosen.one_pass_epochs,
        learning_rate=chosen.one_pass_rate,
        **options,
    )
    device = find_device(accelerator)
    networks = load_networks(
        {stage: out / stage / BEST for stage in STAGES}, chosen, device
    )
    choices = choose_on_validation(
        networks, parts.validation, validation, progress=progress
    )
    rows = survival_cohort(parts.train + parts.validation)
    n = {name: len(part) for name, part in parts._asdict().items()}
    write_json_atomic(
        facts_file(out),
        {
            **facts,
            "best": {
                stage: load_tensors(out / stage / BEST)[1]["best"] for stage in STAGES
            },
            **choices,
            "survival": survival.fit_models(rows),
            "about": provenance(chosen, data=facts["data"], seed=seed, n=n),
        },
    )
    return logs


def exponential(decay: float, stairs: int = 300) -> Schedule:
    """Learning rate that falls by the factor `decay`, again and again.

    In the paper it falls after each of 300 epochs. A shorter run goes through the same 300
    stairs, so that it also ends with a hundredth of the first rate.

    >>> schedule = exponential(0.5, stairs=4)
    >>> [schedule(step, 8, 1.0, []) for step in range(8)]
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]
    """

    def schedule(
        step: int, steps: int, peak: float, history: Sequence[Mapping[str, Any]]
    ) -> float:
        return peak * decay ** (stairs * step // steps)

    return schedule


def _initial(build: Callable[[], Network], seed: int) -> Network:
    """A network with weights that follow from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed))
        return build()


def _brains(
    prepared: Sequence[Prepared], cases: Sequence[Case], chosen: Experiment, seed: int
) -> WholeBrains:
    return WholeBrains(
        prepared,
        [case.case_id for case in cases],
        factor=chosen.factor,
        augmentation=chosen.augmentation,
        seed=seed,
    )


def _patches(
    prepared: Sequence[Prepared],
    cases: Sequence[Case],
    chosen: Experiment,
    seed: int,
    *,
    side: int | None = None,
    border: int = BORDER,
) -> Patches:
    return Patches(
        prepared,
        [case.case_id for case in cases],
        patches=chosen.patches,
        side=side or chosen.side,
        border=border,
        least=chosen.least,
        around=chosen.around,
        grid_share=chosen.grid_share,
        augmentation=chosen.augmentation,
        seed=seed,
    )


def _fixed(segment: UnpaddedUNet, patches: Patches, count: int) -> UnpaddedUNet:
    """Step 2 with the statistics of some training patches."""
    step = max(1, len(patches) // count)
    chosen = [patches[k]["image"][None] for k in range(0, len(patches), step)]
    return fix_statistics(segment, chosen[:count])


@torch.inference_mode()
def validate_find(model: nn.Module, data: WholeBrains) -> dict[str, float]:
    """Mean Dice of step 1 over whole brains."""
    values = []
    for batch in _items(data, model):
        predicted = model(batch["image"]).argmax(dim=1)
        truth = batch["tumour"] >= 0.5
        both = (predicted.bool() & truth).sum()
        total = predicted.sum() + truth.sum()
        values.append(float(2 * both / total) if total else 1.0)
    return {"val_dice": float(np.mean(values))}


@torch.inference_mode()
def validate_segment(model: nn.Module, data: Patches) -> dict[str, float]:
    """Dice of WT, TC and ET over all voxels of the patches together, and their mean."""
    counts = np.zeros((len(REGIONS), 2))
    for batch in _items(data, model):
        predicted = model(batch["image"]).argmax(dim=1).cpu().numpy().astype(np.uint8)
        truth = batch["target"].argmax(dim=1).cpu().numpy().astype(np.uint8)
        for row, name in enumerate(REGIONS):
            first, second = region(predicted, name), region(truth, name)
            counts[row] += 2 * (first & second).sum(), first.sum() + second.sum()
    values = {
        f"val_dice_{name.lower()}": float(both / total) if total else 1.0
        for name, (both, total) in zip(REGIONS, counts, strict=True)
    }
    return {"val_dice": float(np.mean(list(values.values()))), **values}


def _items(data: Dataset[Batch], model: nn.Module) -> Any:
    """Items one by one, as batches on the model's device."""
    device = next(model.parameters()).device
    for k in range(len(data)):  # type: ignore[arg-type]
        item = data[k]
        yield {
            name: value[None].to(device)
            for name, value in item.items()
            if isinstance(value, Tensor)
        }


def choose_on_validation(
    networks: Networks,
    cases: Sequence[Case],
    prepared: Sequence[Prepared],
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """The default mode and the rule for doubtful enhancing tumours.

    Both quick modes segment the validation patients. Each takes the least certain volume
    that gives it the best mean Dice of that region; `default_mode` then says which of the
    two modes is used where nobody asks for one.

    Returns:
        `mode`, and `modes` with what was chosen for each and the numbers behind it;
        `parts`: see `compare_shares`, what the setting of that name is to follow;
        `chosen_on` is None for the validation patients of the run.
    """
    found: dict[str, Any] = {}
    truths: list[tuple[NDArray[np.uint8], float]] = []
    for case in cases:
        scan = load(case)  # its images are not kept: a hundred MB each
        truths.append((_truth(scan), _voxel_cm3(scan)))
    for mode in ("fast", "one-pass"):
        segmenter = Segmenter(networks, mode)
        bar = tqdm(prepared, mode, disable=not progress, leave=False)
        answers = [segmenter.segment(one) for one in bar]
        by_least = {}
        for least in LEAST_CERTAIN:
            values = [
                dices(without_doubtful_enhancing(one, voxel_cm3, least), truth)
                for one, (truth, voxel_cm3) in zip(answers, truths, strict=True)
            ]
            by_least[least] = _mean_dices(values)
        best = max(by_least, key=lambda least: by_least[least]["ET"])
        found[mode] = {
            "least_certain_cm3": best,
            "dice": by_least[best],
            "mean_dice": float(np.mean(list(by_least[best].values()))),
        }
    mode = default_mode(found)
    shares = compare_shares(
        networks,
        prepared,
        truths,
        mode,
        found[mode]["least_certain_cm3"],
        progress=progress,
    )
    return {"mode": mode, "modes": found, "parts": shares, "chosen_on": None}


def compare_shares(
    networks: Networks,
    prepared: Sequence[Prepared],
    truths: Sequence[tuple[NDArray[np.uint8], float]],
    mode: str,
    least_cm3: float,
    *,
    shares: Sequence[float] = SHARES,
    progress: bool = False,
) -> dict[str, Any]:
    """What it is worth to keep smaller parts of the tumour that step 1 finds.

    Args:
        networks: of a run.
        prepared: the cases.
        truths: their true labels, and the cm³ of a voxel.
        mode: of inference.
        least_cm3: its rule for doubtful enhancing tumours.
        shares: of the largest part; see `medimg_utils.brain.inference.large_parts`.
        progress: show a bar.

    Returns:
        `n`, and for each share `several` (cases of which more than one part is kept) and
        `dice` (mean of each region over all cases).
    """
    segmenters = {
        share: Segmenter(replace(networks, parts=share), mode)
        for share in sorted(shares)
    }
    several = dict.fromkeys(shares, 0)
    rows: dict[float, list[dict[str, float]]] = {share: [] for share in shares}
    pairs = list(zip(prepared, truths, strict=True))
    bar = tqdm(pairs, "parts", disable=not progress, leave=False)
    for one, (truth, voxel_cm3) in bar:
        answer: Segmentation | None = None
        for share, segmenter in segmenters.items():
            # Where one part is left, a larger share leaves the same.
            if answer is None or answer.parts > 1:
                answer = segmenter.segment(one)
                labels = without_doubtful_enhancing(answer, voxel_cm3, least_cm3)
                row = dices(labels, truth)
            rows[share].append(row)
            several[share] += answer.parts > 1
    return {
        "n": len(pairs),
        "several": {str(share): count for share, count in several.items()},
        "dice": {str(share): _mean_dices(found) for share, found in rows.items()},
    }


def _mean_dices(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each region over cases."""
    return {name: float(np.mean([row[name] for row in rows])) for name in REGIONS}


def default_mode(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The quickest mode whose mean Dice is as good as that of the best, within `TIE`.

    >>> default_mode({"fast": {"mean_dice": 0.866}, "one-pass": {"mean_dice": 0.864}})
    'one-pass'
    >>> default_mode({"fast": {"mean_dice": 0.87}, "one-pass": {"mean_dice": 0.86}})
    'fast'
    """
    best = max(one["mean_dice"] for one in found.values())
    good = [name for name, one in found.items() if one["mean_dice"] >= best - TIE]
    return max(good, key=MODES.index)  # from slow to quick


def _voxel_cm3(scan: Scan) -> float:
    return float(np.prod(scan.spacing)) / 1000


def _truth(scan: Scan) -> NDArray[np.uint8]:
    if scan.labels is None:
        raise DatasetError("a case has no mask, but it is needed here.")
    return scan.labels


def describe_data(
    root: str | os.PathLike[str], cases: Sequence[Case]
) -> dict[str, Any]:
    """What a number was measured on: folder, counts, whether it is simulated."""
    described = describe_release(
        root,
        cases=len(cases),
        patients=len({case.patient for case in cases}),
    )
    return {**described, "layout": cases[0].layout.title}


# --------------------------------------------------------------------------------- survival


def _survival_row(
    case: Case, scan: Scan, labels: NDArray[np.uint8] | None = None
) -> dict[str, Any]:
    """Age, days and image features of a case, from the given labels or the true ones."""
    brain = (scan.images != 0).any(axis=0)
    found = survival.features(
        _truth(scan) if labels is None else labels, brain, scan.spacing
    )
    return {"age": case.age, "days": case.survival, **found}


def survival_cohort(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Age, days and image features from true masks, of the published kind of cohort.

    Args:
        cases: those without age, survival or gross total resection are left out.
    """
    return [_survival_row(case, load(case)) for case in cases if _eligible(case)]


def _eligible(case: Case) -> bool:
    """Age and survival are known and the tumour was removed: the published cohort."""
    return case.resection == "GTR" and None not in (case.age, case.survival)


# ------------------------------------------------------------------------------------- runs


@dataclass(frozen=True, eq=False)
class Run:
    """Trained networks with what belongs to them; see `load_run`.

    Attributes:
        networks: in evaluation mode, on this machine's device.
        experiment: their settings.
        mode: of inference, chosen on validation patients.
        facts: all of the run's JSON file.
        name: of the folder, or of the networks that travel with the package.
    """

    networks: Networks
    experiment: Experiment
    mode: str
    facts: dict[str, Any]
    name: str


def load_networks(
    paths: Mapping[str, Path], experiment: Experiment, device: torch.device
) -> Networks:
    """Read the weights of all three stages."""
    built = {
        "find": PaddedUNet(experiment.find_width),
        "segment": UnpaddedUNet(experiment.segment_width),
        "one-pass": UnpaddedUNet(experiment.segment_width, FixedNorm),
    }
    for stage, network in built.items():
        put_weights(network, load_weights(paths[stage]), paths[stage])
        network.eval().to(device)
    return Networks(
        find=built["find"],  # type: ignore[arg-type]
        segment=built["segment"],  # type: ignore[arg-type]
        one_pass=built["one-pass"],  # type: ignore[arg-type]
        factor=experiment.factor,
        margin=experiment.margin,
        parts=experiment.parts,
    )


def load_run(run: str | os.PathLike[str]) -> Run:
    """Load networks from a run's folder, or those that travel with the package.

    Args:
        run: a folder that `train` wrote, or `lab` for the networks in
            `medimg_utils.pretrained`.

    Raises:
        RunError: the folder holds no finished run.
    """
    paths, about, name = pretrained.find_run("brain", run, STAGES)
    facts, experiment = open_facts(about, from_json)
    device = find_device()
    return Run(
        networks=load_networks(
            dict(zip(STAGES, paths, strict=True)), experiment, device
        ),
        experiment=experiment,
        mode=facts["mode"],
        facts=facts,
        name=name,
    )


def choose_anew(
    run: str | os.PathLike[str], data: str | os.PathLike[str], *, progress: bool = True
) -> dict[str, Any]:
    """Choose mode and rule for doubtful enhancing tumours anew, on more patients.

    Among a few validation patients hardly one has a tumour that does not enhance, and the
    rule is about these. The networks stay as they are. The run remembers the patients as
    validation patients, so that nothing is ever measured on them; they may choose again.

    Args:
        run: folder of a finished run.
        data: folder of a release; patients of the run are left out.
        progress: show bars.

    Returns:
        What `choose_on_validation` returns, with `chosen_on`: the data.

    Raises:
        LeakError: nobody is left.
    """
    loaded = load_run(run)
    patients = loaded.facts["patients"]
    own = set(patients["validation"]) - set(patients.get("choice", ()))
    met = {**patients, "validation": sorted(own)}
    before = replace(loaded, facts={**loaded.facts, "patients": met})
    cases = unseen_cases(before, data)[0]
    prepared = prepare_cases(cases, loaded.experiment.voxel, progress=progress)
    choices = choose_on_validation(loaded.networks, cases, prepared, progress=progress)
    choices["chosen_on"] = describe_data(data, cases)
    choice = patient_digests(cases)
    known = {"validation": sorted(own.union(choice)), "choice": choice}
    write_json_atomic(
        facts_file(Path(run)),
        {**loaded.facts, **choices, "patients": {**met, **known}},
    )
    return choices


def least_certain(run: Run, mode: str) -> float:
    """cm³ of certain enhancing tumour below which a mode's answer is called core.

    The reference is too slow to choose one for; it takes that of the fast mode, which
    imitates it.
    """
    chosen = run.facts["modes"]
    return chosen[mode if mode in chosen else "fast"]["least_certain_cm3"]


class Prediction(NamedTuple):
    """What the networks say about one case.

    Attributes:
        scan: the case, turned to RAS.
        prepared: as the networks saw it.
        labels: (D, H, W) uint8 0 to 3, on the grid of `scan`.
        parts: of the tumour that step 1 found; see `Segmentation`.
        seconds: that segmentation took, without reading.
    """

    scan: Scan
    prepared: Prepared
    labels: NDArray[np.uint8]
    parts: int
    seconds: float


def predict_case(run: Run, case: Case, segmenter: Segmenter) -> Prediction:
    """Read one case and segment it.

    Raises:
        ImageError: a file cannot be used.
        DatasetError: the intensities cannot be used.
    """
    return predict_scan(run, case, load(case), segmenter)


def predict_scan(run: Run, case: Case, scan: Scan, segmenter: Segmenter) -> Prediction:
    """Segment the images of a case that have been read, or changed, already.

    Raises:
        DatasetError: the intensities cannot be used, or the brain is too small.
    """
    prepared = prepare_scan(case, scan, run.experiment.voxel)
    try:
        return _predict(run, scan, prepared, segmenter)
    except InputError as error:
        raise DatasetError(f"{case.case_id}: {error}") from error


def _predict(
    run: Run, scan: Scan, prepared: Prepared, segmenter: Segmenter
) -> Prediction:
    started = time.perf_counter()
    found = segmenter.segment(prepared)
    least = least_certain(run, segmenter.mode)
    labels = without_doubtful_enhancing(found, _voxel_cm3(scan), least)
    seconds = time.perf_counter() - started
    return Prediction(scan, prepared, labels, found.parts, seconds)


# --------------------------------------------------------------------------------- evaluate


def evaluate(
    data: str | os.PathLike[str],
    run: str | os.PathLike[str],
    *,
    fold: int | None = None,
    out: str | os.PathLike[str] | None = None,
    truth: str | os.PathLike[str] | None = None,
    mode: str | None = None,
    draws: int = 1000,
    progress: bool = True,
) -> dict[str, Any]:
    """Measure trained networks on patients they have never seen, beside controls.

    Patients of the training and validation sets are left out, so the release that the
    networks were trained on leaves the held-out fold, and a release of other patients is
    used whole. The controls are a threshold on FLAIR, and the same networks that look at
    the largest part of the tumour alone.

    Args:
        data: folder of a release.
        run: folder of a run, or `lab`.
        fold: must be the fold that the run held out; None takes whichever it was.
        out: where to write the numbers as JSON.
        truth: csv with columns that only a simulation knows; adds subgroups.
        mode: of inference; the run's own where None.
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
    known = read_truth(Path(truth), "BraTS18ID") if truth is not None else None
    loaded = load_run(run)
    segmenter = Segmenter(loaded.networks, mode or loaded.mode)
    cases, held_out = unseen_cases(loaded, data, fold)
    if known is not None:  # before hours of work
        check_listed([case.case_id for case in cases], known, "cases")
    alone = Segmenter(replace(loaded.networks, parts=1.0), segmenter.mode)
    rows, from_truth, from_prediction = [], [], []
    for case in tqdm(cases, "evaluate", disable=not progress, leave=False):
        prediction = predict_case(loaded, case, segmenter)
        rows.append(_case(case, prediction))
        rows[-1]["largest_part_dice"] = (
            dices(
                _predict(loaded, *prediction[:2], alone).labels, _truth(prediction.scan)
            )
            if prediction.parts > 1
            else {name: rows[-1][name]["dice"] for name in REGIONS}
        )
        if _eligible(case):
            scan, labels = prediction.scan, prediction.labels
            from_truth.append(_survival_row(case, scan))
            from_prediction.append(_survival_row(case, scan, labels))

    def control(values: list[float]) -> dict[str, Any]:
        patients = np.array([row["patient"] for row in rows])
        return summary(np.array(values), patients, draws)

    answer = {
        "use_case": "brain",
        "run": loaded.name,
        "fold": loaded.facts["fold"] if held_out else None,
        "protocol": protocol(held_out),
        "mode": segmenter.mode,
        "least_certain_cm3": least_certain(loaded, segmenter.mode),
        "experiment": asdict(loaded.experiment),
        "n": {"cases": len(rows), "patients": len({row["patient"] for row in rows})},
        "regions": summarise(rows, draws),
        "seconds": float(np.median([row["seconds"] for row in rows])),
        "controls": {
            "flair_threshold": control([row["flair_threshold_dice"] for row in rows]),
            "largest_part": {
                name: control([row["largest_part_dice"][name] for row in rows])
                for name in REGIONS
            },
        },
        "survival": {
            "true_masks": _compare(from_truth),
            "predicted_masks": _compare(from_prediction),
            "run": _run_survival(loaded, from_prediction),
        },
        "subgroups": subgroups(rows, known) if known is not None else None,
        "about": provenance(
            loaded.experiment,
            data=describe_data(data, cases),
            seed=loaded.facts["seed"],
            n=len(cases),
        ),
        "cases": rows,
    }
    if out is not None:
        write_json_atomic(out, answer)
    return answer


def unseen_cases(
    run: Run, data: str | os.PathLike[str], fold: int | None = None
) -> tuple[list[Case], bool]:
    """Cases with a mask whose patients the run has never seen; were others left out?

    Raises:
        LeakError: nobody is left, or the fold is one that the run was trained on.
    """
    check_held_out(run.name, run.facts, fold)
    everyone = [case for case in read_release(data) if case.mask is not None]
    if not everyone:
        raise DatasetError(f"no case of {data} has a mask, so nothing can be measured.")
    cases = never_seen(everyone, run.name, run.facts, data)
    return cases, len(cases) < len(everyone)


def _case(case: Case, prediction: Prediction) -> dict[str, Any]:
    """One row of the evaluation; see `medimg_utils.brain.evaluation`."""
    scan, prepared, labels, parts, seconds = prediction
    truth = _truth(scan)
    flair = prepared.grid.to_box(prepared.channels[3].astype(np.float32))
    control = flair_threshold(flair, flair != 0)
    whole = prepared.grid.to_volume(control.astype(np.uint8))
    return {
        "case_id": case.case_id,
        "patient": patient_digest(case.patient),
        "grade": case.grade,
        **measure_all(labels, truth, scan.spacing),
        "parts": parts,
        "flair_threshold_dice": dices(whole * np.uint8(2), truth)["WT"],
        "seconds": round(seconds, 3),
    }


def _compare(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """`survival.compare`, None for a cohort that is too small."""
    try:
        return survival.compare(rows)
    except survival.CohortError:
        return None


def _run_survival(run: Run, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Scores of the run's own model, which has never seen these patients."""
    stored = run.facts["survival"]
    if stored is None or not rows:
        return None
    model = survival.from_json(stored["models"][stored["chosen"]])
    answers = np.array([model.predict(row) for row in rows])
    days = np.array([row["days"] for row in rows])
    inside = (days >= answers[:, 1]) & (days <= answers[:, 2])
    return {
        "model": stored["chosen"],
        "n": len(rows),
        **survival.scores(days, answers[:, 0]),
        "inside_interval": float(inside.mean()),
    }


def compare_modes(
    data: str | os.PathLike[str],
    run: str | os.PathLike[str],
    *,
    limit: int | None = None,
    modes: Sequence[str] = MODES,
    draws: int = 1000,
    keep: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Price and worth of the modes of inference, on the same unseen patients.

    What surrounds the networks is left out: the rule for doubtful enhancing tumours, which
    each mode chooses for itself, and all but the largest part of what step 1 has found.
    On a CPU the seconds are those of the processor, summed over its threads: other work
    on the machine does not lengthen them.

    Args:
        data: folder of a release.
        run: folder of a run, or `lab`.
        limit: patients at most, in the order of their names.
        modes: the first one is the reference.
        draws: of the bootstrap over patients.
        keep: folder for what was measured on each patient: a stopped call goes on there.
        progress: show a bar.

    Returns:
        `n`, `clock` (`processor` or `wall`), and `modes`: mode → `seconds` (median),
        `times_as_fast` as the reference (of the summed times), `agreement_by_region`
        (Dice between both modes' labels, over the voxels of all patients together: a
        region of ten voxels does not count as much as one of ten thousand), `agreement`
        (its mean over WT, TC and ET), `dice` (mean against the truth), and `difference`
        of that to the reference with `interval`.
    """
    loaded = load_run(run)
    cases = unseen_cases(loaded, data)[0][:limit]
    networks = replace(loaded.networks, parts=1.0)
    segmenters = {mode: Segmenter(networks, mode) for mode in modes}
    on_cpu = find_device().type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter

    def measure(case: Case) -> dict[str, dict[str, Any]]:
        scan = load(case)
        prepared = prepare_scan(case, scan, loaded.experiment.voxel)
        found: dict[str, dict[str, Any]] = {}
        first: NDArray[np.uint8] | None = None
        for mode, segmenter in segmenters.items():
            started = clock()
            labels = segmenter.segment(prepared).labels
            seconds = clock() - started
            first = labels if first is None else first
            against = dices(labels, _truth(scan))
            found[mode] = {
                "seconds": seconds,
                "shared": {name: _shared(labels, first, name) for name in REGIONS},
                "mean": float(np.mean(list(against.values()))),
                **against,
            }
        return found

    measured = []
    for case in tqdm(cases, "compare", disable=not progress, leave=False):
        file = None if keep is None else keep / f"{case.case_id}.json"
        if file is not None and file.is_file():
            measured.append(json.loads(file.read_text(encoding="utf-8")))
            continue
        measured.append(measure(case))
        if file is not None:
            write_json_atomic(file, measured[-1])
    patients = np.array([patient_digest(case.patient) for case in cases])

    def columns(mode: str) -> dict[str, NDArray[np.float64]]:
        return {
            name: np.array([found[mode][name] for found in measured])
            for name in ("seconds", "mean", *REGIONS)
        }

    reference = columns(modes[0])
    answer: dict[str, Any] = {
        "n": len(cases),
        "clock": "processor" if on_cpu else "wall",
        "modes": {},
    }
    for mode in modes:
        found = columns(mode)
        seconds = found.pop("seconds")
        agreement = {}
        for name in REGIONS:
            both, total = np.sum(
                [one[mode]["shared"][name] for one in measured], axis=0
            )
            agreement[name] = float(2 * both / total) if total else 1.0
        answer["modes"][mode] = {
            "seconds": float(np.median(seconds)),
            "times_as_fast": float(reference["seconds"].sum() / seconds.sum()),
            "agreement": float(np.mean(list(agreement.values()))),
            "agreement_by_region": agreement,
            "dice": {name: float(column.mean()) for name, column in found.items()},
            "difference": {
                name: summary(column - reference[name], patients, draws)
                for name, column in found.items()
            },
        }
    return answer


def _shared(
    first: NDArray[np.uint8], second: NDArray[np.uint8], name: str
) -> list[int]:
    """Voxels of a region in both, and the sum of those in each."""
    one, other = region(first, name), region(second, name)
    return [int((one & other).sum()), int(one.sum() + other.sum())]


# ---------------------------------------------------------------------------------- predict


def predict(
    run: str | os.PathLike[str],
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    mode: str | None = None,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Write the segmentation of each case, its volumes and a survival estimate.

    For a case of the name CASE the folder then holds

    | file | content |
    |---|---|
    | `CASE_seg.nii.gz` | labels of the case's own release, in the geometry of its images |
    | `CASE.json` | `volumes_cm3`, `distance_mm`, `survival`, `labels`, `settings` |

    Nothing from the input's header but the geometry is copied. Each file appears whole,
    CASE.json last; those of an earlier prediction are deleted first, so a case that fails
    has none.

    Args:
        run: folder of a run, or `lab`.
        folders: case folders of any supported naming; files of MSD Task01.
        out: folder; made where it does not exist.
        mode: of inference; the run's own where None.
        progress: show a bar.

    Returns:
        What the JSON files hold, in the order of `folders`.

    Raises:
        InputError: a folder is no case, or names that cannot become output files; nothing
            has been written then.
        ImageError: some cases cannot be read; the others have been written.
    """
    out = Path(out)
    cases = [read_case(folder) for folder in folders]
    check_outputs(
        [path for case in cases for path in (*case.images, case.mask) if path],
        out,
        ENDINGS,
        names=[case.case_id for case in cases],
    )
    if out.resolve() in {case.images[0].resolve().parent for case in cases}:
        raise InputError(
            f"{out} holds the images of a case: there an answer would be taken for the "
            "truth. Give another folder."
        )
    loaded = load_run(run)
    segmenter = Segmenter(loaded.networks, mode or loaded.mode)

    def write(case: Case, prediction: Prediction) -> dict[str, Any]:
        scan = prediction.scan
        voxels = to_release(scan.to_file(prediction.labels), case.layout)
        write_nifti_atomic(out / f"{case.case_id}{ENDINGS[0]}", voxels, scan.affine)
        return _answer(loaded, case, prediction, segmenter.mode)

    return answer_each(
        cases,
        lambda case: predict_case(loaded, replace(case, mask=None), segmenter),
        write,
        out=out,
        name=lambda case: case.case_id,
        endings=ENDINGS[:-1],
        what="cases",
        kind=ImageError,
        progress=progress,
    )


def _answer(run: Run, case: Case, prediction: Prediction, mode: str) -> dict[str, Any]:
    scan, _, labels, _, seconds = prediction
    row = _survival_row(case, scan, labels)
    volumes = {name.removesuffix("_cm3"): row[name] for name in survival.VOLUMES} | {
        name: float(region(labels, name).sum()) * _voxel_cm3(scan) for name in REGIONS
    }
    background, core, oedema, enhancing = case.layout.values
    return {
        "case": case.case_id,
        "release": case.layout.title,
        "labels": {
            "background": background,
            "necrotic and non-enhancing core": core,
            "oedema": oedema,
            "enhancing tumour": enhancing,
        },
        "volumes_cm3": {name: round(value, 3) for name, value in volumes.items()},
        "distance_mm": round(row["distance_mm"], 2) if labels.any() else None,
        "survival": survival.estimate(
            run.facts["survival"],
            row | {"grade": case.grade, "resection": case.resection},
            simulated=run.facts["data"]["simulated"],
        ),
        "seconds": round(seconds, 2),
        "settings": {
            "use_case": "brain",
            "run": run.name,
            "mode": mode,
            "least_certain_cm3": least_certain(run, mode),
            "experiment": asdict(run.experiment),
            "trained_on": run.facts["data"],
        },
    }
