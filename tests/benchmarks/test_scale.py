"""Simulated actors behave as the driver expects, and figures are computed right from what rows print."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.scale import ALONE, GPU, RATE, THIN, Found, Plan, at_least_two, main, table, verdicts
from benchmarks.scale_parts import ActorHost, LearnerHost, Share, Sizes, spread
from benchmarks.scale_run import ACTORS_A_RANK, REWARD_SECONDS, ROLES, Row
from common.model.weights import Weights
from common.trajectory import GroupScore, NoiseKey, PolicyStamp, PromptTask

SIZES = Sizes(images=2, steps=4, latent=4, pixels=8, weight_bytes=16)
STAMP = PolicyStamp(3, "d", "r")


def task_of(index: int) -> PromptTask:
    """Tasks differ in their prompt's index."""
    return PromptTask("a cat", 2, NoiseKey(0, "train", 1, index), STAMP, with_reference=True)


async def sampled(host: ActorHost, seat: int, index: int) -> Any:
    """One task done by one seat."""
    return await host.sample(seat, task_of(index), Weights(STAMP, {}))


def test_an_actor_does_one_task_at_a_time_and_many_actors_work_at_once() -> None:
    async def both() -> tuple[float, float]:
        host = ActorHost(SIZES, seconds=0.1, jitter=0.0)
        began = time.monotonic()
        await asyncio.gather(*(sampled(host, seat, seat) for seat in range(20)))
        at_once = time.monotonic() - began
        await asyncio.gather(*(sampled(host, 0, index) for index in range(3)))
        return at_once, time.monotonic() - began - at_once

    at_once, in_turn = asyncio.run(both())
    assert 0.1 <= at_once < 1.0
    assert in_turn >= 0.29


def test_what_an_actor_returns_has_the_real_size_and_names_its_task() -> None:
    trajectory, pictures, report = asyncio.run(sampled(ActorHost(SIZES, 0.0, 0.0), 5, 7))
    assert trajectory.latents.nbytes + pictures.nbytes == SIZES.group_bytes
    assert trajectory.noise == task_of(7).noise
    assert trajectory.stamp == report.stamp == STAMP
    assert report.nbytes == trajectory.nbytes + pictures.nbytes


def test_the_learner_measures_from_sampled_to_accumulated() -> None:
    async def learn() -> tuple[list[float], list[PolicyStamp], list[int]]:
        host = LearnerHost(SIZES, seconds=0.05)
        trajectory, _, _ = await sampled(ActorHost(SIZES, 0.0, 0.0), 0, 0)
        score = GroupScore.pointwise([0.0, 1.0], {}, ())  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        await asyncio.gather(*(host.accumulate(rank, trajectory, score) for rank in (0, 0, 1)))
        reports = [await host.finish_update(rank) for rank in (0, 1)]
        stamp, weights = await host.publish(0)
        stamps = [stamp, weights.stamp, await host.agree(1)]
        return await host.take_latencies(), stamps, [one.version for one in reports]

    latencies, stamps, versions = asyncio.run(learn())
    assert len(latencies) == 3
    assert min(latencies) >= 0.1
    assert 0.15 <= max(latencies) < 2.0
    assert versions == [1, 1]
    assert len(set(stamps)) == 1


class Handle:
    """As much of a Ray handle as a Share uses: it says how it was called."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    @property
    def sample(self) -> Handle:
        """A method."""
        return self

    def options(self, **options: Any) -> Handle:
        """With options."""
        return Handle(**options)

    def remote(self, *arguments: Any) -> tuple[Any, ...]:
        """What arrives."""
        return (*arguments, self._options)


def test_a_share_puts_its_number_before_the_arguments() -> None:
    share = Share(Handle(), 42)
    assert share.sample.remote("task") == (42, "task", {})
    assert share.sample.options(num_returns=3).remote("a", "b") == (42, "a", "b", {"num_returns": 3})


def test_times_spread_evenly_around_the_mean() -> None:
    values = sorted(spread(task_of(index)) for index in range(400))
    assert -1.0 <= values[0] < -0.95
    assert 0.95 < values[-1] <= 1.0
    assert abs(sum(values) / 400) < 0.1
    assert spread(task_of(1)) == spread(task_of(1))


def answer(row: Row, driver_ms: float, epoch_s: float) -> dict[str, Any]:
    """What a row's process prints, of two epochs of which one is measured."""

    def mark(at: float, share: float) -> dict[str, Any]:
        cpu = {"driver": 5.0 + share * driver_ms * row.groups / 1e3, "others": 0.0}
        return {"at": at, "cpu_s": cpu | dict.fromkeys(ROLES, 1.0 + share), "memory": 10**6}

    return {"marks": [mark(100.0, 0.0), mark(100.0 + epoch_s, 1.0)], "latencies": [0.3, 0.1, 0.2]}


def test_figures_of_a_row() -> None:
    row = Row(10, 2.0, 0.5, 5, 1, 2, THIN, 1.0)
    found = Found.of(row, answer(row, driver_ms=4.0, epoch_s=20.0))
    assert found.cpu_ms["driver"] == pytest.approx(4.0)
    assert found.cpu_ms["raylet"] == pytest.approx(1e3 / 50)
    assert found.epoch_s == (20.0,)
    assert found.latency_s == (0.1, 0.2, 0.3)
    assert [found.latency(share) for share in (0.0, 0.5, 1.0)] == [0.1, 0.2, 0.3]
    assert found.ideal_s == pytest.approx(10.0 + REWARD_SECONDS + 0.7 * 2.0)
    assert ACTORS_A_RANK * row.learn_seconds == pytest.approx(1.4)
    head, rule, line = table([found]).splitlines()
    assert head.count("|") == rule.count("|") == line.count("|")
    assert "**4.00 ms**" in line


@pytest.mark.parametrize(("large_ms", "met"), [(4.0, True), (4.9, True), (5.1, False)])
def test_the_cost_must_not_grow_by_more_than_a_quarter(large_ms: float, met: bool) -> None:
    small, large = (Row(count, 1.0, 0.5, 2, 1, 2, THIN, 1.0) for count in (10, 1000))
    found = [Found.of(small, answer(small, 4.0, 9.0)), Found.of(large, answer(large, large_ms, 9.0))]
    assert [one.met for one in verdicts(found)] == [met]


def test_rows_offer_the_same_rate_and_real_objects_where_they_fit() -> None:
    rows = Plan((10, 100, 1000), rate=50.0, epochs=2, store_gb=10.0).rows()
    assert {round(row.actors / row.seconds, 6) for row in rows[RATE]} == {50.0}
    assert {row.sizes for row in rows[RATE]} == {THIN}
    assert rows[ALONE] == (replace(rows[RATE][0], hosts=10),)
    sizes = [row.sizes for row in rows[GPU]]
    assert sizes[0] == sizes[1] == replace(THIN, latent=64, pixels=512, weight_bytes=sizes[0].weight_bytes)
    assert sizes[2] == THIN
    assert len({row.seconds for row in rows[GPU]}) == 1


def test_only_tables_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "must be one of rate, alone, gpu" in capsys.readouterr().err


def test_one_epoch_would_measure_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert at_least_two("2") == 2
    with pytest.raises(SystemExit):
        main(["--epochs", "1"])
    assert "the first epoch is not measured" in capsys.readouterr().err
