"""What the command lines share: an error of input is one line, not a traceback."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from medimg_utils.errors import InputError

SHOWN = (InputError, ArithmeticError, FileNotFoundError, PermissionError)


class Commands(TyperGroup):
    """Group of commands that says what was wrong in one line and exits with 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except SHOWN as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(1) from None
