"""A group's life without Ray: the pool and the rewards answer as each test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import GetTimeoutError, ObjectLostError

import driver.loop.rollouts
from actors.actor import SampleReport
from actors.pool import Sampled, WeightsLost
from common.errors import RewardError, StuckError
from common.stopwatch import Busy
from common.trajectory import GroupScore, NoiseKey, PolicyStamp, PromptTask
from driver.loop.ranks import Published, RewindNeeded
from driver.loop.rollouts import FETCH_TRIES, IMAGE_TRIES, Group, Rollouts
from driver.loop.source import OnlineSource
from driver.run.prompts import PromptStream, open_prompts
from driver.stalls import StallReporter
from driver.stop import StopFlag, StopRequested
from reward_service.client.report import RewardReport
from reward_service.contract.results import RewardFailure
from tests.actors.processes import Reference, settle
from tests.scored_groups import pointwise
from tests.tiny_config import make_config
from tests.virtual_time import run

WEIGHTS: Any = "weights"
STAMP = PolicyStamp(0, "", "run")
SCORE = pointwise(np.array([1.0, 2.0]), {}, ())


def task(number: int) -> PromptTask:
    """Tasks differ by their number."""
    return PromptTask(f"a cat {number}", 2, NoiseKey(0, "train", 0, number), STAMP, True)


class Pool:
    """Samples when `gates` let it; keeps what was asked."""

    def __init__(self) -> None:
        self.sampled: list[PromptTask] = []
        self.errors: dict[int, BaseException] = {}
        self.black: set[int] = set()
        self.is_shut_down = False
        self.waiting, self.running = 0, 0

    async def sample(self, task: PromptTask, weights: Any) -> Sampled:
        """See ActorPool."""
        self.sampled.append(task)
        await asyncio.sleep(0.0)
        number = task.noise.prompt_index
        if number in self.errors:
            raise self.errors[number]
        trajectory: Any = Reference()
        images: Any = Reference()
        report = SampleReport(task.stamp, 2, "host:1", Busy(0.0, 1.0), 10, is_finite=number not in self.black)
        return Sampled(trajectory, images, report)

    def shutdown(self) -> None:
        """See ActorPool."""
        self.is_shut_down = True


class Rewards:
    """Answers after as many seconds, with what is said, by prompt."""

    def __init__(self) -> None:
        self.after: dict[str, float] = {}
        self.says: dict[str, GroupScore | RewardFailure] = {}
        self.asked_for: list[tuple[str, bool]] = []
        self.outstanding = 0
        self.refusals: list[str] = []

    async def score(
        self, prompt: str, images: Any, count: int, with_gold: bool = False
    ) -> GroupScore | RewardFailure:
        """See RewardSum."""
        self.asked_for.append((prompt, with_gold))
        self.outstanding += 1
        await asyncio.sleep(self.after.get(prompt, 0.0))
        self.outstanding -= 1
        return self.says.get(prompt, SCORE)

    def asked(self) -> dict[str, int]:
        """See RewardSum."""
        return {"only": self.outstanding}

    def take_asks(self) -> list[Any]:
        """See RewardSum."""
        return []

    def take_reports(self) -> dict[str, RewardReport]:
        """See RewardSum."""
        return {}

    def in_work(self) -> list[str]:
        """See RewardSum."""
        return []

    def take_refusals(self) -> list[str]:
        """See RewardSum."""
        told, self.refusals = self.refusals, []
        return told


class Bench:
    """Rollouts on such a pool and rewards."""

    def __init__(self, share: float = 0.0, stop: StopFlag | None = None) -> None:
        self.notes: list[str] = []
        self.pool, self.rewards = Pool(), Rewards()
        pool: Any = self.pool
        rewards: Any = self.rewards
        stalls = StallReporter(self.notes.append, lambda: asyncio.get_running_loop().time())
        self.rollouts = Rollouts(pool, rewards, share, stop or StopFlag(), stalls)

    async def collect(self, count: int, with_gold: bool = False) -> list[int]:
        """Begin and collect so many tasks: their numbers."""
        running = self.rollouts.begin([task(number) for number in range(count)], WEIGHTS, with_gold)
        return [group.task.noise.prompt_index async for group in self.rollouts.collect(running)]


@pytest.fixture(autouse=True)
def _images_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def there(reference: Any, limit_s: float = 0.0) -> str:
        return "images"

    monkeypatch.setattr(driver.loop.rollouts, "fetch", there)


def scenario(test: Callable[[Bench], Awaitable[None]], share: float = 0.0) -> None:
    """Run it in a loop, with virtual time."""

    async def work() -> None:
        await test(Bench(share))

    run(work())


def test_groups_come_in_prompt_order_whatever_order_they_are_scored_in() -> None:
    async def test(bench: Bench) -> None:
        bench.rewards.after = {task(number).prompt: 9.0 - number for number in range(6)}
        assert await bench.collect(6, with_gold=True) == list(range(6))
        assert bench.rewards.asked_for == [(task(number).prompt, True) for number in range(6)]
        assert bench.rollouts.in_flight().scored_images == 12
        assert [one.noise.prompt_index for one in bench.rollouts.take_history()] == list(range(5, -1, -1))

    scenario(test)


@pytest.mark.parametrize(("failing", "stops"), [((), False), ((3,), False), ((1, 3), True)])
def test_failed_scores_are_left_out_up_to_the_allowed_share(failing: tuple[int, ...], stops: bool) -> None:
    async def test(bench: Bench) -> None:
        bench.rewards.says = {task(number).prompt: RewardFailure(f"no {number}") for number in failing}
        if stops:
            with pytest.raises(RewardError, match=r"2 of 5 groups.*max_dropped_share = 0\.2.*no 3"):
                await bench.collect(5)
        else:
            assert await bench.collect(5) == [number for number in range(5) if number not in failing]
        assert bench.rollouts.dropped == len(failing)
        # The first of an epoch tells why.
        assert [f"no {failing[0]}" in note for note in bench.notes] == [True] if failing else not bench.notes

    scenario(test, share=0.2)


def test_black_images_of_an_evaluation_are_no_score_and_those_of_training_the_learners() -> None:
    async def test(bench: Bench) -> None:
        bench.pool.black = {1}
        assert await bench.collect(3) == [0, 1, 2]
        measured = [replace(task(n), noise=NoiseKey(0, "unseen", 0, n)) for n in range(3)]
        running = bench.rollouts.begin(measured, WEIGHTS, with_gold=True)
        found = [group.task.noise.prompt_index async for group in bench.rollouts.collect(running)]
        assert (found, bench.rollouts.dropped) == ([0, 2], 1)

    scenario(test, share=0.5)


def test_lost_images_are_sampled_again_and_after_five_times_count_as_a_failed_score(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lost(_reference: Any, _limit_s: float = 0.0) -> None:
        raise ObjectLostError("00", None, "")

    monkeypatch.setattr(driver.loop.rollouts, "fetch", lost)

    async def test(bench: Bench) -> None:
        bench.rewards.says = {task(0).prompt: RewardFailure("its images are lost")}
        assert await bench.collect(2) == [1]
        assert bench.pool.sampled.count(task(0)) == 1 + IMAGE_TRIES
        assert bench.rollouts.dropped == 1

    scenario(test, share=0.5)


def test_what_stops_one_group_stops_the_run_before_others_are_there() -> None:
    async def test(bench: Bench) -> None:
        bench.rewards.after = {task(0).prompt: 1e6}
        bench.pool.errors = {2: StuckError("actors")}
        with pytest.raises(StuckError, match="actors"):
            await bench.collect(3)
        assert asyncio.get_running_loop().time() < 1.0
        bench.rollouts.forget()
        bench.pool.errors, bench.rewards.after = {}, {}
        assert await bench.collect(3) == [0, 1, 2]

    scenario(test)


def test_lost_weights_make_the_run_go_back() -> None:
    async def test(bench: Bench) -> None:
        bench.pool.errors = {0: WeightsLost()}
        with pytest.raises(RewindNeeded, match="weights version 0"):
            await bench.collect(1)

    scenario(test)


def test_a_stop_is_noticed_while_groups_are_waited_for() -> None:
    async def test(bench: Bench) -> None:
        bench.rewards.after = {task(0).prompt: 1e6}
        asyncio.get_running_loop().call_later(5.0, bench.rollouts._stop._handle, 15, None)
        with pytest.raises(StopRequested):
            await bench.collect(1)
        bench.rollouts.end_sampling()
        assert bench.pool.is_shut_down

    scenario(test)


def test_what_is_forgotten_comes_to_nothing() -> None:
    async def test(bench: Bench) -> None:
        bench.rewards.after = {task(number).prompt: 3.0 for number in range(3)}
        running = bench.rollouts.begin([task(number) for number in range(3)], WEIGHTS, with_gold=False)
        await settle()
        bench.rollouts.forget()
        await asyncio.sleep(10.0)
        assert all(one.cancelled() for one in running)
        assert bench.rollouts.in_flight().scored == 0

    scenario(test)


def test_who_is_stuck_is_said_while_nothing_moves() -> None:
    async def test(bench: Bench) -> None:
        bench.rewards.after = {task(0).prompt: 100.0}
        bench.pool.in_work = lambda: ["actor 3 has it"]  # type: ignore[attr-defined]
        counted: list[int] = []
        watching = asyncio.ensure_future(
            bench.rollouts.watch(lambda found: counted.append(found.rewards), lambda: ["rank 1 too"])
        )
        bench.rewards.refusals = ["no such scorer"]
        assert await bench.collect(1) == [0]
        watching.cancel()
        assert bench.notes.pop(0) == "no such scorer"
        assert [note[22:26] for note in bench.notes] == ["30 s", "90 s"]
        assert "actor 3 has it; rank 1 too" in bench.notes[0]
        assert set(counted[:99]) == {1}
        assert len(counted) == pytest.approx(100, abs=2)

    scenario(test)


def test_an_object_that_does_not_come_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    async def never(reference: Any, limit_s: float = 0.0) -> None:
        tries.append(reference)
        raise GetTimeoutError

    monkeypatch.setattr(driver.loop.rollouts, "fetch", never)

    async def test(bench: Bench) -> None:
        with pytest.raises(StuckError, match="for the images to come to the driver"):
            await bench.rollouts.fetch(WEIGHTS, "the images")
        assert tries == [WEIGHTS] * FETCH_TRIES

    scenario(test)


def test_a_recorded_group_cannot_be_sampled_again() -> None:
    async def test(bench: Bench) -> None:
        report = SampleReport(STAMP, 2, "recorded", Busy(0.0, 0.0), 0)
        with pytest.raises(StuckError, match="recorded group"):
            await bench.rollouts.sample_again(Group(task(0), None, WEIGHTS, None, SCORE, report))

    scenario(test)


@pytest.mark.parametrize(
    ("staleness", "versions"),
    [(0, [0, 1, 2, 3, 4]), (1, [0, 0, 1, 2, 3]), (2, [0, 0, 0, 1, 2])],
)
def test_each_epoch_is_sampled_with_the_weights_that_staleness_allows(
    tmp_path: Path, staleness: int, versions: list[int]
) -> None:
    settings = {"run.epochs": 5, "data": {"max_staleness": staleness}}
    config = make_config(Path("no/model"), tmp_path, settings)
    stream = PromptStream(open_prompts(config.prompts.train), config.run.seed)

    async def test(bench: Bench) -> None:
        source = OnlineSource(config, stream, bench.rollouts, with_reference=True)
        learned = []
        for epoch in range(5):
            source.prepare(epoch, Published(WEIGHTS, PolicyStamp(epoch, "", "run"), 0))
            groups = [group async for group in source.groups(epoch)]
            assert {group.task.noise.epoch for group in groups} == {epoch}
            learned += [group.task.stamp.version for group in groups]
        assert learned == [version for version in versions for _ in range(2)]
        assert [one.prompt for one in bench.pool.sampled] == [prompt for _, prompt in stream.take(0, 10)]

    scenario(test)
