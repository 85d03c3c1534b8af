"""Actor processes without Ray: a test says what each of their answers is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from actors.pool import ActorPool
from actors.slots import Arrival, Place
from common.config.schema import Config
from common.trajectory import PromptTask
from tests.tiny_config import make_config

HERE = "node-a"


class Reference:
    """As much of a ray.ObjectRef as is waited for."""

    def __init__(self) -> None:
        self._done: Future[Any] = Future()

    def future(self) -> Future[Any]:
        """See ray.ObjectRef."""
        return self._done

    def hex(self) -> str:
        """Names it."""
        return hex(id(self))

    def answer(self, value: Any) -> None:
        """Ray has the value, or the error."""
        if isinstance(value, BaseException):
            self._done.set_exception(value)
        else:
            self._done.set_result(value)


class Method:
    """A method of an actor's handle."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.remote = call

    def options(self, num_returns: int) -> Method:
        """Ray's options of the call."""
        assert num_returns == 3
        return self


class Process:
    """One process. asked: tasks, each with the reference of its report, the oldest first."""

    def __init__(self) -> None:
        self.arrival = Reference()
        self.asked: list[tuple[PromptTask, Reference]] = []
        self.ready = Method(lambda: self.arrival)
        self.sample = Method(self._begin)

    def _begin(self, task: PromptTask, weights: Any) -> tuple[Reference, Reference, Reference]:
        self.asked.append((task, Reference()))
        return Reference(), Reference(), self.asked[-1][1]

    def answer(self, value: Any = None) -> PromptTask:
        """To the oldest task: this, or where nothing is given a report that names it."""
        task, reference = self.asked.pop(0)
        reference.answer(value or f"report of {task.prompt}")
        return task

    def arrive(self, pid: int = 1, base: str = "base") -> None:
        """It has loaded its model."""
        self.arrival.answer(Arrival(Place(pid, HERE), base, encoders_and_vae=""))


class Cluster:
    """What Ray would say. started, killed: processes, in order. living: nodes. lost_on: where processes were
    that died before they were ready."""

    def __init__(self) -> None:
        self.started: list[Process] = []
        self.killed: list[Process] = []
        self.living = frozenset({HERE})
        self.lost_on = frozenset({HERE})

    @staticmethod
    def install(monkeypatch: pytest.MonkeyPatch) -> Cluster:
        """In place of Ray, until the test ends."""
        cluster = Cluster()
        monkeypatch.setattr("ray.kill", cluster.killed.append)
        monkeypatch.setattr("ray.wait", lambda references, timeout, fetch_local: ([], references))
        monkeypatch.setattr("ray.available_resources", dict)
        monkeypatch.setattr("ray.cluster_resources", dict)
        monkeypatch.setattr("actors.slots.living_nodes", lambda: cluster.living)
        monkeypatch.setattr("common.cluster.process_failures.living_nodes", lambda: cluster.living)
        monkeypatch.setattr("actors.slots.nodes_of", lambda _: cluster.lost_on)
        return cluster

    def start(self, _: Config) -> Process:
        """See start_process."""
        self.started.append(Process())
        return self.started[-1]

    def pool(self, folder: Path, **actors: Any) -> ActorPool:
        """A pool with these settings of the section actors. In a running event loop."""
        return ActorPool(make_config(Path("no/model"), folder, {"actors": actors}), self.start)


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)
