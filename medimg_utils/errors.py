"""Errors that a reader of the book may see: what they gave, and what training met."""

from __future__ import annotations


class InputError(ValueError):
    """Something given to the package is not what it needs.

    The message says what was found, what was expected and what to do. The command line
    prints it as one line without a traceback.
    """


class NotFiniteError(ArithmeticError):
    """The loss or its gradient is no number any more."""
