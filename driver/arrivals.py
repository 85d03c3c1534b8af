"""Which references have become ready, at a cost that does not grow with how many are waited for.

ray.wait looks at every reference each time it is called; here Ray calls back once for each.
"""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar


class Reference(Hashable, Protocol):
    """Something that becomes ready once: a ray.ObjectRef."""

    def future(self) -> Future[Any]:
        """Done when the value or the error is there. A large value is fetched to this node first."""
        ...


R = TypeVar("R", bound=Reference)


class Arrivals(Generic[R]):
    """References that are waited for. Owned by one thread, but for what Ray calls back.

    Watch small answers, not the large objects that they speak of: those would be fetched.
    """

    def __init__(self) -> None:
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
        found: list[R] = []
        try:
            found.append(self._ready.get(timeout=max(0.0, timeout_s)))
            while True:
                found.append(self._ready.get_nowait())
        except Empty:
            self._watched.difference_update(found)
            return found

    def _arrived(self, reference: R, _done: Future[Any]) -> None:
        """Called in a thread of Ray's, or at once where it was ready before."""
        self._ready.put(reference)
