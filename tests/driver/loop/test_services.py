"""A start that takes long says who is waited for, and one that fails says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from actors.pool import ActorPool
from common.errors import ModelError, PrdpError, StuckError
from driver.loop.learner_calls import first_line
from driver.loop.learner_deaths import LearnerDeaths
from driver.loop.services import await_actors, await_learner
from learner.group import LearnerGroup
from tests.actors.processes import HERE, Cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Nothing becomes ready, and nobody waits for long."""
    monkeypatch.setattr("ray.wait", lambda references, timeout: ([], references))
    monkeypatch.setattr("ray.cluster_resources", dict)
    monkeypatch.setattr("ray.available_resources", dict)
    monkeypatch.setattr("driver.loop.services.START_LIMIT_S", 0.05)
    monkeypatch.setattr("driver.loop.stalls.FIRST_NOTE_S", 0.01)
    monkeypatch.setattr("driver.loop.learner_deaths.living_nodes", lambda: frozenset({HERE}))
    return Cluster.install(monkeypatch)


class Ranks(LearnerGroup):
    """Ranks of a learner without Ray. starts: references of the first start, of the second, and so on."""

    def __init__(self, *starts: list[str]) -> None:
        self.starts = iter(starts)
        self.answers: Any = next(self.starts)
        self.restarts = 0

    def ready(self) -> Any:
        """See LearnerGroup."""
        return self.answers

    def restart(self) -> None:
        """See LearnerGroup."""
        self.answers = next(self.starts)
        self.restarts += 1

    def nodes(self) -> frozenset[str]:
        """See LearnerGroup."""
        return frozenset({HERE})


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
    learner = Ranks(["first", "second"])
    notes: list[str] = []
    with pytest.raises(StuckError, match="for the learner to load the model"):
        await_learner(learner, LearnerDeaths(5), notes.append)
    assert len(notes) == 1
    assert "2 learner ranks are not ready" in notes[0]


BROKEN = ActorDiedError(RayTaskError("__init__", "no such folder", OSError(), "", 1, "127.0.0.1"))
"""What a rank's constructor raises, also where another rank dies while they meet."""


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (BROKEN, StuckError, "(?s)could not start: .*no such folder"),
        (RayTaskError("ready", "", ModelError("no such folder"), "", 1, "127.0.0.1"), ModelError, "folder"),
    ],
)
def test_a_rank_that_cannot_start_says_why(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[PrdpError], words: str
) -> None:
    monkeypatch.setattr("ray.wait", lambda references, timeout: (references, []))
    cluster.answers["rank"] = error
    learner = Ranks(["rank"])
    with pytest.raises(kind, match=words):
        await_learner(learner, LearnerDeaths(5))
    assert learner.restarts == 0


@pytest.mark.parametrize("death", [OutOfMemoryError("low on memory"), ActorDiedError()])
@pytest.mark.parametrize("first", ["the death", "what it brought about"])
def test_ranks_that_die_while_they_load_are_started_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, death: Exception, first: str
) -> None:
    monkeypatch.setattr("ray.wait", lambda references, timeout: (references[:1], references[1:]))
    killed, met = ("a", "b") if first == "the death" else ("b", "a")
    cluster.answers |= {killed: death, met: BROKEN, "c": "facts of c", "d": "facts of d"}
    learner, deaths, notes = Ranks(["a", "b"], ["c", "d"]), LearnerDeaths(1), list[str]()
    assert await_learner(learner, deaths, notes.append) == "facts of c"
    assert (learner.restarts, deaths.total) == (1, 1)
    assert notes == [f"The learner is started again: {first_line(death)}"]


def test_ranks_that_die_again_and_again_stop_the_start(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.wait", lambda references, timeout: (references, []))
    cluster.answers["a"] = OutOfMemoryError("low on memory")
    learner = Ranks(["a"], ["a"], ["a"])
    with pytest.raises(StuckError, match=r"(?s)died 3 times.*learner\.restarts = 2.*low on memory"):
        await_learner(learner, LearnerDeaths(2))
    assert learner.restarts == 2
