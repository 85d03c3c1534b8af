"""Rewards in this process, against the scorers themselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from common.config.services import AppReward, RewardEntry, RewardServiceSection, RewardSpec, UrlReward
from common.errors import RewardError
from reward_service.client.entries import check_entries, token_of
from reward_service.client.local import local_rewards
from reward_service.contract.settings import served_settings
from tests.reward_service.scorers import GreenDuel, PromptLength, Redness

SCORERS = "tests.reward_service.scorers"
SECTION = RewardServiceSection(threads=3, timeout_s=7.0, queue_groups=9)
MakeImages = Callable[[int, int], NDArray[np.uint8]]


def spec(name: str, weight: float = 1.0) -> RewardSpec:
    return RewardSpec(scorer=f"{SCORERS}:{name}", weight=weight)


def test_scores_are_weighted_sums_of_the_scorers_answers(make_images: MakeImages) -> None:
    rewards: dict[str, RewardEntry] = {"red": spec("Redness", 3.0), "duel": spec("GreenDuel", -0.5)}
    mix = local_rewards(rewards, {"length": spec("PromptLength")}, SECTION)
    images = make_images(0, 4)
    red = Redness().score(["a cat"] * 4, images)
    duel = GreenDuel().compare("a cat", images)
    score = mix.score_group("a cat", images)
    np.testing.assert_allclose(score.differences, 3.0 * (red[:, None] - red) - 0.5 * duel, atol=1e-12)
    np.testing.assert_allclose(score.rewards, 3.0 * red - 0.5 * duel.mean(axis=1))
    assert list(score.parts) == [stamp.name for stamp in score.scorers] == ["red", "duel"]
    gold = mix.score_group("a cat", images, with_gold=True)
    np.testing.assert_allclose(gold.parts["length"], PromptLength().score(["a cat"] * 4, images))
    np.testing.assert_array_equal(gold.rewards, score.rewards)


def test_a_judge_says_by_how_much_it_prefers_the_second_image(make_images: MakeImages) -> None:
    mix = local_rewards({"red": spec("Redness")}, {"duel": spec("GreenDuel")}, SECTION)
    assert mix.judges == ("duel",)
    images = make_images(0, 2)
    expected = GreenDuel().compare("a cat", images)[1, 0]
    assert expected
    assert mix.preference("duel", "a cat", images) == pytest.approx(expected)
    with pytest.raises(RewardError, match=r"duel.*'a cat'"):
        mix.preference("duel", "a cat", images.astype(float))


def test_a_failure_says_which_reward_and_why(make_images: MakeImages) -> None:
    mix = local_rewards({"moody": spec("Moody"), "red": spec("Redness")}, {}, SECTION)
    with pytest.raises(RewardError, match=r"'raise now'.*moody: .*the judge is out"):
        mix.score_group("raise now", make_images(0, 2))
    with pytest.raises(RewardError, match=r"'a'.*'x'"):
        local_rewards({"a": AppReward(app="x")}, {}, SECTION)


class TestEntries:
    def test_scorers_options_and_tokens_are_checked_and_named(self) -> None:
        check_entries({"red": spec("Redness"), "app": AppReward(app="x")})
        with pytest.raises(RewardError, match=r"'a': .*'clip'"):
            check_entries({"a": RewardSpec(scorer="clib")})
        with pytest.raises(RewardError, match=r"'a': .*NO_SUCH_TOKEN"):
            check_entries({"a": UrlReward(url="http://127.0.0.1:1", token_env="NO_SUCH_TOKEN")})

    def test_a_token_does_not_travel_unencrypted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("A_TOKEN", "0123456789abcdef")
        with pytest.raises(RewardError, match="unencrypted to example"):
            check_entries({"a": UrlReward(url="http://example.org", token_env="A_TOKEN")})
        assert "0123456789abcdef" not in repr(token_of(UrlReward(url="http://h", token_env="A_TOKEN")))

    def test_an_embedded_application_has_the_settings_of_the_section(self) -> None:
        entry = RewardSpec(scorer="clip", options={"path": "x"}, pairs=5)
        found = served_settings(entry, SECTION)
        assert (found.scorer, found.options, found.pairs) == ("clip", {"path": "x"}, 5)
        assert (found.threads, found.timeout_s, found.queue_groups) == (3, 7.0, 9)
