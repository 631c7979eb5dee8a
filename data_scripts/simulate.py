"""Simulate exams from real anatomy and write them in the layout of a real release."""

from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from medimg_utils.commands import Commands

app = typer.Typer(
    cls=Commands, no_args_is_help=True, add_completion=False, help=__doc__
)


class UseCase(StrEnum):
    """Names of the use cases."""

    PNEUMOTHORAX = "pneumothorax"
    KNEE = "knee"
    BRAIN = "brain"


@app.command()
def pneumothorax(
    out: Annotated[Path, typer.Option(help="Folder to write, in the SIIM-ACR layout.")],
    patients: Annotated[int, typer.Option(help="Patients; each has 1 to 3 films.")],
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")],
    size: Annotated[int, typer.Option(help="Rows and columns of the images.")] = 1024,
    positive_rate: Annotated[
        float, typer.Option(help="Share of images with a pneumothorax.")
    ] = 0.22,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Also write each positive without the collapse."),
    ] = False,
    drain_rate: Annotated[
        tuple[float, float],
        typer.Option(
            help="Share of films with a drain, without and with pneumothorax."
        ),
    ] = (0.06, 0.30),
    workers: Annotated[int | None, typer.Option(help="Processes; one a core.")] = None,
) -> None:
    """Chest radiographs with and without pneumothorax."""
    from medimg_utils.pneumothorax.simulate import Simulation, simulate_release
    from medimg_utils.pneumothorax.technique import Rates

    plan = Simulation(
        patients,
        seed,
        size=size,
        positive_rate=positive_rate,
        pairs=pairs,
        rates=Rates(drain=drain_rate),
    )
    typer.echo(f"complete in {simulate_release(out, plan, workers=workers)}")


@app.command()
def knee(
    out: Annotated[Path, typer.Option(help="Folder to write, in the MRNet layout.")],
    train: Annotated[int, typer.Option(help="Exams of the training split.")],
    valid: Annotated[int, typer.Option(help="Exams of the validation split.")],
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")],
    anatomy: Annotated[
        list[str] | None,
        typer.Option(help="Use only this knee; may be given more than once."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core.")] = None,
) -> None:
    """Knee MRI exams of three series, with labels of abnormality and tears."""
    from medimg_utils.knee.simulate import ANATOMIES, Simulation, simulate_release

    plan = Simulation(train, valid, seed, anatomies=tuple(anatomy or ANATOMIES))
    typer.echo(f"complete in {simulate_release(out, plan, workers=workers)}")


@app.command()
def brain(
    out: Annotated[Path, typer.Option(help="Folder to write, in the BraTS layout.")],
    patients: Annotated[int, typer.Option(help="Patients, each with one tumour.")],
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")],
    spacing: Annotated[float, typer.Option(help="Side of the voxels in mm.")] = 1.0,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Write the tables without images.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; one a core.")] = None,
) -> None:
    """Brain tumours in four MR images, with masks and survival."""
    from medimg_utils.brain.simulate import Simulation, simulate_release

    plan = Simulation(patients, seed, spacing=spacing, images=not tables_only)
    typer.echo(f"complete in {simulate_release(out, plan, workers=workers)}")


@app.command()
def tiny(
    use_case: Annotated[UseCase, typer.Argument(help="Which of the three.")],
) -> None:
    """What tests and notebooks use, made anew: MEDIMG_DATA/<use case>-tiny."""
    module = import_module(f"medimg_utils.{use_case}.simulate")
    typer.echo(f"complete in {module.ensure_release('tiny', anew=True)}")


if __name__ == "__main__":
    app()
