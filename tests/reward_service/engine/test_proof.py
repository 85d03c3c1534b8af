"""Health: proofs are shared, scores are proofs too, and asking for them keeps no group waiting."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import RewardError
from reward_service.contract.results import RewardScores
from reward_service.engine import engine as engine_module
from tests.reward_service.engines import PIXELS, in_loop, running
from tests.reward_service.scorers import Redness


class Slow(Redness):
    """Takes its time, counts its calls, and fails on the made-up pictures where it is told to."""

    calls = 0
    seconds = 0.0
    fails = False

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        Slow.calls += 1
        time.sleep(Slow.seconds)
        if Slow.fails and "a cat" not in prompts:
            raise RuntimeError("only cats")
        return super().score(prompts, images)


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proof lasts, so that each question needs its own."""
    monkeypatch.setattr(engine_module, "PROOF_LASTS_S", 0.0)
    monkeypatch.setattr(Slow, "seconds", 0.0)
    monkeypatch.setattr(Slow, "fails", False)


@in_loop
async def test_many_who_ask_at_once_share_a_pass_and_keep_no_group_waiting() -> None:
    async with running(f"{__name__}:Slow") as engine:
        Slow.calls, Slow.seconds = 0, 0.05
        started = time.monotonic()
        probes = [asyncio.create_task(engine.probe()) for _ in range(100)]
        await asyncio.sleep(0.01)
        assert isinstance((await engine.score("a cat", PIXELS)).outcome, RewardScores)
        assert time.monotonic() - started < 1.0
        ages = await asyncio.gather(*probes)
        assert max(ages) < 1.0
        assert Slow.calls == 2


@in_loop
async def test_who_gives_up_takes_the_pass_from_nobody() -> None:
    async with running(f"{__name__}:Slow") as engine:
        Slow.seconds = 0.1
        busy = asyncio.create_task(engine.score("a cat", PIXELS))
        await asyncio.sleep(0.02)
        first, second = (asyncio.create_task(engine.probe()) for _ in range(2))
        await asyncio.sleep(0.02)
        first.cancel()
        assert await second < 1.0
        await busy


@in_loop
async def test_a_group_scored_meanwhile_is_proof_enough() -> None:
    async with running(f"{__name__}:Slow") as engine:
        Slow.calls, Slow.seconds = 0, 0.1
        busy = asyncio.create_task(engine.score("a cat", PIXELS))
        await asyncio.sleep(0.02)
        await engine.probe()
        await busy
        assert Slow.calls == 1


@in_loop
async def test_a_recent_proof_is_good_for_a_while() -> None:
    async with running(f"{__name__}:Slow") as engine:
        Slow.calls = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_module, "PROOF_LASTS_S", 60.0)
            for _ in range(20):
                await engine.probe()
            assert Slow.calls == 0
        await engine.probe()
        assert Slow.calls == 1


@in_loop
async def test_asking_without_pause_whether_a_broken_scorer_works_does_not_starve_groups() -> None:
    async with running(f"{__name__}:Slow", max_batch_groups=4, batch_wait_s=0.05) as engine:
        Slow.fails = True

        async def ask_again_and_again() -> None:
            while True:
                with pytest.raises(RewardError, match="only cats"):
                    await engine.probe()

        asking = asyncio.create_task(ask_again_and_again())
        await asyncio.sleep(0.1)
        for _ in range(3):
            reply = await asyncio.wait_for(engine.score("a cat", PIXELS), 5.0)
            assert isinstance(reply.outcome, RewardScores)
        asking.cancel()


@in_loop
async def test_a_dead_thread_is_told_to_who_asks() -> None:
    async with running("tests.reward_service.engine.test_engine:Leaves") as engine:
        lost = asyncio.create_task(engine.score("leave", PIXELS))
        while (await engine.describe()).ready:
            await asyncio.sleep(0.01)
        with pytest.raises(RewardError, match="thread has ended"):
            await engine.probe()
        lost.cancel()
