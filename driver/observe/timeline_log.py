"""Keeps the timelines of a run's last epochs in its folder, while it runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.stopwatch import Busy
from driver.report.timeline_spans import (
    DRIVER,
    NO_GROUP,
    Span,
    Timeline,
    group_spans,
    learned_groups,
    learner_spans,
)
from driver.report.timeline_trace import write_trace

if TYPE_CHECKING:
    from driver.observe.history import GroupHistory
    from learner.report import UpdateReport

FOLDER = "timeline"
LOGGER = logging.getLogger(__name__)


def timeline_file(run_folder: Path, epoch: int) -> Path:
    """Where the timeline of an epoch (its number from 1) is."""
    return run_folder / FOLDER / f"epoch_{epoch:06d}.json"


def timeline_files(run_folder: Path) -> list[Path]:
    """All that are kept, oldest epoch first."""
    return sorted((run_folder / FOLDER).glob("epoch_*.json"))


class TimelineLog:
    """Owned by one thread. keep: so many last epochs; 0 = none at all. clock: seconds since 1970."""

    def __init__(self, run_folder: Path, keep: int, clock: Callable[[], float] = time.time) -> None:
        self._run_folder = run_folder
        self._keep = keep
        self._clock = clock
        self._phase = ("starting", clock())
        self._spans: tuple[Span, ...] = ()
        self._histories: tuple[GroupHistory, ...] = ()
        self._last: tuple[Timeline, ...] = ()

    @property
    def last(self) -> tuple[Timeline, ...]:
        """Of the last epoch; none before the first has ended, or where none is kept."""
        return self._last

    def phase(self, name: str) -> None:
        """The driver does something else from now on."""
        earlier, began_s = self._phase
        now = self._clock()
        if self._keep:
            self._spans = (
                *self._spans,
                Span(DRIVER, "driver", earlier, began_s, now, NO_GROUP, now - began_s),
            )
        self._phase = name, now

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
        self.phase(self._phase[0])
        if not self._keep:
            return
        known = (*self._histories, *histories)
        groups = learned_groups(known, epoch)
        added = (*group_spans(histories), *learner_spans(reports, groups))
        timeline = Timeline(epoch, work.began_at, work.began_at + work.seconds, (*self._spans, *added))
        for earlier in self._last:
            late = [span for span in added if span.begin_s < earlier.end_s]
            if late:
                self._write(Timeline(earlier.epoch, earlier.begin_s, earlier.end_s, (*earlier.spans, *late)))
        self._write(timeline)
        self._last = (timeline,)
        self._spans = tuple(span for span in timeline.spans if span.end_s > timeline.end_s)
        self._histories = tuple(history for history in known if history.noise.epoch >= epoch)
        for old in timeline_files(self._run_folder)[: -self._keep]:
            old.unlink(missing_ok=True)

    def _write(self, timeline: Timeline) -> None:
        inside = [
            span
            for span in timeline.spans
            if span.end_s > timeline.begin_s and span.begin_s < timeline.end_s and span.end_s > span.begin_s
        ]
        file = timeline_file(self._run_folder, timeline.epoch)
        try:
            write_trace(file, Timeline(timeline.epoch, timeline.begin_s, timeline.end_s, tuple(inside)))
        except OSError as error:
            # A run does not end because something that only looks at it cannot write.
            LOGGER.warning("%s could not be written: %s", file, error)
