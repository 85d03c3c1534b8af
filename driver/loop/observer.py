"""Whom the loop tells what happens. Nobody who listens steers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from common.stopwatch import Busy
from common.trajectory import ScorerStamp
from driver.observe.display import Phase
from driver.observe.epoch_metrics import Reports, Rewards
from driver.observe.timeline_log import GroupHistory
from driver.report.evaluation import Evaluation


class Observer(Protocol):
    """As much of driver.observe.observer as the loop knows."""

    def has_evaluated(self, epoch: int) -> bool:
        """Whether the weights after so many epochs have been evaluated."""
        ...

    def note(self, text: str) -> None:
        """Something a person should read."""
        ...

    def phase(self, phase: Phase, total: int, unit: str = "images") -> None:
        """Something new is being done, `total` units of it; 0 = not counted."""
        ...

    def progress(self, done: int) -> None:
        """So much of the phase is done."""
        ...

    def group_scored(self, epoch: int, group: int, scorers: Sequence[ScorerStamp]) -> None:
        """A group was scored, of the epoch that makes `epoch` finished ones or of the evaluation after it."""
        ...

    def epoch_worked(
        self, epoch: int, work: Busy, histories: Sequence[GroupHistory], reports: Reports
    ) -> None:
        """Who worked when in an epoch; work: the driver's own time. histories: of groups since the last."""
        ...

    def epoch_done(self, epoch: int, epoch_metrics: Mapping[str, float]) -> None:
        """An epoch is finished and its weights are published."""
        ...

    def evaluated(self, evaluation: Evaluation, rewards: Rewards, seconds: float) -> None:
        """A policy version has been evaluated. rewards: what each did meanwhile, by name."""
        ...

    def rewound(self, epoch: int, why: str) -> None:
        """Epochs after `epoch` come again."""
        ...
