from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.reward_clients import Asked, pictures
from benchmarks.reward_stage import OPTIONS, START, VERSIONS, Stage
from benchmarks.reward_windows import TOLERANCE, Window, all_new, is_mixed, seen_in, told_apart
from common.trajectory import GroupScore, ScorerStamp
from reward_service.contract.results import RewardFailure, RewardScores

OLD, NEW, FOREIGN = (ScorerStamp("a", version, version) for version in "123")
OF = {OLD: np.array([1.0, 2.0]), NEW: np.array([-1.0, 5.0])}
PROMPT = "a cat"


def part(stamp: ScorerStamp) -> RewardScores:
    rewards = OF[stamp]
    return RewardScores(rewards, rewards[:, None] - rewards[None, :], 0.0, stamp)


EXPECTED = {(stamp, PROMPT): part(stamp) for stamp in OF}


def score(stamp: ScorerStamp, rewards: np.ndarray) -> GroupScore:
    return GroupScore.pointwise(rewards, {"a": rewards}, (stamp,))


def asked(sent_at: float, answered_at: float, stamp: ScorerStamp, client: int = 0) -> Asked:
    return Asked(client, PROMPT, sent_at, answered_at, score(stamp, OF[stamp]))


def window(begin_at: float, end_at: float) -> Window:
    return Window("change", begin_at, begin_at + 1.0, end_at, 4.0, 13.0, NEW, OLD)


def test_only_groups_that_waited_in_the_window_count() -> None:
    groups = [
        asked(0, 9, OLD),
        asked(9, 11, OLD),
        asked(12, 12.5, NEW),
        asked(18, 30, NEW),
        asked(21, 22, NEW),
    ]
    seen = seen_in(window(10, 20), groups, EXPECTED)
    assert (seen.groups, seen.lost, seen.mixed) == (3, 0, 0)
    assert seen.stall_s == 12
    assert seen.median_s == 2
    assert seen.settled_s == 1
    assert seen.done_s == 1
    assert seen.at_work == pytest.approx(0.4)
    assert seen.spare_cores == pytest.approx(1.3)


def test_a_failure_is_a_lost_group() -> None:
    lost = Asked(0, PROMPT, 11, 12, RewardFailure("died"))
    assert seen_in(window(10, 20), [lost, asked(11, 12, NEW)], EXPECTED).lost == 1


def test_numbers_of_another_version_than_the_stamp_names_are_mixed() -> None:
    may_be = frozenset([OLD, NEW])
    assert not is_mixed(PROMPT, score(OLD, OF[OLD] + TOLERANCE / 10), may_be, EXPECTED)
    assert is_mixed(PROMPT, score(NEW, OF[OLD]), may_be, EXPECTED)
    assert is_mixed(PROMPT, score(OLD, np.array([OF[OLD][0], OF[NEW][1]])), may_be, EXPECTED)
    assert is_mixed(PROMPT, score(FOREIGN, OF[OLD]), may_be, EXPECTED)
    half = GroupScore(OF[OLD], part(NEW).differences, {}, (OLD,))
    assert is_mixed(PROMPT, half, may_be, EXPECTED)


def test_a_change_has_settled_once_every_client_sees_the_new_version_only() -> None:
    both = [asked(5, 6, NEW, client=0), asked(5, 6, NEW, client=1)]
    assert all_new(both, NEW, 5, clients=2)
    assert not all_new(both, NEW, 5.5, clients=2)
    assert not all_new(both[:1], NEW, 5, clients=2)
    assert not all_new([*both, asked(5, 7, OLD, client=1)], NEW, 5, clients=2)
    assert all_new([*both, asked(4, 7, OLD, client=1)], NEW, 5, clients=2)


def test_versions_are_told_apart_by_the_picture_in_which_they_differ_most() -> None:
    assert told_apart(EXPECTED) == 3.0
    third = RewardScores(OF[NEW] + 0.5, part(NEW).differences, 0.0, FOREIGN)
    assert told_apart({**EXPECTED, (FOREIGN, PROMPT): third}) == 0.5


def test_the_versions_of_the_stage_differ_in_stamp_and_in_every_reward(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(tmp_path))
    stage = Stage(tmp_path)
    stage.prepare()
    assert len({stage.stamp(version) for version in VERSIONS}) == len(VERSIONS)
    pixels = {prompt: pictures(prompt, 2, 64) for prompt in ("a cat", "two red houses")}
    expected = stage.expected(pixels)
    assert set(expected) == {(stage.stamp(version), prompt) for version in VERSIONS for prompt in pixels}
    assert told_apart(expected) > 10 * TOLERANCE
    assert stage.settings(OPTIONS)["options"]["prompt_prefix"]
    assert "prompt_prefix" not in stage.settings(START)["options"]
