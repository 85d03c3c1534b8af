"""Settings that change again before they are taken, and builds that fail for a while or hang."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reward_service.contract.results import RewardScores
from reward_service.engine import builds
from reward_service.engine.engine import WITHDRAWN
from tests.reward_service.engines import PIXELS, SCORERS, Recorder, in_loop, running
from tests.reward_service.scorers import Redness

GOOD = {"scorer": f"{SCORERS}:Redness"}


class NotYet(Redness):
    """Cannot be built the first `left` times."""

    version = "late"
    left = 0

    def __init__(self) -> None:
        NotYet.left -= 1
        if NotYet.left >= 0:
            raise OSError("out of GPU memory")


class Leaves(Redness):
    """Ends the program where it is built or scores, as command-line packages do that miss something."""

    def __init__(self, when: str) -> None:
        if when == "built":
            raise SystemExit("install the other package first")

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise SystemExit("install the other package first")


class Hangs(Redness):
    """Is not built before `go` is set."""

    version = "hung"
    go = threading.Event()

    def __init__(self, number: int) -> None:
        Hangs.go.wait(60.0)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Short pauses between tries, and nothing hangs afterwards."""
    monkeypatch.setattr(builds, "BUILD_PAUSE_S", 0.2)
    Hangs.go.clear()
    yield
    Hangs.go.set()


def hanging(number: int) -> dict[str, Any]:
    """Settings of a scorer whose build hangs until Hangs.go is set."""
    return {"scorer": f"{__name__}:Hangs", "options": {"number": number}}


def building() -> list[threading.Thread]:
    """Threads that build a scorer."""
    return [thread for thread in threading.enumerate() if thread.name == "builds mine"]


def slow(seconds: float, scale: float = 1.0) -> dict[str, Any]:
    """Settings of another scorer that takes a while to build."""
    return {"scorer": f"{SCORERS}:SlowToBuild", "options": {"seconds": seconds, "scale": scale}}


@in_loop
async def test_a_rollback_waits_for_nothing_and_what_it_withdraws_never_answers() -> None:
    meter = Recorder()
    async with running(GOOD["scorer"], meter=meter) as engine:
        before = await engine.describe()
        bad = asyncio.create_task(engine.change(hanging(0)))
        await asyncio.sleep(0.1)
        assert await engine.change(GOOD) == ""
        assert await bad == WITHDRAWN
        (builds_bad,) = building()
        Hangs.go.set()
        await asyncio.to_thread(builds_bad.join, 30.0)
        await asyncio.sleep(0.1)
        for _ in range(3):
            outcome = (await engine.score("a cat", PIXELS)).outcome
            assert isinstance(outcome, RewardScores)
            assert outcome.stamp == before.stamp
        assert (await engine.describe()).refused == ""
        assert meter.counts["refused"] == 0


@in_loop
async def test_the_newest_settings_win_although_older_ones_take_longer() -> None:
    async with running(GOOD["scorer"]) as engine:
        older = [asyncio.create_task(engine.change(slow(0.6 - 0.2 * row, scale=row))) for row in range(2)]
        await asyncio.sleep(0.05)
        assert await engine.change(slow(0.0, scale=7.0)) == ""
        assert await asyncio.gather(*older) == [WITHDRAWN, WITHDRAWN]
        await asyncio.sleep(1.0)
        assert engine.settings.options["scale"] == 7.0


@in_loop
async def test_settings_that_are_refused_withdraw_those_before_them_too() -> None:
    async with running(GOOD["scorer"]) as engine:
        older = asyncio.create_task(engine.change(slow(0.3)))
        await asyncio.sleep(0.05)
        assert "did you mean scorer" in await engine.change({"scorre": "clip"})
        assert await older == WITHDRAWN
        await asyncio.sleep(0.5)
        assert engine.settings.scorer == GOOD["scorer"]
        assert "did you mean scorer" in (await engine.describe()).refused


@in_loop
async def test_a_build_that_fails_for_a_while_is_tried_again() -> None:
    meter = Recorder()
    async with running(GOOD["scorer"], meter=meter) as engine:
        NotYet.left = builds.BUILD_TRIES - 1
        change = asyncio.create_task(engine.change({"scorer": f"{__name__}:NotYet"}))
        await asyncio.sleep(0.1)
        assert "out of GPU memory" in (await engine.describe()).refused
        assert "tried again" in (await engine.describe()).refused
        assert await change == ""
        described = await engine.describe()
        assert (described.stamp.version, described.refused) == ("late", "")
        assert (meter.counts["swapped"], meter.counts["refused"]) == (1, 0)


@in_loop
async def test_a_build_that_always_fails_is_refused_in_the_end() -> None:
    meter = Recorder()
    async with running(GOOD["scorer"], meter=meter) as engine:
        NotYet.left = 1_000
        reason = await engine.change({"scorer": f"{__name__}:NotYet"})
        assert NotYet.left == 1_000 - builds.BUILD_TRIES
        assert "out of GPU memory" in reason
        assert "tried again" not in reason
        assert (await engine.describe()).refused == reason
        assert meter.counts["refused"] == 1


@in_loop
async def test_newer_settings_end_the_tries() -> None:
    async with running(GOOD["scorer"]) as engine:
        NotYet.left = 1
        change = asyncio.create_task(engine.change({"scorer": f"{__name__}:NotYet"}))
        await asyncio.sleep(0.1)
        assert await engine.change(GOOD) == ""
        assert await change == WITHDRAWN
        await asyncio.sleep(0.4)
        assert (engine.settings.scorer, NotYet.left) == (GOOD["scorer"], 0)


@in_loop
async def test_settings_that_cannot_work_are_not_tried_again() -> None:
    async with running(GOOD["scorer"]) as engine:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(builds, "BUILD_PAUSE_S", 60.0)
            given = {"scorer": f"{SCORERS}:PromptLength", "options": {"scael": 2.0}}
            assert "cannot take options" in await engine.change(given)


@pytest.mark.parametrize("when", ["built", "checked"])
def test_a_scorer_that_ends_the_program_is_refused(when: str) -> None:
    @in_loop
    async def test() -> None:
        async with running(GOOD["scorer"]) as engine:
            reason = await engine.change({"scorer": f"{__name__}:Leaves", "options": {"when": when}})
            assert "install the other package first" in reason

    test()


@in_loop
async def test_builds_that_hang_are_few_and_one_that_ends_makes_room() -> None:
    async with running(GOOD["scorer"]) as engine:
        changes = []
        for number in range(builds.MOST_BUILDS):
            changes.append(asyncio.create_task(engine.change(hanging(number))))
            await asyncio.sleep(0.02)
        threads = building()
        assert len(threads) == builds.MOST_BUILDS
        assert "are still being built" in await engine.change(slow(0.0))
        assert await asyncio.gather(*changes) == [WITHDRAWN] * builds.MOST_BUILDS
        assert await engine.change(GOOD | {"timeout_s": 7.0}) == ""
        Hangs.go.set()
        for thread in threads:
            await asyncio.to_thread(thread.join, 30.0)
        assert await engine.change(slow(0.0)) == ""
