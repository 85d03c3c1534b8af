"""Actor processes without Ray: a test says what each of their answers is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.slots import ActorSlots
from common.config.schema import Config
from tests.tiny_config import make_config

HERE = "node-a"


class Answer:
    """Stands for a reference."""


class Process:
    """One process. asked: references of its tasks' reports, the oldest first."""

    def __init__(self) -> None:
        self.arrival = Answer()
        self.asked: list[Answer] = []
        self.ready = SimpleNamespace(remote=lambda: self.arrival)
        self.sample = SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=self._begin))

    def _begin(self, *_: Any) -> tuple[Answer, Answer, Answer]:
        self.asked.append(Answer())
        return Answer(), Answer(), self.asked[-1]


class Cluster:
    """What Ray would say.

    answers: value or error by reference. started, killed: processes, in order. living: nodes. lost_on: where
    processes were that died before they were ready.
    """

    def __init__(self) -> None:
        self.answers: dict[Any, Any] = {}
        self.started: list[Process] = []
        self.killed: list[Process] = []
        self.living = frozenset({HERE})
        self.lost_on = frozenset({HERE})

    @staticmethod
    def install(monkeypatch: pytest.MonkeyPatch) -> Cluster:
        """In place of Ray, until the test ends."""
        cluster = Cluster()
        monkeypatch.setattr("ray.get", cluster.get)
        monkeypatch.setattr("ray.kill", cluster.killed.append)
        monkeypatch.setattr("actors.slots.living_nodes", lambda: cluster.living)
        monkeypatch.setattr("actors.slots.nodes_of", lambda _: cluster.lost_on)
        return cluster

    def start(self, _: Config) -> Process:
        """See start_process."""
        self.started.append(Process())
        return self.started[-1]

    def get(self, reference: Any, timeout: float) -> Any:
        """See ray.get; nothing is ever waited for."""
        answer = self.answers[reference]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def seats(self, pipeline: Path, folder: Path, **actors: Any) -> tuple[Config, ActorSlots]:
        """ActorSlots with these settings of the section actors."""
        config = make_config(pipeline, folder, {"actors": actors})
        return config, ActorSlots(config, self.start)
