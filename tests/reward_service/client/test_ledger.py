"""The ledger as a state machine: bounded, fair, capped, and only guilty groups are dropped."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import RewardError
from reward_service.client.ledger import Ledger, PendingScore


def group(number: int) -> PendingScore:
    """A receipt."""
    return PendingScore(number, f"prompt {number}")


def test_groups_go_out_in_order_up_to_the_window() -> None:
    ledger = Ledger(window=2, capacity=4, retries=0)
    for number in range(4):
        ledger.add(group(number))
    assert ledger.room == 0
    with pytest.raises(RewardError, match=r"queue_groups \(4\)"):
        ledger.add(group(4))
    assert ledger.take() == [group(0), group(1)]
    assert ledger.take() == []
    ledger.answered(group(1))
    assert ledger.room == 1
    assert ledger.take() == [group(2)]
    assert ledger.outstanding == 3


def test_a_failed_group_is_sent_again_and_then_dropped() -> None:
    ledger = Ledger(window=1, capacity=1, retries=2)
    ledger.add(group(0))
    for again in (True, True, False):
        assert ledger.take() == [group(0)]
        assert ledger.failed(group(0), lost=False) is again
    assert ledger.take() == []
    assert ledger.outstanding == 0


def test_lost_groups_are_sent_again_one_at_a_time_with_nothing_else_out() -> None:
    ledger = Ledger(window=3, capacity=9, retries=1)
    for number in range(5):
        ledger.add(group(number))
    assert ledger.take() == [group(0), group(1), group(2)]
    ledger.failed(group(0), lost=True)
    ledger.failed(group(1), lost=True)
    assert ledger.take() == []
    ledger.answered(group(2))
    assert ledger.take() == [group(0)]
    assert ledger.take() == []
    ledger.answered(group(0))
    assert ledger.take() == [group(1)]
    assert ledger.take() == []
    assert not ledger.failed(group(1), lost=True)
    assert ledger.take() == [group(3), group(4)]


@settings(max_examples=60, deadline=None)
@given(
    guilty=st.sets(st.integers(0, 11)),
    window=st.integers(1, 5),
    retries=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_only_groups_that_kill_their_replica_each_time_are_dropped(
    guilty: set[int], window: int, retries: int, order: object
) -> None:
    ledger = Ledger(window, capacity=12, retries=retries)
    for number in range(12):
        ledger.add(group(number))
    out: list[PendingScore] = []
    answered: set[int] = set()
    dropped: set[int] = set()
    for _ in range(1000):
        out += ledger.take()
        assert len(out) <= window
        if not out:
            break
        if any(one.number in guilty for one in out):
            # The replica dies with everything that was out.
            dropped |= {one.number for one in out if not ledger.failed(one, lost=True)}
            out = []
        else:
            done = out.pop(order.randrange(len(out)))  # type: ignore[attr-defined]
            ledger.answered(done)
            answered.add(done.number)
    assert dropped == guilty
    assert answered == set(range(12)) - guilty
    assert ledger.outstanding == 0


def test_a_refused_group_is_sent_first_and_keeps_its_tries() -> None:
    ledger = Ledger(window=2, capacity=4, retries=0)
    for number in range(4):
        ledger.add(group(number))
    assert ledger.take() == [group(0), group(1)]
    for _ in range(5):
        ledger.refused(group(0))
        assert ledger.take() == [group(0)]
    assert ledger.outstanding == 4
    assert not ledger.failed(group(0), lost=False)


def test_a_refused_suspect_stays_a_suspect() -> None:
    ledger = Ledger(window=2, capacity=4, retries=3)
    for number in range(3):
        ledger.add(group(number))
    ledger.take()
    ledger.failed(group(0), lost=True)
    ledger.answered(group(1))
    assert ledger.take() == [group(0)]
    ledger.refused(group(0))
    assert ledger.take() == [group(0)]
    assert ledger.take() == []


def test_a_group_given_up_frees_its_place_whatever_tries_are_left() -> None:
    ledger = Ledger(window=1, capacity=1, retries=9)
    ledger.add(group(0))
    ledger.take()
    ledger.given_up(group(0))
    assert (ledger.outstanding, ledger.room) == (0, 1)
