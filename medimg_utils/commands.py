"""What the command lines share: an error of input is one line, not a traceback."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from medimg_utils.errors import InputError, NotFiniteError

SHOWN = (InputError, NotFiniteError, OSError)


class OneLine:
    """Says what was wrong in one line and exits with 1; mixed into a kind of command."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)  # type: ignore[misc]
        except BrokenPipeError:
            raise  # `| head` has seen enough; Typer ends quietly
        except SHOWN as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(1) from None


class Commands(OneLine, TyperGroup):
    """A group of commands."""


class Command(OneLine, TyperCommand):
    """A script that is one command."""
