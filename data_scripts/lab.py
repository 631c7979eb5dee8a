"""Repeat the lab run: simulate, train, measure, store the network and its numbers."""

from pathlib import Path
from typing import Annotated

import typer

from medimg_utils.commands import Commands

Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]
Folds = Annotated[
    list[int] | None, typer.Option("--fold", help="From 1; all of them unless given.")
]

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, help=__doc__
)


@app.command()
def pneumothorax(runs: Runs = Path("runs")) -> None:
    """U-Net on simulated radiographs; what is done already is not done again."""
    from medimg_utils.pneumothorax.lab import run_lab

    result = run_lab(runs)
    for name, test in result["tests"].items():
        auc, dice = test["auc"]["value"], test["dice"]["value"]
        typer.echo(f"{name:18} AUC {auc:.3f}  Dice of positives {dice:.3f}")


@app.command()
def pneumothorax_folds(runs: Runs = Path("runs"), folds: Folds = None) -> None:
    """The other folds of the radiographs, which join the stored result."""
    from medimg_utils.pneumothorax.lab import run_folds

    result = run_folds(runs, folds or [1, 2, 3, 4])
    for fold, values in result["folds"].items():
        auc, dice = values["auc"]["value"], values["dice"]["value"]
        typer.echo(f"fold {fold}  AUC {auc:.3f}  Dice of positives {dice:.3f}")


@app.command()
def knee(runs: Runs = Path("runs")) -> None:
    """MRNet on simulated knee exams; what is done already is not done again."""
    from medimg_utils.knee.lab import run_lab

    result = run_lab(runs)
    for name, test in result["tests"].items():
        for diagnosis, found in test["diagnoses"].items():
            area = found["combined"]["auc"]["value"]
            typer.echo(f"{name:18} {diagnosis:9} AUC {area:.3f}")


@app.command()
def brain(runs: Runs = Path("runs")) -> None:
    """Two-step 3-D U-Net on simulated brains; what is done already is not done again."""
    from medimg_utils.brain.lab import run_lab

    result = run_lab(runs)
    for name, test in result["tests"].items():
        values = "  ".join(
            f"{region} {numbers['dice']['mean']:.3f}"
            for region, numbers in test["regions"].items()
        )
        typer.echo(f"{name:18} Dice {values}")
    for name, mode in result["inference"]["all modes"]["modes"].items():
        typer.echo(
            f"{name:18} {mode['times_as_fast']:.0f} times as fast, agreement "
            f"{mode['agreement']:.3f}"
        )


@app.command()
def ablation(runs: Runs = Path("runs")) -> None:
    """A dozen designs with several seeds; a network that is trained is not trained again."""
    from medimg_utils.challenges.ablation import NAME, run_ablation, unpack

    result = run_ablation(runs / NAME)
    for name, design in result["designs"].items():
        scores = unpack(design["scores"])
        typer.echo(
            f"{name:24} Dice {scores.mean():.3f}  seeds {scores.mean(1).std():.3f}"
        )


@app.command()
def plans() -> None:
    """What the rules of nnU-Net decide from the geometry of the three tiny releases."""
    from medimg_utils.challenges.planning import Fingerprint, plan, run_plans

    for name, found in run_plans()["fingerprints"].items():
        decided = plan(Fingerprint(**found))
        typer.echo(f"{name:13} patch {decided.patch}  batch {decided.batch}")


@app.command()
def shortcut(runs: Runs = Path("runs/black-box")) -> None:
    """Small classifiers with and without a planted shortcut, and what opens them."""
    from medimg_utils.challenges.lab import run_black_box

    result = run_black_box(runs)
    typer.echo(f"{result['films']} films, {result['minutes']:.0f} minutes")


@app.command()
def maps() -> None:
    """Saliency and Grad-CAM of the shipped U-Net of the radiographs, beside its answer."""
    from medimg_utils.challenges.lab import run_maps

    for name, measured in run_maps()["maps"].items():
        hits = measured["pointing"]
        typer.echo(f"{name:12} points into {sum(hits) / len(hits):.0%} of the findings")


if __name__ == "__main__":
    app()
