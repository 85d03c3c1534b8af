"""Which versions of a reward have scored, one after the other. Pure.

While a new version takes over, replicas of both may answer for a while. So a stamp never seen before counts
as a swap at once, but one seen before only when CONFIRMED groups in a row carry it: a rollback, and not the
last answers of the version that goes.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.trajectory import ScorerStamp

CONFIRMED = 4


@dataclass(frozen=True)
class Swap:
    """One reward's change of version. index: of the version, 1 = the run's first."""

    name: str
    index: int
    before: ScorerStamp
    after: ScorerStamp

    def __str__(self) -> str:
        return f"reward {self.name}: {_short(self.before)} is now {_short(self.after)}"


class VersionHistory:
    """The versions of one reward in the order in which groups were scored. earlier: those so far."""

    def __init__(self, *earlier: ScorerStamp) -> None:
        self._current = earlier[-1]
        self._known = set(earlier)
        self._index = len(earlier)
        self._in_a_row = 0
        self._last = self._current

    @property
    def current(self) -> ScorerStamp:
        """The version that scores now."""
        return self._current

    @property
    def index(self) -> int:
        """Number of the current version; grows by one at each swap."""
        return self._index

    def scored_by(self, stamp: ScorerStamp) -> tuple[Swap, ...]:
        """One more group was scored by this version. Returns the swap that this shows, or nothing."""
        self._in_a_row = self._in_a_row + 1 if stamp == self._last else 1
        self._last = stamp
        if stamp == self._current or (stamp in self._known and self._in_a_row < CONFIRMED):
            return ()
        self._index += 1
        swap = Swap(stamp.name, self._index, self._current, stamp)
        self._current = stamp
        self._known.add(stamp)
        return (swap,)


def _short(stamp: ScorerStamp) -> str:
    return f"version {stamp.version} ({stamp.digest[:12]})" if stamp.digest else f"version {stamp.version}"
