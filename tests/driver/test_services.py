"""A start that takes long says who is waited for, and one that fails says why."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from actors.pool import ActorPool
from common.errors import ModelError, PrdpError, StuckError
from driver.services import await_actors, await_learner
from tests.actors.processes import Cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Nothing becomes ready, and nobody waits for long."""
    monkeypatch.setattr("ray.wait", lambda references, timeout: ([], references))
    monkeypatch.setattr("ray.cluster_resources", dict)
    monkeypatch.setattr("ray.available_resources", dict)
    monkeypatch.setattr("driver.services.START_LIMIT_S", 0.05)
    monkeypatch.setattr("driver.patience.FIRST_NOTE_S", 0.01)
    return Cluster.install(monkeypatch)


def test_the_actors_that_are_waited_for_are_named(
    tiny_pipeline: Path, tmp_path: Path, cluster: Cluster
) -> None:
    config, seats = cluster.seats(tiny_pipeline, tmp_path, count=3, minimum=2)
    seats.ask_for(2)
    notes: list[str] = []
    with pytest.raises(StuckError, match=r"actors\.minimum is 2"):
        await_actors(ActorPool(config, seats), notes.append)
    assert len(notes) == 1
    assert "0 actors are ready, of actors.minimum = 2; 2 wait for room" in notes[0]


def test_the_ranks_that_are_waited_for_are_counted(cluster: Cluster) -> None:
    learner: Any = SimpleNamespace(ready=lambda: ["first", "second"])
    notes: list[str] = []
    with pytest.raises(StuckError, match="for the learner to load the model"):
        await_learner(learner, notes.append)
    assert len(notes) == 1
    assert "2 learner ranks are not ready" in notes[0]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OutOfMemoryError("low on memory"), StuckError, "could not start: low on memory"),
        (ActorDiedError(), StuckError, "could not start"),
        (RayTaskError("ready", "", ModelError("no such folder"), "", 1, "127.0.0.1"), ModelError, "folder"),
    ],
)
def test_a_rank_that_cannot_start_says_why(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[PrdpError], words: str
) -> None:
    monkeypatch.setattr("ray.wait", lambda references, timeout: (references, []))
    cluster.answers["rank"] = error
    learner: Any = SimpleNamespace(ready=lambda: ["rank"])
    with pytest.raises(kind, match=words):
        await_learner(learner)
