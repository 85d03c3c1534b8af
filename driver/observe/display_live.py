"""Progress on a terminal: one panel that stays where it is, whatever else is printed or logged above it."""

from __future__ import annotations

import logging
import sys
from itertools import pairwise
from typing import TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from driver.observe.display_state import DisplayState, format_change, format_groups, format_seconds

REFRESHES_PER_S = 4
WIDEST = 100
"""Columns of the panel at most; a wider one is harder to read."""
SPARKS = "▁▂▃▄▅▆▇█"


def sparkline(values: tuple[float, ...], width: int) -> str:
    """At most `width` characters, each the mean of neighbouring values, drawn between the extremes."""
    if not values or width < 1:
        return ""
    columns = min(width, len(values))
    edges = [index * len(values) // columns for index in range(columns + 1)]
    means = [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(edges)]
    low, spread = min(means), max(means) - min(means)
    if not spread > 0.0:
        return SPARKS[3] * columns
    return "".join(SPARKS[round((mean - low) / spread * (len(SPARKS) - 1))] for mean in means)


class Spark:
    """A sparkline as wide as the space it is given."""

    def __init__(self, values: tuple[float, ...], style: str) -> None:
        self._values = values
        self._style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(sparkline(self._values, options.max_width), style=self._style, no_wrap=True)


def _phase_row(state: DisplayState) -> tuple[RenderableType, ...]:
    if not state.total:
        return state.phase.value, ProgressBar(total=None, pulse=True), ""
    counted = f"{state.done}/{state.total} {state.unit}"
    return state.phase.value, ProgressBar(total=state.total, completed=state.done), counted


def panel_of(state: DisplayState, title: str) -> Panel:
    """The panel of one state."""
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(no_wrap=True)
    left = f"  {format_seconds(state.seconds_left)} left" if state.seconds_left else ""
    rate = f"  {state.images_per_s:.3g} images/s" if state.images_per_s else ""
    whole = ProgressBar(total=max(state.epochs, 1), completed=state.epoch)
    table.add_row("epoch", whole, f"{state.epoch_in_work}/{state.epochs}{rate}{left}")
    table.add_row(*_phase_row(state))
    table.add_row(
        "reward, train", Spark(state.rewards, "cyan"), format_change(state.rewards) or "not known yet"
    )
    if state.unseen:
        table.add_row(
            "unseen", Spark(state.unseen, "green"), f"{format_change(state.unseen)} {state.unseen_name}"
        )
    if state.dropped:
        table.add_row("dropped", "", Text(format_groups(state.dropped), style="yellow"))
    if state.alarms:
        table.add_row("alarm", "", Text(", ".join(state.alarms), style="bold red"))
    return Panel(table, title=title, title_align="left", border_style="dim", width=None, expand=True)


class _Screen:
    """What is drawn, several times a second, by rich's own thread."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self.state = DisplayState(epoch=0, epochs=0)

    def __call__(self) -> RenderableType:
        panel = panel_of(self.state, self._title)
        panel.width = min(WIDEST, self._console.width)
        return panel


class LiveDisplay:
    """One panel, drawn anew a few times a second."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._screen = _Screen(console, title)
        self._live = Live(console=console, get_renderable=self._screen, refresh_per_second=REFRESHES_PER_S)
        self._redirected: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def start(self, total_epochs: int) -> None:
        """Draw the panel and send what is printed or logged from now on above it."""
        self._screen.state = DisplayState(epoch=0, epochs=total_epochs)
        terminal = (sys.stdout, sys.stderr)
        self._live.start(refresh=True)
        self._redirect_handlers(terminal)

    def update(self, state: DisplayState) -> None:
        """Draw this state at the next refresh."""
        self._screen.state = state

    def note(self, text: str) -> None:
        """Print the text above the panel."""
        self._console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Draw the last state once more, leave it there, and give the terminal back."""
        while self._redirected:
            handler, stream = self._redirected.pop()
            handler.setStream(stream)
        self._live.stop()

    def _redirect_handlers(self, terminal: tuple[TextIO, TextIO]) -> None:
        """Logging handlers hold the stream they were made with, so rich's redirection passes them by."""
        streams = dict(zip(map(id, terminal), (sys.stdout, sys.stderr), strict=True))
        for logger in (logging.root, *logging.root.manager.loggerDict.values()):
            for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
                if isinstance(handler, logging.StreamHandler) and id(handler.stream) in streams:
                    self._redirected.append((handler, handler.stream))
                    handler.setStream(streams[id(handler.stream)])
