"""The pool's own bookkeeping, without Ray: its seats are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from actors.pool import ActorPool
from actors.process import Place
from actors.seats import Seat
from common.errors import StuckError
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from tests.tiny_config import make_config

TASK = PromptTask("a cat", 4, NoiseKey(1, "train", 0, 0), PolicyStamp(0, "", "run"), with_reference=True)
NO_RAY = cast(Any, None)


class Process:
    """An actor that takes every task, and never answers."""

    def __init__(self) -> None:
        self.tasks: list[PromptTask] = []
        self.sample = self

    def options(self, **_: object) -> Process:
        return self

    def remote(self, task: PromptTask, _weights: object) -> list[object]:
        self.tasks.append(task)
        return [object(), object(), object()]


class FakeSeats:
    """One seat, whose actor is there when `arrive` is called."""

    replaced, ready_s = 0, 0.0

    def __init__(self) -> None:
        self.process = Process()
        self.ready: dict[Seat, Place] = {}
        self.arrivals: list[Any] = []

    def take_new(self) -> list[Any]:
        return []

    def arrive(self, _reference: object) -> list[Seat]:
        seat = Seat(0, self.process, NO_RAY)
        self.ready[seat] = Place(1, "node")
        return [seat]

    def check_enough(self, _limit_s: float) -> None:
        pass

    def close(self) -> None:
        self.ready.clear()


def make_pool(folder: Path) -> tuple[ActorPool, Process]:
    """A pool with one actor that is ready, and that actor."""
    seats = FakeSeats()
    pool = ActorPool(make_config(Path("no/model"), folder), cast(Any, seats))
    pool.complete(NO_RAY)
    return pool, seats.process


def test_a_task_goes_to_the_actor_that_is_ready(tmp_path: Path) -> None:
    pool, process = make_pool(tmp_path)
    pool.submit(TASK, NO_RAY)
    assert (process.tasks, pool.running) == ([TASK], 1)


def test_a_pool_that_was_shut_down_takes_no_tasks_and_says_so(tmp_path: Path) -> None:
    """Nobody would ever do them, so who waits for one would wait for good."""
    pool, process = make_pool(tmp_path)
    pool.shutdown()
    with pytest.raises(StuckError, match="have been ended, so 'a cat' cannot be sampled"):
        pool.submit(TASK, NO_RAY)
    assert (process.tasks, pool.waiting) == ([], 0)
