"""Waiting for what is large or lost, without Ray: the pool and the rewards are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import ray
from ray.exceptions import GetTimeoutError, ObjectLostError

import driver.loop.rollouts
from actors.pool import ActorPool
from common.errors import StuckError
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.loop.published import Published
from driver.loop.rollouts import FETCH_TRIES, Rollouts, ScoredReference
from driver.loop.stalls import StallReporter
from tests.actors.processes import Cluster

REFERENCE = cast(Any, "reference")
TASK = PromptTask("a cat", 4, NoiseKey(1, "train", 0, 0), PolicyStamp(0, "", "run"), with_reference=True)
NO_RAY = cast(Any, None)


class NoRewards:
    """Nobody is asked anything."""

    outstanding = 0

    def refs(self) -> list[Any]:
        return []

    def poll_s(self) -> float:
        return 0.0

    def collect(self) -> list[Any]:
        return []

    def asked(self) -> dict[str, int]:
        return {}

    def in_work(self) -> list[str]:
        return []


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def rollouts(notes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rollouts:
    pool = ActorPool(*Cluster.install(monkeypatch).seats(Path("no/model"), tmp_path))
    return Rollouts(pool, cast(Any, NoRewards()), 0.0, lambda: None, StallReporter(notes.append))


def test_an_object_that_does_not_come_has_a_limit_and_is_told_meanwhile(
    rollouts: Rollouts, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def never(_: object, timeout: float) -> None:
        asked.append(timeout)
        raise GetTimeoutError

    monkeypatch.setattr(ray, "get", never)
    monkeypatch.setattr(
        rollouts, "_patience", StallReporter(notes.append, iter(range(0, 10**6, 40)).__next__)
    )
    with pytest.raises(StuckError, match="for the pictures to come to the driver"):
        rollouts.fetch(REFERENCE, "the pictures")
    assert asked == [driver.loop.rollouts.FETCH_LIMIT_S] * FETCH_TRIES
    assert "the run waits for the pictures to come to the driver" in notes[0]


def test_what_is_there_comes_and_what_is_lost_is_told(
    rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "get", lambda reference, timeout: (reference, timeout))
    assert rollouts.fetch(REFERENCE, "it")[0] == REFERENCE

    def lost(*_: object, **__: object) -> None:
        raise ObjectLostError("00", None, "")

    monkeypatch.setattr(ray, "get", lost)
    with pytest.raises(ObjectLostError):
        rollouts.fetch(REFERENCE, "it")


def test_nothing_is_sampled_again_after_the_end(rollouts: Rollouts) -> None:
    rollouts.end_sampling()
    published = Published(NO_RAY, NO_RAY, 0)
    group = ScoredReference(TASK, published, NO_RAY, NO_RAY, NO_RAY, NO_RAY)
    for _ in range(2):
        with pytest.raises(StuckError, match="actors have been ended"):
            rollouts.again(group)
