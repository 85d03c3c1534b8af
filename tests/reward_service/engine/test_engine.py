"""The engine: batches, back-pressure, the clock, health, and settings that change under load."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import RewardError
from common.trajectory import RewardScores
from reward_service.contract.results import BusyError, Reply, RewardFailure
from reward_service.engine import build
from reward_service.engine import engine as engine_module
from reward_service.engine.engine import WITHDRAWN
from tests.reward_service.engines import PIXELS, SCORERS, Ends, Recorder, in_loop, running
from tests.reward_service.scorers import PromptLength, Redness

MODEL = Path(__file__).parents[3] / "models" / "tiny-clip-proxy"


class Gated(Redness):
    """Waits with prompts that begin with "wait" until it may go on."""

    entered = threading.Event()
    may_go_on = threading.Event()

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        if prompts[0].startswith("wait"):
            Gated.entered.set()
            assert Gated.may_go_on.wait(30.0)
        return super().score(prompts, images)


class GatedBuild(Redness):
    """Is built once it may be."""

    entered = threading.Event()
    may_go_on = threading.Event()

    def __init__(self) -> None:
        GatedBuild.entered.set()
        assert GatedBuild.may_go_on.wait(30.0)

    version = "gated"


@pytest.fixture(autouse=True)
def _closed_gates() -> None:
    for gated in (Gated, GatedBuild):
        gated.entered.clear()
        gated.may_go_on.clear()


async def wait_for(event: threading.Event) -> None:
    """Until something in another thread has happened."""
    assert await asyncio.to_thread(event.wait, 30.0)


class Fickle(Redness):
    """Works until `broken` is set."""

    broken = False

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        if Fickle.broken:
            raise RuntimeError("out of memory")
        return super().score(prompts, images)


class Counted(Redness):
    """Counts its calls."""

    calls = 0

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        type(self).calls += 1
        return super().score(prompts, images)


class Held(Counted):
    """Counts its calls, and answers once it may."""

    may_go_on = threading.Event()

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        assert Held.may_go_on.wait(30.0)
        return super().score(prompts, images)


class Paid(Counted):
    """Somebody has to pay for its calls."""

    paid = True


class Leaves(Redness):
    """Ends its thread when it is told to."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        if "leave" in prompts:
            raise GeneratorExit
        return super().score(prompts, images)


def scores_of(reply: Reply) -> RewardScores:
    """Its scores; there must be some."""
    assert isinstance(reply.outcome, RewardScores), reply.outcome
    return reply.outcome


@in_loop
async def test_groups_that_come_together_are_scored_together_and_in_order() -> None:
    meter = Recorder()
    async with running(
        f"{SCORERS}:PromptLength", meter=meter, max_batch_groups=8, batch_wait_s=0.2
    ) as engine:
        replies = await asyncio.gather(*[engine.score("a" * count, PIXELS) for count in range(1, 17)])
    for count, reply in enumerate(replies, start=1):
        np.testing.assert_allclose(
            scores_of(reply).rewards, PromptLength().score(["a" * count] * 3, PIXELS), rtol=1e-12
        )
        assert reply.shadow is None
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
        alone = [scores_of(await engine.score(*group)).rewards for group in groups]
        together = await asyncio.gather(*[engine.score(*group) for group in reversed(groups)])
    for rewards, reply in zip(reversed(alone), together, strict=True):
        np.testing.assert_array_equal(scores_of(reply).rewards, rewards)


@in_loop
async def test_a_full_queue_turns_groups_away_and_says_when_to_come_again() -> None:
    meter = Recorder()
    async with running(f"{__name__}:Gated", meter=meter, max_batch_groups=1, queue_groups=2) as engine:
        first = asyncio.create_task(engine.score("wait", PIXELS))
        await wait_for(Gated.entered)
        asked = [asyncio.create_task(engine.score("a cat", PIXELS)) for _ in range(5)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        Gated.may_go_on.set()
        answers = await asyncio.gather(first, *asked, return_exceptions=True)
        busy = [answer for answer in answers if isinstance(answer, BusyError)]
        assert len(busy) == 3
        assert all(0.0 < error.retry_after_s <= 30.0 for error in busy)
        assert meter.counts["turned_away"] == 3
        assert isinstance((await engine.score("a cat", PIXELS)).outcome, RewardScores)


@in_loop
async def test_a_group_nobody_waits_for_any_more_is_not_scored() -> None:
    meter = Recorder()
    async with running(f"{__name__}:Gated", meter=meter, max_batch_groups=1) as engine:
        first = asyncio.create_task(engine.score("wait", PIXELS))
        await wait_for(Gated.entered)
        given_up = asyncio.create_task(engine.score("a cat", PIXELS))
        await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        Gated.may_go_on.set()
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
                scores = scores_of(await engine.score("abcd", PIXELS))
                rewards = scores.rewards - PIXELS[..., 2].mean(axis=(1, 2)) / 255.0
                assert np.ptp(rewards) < 1e-9
                seen.append((scores.stamp.digest, float(rewards[0])))

        clients = [asyncio.create_task(client()) for _ in range(8)]
        digests = {(await engine.describe()).stamp.digest: 1.0}
        for scale in (2.0, 3.0, 1.0, 5.0):
            given = {"scorer": f"{SCORERS}:PromptLength", "options": {"scale": scale}, "max_batch_groups": 2}
            assert await engine.change(given) == ""
            digests[(await engine.describe()).stamp.digest] = scale
            answered = len(seen)
            while len(seen) < answered + 16:
                await asyncio.sleep(0)
        stop.set()
        await asyncio.gather(*clients)
    wanted = {(digest, round(4.0 * scale, 6)) for digest, scale in digests.items()}
    # Options that are written out make another stamp than those left at their default.
    assert {(digest, round(reward, 6)) for digest, reward in seen} <= wanted
    assert len({digest for digest, _ in seen}) >= 4
    assert meter.counts["swapped"] == 4
    assert meter.counts["answered"] == len(seen)


@in_loop
async def test_the_newest_settings_win_even_where_they_are_refused() -> None:
    async with running(f"{SCORERS}:Redness") as engine:
        older = asyncio.create_task(engine.change({"scorer": f"{__name__}:GatedBuild"}))
        await wait_for(GatedBuild.entered)
        assert "no such model" in await engine.change({"scorer": f"{SCORERS}:Unbuildable"})
        assert await older == WITHDRAWN
        newer = asyncio.create_task(engine.change({"scorer": f"{__name__}:GatedBuild"}))
        await asyncio.sleep(0)
        # It is built beside the old one, which answers until then.
        assert scores_of(await engine.score("a cat", PIXELS)).stamp.version == "1"
        GatedBuild.may_go_on.set()
        assert await newer == ""
        assert scores_of(await engine.score("a cat", PIXELS)).stamp.version == "gated"
        assert await engine.change({"scorer": f"{SCORERS}:Redness", "timeout_s": 7.0}) == ""
        assert engine.settings.timeout_s == 7.0
        assert scores_of(await engine.score("a cat", PIXELS)).stamp.version == "1"


@in_loop
async def test_a_scorer_that_is_not_ready_in_time_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BUILD_LIMIT_S", 0.05)
    with pytest.raises(RewardError, match="not ready"):
        async with running(f"{__name__}:GatedBuild"):
            pass
    GatedBuild.may_go_on.set()
    with pytest.raises(RewardError, match=r"'mine'.*no such model"):
        async with running(f"{SCORERS}:Unbuildable"):
            pass


@in_loop
async def test_settings_that_cannot_work_change_nothing_and_say_why() -> None:
    meter = Recorder()
    async with running(f"{SCORERS}:Redness", meter=meter) as engine:
        before = await engine.describe()
        refusals = {
            "scorer": {"scorre": "clip"},
            "no such model": {"scorer": f"{SCORERS}:Unbuildable"},
            "alone": {"scorer": f"{SCORERS}:Careless"},
        }
        for reason, given in refusals.items():
            assert reason in await engine.change(given)
            description = await engine.describe()
            assert reason in description.refused
            assert (description.stamp, description.settings) == (before.stamp, before.settings)
        assert scores_of(await engine.score("a cat", PIXELS)).stamp == before.stamp
        assert meter.counts == {"swapped": 0, "refused": 3, "turned_away": 0, "answered": 1}
        assert await engine.change({"scorer": f"{SCORERS}:Redness", "version": "b"}) == ""
        assert (await engine.describe()).refused == ""
        assert scores_of(await engine.score("a cat", PIXELS)).stamp.version == "1+b"


@in_loop
async def test_a_scorer_that_takes_too_long_ends_the_process_in_time() -> None:
    ends = Ends()
    async with running(f"{__name__}:Gated", ends, timeout_s=0.5) as engine:
        hanging = asyncio.create_task(engine.score("wait", PIXELS))
        await wait_for(ends.happened)
        assert "more than 0.5 s" in ends.reasons[0]
        Gated.may_go_on.set()
        await hanging
        await engine.score("a cat", PIXELS)
        assert len(ends.reasons) == 1


@in_loop
async def test_a_scorer_that_ends_its_thread_ends_the_process() -> None:
    ends = Ends()
    async with running(f"{__name__}:Leaves", ends) as engine:
        lost = asyncio.create_task(engine.score("leave", PIXELS))
        await wait_for(ends.happened)
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
        await engine.check_health()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_module, "PROOF_LASTS_S", 0.0)
            assert 0.0 <= await engine.probe() < 30.0
        assert Paid.calls == 1


@in_loop
async def test_all_who_ask_whether_it_works_share_one_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PROOF_LASTS_S", 0.0)
    Held.may_go_on.set()
    async with running(f"{__name__}:Held") as engine:
        Held.may_go_on.clear()
        Held.calls = 0
        asking = [asyncio.create_task(engine.probe()) for _ in range(50)]
        await asyncio.sleep(0)
        Held.may_go_on.set()
        await asyncio.gather(*asking)
        assert Held.calls == 1


@in_loop
async def test_a_group_that_is_scored_meanwhile_is_proof_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PROOF_LASTS_S", 0.0)
    async with running(f"{__name__}:Gated") as engine:
        scored = asyncio.create_task(engine.score("wait", PIXELS))
        await wait_for(Gated.entered)
        asked = asyncio.create_task(engine.probe())
        await asyncio.sleep(0)
        Gated.may_go_on.set()
        scores_of(await scored)
        assert await asked < 30.0


PROCESS = """
import asyncio, sys
import numpy as np
import reward_service.on_ray.app
from reward_service.engine.engine import Engine, end_process
from reward_service.engine.meter import Meter
from reward_service.contract.settings import ServedReward

async def main():
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    small = ServedReward(scorer="jpeg_compressibility")
    engine = await Engine.start("it", small, end_process, Meter())
    await engine.score("a cat", pixels)
    print("torch" in sys.modules)
    for threads in (3, 5):
        settings = {"scorer": "tests.reward_service.scorers:Threads", "threads": threads}
        print(await engine.change(settings), (await engine.score("a cat", pixels)).outcome.rewards)
    engine.close()

asyncio.run(main())
"""


def test_torch_is_loaded_where_a_scorer_uses_it_and_has_its_threads() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], cwd=root, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split("\n") == ["False", " [3. 3.]", " [5. 5.]", ""]
