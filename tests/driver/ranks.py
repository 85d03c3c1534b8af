"""Learner ranks without Ray, as LearnerRanks has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from ray.exceptions import RayError

from common.trajectory import PolicyStamp
from learner.ranks import PublishedReferences
from learner.report import LearnerFacts


class Reference:
    """A value that is there, or an error; for one that comes later, use `answer`."""

    def __init__(self, value: Any = None) -> None:
        self._done: Future[Any] = Future()
        if value is not None:
            self.answer(value)

    def future(self) -> Future[Any]:
        """See ray.ObjectRef."""
        return self._done

    @property
    def value(self) -> Any:
        """What is there."""
        return self._done.result(timeout=0)

    def answer(self, value: Any) -> None:
        """It is there."""
        if isinstance(value, BaseException):
            self._done.set_exception(value)
        else:
            self._done.set_result(value)


class Ranks:
    """Two ranks, as LearnerRanks. Weights are a number, which updates make of it and of the groups' values.

    exact: whether the same groups give the same weights; what ranks say of it is `says_exact`. dies: errors
    by the name of the call at which they come, each once. apart: how far the second rank's weights are off.
    late: names of calls that are not answered.
    """

    def __init__(self, exact: bool = True) -> None:
        self.says_exact = exact
        self.exact = exact
        self.dies: dict[str, list[BaseException]] = {}
        self.late: set[str] = set()
        self.wave_size = 1
        self.waves: list[int] = []
        self.apart = 0
        self.bases = ["base", "base"]
        self.started = 0
        self.weights = 0
        self._updates = 0
        self._gone: BaseException | None = None
        self._groups: list[int] = []
        self._is_late = False

    def restart(self) -> None:
        """New ranks with the pretrained weights."""
        self.started += 1
        self._gone, self.weights, self._groups, self._is_late = None, 0, [], False

    def nodes(self) -> frozenset[str]:
        """Where they run."""
        return frozenset({"node"})

    def describe(self, rank: int) -> str:
        """See LearnerRanks."""
        return f"learner rank {rank} (pid {rank}, node host)"

    def ready(self) -> list[Reference]:
        """See LearnerRanks, as for the others."""
        if self._is_late:
            return [Reference(), Reference()]
        return [self._call("ready", partial(self._facts, rank)) for rank in range(2)]

    def _facts(self, rank: int) -> LearnerFacts:
        return LearnerFacts("s", (4, 8, 8), self.says_exact, self.bases[rank], f"host-{rank}:1", nbytes=8)

    def accumulate(self, wave: Sequence[tuple[Reference, Any]]) -> list[Reference]:
        """Take the trajectories' values."""

        def take() -> str:
            self._groups.extend(trajectory.value for trajectory, _ in wave)
            return "taken"

        self.waves.append(len(wave))
        return [self._call("accumulate", take)]

    def finish_update(self) -> list[Reference]:
        """New weights."""

        def update() -> str:
            self._updates += 1
            self.weights = hash((self.weights, *self._groups, 0 if self.exact else self._updates))
            self._groups = []
            return "report"

        return [self._call("finish_update", update)]

    def repeat_update(self) -> list[Reference]:
        """New weights."""
        return self.finish_update()

    def reset_epoch(self) -> list[Reference]:
        """Forget the groups."""
        self._groups = []
        return [Reference("forgotten")]

    def end_epoch(self) -> list[Reference]:
        """Nothing to forget."""
        return [self._call("end_epoch", lambda: "ended")]

    def publish(self) -> PublishedReferences:
        """The stamps of both ranks."""
        both = (self.weights, self.weights + self.apart)
        stamps = [PolicyStamp(0, str(weights), "run") for weights in both]
        references: list[Any] = [self._call("publish", partial(_same, stamp)) for stamp in stamps]
        weights: Any = Reference(self.weights)
        return PublishedReferences(references, weights)

    def export_snapshot(self) -> Reference:
        """What goes with these weights only."""
        self._is_late = "export_snapshot" in self.late
        return self._call("export_snapshot", partial(_same, f"beside {self.weights}"))

    def export_state(self) -> Reference:
        """The weights, as a checkpoint."""
        return self._call("export_state", partial(_same, {"weights": self.weights}))

    def restore_snapshot(self, snapshot: Reference, weights: Reference) -> list[Reference]:
        """Take over weights."""

        def restore() -> str:
            assert snapshot.value == f"beside {weights.value}"
            self.weights = weights.value
            return "restored"

        return [self._call("restore_state", restore)]

    def restore_state(self, files: Reference) -> list[Reference]:
        """Take over weights."""

        def restore() -> str:
            self.weights = files.value["weights"]
            return "restored"

        return [self._call("restore_state", restore)]

    def _call(self, name: str, work: Callable[[], Any]) -> Reference:
        if not self._gone and self.dies.get(name):
            self._gone = self.dies[name].pop(0)
        if self._gone:
            return Reference(self._gone)
        try:
            found = work()
        except RayError as error:
            return Reference(error)
        return Reference() if name in self.late else Reference(found)


def _same(value: Any) -> Any:
    return value
