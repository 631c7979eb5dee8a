"""Fetch the real anatomy that exams are simulated from, with licence notices."""

from typing import Annotated

import typer

from medimg_utils.physics.anatomy import GROUPS, AnatomyError, fetch


def main(
    group: Annotated[str, typer.Argument(help=f"{', '.join(GROUPS)} or all")],
) -> None:
    """Fetch the real anatomy that exams are simulated from, with licence notices."""
    try:
        cache = fetch(group)
    except AnatomyError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{group}: complete in {cache}")


if __name__ == "__main__":
    typer.run(main)
