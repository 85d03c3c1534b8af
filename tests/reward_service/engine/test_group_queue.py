"""The queue of a scoring thread: nothing lost, nothing twice, in order, within its limits."""

from __future__ import annotations

import threading
import time

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_service.engine.group_queue import (
    MOST_CALLS,
    Batch,
    BatchLimits,
    Call,
    Closed,
    GroupQueue,
    WaitingGroup,
)

PIXELS = np.zeros((1, 1, 1, 3), np.uint8)


def group(number: int) -> WaitingGroup:
    """A group that its prompt tells apart."""
    return WaitingGroup(str(number), PIXELS)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.sampled_from(["put", "take", "call"]), max_size=40),
    most=st.integers(1, 4),
    room=st.integers(1, 6),
)
def test_groups_come_out_in_order_in_batches_within_the_limits(
    steps: list[str], most: int, room: int
) -> None:
    queue = GroupQueue(BatchLimits(groups=most, wait_s=0.0, queue=room))
    waiting: list[str] = []
    calls, called = 0, False
    for number, step in enumerate(steps):
        if step == "put":
            taken = queue.put(group(number))
            assert taken == (len(waiting) < room)
            waiting += [str(number)] if taken else []
        elif step == "call":
            taken = queue.call(Call(lambda: None))
            assert taken == (calls < MOST_CALLS)
            calls += taken
        elif calls and not (called and waiting):
            assert isinstance(queue.take(), Call)
            calls, called = calls - 1, True
        elif waiting:
            batch, called = queue.take(), False
            assert isinstance(batch, Batch)
            expected, waiting = waiting[:most], waiting[most:]
            assert [taken.prompt for taken in batch.groups] == expected
        assert len(queue) == len(waiting)


def test_a_call_nobody_waits_for_any_more_takes_no_place() -> None:
    queue = GroupQueue(BatchLimits(groups=2, wait_s=0.0, queue=9))
    calls = [Call(lambda: None) for _ in range(MOST_CALLS + 1)]
    assert [queue.call(call) for call in calls] == [True] * MOST_CALLS + [False]
    for call in calls[:-2]:
        call.done.cancel()
    assert queue.call(calls[-1])
    assert queue.take() == calls[-2]
    assert queue.take() == calls[-1]


def test_a_batch_waits_for_more_until_it_is_full_or_its_time_is_up() -> None:
    queue = GroupQueue(BatchLimits(groups=2, wait_s=5.0, queue=9))
    queue.put(group(0))
    threading.Timer(0.1, queue.put, [group(1)]).start()
    started = time.monotonic()
    batch = queue.take()
    assert isinstance(batch, Batch)
    assert len(batch.groups) == 2
    assert time.monotonic() - started < 4.0
    queue.limit(BatchLimits(groups=2, wait_s=0.05, queue=9))
    queue.put(group(2))
    batch = queue.take()
    assert isinstance(batch, Batch)
    assert [taken.prompt for taken in batch.groups] == ["2"]


def test_what_waits_is_cancelled_when_the_queue_closes() -> None:
    queue = GroupQueue(BatchLimits(groups=2, wait_s=0.0, queue=9))
    waits, call = group(0), Call(lambda: None)
    queue.put(waits)
    queue.call(call)
    queue.close()
    assert waits.reply.cancelled()
    assert call.done.cancelled()
    assert not queue.call(Call(lambda: None))
    assert not queue.put(group(1))
    assert isinstance(queue.take(), Closed)
