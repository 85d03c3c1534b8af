"""Which versions of a reward have scored, one after the other. Pure.

While a new version takes over, replicas of both answer, and their answers come in any order. So a stamp
never seen before counts as a swap at once, but one seen before only where it can be told from such a mixture:
where either it had not scored, or the current version has not scored, for GONE groups in a row. So a rollback
counts at its first group, unless it follows the swap before it by fewer groups.
"""

from __future__ import annotations

from dataclasses import dataclass

from common.trajectory import ScorerStamp

GONE = 128
"""Groups without a version that show that none of its replicas is left. Many more than a client has out; and
the last of eight replicas scores none of so many groups once in 26 million times."""


@dataclass(frozen=True)
class Swap:
    """One reward's change of version. index: of the version, 1 = the run's first."""

    name: str
    index: int
    before: ScorerStamp
    after: ScorerStamp

    def __str__(self) -> str:
        told = f"reward {self.name}: {self.before} is now {self.after}"
        same_label = self.before.version == self.after.version
        return f"{told}: its scorer's path, options, pairs or weights changed" if same_label else told


class VersionHistory:
    """The versions of one reward in the order in which groups were scored. earlier: those so far, of which
    the last one alone is taken to have replicas still."""

    def __init__(self, *earlier: ScorerStamp) -> None:
        self._current = earlier[-1]
        self._index = len(earlier)
        self._groups = 0
        self._seen_at = dict.fromkeys(earlier, -GONE) | {self._current: 0}

    @property
    def current(self) -> ScorerStamp:
        """The version that scores now."""
        return self._current

    @property
    def index(self) -> int:
        """Number of the current version; grows by one at each swap."""
        return self._index

    def scored_by(self, stamp: ScorerStamp) -> Swap | None:
        """One more group was scored by this version. Returns the swap that this shows, if it shows one."""
        self._groups += 1
        is_back = stamp not in self._seen_at or self._is_gone(stamp)
        self._seen_at[stamp] = self._groups
        if stamp == self._current or not (is_back or self._is_gone(self._current)):
            return None
        self._index += 1
        swap = Swap(stamp.name, self._index, self._current, stamp)
        self._current = stamp
        return swap

    def _is_gone(self, stamp: ScorerStamp) -> bool:
        """Whether none of the last GONE groups was scored by a version that had scored before."""
        return self._groups - self._seen_at[stamp] >= GONE
