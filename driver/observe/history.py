"""Who sampled and scored each group, and when."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from actors.actor import SampleReport
from common.trajectory import NoiseKey, PromptTask
from reward_service.client.reward_client import Ask

KEPT_GROUPS = 20_000


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
