"""Progress as plain lines, for logs: one at the end of each epoch, and one now and then in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from rich.console import Console

from driver.observe.display_state import DisplayState, format_change, format_groups, format_seconds

TICK_S = 1.0


class LineDisplay:
    """A line each `line_seconds` and at each epoch's end. clock: seconds, monotonic.

    A thread of its own writes the lines in between, so that a log shows life while a model loads or a long
    update runs, when nothing is told to `update`.
    """

    def __init__(
        self, console: Console, title: str, line_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._title = title
        self._line_seconds = line_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._last_line_at = clock()
        self._finished = 0
        self._state = DisplayState(epoch=0, epochs=0)

    def start(self, total_epochs: int) -> None:
        """Say that the run starts."""
        self._state = DisplayState(epoch=0, epochs=total_epochs)
        self._write(f"{self._title}: {total_epochs} epochs")
        threading.Thread(target=self._tick_until_the_end, name="writes progress", daemon=True).start()

    def update(self, state: DisplayState) -> None:
        """Write a line where an epoch has ended or the last line is old enough."""
        with self._lock:
            self._state = state
            if len(state.epoch_seconds) > self._finished:
                self._finished = len(state.epoch_seconds)
                self._write(f"epoch {state.epoch}/{state.epochs} done" + _figures(state))
        self.tick()

    def tick(self) -> None:
        """Write a line where the last one is old enough."""
        with self._lock:
            if self._clock() - self._last_line_at < self._line_seconds:
                return
            state = self._state
            done = f" {state.done}/{state.total} {state.unit}" if state.total else ""
            self._write(
                f"epoch {state.epoch_in_work}/{state.epochs} {state.phase.value}{done}" + _figures(state)
            )

    def note(self, text: str) -> None:
        """Write the text as lines of their own."""
        with self._lock:
            self._write(text)

    def close(self) -> None:
        """Write no more by itself."""
        self._ended.set()

    def _tick_until_the_end(self) -> None:
        while not self._ended.wait(min(TICK_S, self._line_seconds)):
            self.tick()

    def _write(self, text: str) -> None:
        self._last_line_at = self._clock()
        stamp = time.strftime("%H:%M:%S")
        self._console.print(f"{stamp} {text}", markup=False, highlight=False, soft_wrap=True)


def _figures(state: DisplayState) -> str:
    """What is known so far, each after a ` | `."""
    parts = []
    if state.rewards:
        parts.append(f"reward {format_change(state.rewards)}")
    if state.unseen:
        parts.append(f"{state.unseen_name} on unseen prompts {format_change(state.unseen)}")
    if state.images_per_s:
        parts.append(f"{state.images_per_s:.3g} images/s")
    if state.seconds_left:
        parts.append(f"{format_seconds(state.seconds_left)} left")
    if state.dropped:
        parts.append(f"{format_groups(state.dropped)} dropped")
    if state.alarms:
        parts.append(f"ALARM {', '.join(state.alarms)}")
    return "".join(f" | {part}" for part in parts)
