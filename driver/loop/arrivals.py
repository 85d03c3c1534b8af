"""Which references have become ready, at a cost that does not grow with how many are waited for.

ray.wait looks at every reference each time it is called; here Ray calls back once for each.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import ray


class Reference(Hashable, Protocol):
    """Something that becomes ready once: a ray.ObjectRef."""

    def future(self) -> Future[Any]:
        """Done when the value or the error is there. A large value is fetched to this node first."""
        ...


R = TypeVar("R", bound=Reference)


class Arrivals(Generic[R]):
    """References that are waited for. Owned by one thread, but for what Ray calls back.

    Watch small answers, not the large objects that they speak of: those would be fetched.
    look: which of these are ready; asked where none has become so for a while, because Ray does not call back
    for an object that was lost with its node before it was fetched.
    """

    def __init__(self, look: Callable[[list[R]], list[R]]) -> None:
        self._look = look
        self._ready: SimpleQueue[R] = SimpleQueue()
        self._watched: set[R] = set()

    def watch(self, reference: R) -> None:
        """Wait for it from here on; once, however often it is given before it is taken."""
        if reference in self._watched:
            return
        self._watched.add(reference)
        reference.future().add_done_callback(partial(self._arrived, reference))

    def take(self, timeout_s: float) -> list[R]:
        """Those that are ready, in the order in which they became so; waits up to timeout_s for the first."""
        found = self._told(timeout_s) or self._look(list(self._watched))
        # What was found by looking may be told later, too.
        news = [reference for reference in dict.fromkeys(found) if reference in self._watched]
        self._watched.difference_update(news)
        return news

    def _told(self, timeout_s: float) -> list[R]:
        told: list[R] = []
        try:
            told.append(self._ready.get(timeout=max(0.0, timeout_s)))
            while True:
                told.append(self._ready.get_nowait())
        except Empty:
            return told

    def _arrived(self, reference: R, _done: Future[Any]) -> None:
        """Called in a thread of Ray's, or at once where it was ready before."""
        self._ready.put(reference)


def ready_of(references: list[ray.ObjectRef]) -> list[ray.ObjectRef]:
    """Those that need not be waited for: done, failed or lost."""
    if not references:
        return []
    ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
    return list(ready)


def only_told(_: list[R]) -> list[R]:
    """Looks at nothing: for a waiter whom a lost answer reaches in another way."""
    return []
