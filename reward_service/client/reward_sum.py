"""The rewards of a run as its driver sees them: groups in, weighted scores out, one channel a reward."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Protocol

import ray

from common.config.services import RewardServiceSection
from common.errors import RewardError
from common.trajectory import GroupScore, ScorerStamp
from reward_service.client.asks import Ask
from reward_service.client.channel import IDLE_POLL_S
from reward_service.client.combine import join_parts
from reward_service.client.ledger import PendingScore
from reward_service.client.report import RewardReport
from reward_service.client.transport import Request
from reward_service.client.versions import VersionHistory
from reward_service.contract.results import Outcome, RewardFailure, RewardScores

SHOWN_GROUPS = 3

Answer = tuple[PendingScore, GroupScore | RewardFailure]
"""A group's receipt with its score, or with the reason why it was dropped."""


@dataclass(frozen=True)
class RewardCounters:
    """What has happened since the start.

    scored, dropped: groups. retries: parts asked again after a failure. busy_s: seconds that scorers worked.
    swaps: changes of a reward's version.
    """

    scored: int = 0
    dropped: int = 0
    retries: int = 0
    busy_s: float = 0.0
    swaps: int = 0


class RewardChannel(Protocol):
    """One reward as the mix asks it: channel.Channel, over whatever line."""

    @property
    def stamp(self) -> ScorerStamp:
        """The version at the start, under the configuration's name."""
        ...

    @property
    def retries(self) -> int:
        """Groups sent again after a failure, since the start."""
        ...

    @property
    def busy_s(self) -> float:
        """Seconds that the scorer worked for us, since the start."""
        ...

    @property
    def outstanding(self) -> int:
        """Groups that were asked about and have no part yet."""
        ...

    def submit(self, pending: PendingScore, request: Request) -> None:
        """Ask for one group."""
        ...

    def refs(self) -> list[ray.ObjectRef]:
        """References of the replies that are being worked on."""
        ...

    def in_work(self) -> list[str]:
        """Prompts of the groups that wait for it."""
        ...

    def poll_s(self) -> float:
        """Seconds after which `collect` should be called anyway."""
        ...

    def collect(self) -> list[tuple[PendingScore, Outcome]]:
        """Parts and failures that are there now; each submitted group comes exactly once."""
        ...

    def take_report(self) -> RewardReport:
        """What happened since the last call."""
        ...

    def take_asks(self) -> list[Ask]:
        """When groups were asked about and answered since the last call."""
        ...


@dataclass
class _Group:
    """A group in the making. asked: names of its rewards, in order; outcomes: those that have answered."""

    asked: tuple[str, ...]
    outcomes: dict[str, Outcome] = field(default_factory=dict)


class RewardSum:
    """Asks every reward about each group and adds up what they say. Owned by one thread, without asyncio.

    channels: by name, trained ones first, then those that only evaluate. weights: of the trained ones.
    at_end: frees what was started for them.

    A driver that also waits for other work puts `refs()` into its own ray.wait, for at most `poll_s()`
    seconds, and calls `collect()` after it.
    """

    def __init__(
        self,
        channels: Mapping[str, RewardChannel],
        weights: Mapping[str, float],
        section: RewardServiceSection,
        at_end: ExitStack,
    ) -> None:
        self._channels = dict(channels)
        self._weights = dict(weights)
        self._section = section
        self._at_end = at_end
        self._numbers = itertools.count()
        self._groups: dict[PendingScore, _Group] = {}
        self._versions = {name: VersionHistory(channel.stamp) for name, channel in channels.items()}
        self._counters = RewardCounters()

    @property
    def room(self) -> int:
        """Groups that can be submitted before scores are collected."""
        return self._section.queue_groups - self.outstanding

    @property
    def outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        return len(self._groups)

    def stamps(self, with_gold: bool = False) -> tuple[ScorerStamp, ...]:
        """Which versions answer now, trained rewards first."""
        return tuple(self._versions[name].current for name in self._asked(with_gold))

    def counters(self) -> RewardCounters:
        """What has happened since the start."""
        channels = self._channels.values()
        return replace(
            self._counters,
            retries=sum(channel.retries for channel in channels),
            busy_s=sum(channel.busy_s for channel in channels),
        )

    def asked(self) -> dict[str, int]:
        """Groups that each reward was asked about and has not answered."""
        return {name: channel.outstanding for name, channel in self._channels.items()}

    def take_asks(self) -> list[Ask]:
        """When rewards were asked and answered since the last call."""
        return [ask for channel in self._channels.values() for ask in channel.take_asks()]

    def take_reports(self) -> dict[str, RewardReport]:
        """What each reward did since the last call."""
        return {name: channel.take_report() for name, channel in self._channels.items()}

    def submit(self, prompt: str, images: ray.ObjectRef, count: int, with_gold: bool = False) -> PendingScore:
        """Ask for the score of one group. images: reference of uint8 (count, height, width, 3).

        Waits at most some milliseconds a reward. Raises RewardError where `room` is 0.
        """
        if self.room < 1:
            raise RewardError(
                f"{self.outstanding} groups already wait for their score, as many as reward_service."
                f"queue_groups ({self._section.queue_groups}) allows; collect scores before submitting more."
            )
        pending = PendingScore(next(self._numbers), prompt)
        asked = self._asked(with_gold)
        self._groups[pending] = _Group(asked)
        for name in asked:
            self._channels[name].submit(pending, Request(prompt, images, count))
        return pending

    def refs(self) -> list[ray.ObjectRef]:
        """References of the answers that are being worked on, for ray.wait."""
        return [reference for channel in self._channels.values() for reference in channel.refs()]

    def in_work(self) -> list[str]:
        """Which reward has which groups, in words."""
        waiting = {name: channel.in_work() for name, channel in self._channels.items()}
        return [
            f"reward {name} has {', '.join(map(repr, prompts[:SHOWN_GROUPS]))}"
            + (f" and {len(prompts) - SHOWN_GROUPS} more" if len(prompts) > SHOWN_GROUPS else "")
            for name, prompts in waiting.items()
            if prompts
        ]

    def poll_s(self) -> float:
        """Seconds after which `collect` should be called even if none of `refs` is ready."""
        return min((channel.poll_s() for channel in self._channels.values()), default=IDLE_POLL_S)

    def collect(self) -> list[Answer]:
        """Scores, and RewardFailures of dropped groups, that are there now. Sends groups that wait here."""
        for name, channel in self._channels.items():
            for pending, outcome in channel.collect():
                self._groups[pending].outcomes[name] = outcome
                if isinstance(outcome, RewardScores):
                    swaps = len(self._versions[name].scored_by(outcome.stamp))
                    self._counters = replace(self._counters, swaps=self._counters.swaps + swaps)
        whole = [
            pending for pending, group in self._groups.items() if len(group.outcomes) == len(group.asked)
        ]
        return [(pending, self._joined(self._groups.pop(pending))) for pending in whole]

    def wait(self, timeout_s: float) -> list[Answer]:
        """Answers, as soon as there is one; empty after timeout_s or where nothing is outstanding."""
        end_at = time.monotonic() + timeout_s
        while True:
            answers = self.collect()
            left = end_at - time.monotonic()
            if answers or not self.outstanding or left <= 0:
                return answers
            refs = self.refs()
            if refs:
                ray.wait(refs, timeout=min(left, self.poll_s()), fetch_local=False)
            else:
                time.sleep(min(left, self.poll_s()))

    def shutdown(self) -> None:
        """End what was started for the run; applications that were there before are left alone."""
        self._at_end.close()

    def _asked(self, with_gold: bool) -> tuple[str, ...]:
        return tuple(self._channels) if with_gold else tuple(self._weights)

    def _joined(self, group: _Group) -> GroupScore | RewardFailure:
        score = join_parts(self._weights, {name: group.outcomes[name] for name in group.asked})
        if isinstance(score, RewardFailure):
            self._counters = replace(self._counters, dropped=self._counters.dropped + 1)
        else:
            self._counters = replace(self._counters, scored=self._counters.scored + 1)
        return score
