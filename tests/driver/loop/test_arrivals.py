"""References are told once, when they are ready, in that order; nothing is lost between threads."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from driver.loop.arrivals import Arrivals, only_told


@dataclass(frozen=True)
class Promise:
    """A reference that the test makes ready."""

    number: int
    done: Future[int] = field(default_factory=Future, compare=False)

    def future(self) -> Future[int]:
        """See Reference."""
        return self.done


@given(st.permutations(range(8)), st.sets(st.integers(0, 7)))
def test_each_is_taken_once_in_the_order_of_becoming_ready(order: list[int], failing: set[int]) -> None:
    promises = [Promise(number) for number in range(8)]
    arrivals: Arrivals[Promise] = Arrivals(only_told)
    for promise in [*promises, *promises]:
        arrivals.watch(promise)
    for number in order:
        if number in failing:
            promises[number].done.set_exception(ValueError("an error makes ready too"))
        else:
            promises[number].done.set_result(number)
    assert [promise.number for promise in arrivals.take(1.0)] == order
    assert arrivals.take(0.0) == []


def test_what_was_ready_before_and_what_is_watched_again_comes_at_once() -> None:
    promise = Promise(1)
    promise.done.set_result(1)
    arrivals: Arrivals[Promise] = Arrivals(only_told)
    for _ in range(2):
        arrivals.watch(promise)
        assert arrivals.take(0.0) == [promise]


def test_waits_no_longer_than_asked_and_ends_at_the_first() -> None:
    promise = Promise(1)
    arrivals: Arrivals[Promise] = Arrivals(only_told)
    arrivals.watch(promise)
    began = time.monotonic()
    assert arrivals.take(0.05) == []
    assert 0.04 < time.monotonic() - began < 5.0
    timer = threading.Timer(0.05, promise.done.set_result, (1,))
    timer.start()
    assert arrivals.take(30.0) == [promise]
    assert time.monotonic() - began < 20.0
    timer.join()


def test_callbacks_of_many_threads_are_all_taken() -> None:
    promises = [Promise(number) for number in range(400)]
    arrivals: Arrivals[Promise] = Arrivals(only_told)
    threads = [
        threading.Thread(target=lambda part=part: [one.done.set_result(0) for one in promises[part::4]])
        for part in range(4)
    ]
    for thread in threads:
        thread.start()
    for promise in promises:
        arrivals.watch(promise)
    for thread in threads:
        thread.join()
    taken = arrivals.take(1.0)
    assert len(taken) == 400
    assert set(taken) == set(promises)


def test_what_nobody_tells_is_found_by_looking_and_taken_once() -> None:
    lost, late = Promise(1), Promise(2)
    arrivals: Arrivals[Promise] = Arrivals(lambda watched: [one for one in watched if one.number == 1])
    arrivals.watch(lost)
    arrivals.watch(late)
    assert arrivals.take(0.0) == [lost]
    lost.done.set_result(1)
    late.done.set_result(2)
    assert arrivals.take(0.0) == [late]
