"""The service: mixing, batching, isolation of failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.config.services import RewardSpec
from common.errors import RewardError
from common.trajectory import GroupScore, ImageGroup, NoiseKey, PolicyStamp, ScorerStamp
from reward_service.contract import AnyScorer
from reward_service.local import LocalRewards
from reward_service.service import RewardFailure, RewardService, build_service
from tests.reward_service.scorers import GreenDuel, Moody, PromptLength, Redness

Pictures = Callable[[int, int], NDArray[np.uint8]]
Groups = list[tuple[str, NDArray[np.uint8]]]


class Counting(Redness):
    """Redness that notes how many pictures each call had."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        self.calls.append(len(images))
        return super().score(prompts, images)


def scores(service: RewardService, groups: Groups, with_gold: bool = False) -> list[GroupScore]:
    """All groups' scores; none may fail."""
    outcomes = service.score_groups(groups, with_gold)
    assert all(isinstance(outcome, GroupScore) for outcome in outcomes), outcomes
    return [outcome for outcome in outcomes if isinstance(outcome, GroupScore)]


def mixed(weights: tuple[float, float, float] = (2.0, -0.5, 3.0)) -> RewardService:
    """Two pointwise rewards and a judge, with a gold reward."""
    trained: dict[str, tuple[AnyScorer, float]] = {
        "red": (Redness(), weights[0]),
        "length": (PromptLength(), weights[1]),
        "duel": (GreenDuel(), weights[2]),
    }
    return RewardService(trained, {"gold": PromptLength(0.1)})


def test_rewards_and_differences_are_the_weighted_sums_of_raw_scores(pictures: Pictures) -> None:
    images = pictures(0, 4)
    (score,) = scores(mixed(), [("a cat", images)])
    red = Redness().score(["a cat"] * 4, images)
    length = PromptLength().score(["a cat"] * 4, images)
    duel = GreenDuel().compare("a cat", images)
    np.testing.assert_allclose(score.rewards, 2.0 * red - 0.5 * length + 3.0 * duel.mean(axis=1), rtol=1e-13)
    for i in range(4):
        for j in range(4):
            wanted = 2.0 * (red[i] - red[j]) - 0.5 * (length[i] - length[j]) + 3.0 * duel[i, j]
            assert score.differences[i, j] == pytest.approx(wanted, abs=1e-13)
    np.testing.assert_array_equal(score.parts["red"], red)
    np.testing.assert_array_equal(score.parts["length"], length)
    assert set(score.parts) == {"red", "length", "duel"}


def test_gold_only_adds_parts_and_stamps(pictures: Pictures) -> None:
    groups: Groups = [("a cat", pictures(1, 3)), ("two dogs", pictures(2, 3))]
    plain, gold = scores(mixed(), groups), scores(mixed(), groups, with_gold=True)
    for without, with_gold in zip(plain, gold, strict=True):
        np.testing.assert_array_equal(without.rewards, with_gold.rewards)
        np.testing.assert_array_equal(without.differences, with_gold.differences)
        assert set(with_gold.parts) - set(without.parts) == {"gold"}
        assert with_gold.scorers == (*without.scorers, ScorerStamp("gold", "2", "scale-0.1"))
    assert [stamp.name for stamp in plain[0].scorers] == ["red", "length", "duel"]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 6), data=st.data())
def test_shuffling_pictures_shuffles_the_scores(
    pictures: Pictures, seed: int, count: int, data: st.DataObject
) -> None:
    images = pictures(seed, count)
    order = data.draw(st.permutations(range(count)))
    (before,), (after,) = scores(mixed(), [("a cat", images)]), scores(mixed(), [("a cat", images[order])])
    np.testing.assert_allclose(after.rewards, before.rewards[order], rtol=1e-12)
    np.testing.assert_allclose(after.differences, before.differences[np.ix_(order, order)], atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    first=st.tuples(*[st.floats(-5, 5)] * 3),
    second=st.tuples(*[st.floats(-5, 5)] * 3),
    seed=st.integers(0, 99),
)
def test_scores_are_linear_in_the_weights(
    pictures: Pictures, first: tuple[float, float, float], second: tuple[float, float, float], seed: int
) -> None:
    groups: Groups = [("a cat", pictures(seed, 4))]
    (one,), (two,) = scores(mixed(first), groups), scores(mixed(second), groups)
    both = (first[0] + second[0], first[1] + second[1], first[2] + second[2])
    (total,) = scores(mixed(both), groups)
    np.testing.assert_allclose(total.rewards, one.rewards + two.rewards, atol=1e-9)
    np.testing.assert_allclose(total.differences, one.differences + two.differences, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_a_group_scores_the_same_alone_as_in_a_batch(pictures: Pictures, sizes: list[int]) -> None:
    groups: Groups = [(f"prompt {row}", pictures(row, size)) for row, size in enumerate(sizes)]
    together = scores(mixed(), groups, with_gold=True)
    for group, batched in zip(groups, together, strict=True):
        (alone,) = scores(mixed(), [group], with_gold=True)
        np.testing.assert_allclose(batched.rewards, alone.rewards, rtol=1e-12)
        np.testing.assert_array_equal(batched.differences, -batched.differences.T)
        assert batched.rewards.shape == (len(group[1]),)


def test_groups_of_one_picture_size_are_one_call(pictures: Pictures) -> None:
    counting = Counting()
    small = np.zeros((2, 16, 16, 3), np.uint8)
    service = RewardService({"red": (counting, 1.0)}, {})
    found = scores(service, [("a", pictures(0, 3)), ("b", small), ("c", pictures(1, 2))])
    assert counting.calls == [5, 2]
    assert [len(score.rewards) for score in found] == [3, 2, 2]
    np.testing.assert_array_equal(found[2].rewards, Redness().score(["c"] * 2, pictures(1, 2)))


@pytest.mark.parametrize(("mood", "reason"), [("raise", "the judge is out"), ("nan", "not finite")])
def test_a_poisoned_group_fails_alone(pictures: Pictures, mood: str, reason: str) -> None:
    groups: Groups = [("a cat", pictures(0, 2)), (f"{mood} now", pictures(1, 2)), ("a dog", pictures(2, 2))]
    service = RewardService({"moody": (Moody(), 1.0), "length": (PromptLength(), 1.0)}, {})
    good, bad, other = service.score_groups(groups)
    assert isinstance(bad, RewardFailure)
    assert reason in bad.reason
    assert "'moody'" in bad.reason
    (alone,) = scores(service, [groups[0]])
    assert isinstance(good, GroupScore)
    assert isinstance(other, GroupScore)
    np.testing.assert_array_equal(good.rewards, alone.rewards)


def test_a_gold_reward_that_fails_fails_the_group_only_where_it_is_asked(pictures: Pictures) -> None:
    service = RewardService({"red": (Redness(), 1.0)}, {"moody": Moody()})
    groups: Groups = [("raise now", pictures(0, 2))]
    assert isinstance(service.score_groups(groups)[0], GroupScore)
    assert isinstance(service.score_groups(groups, with_gold=True)[0], RewardFailure)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_pictures_of_the_wrong_kind_are_refused(images: NDArray[np.uint8], pictures: Pictures) -> None:
    good, bad = mixed().score_groups([("a cat", pictures(0, 2)), ("a dog", images)])
    assert isinstance(good, GroupScore)
    assert isinstance(bad, RewardFailure)
    assert "uint8 (B, height, width, 3)" in bad.reason


def test_a_sum_that_overflows_is_a_failure_not_infinity(pictures: Pictures) -> None:
    service = RewardService({"length": (PromptLength(1e300), 1e300)}, {})
    (outcome,) = service.score_groups([("a cat", pictures(0, 2))])
    assert isinstance(outcome, RewardFailure)


def test_score_group_raises_where_score_groups_reports(pictures: Pictures) -> None:
    service = RewardService({"moody": (Moody(), 1.0)}, {})
    assert service.score_group("a cat", pictures(0, 2)).rewards.shape == (2,)
    with pytest.raises(RewardError, match="the judge is out"):
        service.score_group("raise now", pictures(0, 2))


def test_check_and_probe_run_every_scorer(clip_folder: Path) -> None:
    red = RewardSpec(scorer="tests.reward_service.scorers:Redness")
    clip = RewardSpec(scorer="clip", options={"path": str(clip_folder)})
    service = build_service({"red": red}, {"clip": clip})
    service.check()
    service.probe()
    careless = RewardSpec(scorer="tests.reward_service.scorers:Careless")
    with pytest.raises(RewardError, match="'careless' scores a picture otherwise"):
        build_service({"red": red}, {"careless": careless}).check()


def test_build_service_takes_weights_from_the_configuration(pictures: Pictures) -> None:
    rewards = {
        "small": RewardSpec(scorer="jpeg_compressibility", weight=0.5),
        "red": RewardSpec(scorer="tests.reward_service.scorers:Redness", weight=2.0),
    }
    service = build_service(rewards, {"large": RewardSpec(scorer="jpeg_incompressibility")})
    (score,) = scores(service, [("a", pictures(0, 3))], with_gold=True)
    np.testing.assert_allclose(score.rewards, 0.5 * score.parts["small"] + 2.0 * score.parts["red"])
    np.testing.assert_array_equal(score.parts["large"], -score.parts["small"])
    with pytest.raises(RewardError, match="Reward 'bad': no scorer named 'clop'"):
        build_service({"bad": RewardSpec(scorer="clop")}, {})
    with pytest.raises(RewardError, match="at least one"):
        build_service({}, {})


def test_local_rewards_offer_what_the_client_offers(pictures: Pictures) -> None:
    local = LocalRewards(RewardService({"moody": (Moody(), 1.0)}, {"red": Redness()}))
    stamp, noise = PolicyStamp(0, "", "run"), NoiseKey(0, "train", 0, 0)
    good = local.submit("a cat", ImageGroup("a cat", noise, stamp, pictures(0, 2)), with_gold=True)
    bad = local.submit("raise now", ImageGroup("raise now", noise, stamp, pictures(1, 2)))
    assert local.outstanding == 2
    answers = dict(local.wait(1.0))
    assert local.outstanding == 0
    assert isinstance(answers[bad], RewardFailure)
    score = answers[good]
    assert isinstance(score, GroupScore)
    np.testing.assert_array_equal(score.rewards, score.parts["red"])
    assert score.scorers == local.stamps(with_gold=True)
    assert (local.counters().scored, local.counters().dropped) == (1, 1)
