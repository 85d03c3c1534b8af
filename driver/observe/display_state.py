"""What a progress display shows, the seam between the loop and the displays, and how numbers are written."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

RECENT_EPOCHS = 10
"""Epochs whose mean duration predicts the coming ones'."""


class Phase(Enum):
    """What the run is doing; streaming phases overlap, then the one that people wait for is shown."""

    STARTING = "starting"
    SAMPLING = "sampling"
    SCORING = "scoring"
    LEARNING = "learning"
    PUBLISHING = "publishing"
    EVALUATING = "evaluating"
    CHECKPOINTING = "checkpointing"


@dataclass(frozen=True)
class DisplayState:
    """The state of a run. A history is empty until its first value is known.

    epoch: epochs finished, those before a resume included; epochs: in all.
    phase, done, total, unit: what runs now, and how much of it is done; total 0 = it is not counted.
    rewards: mean reward on the training prompts, of each finished epoch.
    unseen: mean score on the unseen prompts of each evaluation, oldest first; unseen_name: that score's name.
    images_per_s: of the last epoch; 0 before the first is finished.
    epoch_seconds: wall time of each epoch finished by this process, evaluation included.
    epoch_elapsed_s: wall time of the epoch in work.
    dropped: groups dropped so far in the run.
    alarms: names of those that the last epoch raised.
    """

    epoch: int
    epochs: int
    phase: Phase = Phase.STARTING
    done: int = 0
    total: int = 0
    unit: str = "images"
    rewards: tuple[float, ...] = ()
    unseen: tuple[float, ...] = ()
    unseen_name: str = "gold"
    images_per_s: float = 0.0
    epoch_seconds: tuple[float, ...] = ()
    epoch_elapsed_s: float = 0.0
    dropped: int = 0
    alarms: tuple[str, ...] = ()

    @property
    def epoch_in_work(self) -> int:
        """Number, from 1, of the epoch in work, or of the last one where all are finished."""
        return min(self.epoch + 1, self.epochs)

    @property
    def seconds_left(self) -> float:
        """Expected seconds to the end, from the last epochs of this process; 0 before it has finished one."""
        if not self.epoch_seconds:
            return 0.0
        recent = self.epoch_seconds[-RECENT_EPOCHS:]
        expected = (self.epochs - self.epoch) * sum(recent) / len(recent)
        return max(0.0, expected - self.epoch_elapsed_s)


class Display(Protocol):
    """Shows the progress of a run. Called from one thread; close may be called more than once."""

    def start(self, total_epochs: int) -> None:
        """Begin to show a run of so many epochs."""
        ...

    def update(self, state: DisplayState) -> None:
        """Show this state; cheap, so it may be called for every group."""
        ...

    def note(self, text: str) -> None:
        """Leave a line that stays."""
        ...

    def close(self) -> None:
        """Stop showing, and give the terminal back as it was."""
        ...


def format_seconds(seconds: float) -> str:
    """`42 s`, `2:31`, `1:02:31`, `3 d 04:10`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_of_day = divmod(hours, 24)
    if days:
        return f"{days} d {hours_of_day:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_change(history: tuple[float, ...]) -> str:
    """The last value and, where there are more, its change since the first: `0.612 (+0.104)`."""
    if not history:
        return ""
    last = f"{history[-1]:.4g}"
    return f"{last} ({history[-1] - history[0]:+.3g})" if len(history) > 1 else last


def format_groups(count: int) -> str:
    """`1 group`, `2 groups`."""
    return f"{count} group" if count == 1 else f"{count} groups"
