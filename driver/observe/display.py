"""The one progress display of a run: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Protocol

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn

from common.config.services import DisplaySection
from common.terminal import visible
from driver.report.console import PlainConsole

RECENT_EPOCHS = 10
"""Epochs whose mean duration predicts the coming ones'."""
TICK_S = 1.0
BAR_WIDTH = 30


class Phase(Enum):
    """What the run is doing; streaming phases overlap, then the one that people wait for is shown."""

    STARTING = "starting"
    SAMPLING = "sampling"
    LEARNING = "learning"
    PUBLISHING = "publishing"
    EVALUATING = "evaluating"
    CHECKPOINTING = "checkpointing"


@dataclass(frozen=True)
class DisplayState:
    """The state of a run. A history is empty until its first value is known.

    epoch: epochs finished, those before a resume included; epochs: in all.
    phase, done, total, unit: what runs now, and how much of it is done; total 0 = it is not counted.
    waits_for: what a run that starts waits for, in words.
    rewards: mean reward on the training prompts, of each finished epoch since the rewards' last swap.
    unseen: mean score on the unseen prompts of each evaluation that the last can be compared with, oldest
    first; unseen_name: that score's name.
    images_per_s: of the last epoch; 0 before the first is finished.
    epoch_seconds: wall time of each epoch finished by this process, evaluation included, the start not.
    dropped: groups dropped so far in the run.
    alarms: names of those that the last epoch raised.
    kl: nats per trajectory to the reference, in the last epoch; None where the objective has none.
    idle: share of the last epoch in which each role waited, by name.
    """

    epoch: int
    epochs: int
    phase: Phase = Phase.STARTING
    done: int = 0
    total: int = 0
    unit: str = "images"
    waits_for: str = ""
    rewards: tuple[float, ...] = ()
    unseen: tuple[float, ...] = ()
    unseen_name: str = "gold"
    images_per_s: float = 0.0
    epoch_seconds: tuple[float, ...] = ()
    dropped: int = 0
    alarms: tuple[str, ...] = ()
    kl: float | None = None
    idle: tuple[tuple[str, float], ...] = ()

    @property
    def position(self) -> str:
        """`epoch 3/40`: the one in work, or the last one where all are finished."""
        return f"epoch {min(self.epoch + 1, self.epochs)}/{self.epochs}"

    @property
    def progress(self) -> str:
        """`96/128 images`; empty where nothing is counted."""
        return f"{self.done}/{self.total} {self.unit}" if self.total else ""

    @property
    def seconds_left(self) -> float:
        """Expected seconds to the end, from this process's last epochs; 0 before it has finished two.

        Its first one tells little: models are compiled, caches filled, and there is one evaluation more.
        """
        recent = self.epoch_seconds[1:][-RECENT_EPOCHS:]
        return (self.epochs - self.epoch) * sum(recent) / len(recent) if recent else 0.0

    def figures(self) -> str:
        """What is known so far, separated by ` | `."""
        parts = [f"waits for {self.waits_for}"] if self.waits_for else []
        if self.rewards:
            parts.append(f"reward {format_change(self.rewards)}")
        if self.unseen:
            parts.append(f"{self.unseen_name} on unseen prompts {format_change(self.unseen)}")
        if self.images_per_s:
            parts.append(f"{self.images_per_s:.3g} images/s")
        if self.seconds_left:
            parts.append(f"{timedelta(seconds=round(self.seconds_left))} left")
        if self.dropped:
            parts.append(f"groups dropped: {self.dropped}")
        if self.alarms:
            parts.append(f"ALARM {', '.join(self.alarms)}")
        return " | ".join(parts)

    def health(self) -> str:
        """KL and who waits, separated by ` | `; empty before the first epoch is finished."""
        parts = [] if self.kl is None else [f"KL {self.kl:.3g}"]
        if self.idle:
            parts.append(f"idle: {', '.join(f'{role} {share:.0%}' for role, share in self.idle)}")
        return " | ".join(parts)


def format_change(history: tuple[float, ...]) -> str:
    """The last value and, where there are more, its change since the first: `0.612 (+0.104)`."""
    change = f" ({history[-1] - history[0]:+.3g})" if len(history) > 1 else ""
    return f"{history[-1]:.4g}{change}"


class Display(Protocol):
    """Shows the progress of a run. Called from one thread.

    `note` leaves a line that stays; `update` is cheap, so it may be called for every group; `close` gives the
    terminal back, and may be called more than once.
    """

    def start(self, total_epochs: int) -> None: ...

    def update(self, state: DisplayState) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


class _Bars(Progress):
    """Bars with lines of figures below, and the time since the start. Drawn once a second: what a terminal is
    sent may be kept in a log of hours."""

    figures = ""
    started_at = 0.0

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        elapsed = timedelta(seconds=int(time.monotonic() - self.started_at))
        yield f"{elapsed} elapsed{self.figures}"


class BarDisplay:
    """A bar of epochs and one of the phase in work; what is printed meanwhile stands above them."""

    def __init__(self, console: PlainConsole, title: str) -> None:
        words = TextColumn("{task.description}", markup=False)
        counts = TextColumn("{task.fields[counts]}", markup=False)
        bar = BarColumn(BAR_WIDTH)
        self._bars = _Bars(words, bar, counts, console=console, refresh_per_second=1 / TICK_S)
        self._epochs = self._bars.add_task(title, total=None, counts="")
        self._phase = self._bars.add_task(Phase.STARTING.value, total=None, counts="")

    def start(self, total_epochs: int) -> None:
        self.update(DisplayState(epoch=0, epochs=total_epochs))
        self._bars.started_at = time.monotonic()
        self._bars.start()

    def update(self, state: DisplayState) -> None:
        shown = "".join(f" | {part}" for part in (state.figures(), state.health()) if part)
        self._bars.figures = visible(shown)
        self._bars.update(
            self._epochs, total=max(state.epochs, 1), completed=state.epoch, counts=state.position
        )
        # A bar without a total would pulse, a colour for each of its letters.
        phase, total = state.phase.value, state.total or 1
        self._bars.update(
            self._phase, description=phase, total=total, completed=state.done, counts=state.progress
        )

    def note(self, text: str) -> None:
        self._bars.console.print(text)

    def close(self) -> None:
        self._bars.stop()


class LineDisplay:
    """A line at each epoch's end, one for whatever the start waits for, and one each `line_seconds` between.
    clock: seconds, monotonic.

    A thread of its own writes those in between, so that a log shows life while a model loads or a long
    update runs, when nothing calls `update`.
    """

    def __init__(
        self,
        console: PlainConsole,
        title: str,
        line_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._title = title
        self._line_seconds = line_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._last_line_at = clock()
        self._state = DisplayState(epoch=0, epochs=0)

    def start(self, total_epochs: int) -> None:
        self._state = DisplayState(epoch=0, epochs=total_epochs)
        self.note(f"{self._title}: {total_epochs} epochs")
        threading.Thread(target=self._tick_until_the_end, name="writes progress", daemon=True).start()

    def update(self, state: DisplayState) -> None:
        ended = len(state.epoch_seconds) > len(self._state.epoch_seconds)
        waits = state.waits_for not in ("", self._state.waits_for)
        self._state = state
        if ended:
            self.note(_line(f"epoch {state.epoch}/{state.epochs} done", state.figures()))
        if waits:
            self.note(_line(state.phase.value, state.figures()))
        self.tick()

    def tick(self) -> None:
        """Write a line where the last one is old enough."""
        with self._lock:
            if self._clock() - self._last_line_at >= self._line_seconds:
                state = self._state
                words = f"{state.position} {state.phase.value} {state.progress}".rstrip()
                self.note(_line(words, state.figures()))

    def note(self, text: str) -> None:
        with self._lock:
            self._last_line_at = self._clock()
            stamped = f"{time.strftime('%H:%M:%S')} {text}"
            self._console.print(stamped, soft_wrap=True)

    def close(self) -> None:
        self._ended.set()

    def _tick_until_the_end(self) -> None:
        while not self._ended.wait(min(TICK_S, self._line_seconds)):
            self.tick()


def _line(words: str, figures: str) -> str:
    return f"{words} | {figures}" if figures else words


def open_display(section: DisplaySection, console: PlainConsole, title: str = "PRDP") -> Display:
    """The display that the configuration asks for, not yet started. title: what it is called."""
    bars = {"auto": console.is_terminal, "live": True, "lines": False}[section.mode]
    return BarDisplay(console, title) if bars else LineDisplay(console, title, section.line_seconds)
