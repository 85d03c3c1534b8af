"""The console of tables and progress bars: it shows text as it is."""

from __future__ import annotations

from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from common.terminal import visible


class PlainConsole(Console):
    """A console to which no text is markup, emoji, or control character. file: the standard output if None.

    That goes for texts (str) wherever they stand, cells and titles of tables included. A Text is shown as it
    is made, so it is made of our own words alone.
    """

    def __init__(self, file: IO[str] | None = None, **settings: Any) -> None:
        super().__init__(file=file, markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **given: Any) -> Text:
        """See Console."""
        return super().render_str(visible(text), **given)


def plain_progress(console: Console) -> Progress:
    """Bars whose descriptions are text; see `visible` for those of others."""
    words = TextColumn("{task.description}", markup=False)
    return Progress(words, BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}"), console=console)
