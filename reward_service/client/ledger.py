"""Which groups wait, which are out for scoring, and how often each has failed. Pure: no clock, no Ray."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from common.errors import RewardError


@dataclass(frozen=True)
class PendingScore:
    """The receipt of a submitted group: its number in the order of submission, and its prompt."""

    number: int
    prompt: str


class Ledger:
    """Bounded queue with capped retries.

    window: groups out at once, at most. capacity: groups not yet answered, at most. retries: how often a
    failed group is sent again before it is dropped.

    A group that was lost without an answer (its scorer hung, or the replica died) is sent again with no other
    group out. So a group that hangs or kills its replica each time is dropped alone, and those that were lost
    with it are not.
    """

    def __init__(self, window: int, capacity: int, retries: int) -> None:
        self._window = window
        self._capacity = capacity
        self._retries = retries
        self._waiting: deque[PendingScore] = deque()
        self._suspects: deque[PendingScore] = deque()
        self._out: set[PendingScore] = set()
        self._alone = False
        self._failures: dict[PendingScore, int] = {}

    @property
    def outstanding(self) -> int:
        """Groups added and neither answered nor dropped."""
        return len(self._failures)

    @property
    def room(self) -> int:
        """Groups that can be added now."""
        return self._capacity - self.outstanding

    def add(self, group: PendingScore) -> None:
        """Put a group in the queue. Raises RewardError where `room` is 0."""
        if self.room < 1:
            raise RewardError(
                f"{self.outstanding} groups already wait for their score, as many as reward_service."
                f"queue_groups ({self._capacity}) allows; collect scores before submitting more."
            )
        self._failures[group] = 0
        self._waiting.append(group)

    def take(self) -> list[PendingScore]:
        """The groups to send now; they are out until answered or failed."""
        if self._suspects and not self._out:
            self._alone = True
            return self._send([self._suspects.popleft()])
        if self._suspects or self._alone:
            return []
        free = min(self._window - len(self._out), len(self._waiting))
        return self._send([self._waiting.popleft() for _ in range(free)])

    def answered(self, group: PendingScore) -> None:
        """A group that was out has its score."""
        self._back(group)
        del self._failures[group]

    def failed(self, group: PendingScore, lost: bool) -> bool:
        """A group that was out has no score. lost: there was no answer at all.

        Returns whether it will be sent again; otherwise it is dropped.
        """
        self._back(group)
        self._failures[group] += 1
        if self._failures[group] > self._retries:
            del self._failures[group]
            return False
        (self._suspects if lost else self._waiting).append(group)
        return True

    def refused(self, group: PendingScore) -> None:
        """Nobody took a group that was out: it is sent before all others, and this is not held against it."""
        alone = self._alone
        self._back(group)
        (self._suspects if alone else self._waiting).appendleft(group)

    def given_up(self, group: PendingScore) -> None:
        """A group that was out is dropped, whatever tries it has left."""
        self._back(group)
        del self._failures[group]

    def _send(self, groups: list[PendingScore]) -> list[PendingScore]:
        self._out.update(groups)
        return groups

    def _back(self, group: PendingScore) -> None:
        self._out.remove(group)
        self._alone = self._alone and bool(self._out)
