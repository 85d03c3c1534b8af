"""The queue of a scoring thread: nothing lost, nothing twice, in order, within its limits."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import RewardError
from reward_service.contract.settings import ServedReward
from reward_service.engine.queue import Check, GroupQueue, WaitingGroup

PIXELS = np.zeros((1, 1, 1, 3), np.uint8)


def group(number: int) -> WaitingGroup:
    """A group that its prompt tells apart."""
    return WaitingGroup(str(number), PIXELS)


def limits(groups: int, wait_s: float, queue: int) -> ServedReward:
    """Of batches and of the queue."""
    given = {"max_batch_groups": groups, "batch_wait_s": wait_s, "queue_groups": queue}
    return ServedReward.model_validate({"scorer": "any", **given})


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.sampled_from(["put", "take", "check"]), max_size=40),
    most=st.integers(1, 4),
    room=st.integers(1, 6),
)
def test_groups_come_out_in_order_in_batches_within_the_limits(
    steps: list[str], most: int, room: int
) -> None:
    queue = GroupQueue(limits(most, 0.0, room))
    waiting: list[str] = []
    wanted: Future[None] | None = None
    checked = False
    for number, step in enumerate(steps):
        if step == "put":
            taken = queue.put(group(number))
            assert taken == (len(waiting) < room)
            waiting += [str(number)] if taken else []
        elif step == "check":
            found = queue.check()
            assert found is (wanted or found)
            wanted = found
        elif wanted and not (checked and waiting):
            check = queue.take()
            assert isinstance(check, Check)
            assert check.done is wanted
            wanted.set_result(None)
            wanted, checked = None, True
        elif waiting:
            batch, checked = queue.take(), False
            assert isinstance(batch, list)
            expected, waiting = waiting[:most], waiting[most:]
            assert [taken.prompt for taken in batch] == expected
        assert len(queue) == len(waiting)


def test_a_batch_waits_for_more_until_it_is_full_or_its_time_is_up() -> None:
    queue = GroupQueue(limits(2, 5.0, 9))
    queue.put(group(0))
    threading.Timer(0.1, queue.put, [group(1)]).start()
    started = time.monotonic()
    batch = queue.take()
    assert isinstance(batch, list)
    assert len(batch) == 2
    assert time.monotonic() - started < 4.0
    queue.change(limits(2, 0.05, 9))
    queue.put(group(2))
    batch = queue.take()
    assert isinstance(batch, list)
    assert [taken.prompt for taken in batch] == ["2"]


def test_what_waits_is_cancelled_when_the_queue_closes() -> None:
    queue = GroupQueue(limits(2, 0.0, 9))
    waits = group(0)
    queue.put(waits)
    check = queue.check()
    queue.close()
    assert waits.reply.cancelled()
    assert check.cancelled()
    with pytest.raises(RewardError):
        queue.check()
    assert not queue.put(group(1))
    assert queue.take() is None
