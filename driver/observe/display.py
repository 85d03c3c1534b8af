"""The one progress display of a run: a live panel on a terminal, plain lines in a log."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from common.config.services import DisplaySection
from driver.observe.display_lines import LineDisplay
from driver.observe.display_live import LiveDisplay
from driver.observe.display_state import Display, DisplayState, Phase

__all__ = ["Display", "DisplayState", "Phase", "open_display"]

MakeDisplay = Callable[[DisplaySection, Console, str], Display]


def _live(section: DisplaySection, console: Console, title: str) -> Display:
    return LiveDisplay(console, title)


def _lines(section: DisplaySection, console: Console, title: str) -> Display:
    return LineDisplay(console, title, section.line_seconds)


def _auto(section: DisplaySection, console: Console, title: str) -> Display:
    return (_live if console.is_terminal else _lines)(section, console, title)


DISPLAYS: dict[str, MakeDisplay] = {"live": _live, "lines": _lines, "auto": _auto}


def open_display(section: DisplaySection, console: Console, title: str = "PRDP") -> Display:
    """The display that the configuration asks for, not yet started. title: what is shown above it."""
    return DISPLAYS[section.mode](section, console, title)
