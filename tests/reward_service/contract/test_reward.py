"""One reward: batching, isolation of failures, stamps; and how it is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import RewardError
from common.trajectory import RewardScores, ScorerStamp
from reward_service.contract.results import RewardFailure
from reward_service.contract.reward import Reward
from reward_service.contract.scorer import AnyScorer
from reward_service.contract.settings import ServedReward
from reward_service.engine.build import build_reward
from tests.reward_service.scorers import Duel, GreenDuel, Moody, PromptLength, Redness

MakeImages = Callable[[int, int], NDArray[np.uint8]]
Groups = list[tuple[str, NDArray[np.uint8]]]
SCORERS = "tests.reward_service.scorers"
KINDS: list[AnyScorer] = [PromptLength(), GreenDuel(), Duel()]


def reward_of(scorer: AnyScorer) -> Reward:
    """A scorer as reward "mine"."""
    return Reward.of(ScorerStamp("mine", "1", "d"), scorer)


def parts(reward: Reward, groups: Groups) -> list[RewardScores]:
    """All groups' parts; none may fail."""
    outcomes = reward.score_groups(groups)
    assert all(isinstance(outcome, RewardScores) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, RewardScores)]


def test_a_pointwise_part_holds_raw_scores_their_differences_and_the_stamp(make_images: MakeImages) -> None:
    images = make_images(0, 4)
    (part,) = parts(reward_of(PromptLength()), [("a cat", images)])
    wanted = PromptLength().score(["a cat"] * 4, images)
    np.testing.assert_array_equal(part.rewards, wanted)
    np.testing.assert_array_equal(part.differences, np.subtract.outer(wanted, wanted))
    assert (part.residual, part.stamp) == (0.0, ScorerStamp("mine", "1", "d"))


@pytest.mark.parametrize("scorer", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), data=st.data())
def test_shuffling_images_shuffles_the_scores(
    make_images: MakeImages, scorer: AnyScorer, seed: int, count: int, data: st.DataObject
) -> None:
    images, reward = make_images(seed, count), reward_of(scorer)
    order = data.draw(st.permutations(range(count)))
    before, after = parts(reward, [("a cat", images)]) + parts(reward, [("a cat", images[order])])
    np.testing.assert_allclose(after.rewards, before.rewards[order], atol=1e-12)
    np.testing.assert_allclose(after.differences, before.differences[np.ix_(order, order)], atol=1e-12)


@pytest.mark.parametrize("scorer", KINDS)
@settings(max_examples=10, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_a_group_scores_the_same_alone_as_in_a_batch(
    make_images: MakeImages, scorer: AnyScorer, sizes: list[int]
) -> None:
    groups: Groups = [(f"prompt {row}", make_images(row, size)) for row, size in enumerate(sizes)]
    reward = reward_of(scorer)
    for group, batched in zip(groups, parts(reward, groups), strict=True):
        (alone,) = parts(reward, [group])
        np.testing.assert_allclose(batched.rewards, alone.rewards, rtol=1e-12)
        np.testing.assert_array_equal(batched.differences, -batched.differences.T)
        assert batched.rewards.shape == (len(group[1]),)


def test_groups_of_one_image_size_are_one_call_and_failing_groups_have_spans_of_their_own(
    make_images: MakeImages,
) -> None:
    spans: list[str] = []
    calls: list[int] = []

    class Counting(Moody):
        def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
            calls.append(len(images))
            return super().score(prompts, images)

    @contextmanager
    def span() -> Iterator[None]:
        spans.append("open")
        yield

    small = np.zeros((2, 16, 16, 3), np.uint8)
    groups: Groups = [("a", make_images(0, 3)), ("b", small), ("c", make_images(1, 2))]
    reward = reward_of(Counting())
    found = parts(reward, groups)
    assert calls == [5, 2]
    assert [len(part.rewards) for part in found] == [3, 2, 2]
    np.testing.assert_array_equal(found[2].rewards, Redness().score(["c"] * 2, make_images(1, 2)))
    reward.score_groups(groups, span)
    assert len(spans) == 1
    reward.score_groups([groups[0], ("raise now", make_images(2, 2)), groups[2]], span)
    assert len(spans) == 1 + 1 + 3


@pytest.mark.parametrize(
    ("mood", "reason"), [("raise", r"the judge is out \(scorers\.py, line \d+, in "), ("nan", "not finite")]
)
def test_a_poisoned_group_fails_alone(make_images: MakeImages, mood: str, reason: str) -> None:
    groups: Groups = [
        ("a cat", make_images(0, 2)),
        (f"{mood} now", make_images(1, 2)),
        ("a dog", make_images(2, 2)),
    ]
    reward = reward_of(Moody())
    good, bad, other = reward.score_groups(groups)
    assert isinstance(bad, RewardFailure)
    assert re.search(reason, bad.reason)
    assert "'mine'" in bad.reason
    (alone,) = parts(reward, [groups[0]])
    assert isinstance(good, RewardScores)
    assert isinstance(other, RewardScores)
    np.testing.assert_array_equal(good.rewards, alone.rewards)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((2, 1, 9, 3), np.uint8),
        np.zeros((2, 50_000, 1, 3), np.uint8),
    ],
)
def test_images_of_the_wrong_kind_are_refused(images: NDArray[np.uint8], make_images: MakeImages) -> None:
    good, bad = reward_of(Redness()).score_groups([("a cat", make_images(0, 2)), ("a dog", images)])
    assert isinstance(good, RewardScores)
    assert isinstance(bad, RewardFailure)
    assert "uint8 (B, height, width, 3)" in bad.reason or "8 times" in bad.reason


@pytest.mark.parametrize("scorer", KINDS)
def test_images_for_which_memory_is_short_fail_alone(scorer: AnyScorer, make_images: MakeImages) -> None:
    """They take no memory here, and more than a process can address once they are copied for the scorer."""
    vast = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (2, 1 << 24, 1 << 24, 3))
    good, bad = reward_of(scorer).score_groups([("a cat", make_images(0, 2)), ("a dog", vast)])
    assert isinstance(good, RewardScores)
    assert isinstance(bad, RewardFailure)
    assert "memory is short" in bad.reason


def test_check_and_probe_run_the_scorer(clip_folder: Path) -> None:
    reward = build_reward("clip", ServedReward(scorer="clip", options={"path": str(clip_folder)}))
    table = build_reward("table", ServedReward(scorer=f"{SCORERS}:Lookup"))
    for one in (reward, table):
        one.check()
        one.probe()
    assert reward.kind == "pointwise"
    with pytest.raises(RewardError, match="'careless'"):
        build_reward("careless", ServedReward(scorer=f"{SCORERS}:Careless")).check()


@pytest.mark.parametrize("name", ["", "x" * 1001])
def test_a_name_that_no_score_could_carry_is_refused(name: str) -> None:
    with pytest.raises(RewardError, match="stamp"):
        build_reward(name, ServedReward(scorer=f"{SCORERS}:Redness"))


def test_the_stamp_names_version_label_and_everything_that_changes_scores() -> None:
    base = ServedReward(scorer=f"{SCORERS}:PromptLength")
    changed = [
        base,
        ServedReward(scorer=f"{SCORERS}:Redness"),
        ServedReward(scorer=base.scorer, options={"scale": 2.0}),
        ServedReward(scorer=base.scorer, pairs=5),
    ]
    digests = [build_reward("mine", served).stamp.digest for served in changed]
    assert len(set(digests)) == len(digests)
    unchanged = ServedReward(scorer=base.scorer, version="fixed", max_batch_groups=9, timeout_s=1.0)
    stamp = build_reward("mine", unchanged).stamp
    assert stamp == ScorerStamp("mine", "2+fixed", digests[0])
    short = build_reward("mine", ServedReward(scorer="jpeg_compressibility")).stamp
    path = ServedReward(scorer="reward_service.scorers.jpeg:JpegCompressibility")
    assert build_reward("mine", path).stamp == short
