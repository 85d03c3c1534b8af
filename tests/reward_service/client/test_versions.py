"""Which change of a stamp is a swap."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.trajectory import ScorerStamp
from reward_service.client.versions import GONE, VersionHistory


def stamp(version: str) -> ScorerStamp:
    return ScorerStamp("clip", version, "0123456789abcdef")


def indices(history: VersionHistory, versions: str) -> list[int]:
    """The index after each group, a letter a group."""
    found = []
    for version in versions:
        history.scored_by(stamp(version))
        found.append(history.index)
    return found


def test_a_new_version_is_a_swap_at_once() -> None:
    history = VersionHistory(stamp("a"))
    assert history.scored_by(stamp("a")) is None
    swap = history.scored_by(stamp("b"))
    assert swap is not None
    assert (swap.index, swap.before, swap.after) == (2, stamp("a"), stamp("b"))
    assert history.current == stamp("b")
    other = VersionHistory(stamp("a")).scored_by(ScorerStamp("clip", "a", "other"))
    for text in (str(swap), str(other)):
        assert "0123456789ab" in text
    assert ["options" in str(one) for one in (swap, other)] == [False, True]


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ("abababbaabbbb", [1] + [2] * 12),  # last answers of the version that goes
        ("b" + "a" * GONE, [2] * GONE + [3]),  # a rollback, once it is certain
        ("a" + "b" * GONE + "abab", [1] + [2] * GONE + [3] * 4),  # and at once where it had taken over
    ],
)
def test_a_rollback_is_a_swap_and_a_last_answer_is_none(versions: str, found: list[int]) -> None:
    assert indices(VersionHistory(stamp("a")), versions) == found


@pytest.mark.parametrize("replicas", [2, 4, 8])
@pytest.mark.parametrize("groups", [5, 40, 200])
def test_one_swap_is_one_record_however_replicas_take_over(replicas: int, groups: int) -> None:
    """groups: scored, by any of the replicas, between one that takes over and the next."""
    for seed in range(20):
        drawn = random.Random(seed)
        history = VersionHistory(stamp("a"))
        for before, after in ("ab", "ba", "ac"):
            found = history.index
            for new in range(1, replicas):
                answers = [after] * new + [before] * (replicas - new)
                indices(history, "".join(drawn.choices(answers, k=groups)))
            indices(history, after * GONE)
            assert (history.index, history.current) == (found + 1, stamp(after))


def test_a_history_goes_on_where_it_was() -> None:
    history = VersionHistory(stamp("a"), stamp("b"))
    assert (history.index, history.current) == (2, stamp("b"))
    assert indices(history, "baa") == [2, 3, 3]  # a rollback while nobody asked


@settings(max_examples=50, deadline=None)
@given(st.text("abc", max_size=40))
def test_every_version_that_scored_is_known_and_the_last_that_stays_is_current(versions: str) -> None:
    history = VersionHistory(stamp("a"))
    swaps = [swap for version in versions if (swap := history.scored_by(stamp(version)))]
    assert {swap.after.version for swap in swaps} >= set(versions) - {"a"}
    assert [swap.index for swap in swaps] == list(range(2, 2 + len(swaps)))
    for version in (versions[-1] if versions else "a") * GONE:
        history.scored_by(stamp(version))
    assert history.current == stamp(versions[-1] if versions else "a")
