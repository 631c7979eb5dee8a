"""Fetch the real anatomy that exams are simulated from, with licence notices."""

from typing import Annotated

import typer

from medimg_utils.commands import Command
from medimg_utils.physics.anatomy import GROUPS, fetch

app = typer.Typer(add_completion=False)


@app.command(cls=Command)
def main(
    group: Annotated[str, typer.Argument(help=f"{', '.join(GROUPS)} or all")],
) -> None:
    """Fetch the real anatomy that exams are simulated from, with licence notices."""
    typer.echo(f"{group}: complete in {fetch(group)}")


if __name__ == "__main__":
    app()
