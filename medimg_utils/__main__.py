"""Command line: `python -m medimg_utils train | evaluate | predict USE-CASE ...`.

Each use case is one more subcommand of the three verbs; it only hands its options on to
that use case's `experiment` module.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from medimg_utils.commands import Commands
from medimg_utils.errors import InputError
from medimg_utils.settings import LARGEST_SEED, get_settings

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train, evaluate and use the networks of the book.",
)
train = typer.Typer(no_args_is_help=True, help="Train a network on a release.")
evaluate = typer.Typer(
    no_args_is_help=True, help="Measure a network on unseen patients."
)
predict = typer.Typer(no_args_is_help=True, help="Apply a network to image files.")
for name, verb in (("train", train), ("evaluate", evaluate), ("predict", predict)):
    app.add_typer(verb, name=name)

Data = Annotated[Path, typer.Option(help="Folder of the release.")]
Run = Annotated[
    str, typer.Option(help="Folder of a run, or 'lab' for the network shipped here.")
]
Fold = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Fold to hold out, from 0; for a new run 0 unless given, else the run's own.",
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        help="reference (published tiling, minutes a case on a CPU), fast (a quarter of "
        "its boxes) or one-pass (one box, seconds); the run's own unless given."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]
NewRun = Annotated[Path, typer.Option(help="Folder of the new run.")]
Size = Annotated[
    str | None, typer.Option(help="tiny, lab or paper; MEDIMG_SIZE unless given.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a stopped run.")]
Seed = Annotated[
    int | None,
    typer.Option(min=0, max=LARGEST_SEED, help="MEDIMG_SEED unless given."),
]
Epochs = Annotated[
    int | None,
    typer.Option(help="Passes of each network; as many as the size has unless given."),
]
Devices = Annotated[
    int, typer.Option(min=1, help="How many train together, each on a part of a batch.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that load images; one fewer than the cores, at most four, unless "
        "given.",
    ),
]
Cache = Annotated[Path | None, typer.Option(help="Keep prepared images here.")]
Truth = Annotated[
    Path | None,
    typer.Option(help="simulation-truth file, for subgroups of simulated data."),
]
Numbers = Annotated[Path, typer.Option(help="JSON file to write.")]
Results = Annotated[Path, typer.Option(help="Folder for the results.")]
KneeSplit = Annotated[
    str, typer.Option(help="train or valid; KneeMRI: train, tune or test.")
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Leave out exams that a table names and the folder lacks.",
    ),
]


@train.command("pneumothorax")
def train_pneumothorax(
    data: Data,
    out: NewRun,
    size: Size = None,
    fold: Fold = None,
    resume: Resume = False,
    seed: Seed = None,
    epochs: Epochs = None,
    devices: Devices = 1,
    workers: Workers = None,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """U-Net after Gooßen et al. 2019 on SIIM-ACR or ChestX-ray14."""
    from medimg_utils.pneumothorax import experiment

    history = _train(
        experiment,
        data,
        out,
        size,
        seed,
        epochs,
        fold=fold,
        resume=resume,
        cache=cache,
        devices=devices,
        workers=workers,
        progress=not quiet,
    )
    last = history[-1]
    _report(
        f"{len(history)} epochs, loss {last['loss']:.3f}, validation AUC "
        f"{_show(last['val_auc'])}, Dice {_show(last['val_dice'])}: {out}"
    )


@evaluate.command("pneumothorax")
def evaluate_pneumothorax(
    data: Data,
    run: Run,
    out: Numbers,
    fold: Fold = None,
    truth: Truth = None,
    quiet: Quiet = False,
) -> None:
    """AUC, Dice, Hausdorff distance, pointing game and controls on unseen patients."""
    from medimg_utils.pneumothorax import experiment

    answer = experiment.evaluate(
        data, run, fold=fold, out=out, truth=truth, progress=not quiet
    )
    n, area, controls = answer["n"], answer["auc"], answer["controls"]
    simulated = " simulated" if answer["about"]["data"]["simulated"] else ""
    typer.echo(
        f"{n['images']}{simulated} images of {n['patients']} patients, "
        f"{n['positives']} positive"
    )
    typer.echo(
        f"AUC {_show(area['value'])} [{', '.join(map(_show, area['bootstrap']))}]"
    )
    typer.echo(
        f"Dice of positives {_show(answer['dice']['value'])}; controls: mirrored mask "
        f"{_show(controls['mirrored_mask']['dice'])}, static prior "
        f"{_show(controls['static_prior']['dice'])}; AUC of style alone "
        f"{_show(controls['style']['auc'])}"
    )


@predict.command("pneumothorax")
def predict_pneumothorax(
    files: Annotated[list[Path], typer.Argument(help="DICOM, PNG or JPEG files.")],
    run: Run,
    out: Results,
    quiet: Quiet = False,
) -> None:
    """Probability map, overlay and score of each radiograph."""
    from medimg_utils.pneumothorax import experiment

    answers = experiment.predict(run, files, out, progress=not quiet)
    for path, answer in zip(files, answers, strict=True):
        typer.echo(f"{path.name}: {answer['score']:.3f}")


# --------------------------------------------------------------------------------- knee


@train.command("knee")
def train_knee(
    data: Data,
    out: NewRun,
    size: Size = None,
    fold: Fold = None,
    resume: Resume = False,
    seed: Seed = None,
    epochs: Epochs = None,
    devices: Devices = 1,
    workers: Workers = None,
    allow_missing: AllowMissing = False,
    quiet: Quiet = False,
) -> None:
    """MRNet after Bien et al. 2018 on MRNet-v1.0 or KneeMRI."""
    from medimg_utils.knee import experiment

    logs = _train(
        experiment,
        data,
        out,
        size,
        seed,
        epochs,
        fold=fold,
        resume=resume,
        allow_missing=allow_missing,
        devices=devices,
        workers=workers,
        progress=not quiet,
    )
    for name, history in logs.items():
        best = min(history, key=lambda row: row["val_loss"])
        _report(
            f"{name}: best epoch {best['epoch']} of {len(history)}, held-out loss "
            f"{_show(best['val_loss'])}, AUC {_show(best['val_auc'])}"
        )
    _report(str(out))


@evaluate.command("knee")
def evaluate_knee(
    data: Data,
    run: Run,
    out: Numbers,
    split: KneeSplit = "valid",
    truth: Truth = None,
    allow_missing: AllowMissing = False,
    quiet: Quiet = False,
) -> None:
    """AUC of each diagnosis, series and combination; localisation; controls."""
    from medimg_utils.knee import experiment

    answer = experiment.evaluate(
        data,
        run,
        split=split,
        out=out,
        truth=truth,
        allow_missing=allow_missing,
        progress=not quiet,
    )
    simulated = " simulated" if answer["about"]["data"]["simulated"] else ""
    typer.echo(f"{answer['n']['exams']}{simulated} exams of {split}")
    for diagnosis, found in answer["diagnoses"].items():
        single = ", ".join(
            f"{series} {_show(area['value'])}"
            for series, area in found["series"].items()
        )
        combined = ""
        if found["combined"] is not None:
            area = found["combined"]["auc"]
            ends = ", ".join(map(_show, area["bootstrap"]))
            combined = f"combined AUC {_show(area['value'])} [{ends}]; "
        style = _show(answer["controls"]["style"][diagnosis]["auc"])
        typer.echo(
            f"{diagnosis}: {found['positives']} positive; {combined}{single}; "
            f"style alone {style}"
        )
    for diagnosis, by_series in (answer["localisation"] or {}).items():
        for series, found in by_series.items():
            shown = "; ".join(
                f"{question} "
                + ", ".join(
                    f"{who} {_show(found[question][who]['value'])}"
                    for who in ("network", "random", "centre")
                )
                for question in ("slice", "pointing", "overlap")
            )
            typer.echo(f"{diagnosis} in {found['n']} {series}: {shown}")


@predict.command("knee")
def predict_knee(
    run: Run,
    data: Data,
    out: Results,
    split: KneeSplit = "valid",
    allow_missing: AllowMissing = False,
    quiet: Quiet = False,
) -> None:
    """Probabilities, picked slices and class activation maps of each exam."""
    from medimg_utils.knee import experiment

    answers = experiment.predict(
        run,
        data,
        out,
        split=split,
        allow_missing=allow_missing,
        progress=not quiet,
    )
    for answer in answers:
        told = answer["probabilities"] or {
            f"{series} {name}": probability  # too few series to combine
            for series, found in answer["series"].items()
            for name, probability in found.items()
        }
        shown = ", ".join(f"{name} {value:.3f}" for name, value in told.items())
        typer.echo(f"{answer['exam']}: {shown}")


# -------------------------------------------------------------------------------- brain


@train.command("brain")
def train_brain(
    data: Data,
    out: NewRun,
    size: Size = None,
    fold: Fold = None,
    resume: Resume = False,
    seed: Seed = None,
    epochs: Epochs = None,
    devices: Devices = 1,
    workers: Workers = None,
    cache: Cache = None,
    quiet: Quiet = False,
) -> None:
    """Two-step 3-D U-Net after Weninger et al. 2019 on BraTS or MSD Task01."""
    from medimg_utils.brain import experiment

    logs = _train(
        experiment,
        data,
        out,
        size,
        seed,
        epochs,
        fold=fold,
        resume=resume,
        cache=cache,
        devices=devices,
        workers=workers,
        progress=not quiet,
    )
    for stage, rows in logs.items():
        said = [f"{stage}: {len(rows)} epochs"]
        if rows:
            said.append(f"loss {rows[-1]['loss']:.3f}")
            said.append(f"validation Dice {_show(rows[-1]['val_dice'])}")
        _report(", ".join(said))
    _report(f"the run is in {out}")


@evaluate.command("brain")
def evaluate_brain(
    data: Data,
    run: Run,
    out: Numbers,
    fold: Fold = None,
    truth: Truth = None,
    mode: Mode = None,
    quiet: Quiet = False,
) -> None:
    """Dice, Hausdorff distance and survival on unseen patients."""
    from medimg_utils.brain import experiment

    answer = experiment.evaluate(
        data, run, fold=fold, out=out, truth=truth, mode=mode, progress=not quiet
    )
    simulated = " simulated" if answer["about"]["data"]["simulated"] else ""
    typer.echo(
        f"{answer['n']['cases']}{simulated} cases of {answer['n']['patients']} patients, "
        f"mode {answer['mode']}"
    )
    for name, region in answer["regions"].items():
        low, high = region["dice"]["interval"]
        typer.echo(
            f"{name}: Dice {_show(region['dice']['mean'])} [{_show(low)}, {_show(high)}], "
            f"HD95 {_show(region['hausdorff95_mm']['mean'])} mm (median "
            f"{_show(region['hausdorff95_mm']['median'])} mm)"
        )
    control = answer["controls"]["flair_threshold"]["mean"]
    typer.echo(f"control: a FLAIR threshold gives WT Dice {_show(control)}")
    table = answer["survival"]["predicted_masks"]
    if table is None:
        typer.echo("survival: too few patients to compare regressions")
    else:
        for variant in (key for key in table if key != "n"):
            scores = table[variant]
            typer.echo(
                f"survival, {variant}: accuracy {_show(scores['accuracy'])}, Spearman "
                f"{_show(scores['spearman'])}, MSE {scores['mse']:.0f} days²"
            )


@predict.command("brain")
def predict_brain(
    cases: Annotated[
        list[Path],
        typer.Argument(help="Case folders of any BraTS naming; files of MSD Task01."),
    ],
    run: Run,
    out: Results,
    mode: Mode = None,
    quiet: Quiet = False,
) -> None:
    """Segmentation, volumes and survival estimate of each case."""
    from medimg_utils.brain import experiment

    answers = experiment.predict(run, cases, out, mode=mode, progress=not quiet)
    for answer in answers:
        volumes = answer["volumes_cm3"]
        days, model = answer["survival"]["days"], answer["survival"]["model"]
        typer.echo(
            f"{answer['case']}: WT {volumes['WT']:.1f}, TC {volumes['TC']:.1f}, ET "
            f"{volumes['ET']:.1f} cm³; survival "
            + ("not estimated" if days is None else f"{days:.0f} days")
            + (" (the mean of the cohort)" if model == "mean" else "")
        )


def _train(
    experiment: Any,
    data: Path,
    out: Path,
    size: str | None,
    seed: int | None,
    epochs: int | None,
    **options: Any,
) -> Any:
    """Train with the settings of a size; the environment gives what is not given."""
    import torch

    from medimg_utils.io import check_folder

    check_folder(out)  # now, not after minutes of decoding
    count = torch.accelerator.device_count()
    if 0 < count < options["devices"]:  # on CPUs any number of processes can train
        raise InputError(
            f"--devices is {options['devices']}, but this machine has {count} to train on."
        )
    if options["resume"] and not (out.is_dir() and any(out.iterdir())):
        _report(f"{out} holds no run to go on with: a new one begins there")
    settings = get_settings()
    try:
        return experiment.train(
            data,
            out,
            experiment.get_experiment(size or settings.size, epochs=epochs),
            seed=settings.seed if seed is None else seed,
            **options,
        )
    except KeyboardInterrupt:
        _report(f"\nstopped; the same command with --resume goes on with {out}")
        raise


def _report(text: str) -> None:
    """Say it once, though several processes train together."""
    from lightning_fabric.utilities.rank_zero import rank_zero_only

    rank_zero_only(typer.echo)(text)


def _show(value: Any) -> str:
    return "undefined" if value is None or math.isnan(value) else f"{value:.3f}"


if __name__ == "__main__":
    app()
