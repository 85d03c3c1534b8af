"""The engine: batches, back-pressure, the clock, health, and settings that change under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import RewardError
from reward_service.contract.results import BusyError, NoShadow, Reply, RewardFailure, RewardScores
from reward_service.engine import builds
from reward_service.engine import engine as engine_module
from tests.reward_service.engines import PIXELS, SCORERS, Ends, Recorder, in_loop, running
from tests.reward_service.scorers import Moody, PromptLength, Redness

MODEL = Path(__file__).parents[3] / "models" / "tiny-clip-proxy"


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be built is tried again at once."""
    monkeypatch.setattr(builds, "BUILD_PAUSE_S", 0.0)


class Fickle(Redness):
    """Works until `broken` is set."""

    broken = False

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        if Fickle.broken:
            raise RuntimeError("out of memory")
        return super().score(prompts, images)


class Paid(Redness):
    """Counts what somebody would have to pay."""

    paid = True
    calls = 0

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        Paid.calls += 1
        return super().score(prompts, images)


class OneByOne(Redness):
    """Takes a while, and refuses some prompts in company."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        time.sleep(0.2 if prompts[0].startswith("alone") else 0.0)
        if len({prompt for prompt in prompts if prompt.startswith("alone")}) > 1:
            raise RuntimeError("one prompt at a time")
        return super().score(prompts, images)


class Leaves(Redness):
    """Ends its thread when it is told to."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        if "leave" in prompts:
            raise SystemExit
        return super().score(prompts, images)


def part_of(reply: Reply) -> RewardScores:
    """Its part; there must be one."""
    assert isinstance(reply.outcome, RewardScores), reply.outcome
    return reply.outcome


async def outcome_of(answer: Awaitable[Reply]) -> RewardScores | RewardFailure:
    """Of a reply."""
    return (await answer).outcome


@in_loop
async def test_groups_that_come_together_are_scored_together_and_in_order() -> None:
    meter = Recorder()
    async with running(
        f"{SCORERS}:PromptLength", meter=meter, max_batch_groups=8, batch_wait_s=0.2
    ) as engine:
        replies = await asyncio.gather(*[engine.score("a" * count, PIXELS) for count in range(1, 17)])
    for count, reply in enumerate(replies, start=1):
        np.testing.assert_allclose(
            part_of(reply).rewards, PromptLength().score(["a" * count] * 3, PIXELS), rtol=1e-12
        )
        assert isinstance(reply.shadow, NoShadow)
        assert reply.busy_s > 0.0
    assert meter.batches == [(8, 0), (8, 0)]
    assert meter.counts["answered"] == 16


@in_loop
async def test_by_default_a_score_is_the_same_to_the_bit_in_any_company() -> None:
    generator = np.random.default_rng(3)
    groups = [
        (f"a cat and {row} dogs", generator.integers(0, 256, (3 + row, 64, 64, 3), dtype=np.uint8))
        for row in range(4)
    ]
    async with running("clip", options={"path": str(MODEL)}) as engine:
        alone = [part_of(await engine.score(*group)).rewards for group in groups]
        together = await asyncio.gather(*[engine.score(*group) for group in reversed(groups)])
    for rewards, reply in zip(reversed(alone), together, strict=True):
        np.testing.assert_array_equal(part_of(reply).rewards, rewards)


@in_loop
async def test_a_full_queue_turns_groups_away_and_says_when_to_come_again() -> None:
    meter = Recorder()
    async with running(f"{SCORERS}:Moody", meter=meter, max_batch_groups=1, queue_groups=2) as engine:
        first = asyncio.create_task(engine.score("nap now", PIXELS))
        await asyncio.sleep(0.1)
        answers = await asyncio.gather(
            *[engine.score("a cat", PIXELS) for _ in range(5)], return_exceptions=True
        )
        await first
        busy = [answer for answer in answers if isinstance(answer, BusyError)]
        assert len(busy) == 3
        assert all(0.0 < error.retry_after_s <= 30.0 for error in busy)
        assert meter.counts["turned_away"] == 3
        assert isinstance((await engine.score("a cat", PIXELS)).outcome, RewardScores)


@in_loop
async def test_a_group_nobody_waits_for_any_more_is_not_scored() -> None:
    meter = Recorder()
    async with running(f"{SCORERS}:Moody", meter=meter, max_batch_groups=1) as engine:
        first = asyncio.create_task(engine.score("nap now", PIXELS))
        await asyncio.sleep(0.05)
        given_up = asyncio.create_task(engine.score("a cat", PIXELS))
        await asyncio.sleep(0.05)
        given_up.cancel()
        await first
        await engine.score("a dog", PIXELS)
    assert meter.batches == [(1, 0), (1, 0)]


@in_loop
async def test_settings_that_change_under_load_lose_nothing_and_never_mix() -> None:
    meter = Recorder()
    async with running(f"{SCORERS}:PromptLength", meter=meter, batch_wait_s=0.001) as engine:
        seen: list[tuple[str, float]] = []
        stop = asyncio.Event()

        async def client() -> None:
            while not stop.is_set():
                part = part_of(await engine.score("abcd", PIXELS))
                rewards = part.rewards - PIXELS[..., 2].mean(axis=(1, 2)) / 255.0
                assert np.ptp(rewards) < 1e-9
                seen.append((part.stamp.digest, float(rewards[0])))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        digests = {(await engine.describe()).stamp.digest: 1.0}
        for scale in (2.0, 3.0, 1.0, 5.0):
            given = {"scorer": f"{SCORERS}:PromptLength", "options": {"scale": scale}, "max_batch_groups": 2}
            assert await engine.change(given) == ""
            digests[(await engine.describe()).stamp.digest] = scale
            await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*clients)
    wanted = {(digest, round(4.0 * scale, 6)) for digest, scale in digests.items()}
    # Options that are written out make another stamp than those left at their default.
    assert {(digest, round(reward, 6)) for digest, reward in seen} <= wanted
    assert len({digest for digest, _ in seen}) >= 4
    assert meter.counts["swapped"] == 4
    assert meter.counts["answered"] == len(seen)


@in_loop
async def test_a_slow_new_scorer_is_built_beside_the_old_one() -> None:
    async with running(f"{SCORERS}:Redness") as engine:
        change = asyncio.create_task(
            engine.change({"scorer": f"{SCORERS}:SlowToBuild", "options": {"seconds": 0.5}})
        )
        waits = []
        while not change.done():
            started = time.monotonic()
            part_of(await engine.score("a cat", PIXELS))
            waits.append(time.monotonic() - started)
        assert len(waits) > 5
        assert max(waits) < 0.3
        assert part_of(await engine.score("a cat", PIXELS)).stamp.version == "2"


@in_loop
async def test_settings_that_cannot_work_change_nothing_and_say_why() -> None:
    meter = Recorder()
    async with running(f"{SCORERS}:Redness", meter=meter) as engine:
        before = await engine.describe()
        refusals = {
            "did you mean scorer": {"scorre": "clip"},
            "no such model on this machine": {"scorer": f"{SCORERS}:Unbuildable"},
            "scores a picture otherwise": {"scorer": f"{SCORERS}:Careless"},
        }
        for reason, given in refusals.items():
            assert reason in await engine.change(given)
            description = await engine.describe()
            assert reason in description.refused
            assert (description.stamp, description.settings) == (before.stamp, before.settings)
        assert part_of(await engine.score("a cat", PIXELS)).stamp == before.stamp
        assert meter.counts == {"swapped": 0, "refused": 3, "turned_away": 0, "answered": 1}
        assert await engine.change({"scorer": f"{SCORERS}:Redness", "version": "b"}) == ""
        assert (await engine.describe()).refused == ""
        assert part_of(await engine.score("a cat", PIXELS)).stamp.version == "1+b"


@in_loop
async def test_limits_change_without_a_new_scorer() -> None:
    async with running(f"{SCORERS}:SlowToBuild", options={"seconds": 0.0}) as engine:
        started = time.monotonic()
        given = {"scorer": f"{SCORERS}:SlowToBuild", "options": {"seconds": 0.0}, "timeout_s": 7.0}
        assert await engine.change(given) == ""
        assert engine.settings.timeout_s == 7.0
        assert time.monotonic() - started < 0.5


@in_loop
async def test_a_scorer_that_takes_too_long_ends_the_process_in_time() -> None:
    ends = Ends()
    async with running(f"{SCORERS}:Moody", ends, timeout_s=0.1) as engine:
        hanging = asyncio.create_task(engine.score("nap now", PIXELS))
        assert await asyncio.to_thread(ends.happened.wait, 5.0)
        assert ends.reasons == ["Reward 'mine' has worked for more than 0.1 s on a batch; the process ends."]
        await hanging
        await engine.score("a cat", PIXELS)
        assert len(ends.reasons) == 1


@in_loop
async def test_time_runs_for_each_call_and_not_for_a_batch_and_its_repetition_together() -> None:
    ends = Ends()
    async with running(
        f"{__name__}:OneByOne", ends, timeout_s=1.0, max_batch_groups=8, batch_wait_s=0.3
    ) as engine:
        replies = await asyncio.gather(*[engine.score(f"alone {number}", PIXELS) for number in range(8)])
        assert all(isinstance(reply.outcome, RewardScores) for reply in replies)
        assert ends.reasons == []


@in_loop
async def test_a_scorer_that_ends_its_thread_ends_the_process() -> None:
    ends = Ends()
    async with running(f"{__name__}:Leaves", ends) as engine:
        lost = asyncio.create_task(engine.score("leave", PIXELS))
        assert await asyncio.to_thread(ends.happened.wait, 5.0)
        with pytest.raises(RewardError, match="thread has ended"):
            await engine.check_health()
        assert not (await engine.describe()).ready
        lost.cancel()


@in_loop
async def test_health_is_a_forward_pass_after_idle_time_or_failures() -> None:
    meter = Recorder()
    async with running(f"{__name__}:Fickle", meter=meter) as engine:
        Fickle.broken = True
        try:
            await engine.check_health()
            assert await engine.change({"scorer": f"{__name__}:Fickle", "probe_idle_s": 1e-6}) == ""
            for _ in range(3):
                with pytest.raises(RewardError, match="out of memory"):
                    await engine.check_health()
            assert isinstance((await engine.score("a cat", PIXELS)).outcome, RewardFailure)
            with pytest.raises(RewardError, match="out of memory"):
                await engine.check_health()
            assert await engine.change({"scorer": f"{__name__}:Fickle", "probe_idle_s": 0.0}) == ""
            await engine.check_health()
            Fickle.broken = False
            assert await engine.change({"scorer": f"{__name__}:Fickle", "probe_idle_s": 1e-6}) == ""
            await engine.check_health()
            await engine.probe()
        finally:
            Fickle.broken = False
    assert meter.batches == [(1, 1)]


@in_loop
async def test_a_scorer_that_is_paid_is_never_asked_for_its_health() -> None:
    async with running(f"{__name__}:Paid", probe_idle_s=1e-6) as engine:
        Paid.calls = 0
        await engine.score("a cat", PIXELS)
        await asyncio.sleep(0.1)
        await engine.check_health()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_module, "PROOF_LASTS_S", 0.0)
            assert 0.1 <= await engine.probe() < 10.0
        assert Paid.calls == 1


@in_loop
async def test_what_cannot_start_tells_why() -> None:
    with pytest.raises(RewardError, match=r"Reward 'mine': .*no such model on this machine"):
        async with running(f"{SCORERS}:Unbuildable"):
            pass
    with pytest.raises(RewardError, match="scores a picture otherwise"):
        async with running(f"{SCORERS}:Careless"):
            pass


@in_loop
async def test_one_group_may_fail_beside_others() -> None:
    assert Moody().version == "1"
    async with running(f"{SCORERS}:Moody", batch_wait_s=0.2) as engine:
        good, bad = await asyncio.gather(
            outcome_of(engine.score("a cat", PIXELS)), outcome_of(engine.score("raise now", PIXELS))
        )
    assert isinstance(good, RewardScores)
    assert isinstance(bad, RewardFailure)
    assert "the judge is out" in bad.reason


@in_loop
async def test_closing_cancels_what_waits() -> None:
    async with running(f"{SCORERS}:Moody", max_batch_groups=1) as engine:
        working = asyncio.create_task(engine.score("nap now", PIXELS))
        await asyncio.sleep(0.05)
        waiting = asyncio.create_task(engine.score("a cat", PIXELS))
        await asyncio.sleep(0.05)
        engine.close()
        part_of(await working)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(BusyError):
            await engine.score("a dog", PIXELS)
