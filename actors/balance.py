"""Who gets the next task: of those that are there, the one that holds the fewest. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Balance(Generic[T]):
    """Counts the tasks that each member holds. The cost of a call does not grow with their number.

    limit: tasks that a member holds at most, at least 1. members: those that are there, and hold nothing.
    """

    def __init__(self, limit: int, members: Iterable[T] = ()) -> None:
        self._held: dict[T, int] = dict.fromkeys(members, 0)
        # Members by the number of tasks that they hold, those that waited longest first; without full ones.
        self._levels: tuple[OrderedDict[T, None], ...] = (
            OrderedDict.fromkeys(self._held),
            *(OrderedDict() for _ in range(limit - 1)),
        )

    def join(self, member: T) -> None:
        """It is there from here on, and holds nothing."""
        self._put(member, 0)

    def leave(self, member: T) -> None:
        """It is gone, with what it held. Nothing happens where it was gone before."""
        if member in self._held:
            self._take_out(member)
            del self._held[member]

    def give(self) -> list[T]:
        """The member that gets a task, which it holds from here on; nobody where all are full or gone."""
        for level in self._levels:
            if level:
                member = next(iter(level))
                self._take_out(member)
                self._put(member, self._held[member] + 1)
                return [member]
        return []

    def done(self, member: T) -> None:
        """It holds one task less. Nothing happens where it is gone."""
        if member in self._held:
            self._take_out(member)
            self._put(member, self._held[member] - 1)

    def _put(self, member: T, held: int) -> None:
        self._held[member] = held
        if held < len(self._levels):
            self._levels[held][member] = None

    def _take_out(self, member: T) -> None:
        held = self._held[member]
        if held < len(self._levels):
            del self._levels[held][member]
