"""What the loop makes of a learner that dies, with ranks that are plain objects: no Ray."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, OutOfMemoryError, RayTaskError

from actors.actor import SampleReport
from common.cluster.process_failures import DeathCounter
from common.errors import StuckError, WeightsError
from common.stopwatch import Busy
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.loop.learner import FaultTolerantLearner
from driver.loop.ranks import RewindNeeded
from driver.loop.rollouts import Group
from driver.stalls import StallReporter
from tests.driver.ranks import Ranks, Reference
from tests.scored_groups import pointwise
from tests.tiny_config import make_config
from tests.virtual_time import run

OOM = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")
IN_WAKE = ActorDiedError(RayTaskError("__init__", "reset by peer", ConnectionError(), "", 1, "127.0.0.1"))
"""What a rank's constructor raises where the other rank dies while they meet."""
LOST = RayTaskError("accumulate", "", ObjectLostError("00", None, ""), "", 1, "127.0.0.1")
STAMP = PolicyStamp(0, "", "run")


class Bench:
    """A learner on such ranks. again: positions of groups that were sampled again."""

    def __init__(self, folder: Path, ranks: Ranks, **learner: Any) -> None:
        self.ranks = ranks
        self.notes: list[str] = []
        self.again: list[int] = []
        config = make_config(Path("no/model"), folder, {"learner": learner, "objective.updates_per_epoch": 2})
        self.deaths = DeathCounter("The learner", "learner.restarts", config.learner.restarts)
        given: Any = ranks
        stalls = StallReporter(self.notes.append)
        self.learner = FaultTolerantLearner(config, given, stalls, self.deaths, self.sample_again)

    async def sample_again(self, group: Group) -> Group:
        """The same value once more."""
        self.again.append(group.task.noise.prompt_index)
        trajectory: Any = Reference(group.task.noise.prompt_index)
        return replace(group, trajectory=trajectory)

    async def epochs(self, *values: int, groups: int = 1) -> list[str]:
        """Epochs of groups of these values and more: digests after each."""
        found = []
        for value in values:
            self.learner.begin_epoch()
            for number in range(groups):
                await self.learner.submit(group(value + 100 * number))
            _, published = await self.learner.finish_epoch(lambda _: None)
            found.append(published.stamp.digest)
            await asyncio.sleep(0.001)
        return found


def group(value: int) -> Group:
    """A group that the fake ranks learn from."""
    trajectory: Any = Reference(value)
    task = PromptTask("a cat", 2, NoiseKey(0, "train", 0, value), STAMP, True)
    report = SampleReport(STAMP, 2, "host:1", Busy(0.0, 0.0), 0)
    return Group(task, None, trajectory, None, pointwise(np.zeros(2), {}, ()), report)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a Bench, without Ray."""
    monkeypatch.setattr("common.cluster.process_failures.living_nodes", lambda: frozenset({"node"}))
    monkeypatch.setattr("ray.put", Reference)
    monkeypatch.setattr("ray.wait", lambda references, timeout, fetch_local: ([], references))
    return lambda ranks, **learner: Bench(tmp_path, ranks, **learner)


@pytest.mark.parametrize("call", ["accumulate", "finish_update", "end_epoch", "publish", "export_snapshot"])
@pytest.mark.parametrize("error", [OOM, ActorDiedError()])
def test_a_learner_that_dies_learns_the_same_again(make: Any, call: str, error: BaseException) -> None:
    async def scenario() -> None:
        whole, bench = make(Ranks()), make(Ranks())
        await whole.learner.begin(0, {})
        expected = await whole.epochs(1, 2, 3, 4)
        await bench.learner.begin(0, {})
        first = await bench.epochs(1, 2)
        bench.ranks.dies[call] = [error]
        assert first + await bench.epochs(3, 4) == expected
        assert (bench.deaths.total, bench.ranks.started) == (1, 1)

    run(scenario())


def test_lost_groups_are_sampled_again_and_all_are_learned_in_their_order(make: Any) -> None:
    async def scenario() -> None:
        whole, bench = make(Ranks()), make(Ranks())
        await whole.learner.begin(0, {})
        expected = await whole.epochs(1, groups=3)
        await bench.learner.begin(0, {})
        bench.learner.begin_epoch()
        lost: Any = Reference(LOST)
        for number in range(3):
            one = group(1 + 100 * number)
            await bench.learner.submit(replace(one, trajectory=lost) if number == 1 else one)
        _, published = await bench.learner.finish_epoch(lambda _: None)
        assert bench.again == [101]
        assert [published.stamp.digest] == expected
        assert "1 groups were lost" in bench.notes[0]

    run(scenario())


def test_ranks_that_fail_while_they_meet_are_started_again_within_the_limit(make: Any) -> None:
    async def scenario() -> None:
        bench = make(Ranks(), restarts=3)
        await bench.learner.begin(0, {})
        bench.ranks.dies = {"finish_update": [OOM], "ready": [IN_WAKE, ActorDiedError()]}
        await bench.epochs(1)
        assert bench.deaths.total == 3
        bench.ranks.dies["finish_update"] = [OOM]
        with pytest.raises(StuckError, match=r"(?s)learner\.restarts = 3.*low on memory"):
            await bench.epochs(2)

    run(scenario())


async def redo(bench: Bench) -> None:
    """Learn an epoch twice, because the learner dies before the snapshot after it has arrived."""
    await bench.learner.begin(0, {})
    bench.ranks.late = {"export_snapshot"}
    await bench.epochs(1)
    bench.ranks.dies["accumulate"] = [OOM]
    bench.learner.begin_epoch()
    await bench.learner.submit(group(2))
    await asyncio.sleep(0.001)
    await bench.learner.submit(group(3))


def test_other_weights_of_the_same_groups_stop_a_run_whose_sums_are_exact(make: Any) -> None:
    bench = make(Ranks(exact=False))
    bench.ranks.says_exact = True
    with pytest.raises(WeightsError, match="After 1 epochs the weights must be"):
        run(redo(bench))


def test_where_sums_are_not_exact_the_epochs_come_again_and_may_differ(make: Any) -> None:
    async def scenario() -> None:
        bench = make(Ranks(exact=False))
        with pytest.raises(RewindNeeded, match="other weights"):
            await redo(bench)
        bench.learner.restart()
        bench.ranks.late = set()
        await bench.learner.begin(0, {})
        await bench.epochs(1, 2, 3)
        assert bench.deaths.total == 1

    run(scenario())


def test_loaded_weights_must_be_those_on_record_on_any_hardware(make: Any) -> None:
    async def scenario() -> None:
        bench = make(Ranks(exact=False))
        await bench.learner.begin(2, {"weights": 7})
        bench.learner.restart()
        with pytest.raises(WeightsError, match="After 2 epochs the weights must be"):
            await bench.learner.begin(2, {"weights": 8})

    run(scenario())


def test_ranks_must_agree_on_any_hardware(make: Any) -> None:
    async def scenario() -> None:
        bench = make(Ranks(exact=False))
        await bench.learner.begin(0, {})
        bench.ranks.apart = 1
        with pytest.raises(WeightsError, match="ranks hold different weights"):
            await bench.epochs(1)

    run(scenario())


def test_ranks_must_have_loaded_the_same_model(make: Any) -> None:
    async def scenario() -> None:
        bench = make(Ranks())
        bench.ranks.bases[1] = "another"
        with pytest.raises(WeightsError, match=r"host-1:1.*another pretrained model"):
            await bench.learner.begin(0, {})
        again = make(Ranks())
        await again.learner.begin(0, {})
        again.ranks.bases = ["another", "another"]
        again.ranks.dies["finish_update"] = [OOM]
        with pytest.raises(WeightsError, match=r"host-0:1.*another pretrained model"):
            await again.epochs(1)

    run(scenario())


def test_without_snapshots_a_death_counts_once_and_models_load_once(make: Any) -> None:
    async def scenario() -> None:
        bench = make(Ranks(), snapshots=False)
        await bench.learner.begin(0, {})
        expected = await bench.epochs(1, 2)
        bench.ranks.dies["finish_update"] = [OOM]
        with pytest.raises(RewindNeeded, match=r"running low.*no snapshot is kept"):
            await bench.epochs(3)
        bench.learner.restart()
        await bench.learner.begin(0, {})
        assert await bench.epochs(1, 2) == expected
        assert (bench.deaths.total, bench.ranks.started) == (1, 1)

    run(scenario())


def test_a_snapshot_that_does_not_come_stops_the_run_before_the_next_updates(make: Any) -> None:
    """After them it would be unclear which epoch the learner's weights are of."""

    async def scenario() -> None:
        bench = make(Ranks(), timeout_s=9.0)
        await bench.learner.begin(0, {})
        bench.ranks.late = {"export_snapshot"}
        await bench.epochs(1)
        weights = bench.ranks.weights
        with pytest.raises(StuckError, match=r"Waited 9 s for the learner's snapshot.*learner\.timeout_s"):
            await bench.epochs(2)
        assert bench.ranks.weights == weights

    run(scenario())


def test_the_limit_of_a_repeated_update_grows_with_the_groups_it_works_on(make: Any) -> None:
    async def scenario() -> None:
        bench = make(Ranks(), timeout_s=9.0)
        await bench.learner.begin(0, {})
        bench.ranks.repeat_update = lambda: [Reference()]
        began = asyncio.get_running_loop().time()
        with pytest.raises(StuckError, match="the learner's update 2"):
            await bench.epochs(1, groups=4)
        assert asyncio.get_running_loop().time() - began == pytest.approx(36.0, abs=1.0)

    run(scenario())


def test_what_is_rescued_is_of_the_last_finished_epoch(make: Any) -> None:
    async def scenario() -> None:
        bench = make(Ranks())
        await bench.learner.begin(0, {})
        (digest,) = await bench.epochs(1)
        bench.learner.begin_epoch()
        await bench.learner.submit(group(2))
        bench.ranks.late = {"finish_update"}
        finishing = asyncio.ensure_future(bench.learner.finish_epoch(lambda _: None))
        await asyncio.sleep(31.0)
        assert bench.learner.in_work() == ["learner rank 0 (pid 0, node host): no answer for 31 s"]
        with pytest.raises(StuckError, match=r"update 1.*learner rank 0 \(pid 0, node host\)"):
            await finishing
        assert bench.learner.in_work() == []
        bench.ranks.late = set()
        assert str((await bench.learner.rescue())["weights"]) == digest
        assert bench.ranks.started == 1

    run(scenario())


def test_groups_come_in_waves_and_what_is_left_at_the_end(tmp_path: Path) -> None:
    async def epochs(size: int) -> list[str]:
        ranks = Ranks()
        ranks.wave_size = size
        bench = Bench(tmp_path, ranks)
        await bench.learner.begin(0, {})
        found = await bench.epochs(1, 2, groups=5)
        assert ranks.waves == ([2, 2, 1] * 2 if size == 2 else [1] * 10)
        return found

    assert run(epochs(2)) == run(epochs(1))
