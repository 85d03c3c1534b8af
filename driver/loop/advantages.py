"""The objective's view of an epoch: its groups get their advantages on the way to the learner.

The driver computes them, because it alone sees all groups, in prompt order. What the objective remembers of
earlier epochs becomes the run's with the epoch's last update, and is kept in the checkpoint after it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from driver.loop.rollouts import Group
from learner.objectives import AnyObjective
from learner.objectives.history import RewardHistory


class Advantages:
    """Owned by the loop. finished: what is remembered after the last finished epoch."""

    def __init__(self, objective: AnyObjective) -> None:
        self._objective = objective
        self._next = self.finished = RewardHistory()

    @property
    def across_prompts(self) -> bool:
        """Whether rewards of different prompts are compared with each other."""
        return self._objective.needs.across_prompts

    def begin(self, history: Mapping[str, tuple[float, ...]]) -> None:
        """Stand where a checkpoint's history is; an empty one is that of a new run."""
        self._next = self.finished = RewardHistory(history)

    async def of(self, groups: AsyncIterator[Group]) -> AsyncIterator[Group]:
        """An epoch's groups in the same order, each as soon as its advantages can be known."""
        self._next = self.finished
        if self._objective.needs.whole_epoch:
            for group in self._with_advantages([group async for group in groups]):
                yield group
            return
        async for group in groups:
            for known in self._with_advantages([group]):
                yield known

    def finish_epoch(self) -> None:
        """The epoch is learned, so what it taught is remembered."""
        self.finished = self._next

    def _with_advantages(self, groups: list[Group]) -> list[Group]:
        scores = [(group.task.prompt, group.score.rewards) for group in groups]
        advantages, self._next = self._objective.advantages(scores, self._next)
        return [replace(group, advantages=found) for group, found in zip(groups, advantages, strict=True)]
