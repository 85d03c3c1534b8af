"""Deaths of the learner are counted for an hour, and those of whole nodes never."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, OutOfMemoryError

from common.cluster.process_failures import WINDOW_S
from common.errors import StuckError
from driver.loop.learner_deaths import LearnerDeaths

OOM = OutOfMemoryError("low on memory")
HERE = frozenset({"here"})


class Clock:
    """Seconds."""

    now = 0.0

    def monotonic(self) -> float:
        """See time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    own = Clock()
    monkeypatch.setattr("driver.loop.learner_deaths.time", SimpleNamespace(monotonic=own.monotonic))
    monkeypatch.setattr("driver.loop.learner_deaths.living_nodes", lambda: frozenset({"here", "there"}))
    return own


def test_more_deaths_within_an_hour_than_allowed_stop_the_run(clock: Clock) -> None:
    deaths = LearnerDeaths(2)
    for _ in range(10):
        deaths.add(OOM, HERE)
        clock.now += 0.6 * WINDOW_S
    assert deaths.total == 10
    clock.now += 0.5 * WINDOW_S
    deaths.add(OOM, HERE)
    deaths.add(OOM, HERE)
    with pytest.raises(StuckError, match=r"3 times within an hour, more than learner\.restarts = 2.*low on"):
        deaths.add(OOM, HERE)


def test_deaths_of_nodes_are_held_against_nobody(clock: Clock) -> None:
    deaths = LearnerDeaths(0)
    deaths.add(OOM, frozenset({"here", "gone"}))
    context = ActorDiedErrorContext(
        actor_id=b"1" * 16, node_death_info=NodeDeathInfo(reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED)
    )
    preempted = ActorDiedError(context)
    assert preempted.preempted
    deaths.add(preempted, HERE)
    assert deaths.total == 2
    with pytest.raises(StuckError):
        deaths.add(ActorDiedError(), HERE)
