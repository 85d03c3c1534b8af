"""The remote scorers before a real server: the same numbers, its stamp, and failures that say what to do."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from common.errors import RewardError
from common.trajectory import RewardScores
from reward_service.contract.settings import ServedReward
from reward_service.engine.build import build_reward
from reward_service.scorers.remote import RemoteReward, RemoteScore
from tests.reward_service.http_calls import TOKEN, engine, served, served_engine

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
RED = PIXELS[..., 0].mean(axis=(1, 2)) / 255.0


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMOTE_TOKEN", TOKEN.get_secret_value())


def test_a_pointwise_reward_keeps_its_differences_its_numbers_and_its_version() -> None:
    with served_engine("Redness", TOKEN, version="x") as url:
        options: dict[str, str | int | float | bool] = {"url": url, "token_env": "REMOTE_TOKEN"}
        scorer = RemoteScore(url=url, token_env="REMOTE_TOKEN")
        np.testing.assert_array_equal(scorer.score(["calm", "calm", "other", "calm"], PIXELS), RED)
        service = build_reward("far", ServedReward(scorer="remote", options=options))
        service.check()
        (part,) = service.score_groups([("calm", PIXELS)])
        assert isinstance(part, RewardScores)
        np.testing.assert_allclose(part.rewards, RED - RED.mean(), atol=1e-15)
        np.testing.assert_allclose(part.differences, np.subtract.outer(RED, RED), atol=1e-15)
        assert (service.kind, part.stamp.name, part.stamp.version) == ("pairwise", "far", "1+x")
        assert TOKEN.get_secret_value() not in repr(service.stamp)


def test_a_judge_passes_its_matrix_on_and_has_no_numbers() -> None:
    green = PIXELS[..., 1].mean(axis=(1, 2)) / 32.0
    with served_engine("GreenDuel", TOKEN) as url:
        matrix = RemoteReward(url=url, token_env="REMOTE_TOKEN").compare("calm", PIXELS)
        np.testing.assert_allclose(matrix, np.tanh(green[:, None] - green[None, :]))
        with pytest.raises(RewardError, match="remote"):
            RemoteScore(url=url, token_env="REMOTE_TOKEN").score(["calm"] * 4, PIXELS)


def test_a_failure_of_the_far_scorer_is_a_failure_here() -> None:
    with served_engine("Moody", TOKEN) as url, pytest.raises(RewardError, match="the judge is out"):
        RemoteReward(url=url, token_env="REMOTE_TOKEN").compare("raise always", PIXELS)


def test_a_swap_at_the_server_is_a_failure_that_says_what_to_do() -> None:
    async def swap() -> None:
        async with engine("Redness") as backend:
            with served(backend, TOKEN) as url:
                scorer = RemoteReward(url=url, token_env="REMOTE_TOKEN")
                await asyncio.to_thread(scorer.compare, "calm", PIXELS)
                settings = {"scorer": "tests.reward_service.scorers:Redness", "version": "b"}
                assert await backend.change(settings) == ""
                with pytest.raises(RewardError, match="version"):
                    await asyncio.to_thread(scorer.compare, "calm", PIXELS)

    asyncio.run(swap())
