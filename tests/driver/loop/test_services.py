"""A start that takes long says who is waited for, and one that fails says why."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorAlreadyExistsError, ActorDiedError, OutOfMemoryError, RayTaskError

from common.cluster.process_failures import DeathCounter
from common.cluster.references import first_line
from common.errors import ModelError, PrdpError, StuckError
from driver.loop.services import (
    GivenUp,
    await_learner,
    started_rewards,
    turn_to_start,
)
from driver.stalls import StallReporter
from driver.stop import StopFlag
from learner.ranks import DEATH_LIMIT_S, LearnerRanks
from learner.report import LearnerFacts
from tests.actors.processes import HERE
from tests.driver.ranks import Reference
from tests.tiny_config import make_config
from tests.virtual_time import run

BROKEN = ActorDiedError(RayTaskError("__init__", "Traceback", OSError("no such folder"), "", 1, "127.0.0.1"))
"""What a rank's constructor raises, also where another rank dies while they meet."""


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.wait", lambda references, timeout, fetch_local: ([], references))
    monkeypatch.setattr("ray.cluster_resources", dict)
    monkeypatch.setattr("common.cluster.process_failures.living_nodes", lambda: frozenset({HERE}))


def facts(name: str) -> LearnerFacts:
    """Of a rank."""
    return LearnerFacts("s", (4, 8, 8), True, "base", name, 8)


class Ranks(LearnerRanks):
    """Ranks of a learner without Ray. starts: what they say at the first start, at the second, and so on."""

    def __init__(self, *starts: list[Any]) -> None:
        self.starts = iter(starts)
        self.answers = next(self.starts)
        self.restarts = 0

    def ready(self) -> Any:
        """See LearnerRanks."""
        return [Reference(answer) for answer in self.answers]

    def restart(self) -> None:
        """See LearnerRanks."""
        self.answers = next(self.starts)
        self.restarts += 1

    def nodes(self) -> frozenset[str]:
        """See LearnerRanks."""
        return frozenset({HERE})


def start(learner: Ranks, limit: int = 5) -> tuple[str, DeathCounter, list[str], float]:
    """Wait for them: the process of the first rank, their deaths, what was said, and how long it took."""
    notes: list[str] = []
    deaths = DeathCounter("The learner", "learner.restarts", limit)

    async def wait() -> tuple[str, float]:
        clock = asyncio.get_running_loop().time
        stalls = StallReporter(notes.append, clock)
        watching = asyncio.ensure_future(stalls.watch(list))
        try:
            return (await await_learner(learner, deaths, stalls, 60.0)).process, clock()
        finally:
            watching.cancel()

    process, seconds = run(wait())
    return process, deaths, notes, seconds


@pytest.mark.parametrize(("count", "words"), [(1, "1 learner rank to"), (2, "2 learner ranks to")])
def test_the_ranks_that_are_waited_for_are_counted_and_have_a_limit(count: int, words: str) -> None:
    notes: list[str] = []

    async def wait() -> None:
        stalls = StallReporter(notes.append, asyncio.get_running_loop().time)
        watching = asyncio.ensure_future(stalls.watch(list))
        deaths = DeathCounter("The learner", "learner.restarts", 5)
        with pytest.raises(StuckError, match="Waited 60 s for the learner"):
            await await_learner(Ranks([None] * count), deaths, stalls, 60.0)
        watching.cancel()

    run(wait())
    assert words in notes[0]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (BROKEN, StuckError, "could not start: OSError: no such folder"),
        (RayTaskError("ready", "", ModelError("no such folder"), "", 1, "127.0.0.1"), ModelError, "^no such"),
        (ActorDiedError(RayTaskError("i", "", ModelError("no such"), "", 1, "")), ModelError, "^no such"),
    ],
)
def test_a_rank_that_cannot_start_says_why(error: Exception, kind: type[PrdpError], words: str) -> None:
    learner = Ranks([error])
    with pytest.raises(kind, match=words):
        start(learner)
    assert learner.restarts == 0


@pytest.mark.parametrize("death", [OutOfMemoryError("low on memory"), ActorDiedError()])
@pytest.mark.parametrize("order", [1, -1])
def test_ranks_that_die_while_they_load_are_started_again(death: Exception, order: int) -> None:
    learner = Ranks([death, BROKEN][::order], [facts("c"), facts("d")])
    process, deaths, notes, _ = start(learner, limit=1)
    assert (process, learner.restarts, deaths.total) == ("c", 1, 1)
    assert notes == [f"The learner is started again: {first_line(death)}"]


def test_a_rank_that_waits_for_a_dead_one_is_not_waited_for_to_the_limit() -> None:
    _, _, _, seconds = start(Ranks([OutOfMemoryError("low"), None], [facts("c"), facts("d")]))
    assert seconds == pytest.approx(DEATH_LIMIT_S)


def test_ranks_that_die_again_and_again_stop_the_start() -> None:
    learner = Ranks(*[[OutOfMemoryError("low on memory")]] * 3)
    with pytest.raises(StuckError, match=r"(?s)died 3 times.*learner\.restarts = 2.*low on memory"):
        start(learner, limit=2)
    assert learner.restarts == 2


class Rewards:
    """Rewards that take until they are told to come, and tell what they wait for meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.come, self.given_up, self.ended = threading.Event(), threading.Event(), threading.Event()
        monkeypatch.setattr("driver.loop.services.start_rewards", self.start)

    def start(self, *_: Any, waits_for: Any, **__: Any) -> Rewards:
        while not self.come.wait(0.01):
            try:
                waits_for("x is DEPLOYING")
            except GivenUp:
                self.given_up.set()
                raise
        return self

    def shutdown(self) -> None:
        """See RewardSum."""
        self.ended.set()


def test_rewards_start_beside_what_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rewards, stalls = Rewards(monkeypatch), StallReporter(print)
    config = make_config(Path("no/model"), tmp_path)

    async def wait() -> None:
        loading = asyncio.get_running_loop().create_future()
        starting = asyncio.ensure_future(started_rewards(config, loading, StopFlag(), stalls))
        while stalls.waits() != ["x is DEPLOYING"]:
            await asyncio.sleep(0.01)
        loading.set_result(None)
        await asyncio.sleep(0.05)
        rewards.come.set()
        assert await starting is rewards

    asyncio.run(wait())
    assert not rewards.ended.is_set()


def test_rewards_are_given_up_where_something_else_cannot_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rewards, config = Rewards(monkeypatch), make_config(Path("no/model"), tmp_path)

    async def wait() -> None:
        loading = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.05, loading.set_exception, ModelError("no such folder"))
        await started_rewards(config, loading, StopFlag(), StallReporter(print))

    with pytest.raises(ModelError, match=r"^no such folder$"):
        asyncio.run(wait())
    assert rewards.given_up.is_set()


def test_a_turn_to_start_that_never_comes_has_a_limit_and_says_whose_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Taken:
        def options(self, **_: Any) -> Taken:
            return self

        def remote(self) -> None:
            raise ActorAlreadyExistsError("turn-to-start")

    async def wait() -> None:
        stalls = StallReporter(notes.append, asyncio.get_running_loop().time)
        watching = asyncio.ensure_future(stalls.watch(list))
        with pytest.raises(StuckError, match="60 s other runs"):
            async with turn_to_start(StopFlag(), stalls, 60.0):
                pass
        watching.cancel()

    notes: list[str] = []
    monkeypatch.setattr("ray.remote", lambda _class: Taken())
    run(wait())
    assert "another run on this cluster is starting" in notes[0]
