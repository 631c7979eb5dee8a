"""The one base class of every error that a reader of the book can cause and mend."""

from __future__ import annotations


class InputError(ValueError):
    """Something given to the package is not what it needs.

    The message says what was found, what was expected and what to do. The command line
    prints it as one line without a traceback.
    """
