"""Who worked when in one epoch: spans of every process, from what the services report. Pure.

Times are by the clock of the machine that worked, so machines should keep theirs together (NTP).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.stopwatch import Busy

if TYPE_CHECKING:
    # Torch, which takes seconds to import, is not needed to look at a timeline.
    from driver.observe.history import GroupHistory
    from learner.report import UpdateReport

ACTORS, REWARDS, LEARNER, DRIVER = "actors", "rewards", "learner", "driver"
ROLES = (ACTORS, REWARDS, LEARNER, DRIVER)
NO_GROUP = -1
TRAINING = "train"
"""The stream of noise that training draws from; evaluations have others."""


@dataclass(frozen=True)
class Span:
    """A piece of work. process: host:pid, or a reward's name. begin_s, end_s: seconds since 1970.

    A reward's span lasts from sending a group to its answer: it may wait there, and spans overlap.
    group: position of its prompt in the run's stream; NO_GROUP where it is about no one group.
    busy_s: seconds of work in it.
    """

    role: str
    process: str
    what: str
    begin_s: float
    end_s: float
    group: int
    busy_s: float


@dataclass(frozen=True)
class Timeline:
    """One epoch. epoch: its number, from 1."""

    epoch: int
    begin_s: float
    end_s: float
    spans: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.end_s - self.begin_s

    def of(self, role: str) -> list[Span]:
        """A role's spans, by when they began."""
        return sorted((span for span in self.spans if span.role == role), key=lambda span: span.begin_s)

    def processes(self, role: str) -> list[str]:
        """The role's processes that worked, by name."""
        return sorted({span.process for span in self.spans if span.role == role})


def _span(role: str, process: str, what: str, busy: Busy, group: int) -> Span:
    return Span(role, process, what, busy.began_at, busy.began_at + busy.seconds, group, busy.seconds)


def group_spans(histories: Sequence[GroupHistory]) -> Iterator[Span]:
    """What actors and rewards did for each group."""
    for history in histories:
        training = history.noise.stream == TRAINING
        group = history.noise.prompt_index if training else NO_GROUP
        what = "sample" if training else f"sample, {history.noise.stream}"
        yield _span(ACTORS, history.report.process, what, history.report.busy, group)
        for ask in history.asks:
            yield Span(REWARDS, ask.reward, "score", ask.sent_at, ask.answered_at, group, ask.busy_s)


def learned_groups(histories: Sequence[GroupHistory], epoch: int) -> list[int]:
    """The groups that the learner got in an epoch (its number from 1), in the order in which it got them."""
    return sorted(
        history.noise.prompt_index
        for history in histories
        if history.noise.stream == TRAINING and history.noise.epoch == epoch - 1 and history.scored
    )


def learner_spans(reports: Sequence[Sequence[UpdateReport]], groups: Sequence[int]) -> Iterator[Span]:
    """What each rank did in each update. groups: in the order in which they went round the ranks."""
    for update, ranks in enumerate(reports, start=1):
        for rank, report in enumerate(ranks):
            own = groups[rank :: len(ranks)] if update == 1 else ()
            *pieces, last = report.busy
            for number, piece in enumerate(pieces):
                group = own[number] if number < len(own) else NO_GROUP
                yield _span(LEARNER, report.process, "gradient", piece, group)
            yield _span(LEARNER, report.process, f"update {update}", last, NO_GROUP)
