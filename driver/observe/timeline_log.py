"""Who sampled, scored and learned each group when: timelines of a run's last epochs in its folder."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.actor import SampleReport
from common.stopwatch import Busy
from common.trajectory import NoiseKey, PromptTask
from driver.report.timeline import (
    ACTORS,
    DRIVER,
    LEARNER,
    REWARDS,
    Span,
    Timeline,
    timeline_file,
    timeline_files,
    write_timeline,
)
from driver.run.prompts import TRAINING_STREAM
from learner.report import UpdateReport
from reward_service.client.reward_client import Ask

KEPT_GROUPS = 20_000
LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupHistory:
    """A group's way from its actor to its score. asks: one for each reward that answered. scored: by all."""

    noise: NoiseKey
    report: SampleReport
    asks: tuple[Ask, ...]
    scored: bool


@dataclass(frozen=True)
class _Scored:
    """images: names the reference of the group's images, as in Ask."""

    images: str
    task: PromptTask
    report: SampleReport
    scored: bool


class HistoryLog:
    """The groups that rewards have answered or given up since the last `take`; of very many, the last."""

    def __init__(self) -> None:
        self._scored: deque[_Scored] = deque(maxlen=KEPT_GROUPS)
        self._asks: deque[Ask] = deque(maxlen=KEPT_GROUPS)

    def add(self, images: str, task: PromptTask, report: SampleReport, scored: bool) -> None:
        """One more group. images: as in Ask. scored: False = given up."""
        self._scored.append(_Scored(images, task, report, scored))

    def take(self, asks: Sequence[Ask]) -> list[GroupHistory]:
        """The groups, each with its asks. asks: those since the last call; of open groups they are kept."""
        self._asks.extend(asks)
        of_images: dict[str, list[Ask]] = {group.images: [] for group in self._scored}
        still_open: list[Ask] = []
        for ask in self._asks:
            of_images.get(ask.images, still_open).append(ask)
        found = [
            GroupHistory(group.task.noise, group.report, tuple(of_images[group.images]), group.scored)
            for group in self._scored
        ]
        self._scored.clear()
        self._asks = deque(still_open, maxlen=KEPT_GROUPS)
        return found


class TimelineLog:
    """Owned by one thread. keep: so many last epochs; 0 = none at all. clock: seconds since 1970."""

    def __init__(self, run_folder: Path, keep: int, clock: Callable[[], float] = time.time) -> None:
        self._run_folder = run_folder
        self._keep = keep
        self._clock = clock
        self._phase, self._phase_began_s = "starting", clock()
        self._spans: tuple[Span, ...] = ()
        self._histories: tuple[GroupHistory, ...] = ()
        self.last: Timeline | None = None
        """Of the last epoch; None before the first has ended, or where none is kept."""

    def phase(self, name: str) -> None:
        """The driver does something else from now on."""
        now = self._clock()
        if self._keep:
            busy = Busy(self._phase_began_s, now - self._phase_began_s)
            self._spans = (*self._spans, _span(DRIVER, "driver", self._phase, busy, None))
        self._phase, self._phase_began_s = name, now

    def epoch_done(
        self,
        epoch: int,
        work: Busy,
        histories: Sequence[GroupHistory],
        reports: Sequence[Sequence[UpdateReport]],
    ) -> None:
        """Write the timeline of an epoch (its number from 1), which the driver worked on in `work`.

        histories: of all groups since the last call. What actors that run ahead did for later epochs is known
        only when those are scored, so the epoch before is written again with that.
        """
        self.phase(self._phase)
        if not self._keep:
            return
        known = (*self._histories, *histories)
        added = (*group_spans(histories), *learner_spans(reports, learned_groups(known, epoch)))
        timeline = Timeline(epoch, work.began_at, work.began_at + work.seconds, (*self._spans, *added))
        if self.last and any(span.begin_s < self.last.end_s for span in added):
            self._write(replace(self.last, spans=(*self.last.spans, *added)))
        self._write(timeline)
        self.last = timeline
        self._spans = tuple(span for span in timeline.spans if span.end_s > timeline.end_s)
        self._histories = tuple(history for history in known if history.noise.epoch >= epoch)
        for old in timeline_files(self._run_folder)[: -self._keep]:
            old.unlink(missing_ok=True)

    def _write(self, timeline: Timeline) -> None:
        """What of it lies in the epoch."""
        begin_s, end_s = timeline.begin_s, timeline.end_s
        lasting = (span for span in timeline.spans if span.begin_s < span.end_s)
        inside = (span for span in lasting if begin_s < span.end_s and span.begin_s < end_s)
        file = timeline_file(self._run_folder, timeline.epoch)
        try:
            write_timeline(file, replace(timeline, spans=tuple(inside)))
        except OSError as error:
            # A run does not end because something that only looks at it cannot write.
            LOGGER.warning("%s could not be written: %s", file, error)


def _span(role: str, process: str, what: str, busy: Busy, group: int | None) -> Span:
    return Span(role, process, what, busy.began_at, busy.began_at + busy.seconds, group, busy.seconds)


def group_spans(histories: Sequence[GroupHistory]) -> Iterator[Span]:
    """What actors and rewards did for each group."""
    for history in histories:
        training = history.noise.stream == TRAINING_STREAM
        group = history.noise.prompt_index if training else None
        what = "sample" if training else f"sample, {history.noise.stream}"
        yield _span(ACTORS, history.report.process, what, history.report.busy, group)
        for ask in history.asks:
            yield Span(REWARDS, ask.reward, "score", ask.sent_at, ask.answered_at, group, ask.busy_s)


def learned_groups(histories: Sequence[GroupHistory], epoch: int) -> list[int]:
    """The groups that the learner got in an epoch (its number from 1), in the order in which it got them."""
    return sorted(
        history.noise.prompt_index
        for history in histories
        if history.noise.stream == TRAINING_STREAM and history.noise.epoch == epoch - 1 and history.scored
    )


def learner_spans(reports: Sequence[Sequence[UpdateReport]], groups: Sequence[int]) -> Iterator[Span]:
    """What each rank did in each update. groups: in the order in which they went round the ranks."""
    for update, ranks in enumerate(reports, start=1):
        for rank, report in enumerate(ranks):
            mine = groups[rank :: len(ranks)] if update == 1 else ()
            *pieces, last = report.busy
            # A piece is a wave, which may be of several groups.
            named = mine if len(mine) == len(pieces) else [None] * len(pieces)
            for piece, group in zip(pieces, named, strict=True):
                yield _span(LEARNER, report.process, "gradient", piece, group)
            yield _span(LEARNER, report.process, f"update {update}", last, None)
