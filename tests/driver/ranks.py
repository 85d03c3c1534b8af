"""Learner ranks without Ray, as a LearnerGroup has them, and a wait that never waits."""

from __future__ import annotations

import weakref
from concurrent.futures import Future
from functools import partial
from typing import Any

from common.trajectory import GroupScore, PolicyStamp
from driver.observe.display import Phase
from learner.group import PublishedReferences
from learner.report import LearnerFacts


class Reference:
    """A value that is there, or an error."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def future(self) -> Future[Any]:
        """See ray.ObjectRef."""
        done: Future[Any] = Future()
        done.set_result(self.value)
        return done


class Fetched(dict[str, Any]):
    """A value as ray.get gives it: one more object each time."""


class Ranks:
    """Two ranks as a LearnerGroup. Weights are a number, which updates make of it and of the groups' values.

    exact: whether the same groups give the same weights; what ranks say of it is `says_exact`. dies: errors
    by the name of the call at which they come, each once. apart: how far the second rank's weights are off.
    """

    def __init__(self, exact: bool = True) -> None:
        self.says_exact = exact
        self.exact = exact
        self.dies: dict[str, list[BaseException]] = {}
        self.apart = 0
        self.bases = ["base", "base"]
        self.started = 0
        self._updates = 0
        self._gone: list[BaseException] = []
        self._weights = 0
        self._groups: list[int] = []

    def restart(self) -> None:
        """New ranks with the pretrained weights."""
        self.started += 1
        self._gone, self._weights, self._groups = [], 0, []

    def nodes(self) -> frozenset[str]:
        """Where they run."""
        return frozenset({"node"})

    def lost_a_rank(self) -> bool:
        """Whether one has died."""
        return bool(self._gone)

    def ready(self) -> list[Reference]:
        """See LearnerGroup, as for the others."""
        return [self._call("ready", partial(self._facts, rank)) for rank in range(2)]

    def _facts(self, rank: int) -> LearnerFacts:
        return LearnerFacts("s", (4, 8, 8), self.says_exact, self.bases[rank], f"host-{rank}:1", 1)

    def accumulate(self, position: int, trajectory: Reference, score: GroupScore) -> Reference:
        """Take the trajectory's value."""
        return self._call("accumulate", lambda: self._groups.append(trajectory.value))

    def finish_update(self) -> list[Reference]:
        """New weights."""

        def update() -> str:
            self._updates += 1
            self._weights = hash((self._weights, *self._groups, 0 if self.exact else self._updates))
            self._groups = []
            return "report"

        return [self._call("finish_update", update)]

    def end_epoch(self) -> list[Reference]:
        """Nothing to forget."""
        return [self._call("end_epoch", lambda: None)]

    def publish(self) -> PublishedReferences:
        """The stamps of both ranks."""
        stamps = [PolicyStamp(0, str(own), "run") for own in (self._weights, self._weights + self.apart)]
        references: list[Any] = [self._call("publish", lambda own=own: own) for own in stamps]
        weights: Any = self._call("publish", lambda: None)
        return PublishedReferences(references, weights)

    def export_snapshot(self) -> Reference:
        """The weights."""
        return self._call("export_snapshot", lambda: Fetched(weights=self._weights))

    def restore_state(self, files: Reference) -> list[Reference]:
        """Take over weights."""

        def restore() -> None:
            self._weights = files.value["weights"]

        return [self._call("restore_state", restore)]

    def _call(self, name: str, work: Any) -> Reference:
        if not self._gone and self.dies.get(name):
            self._gone = [self.dies[name].pop(0)]
        return Reference(self._gone[0] if self._gone else work())


class Told:
    """An observer, as far as a learner tells it."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """A line."""
        self.notes.append(text)

    def phase(self, phase: Phase, total: int) -> None:
        """Not looked at."""

    def progress(self, done: int) -> None:
        """Not looked at."""


class Waiting:
    """Rollouts that only wait. fetched: what snapshots became here."""

    def __init__(self) -> None:
        self.fetched: list[weakref.ref[Fetched]] = []

    def wait(self, references: list[Reference], what: str, limit_s: float) -> list[Any]:
        """See Rollouts."""
        found = []
        for reference in references:
            value = reference.value
            if isinstance(value, BaseException):
                raise value
            if isinstance(value, Fetched):
                value = Fetched(value)
                self.fetched.append(weakref.ref(value))
            found.append(value)
        return found
