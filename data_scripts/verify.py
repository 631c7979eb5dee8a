"""Examine a release before training on it: python data_scripts/verify.py LAYOUT PATH.

Opens every file, prints a table of what is fine and what is not, and exits with 1 where
there is a problem.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from medimg_utils.commands import Command
from medimg_utils.errors import InputError
from medimg_utils.release import Check, release_folder

app = typer.Typer(add_completion=False)

SHOWN = 5  # cases listed of each problem
USE_CASES = {  # layout → the use case that reads it
    "siim": "pneumothorax",
    "nih": "pneumothorax",
    "mrnet": "knee",
    "kneemri": "knee",
    "brats": "brain",
    "msd": "brain",
}


@app.command(cls=Command)
def main(
    layout: Annotated[str, typer.Argument(help=", ".join(USE_CASES))],
    path: Annotated[Path, typer.Argument(help="Folder of the release.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Print what is fine in a release and what is not; exit 1 on a problem."""
    if layout not in USE_CASES:
        raise InputError(
            f"{layout!r} is no known layout; there are: {', '.join(USE_CASES)}."
        )
    dataset = import_module(f"medimg_utils.{USE_CASES[layout]}.dataset")
    checks = dataset.verify(layout, release_folder(path), progress=not quiet)
    width = max(len(check.name) for check in checks)
    for check in checks:
        typer.echo(f"{_state(check):7}  {check.name:{width}}  {check.found}")
        for text in (*check.problems[:SHOWN], *check.notes):
            typer.echo(f"{'':7}  {'':{width}}  - {text}")
        if len(check.problems) > SHOWN:
            typer.echo(
                f"{'':7}  {'':{width}}  - and {len(check.problems) - SHOWN} more"
            )
    problems = sum(len(check.problems) for check in checks)
    plural = "" if problems == 1 else "s"
    typer.echo(f"{path}: {f'{problems} problem{plural}' if problems else 'fine'}")
    raise typer.Exit(1 if problems else 0)


def _state(check: Check) -> str:
    return "PROBLEM" if check.problems else "note" if check.notes else "fine"


if __name__ == "__main__":
    app()
