"""Showing what is done already: it may fail, and ends nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.errors import ConsoleError

from common.errors import PrdpError

FAILURES = (PrdpError, ConsoleError, OSError, ValueError, LookupError, ArithmeticError, RuntimeError)
"""What the terminal, the disk, a plot or a table raise: of texts, numbers and files that do not suit them."""


@contextmanager
def showing(what: str, note: Callable[[str], None]) -> Iterator[None]:
    """Show something inside; where that fails, `note` says so, and what comes after goes on."""
    try:
        yield
    except FAILURES as error:
        note(f"{what} could not be shown: {type(error).__name__}: {error}")
