"""What the loop makes of a learner that dies, with ranks that are plain objects: no Ray."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from common.errors import StuckError, WeightsError
from common.trajectory import GroupScore, PolicyStamp
from driver.loop.learner import FaultTolerantLearner
from driver.loop.learner_calls import RewindNeeded
from driver.loop.learner_deaths import LearnerDeaths
from driver.loop.source import Group
from tests.driver.ranks import Ranks, Reference, Told, Waiting
from tests.tiny_config import make_config

OOM = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")
IN_WAKE = ActorDiedError(RayTaskError("__init__", "reset by peer", ConnectionError(), "", 1, "127.0.0.1"))
"""What a rank's constructor raises where the other rank dies while they meet."""


class Bench:
    """A steady learner on such ranks. arrives: whether snapshots are there as soon as they are looked for."""

    def __init__(self, pipeline: Path, folder: Path, ranks: Ranks, **learner: Any) -> None:
        self.ranks, self.rollouts, self.told = ranks, Waiting(), Told()
        self.arrives = True
        config = make_config(pipeline, folder, {"learner": learner})
        self.deaths = LearnerDeaths(config.learner.restarts)
        others: Any = (ranks, self.rollouts, self.told, self.deaths)
        self.learner = FaultTolerantLearner(config, *others)

    def epochs(self, *values: int) -> list[str]:
        """Epochs of one group each, of these values: digests after each."""
        found = []
        for value in values:
            self.learner.begin_epoch()
            self.learner.take_in(group(value))
            found.append(self.learner.finish_epoch()[1].stamp.digest)
        return found

    def look(self, references: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        """See ray.wait."""
        return (references, []) if self.arrives else ([], references)


def group(value: int) -> Group:
    """A group that the fake ranks learn from."""
    reference: Any = Reference(value)
    score = GroupScore.pointwise(np.zeros(2), {}, ())
    return Group(reference, score, PolicyStamp(0, "", "run"), 0.0, 0, lambda: reference)


@pytest.fixture
def make(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a Bench, without Ray."""
    monkeypatch.setattr("driver.loop.learner_deaths.living_nodes", lambda: frozenset({"node"}))
    monkeypatch.setattr("ray.put", Reference)

    def bench(ranks: Ranks, **learner: Any) -> Bench:
        made = Bench(tiny_pipeline, tmp_path, ranks, **learner)
        monkeypatch.setattr("ray.wait", made.look)
        return made

    return bench


@pytest.mark.parametrize("call", ["accumulate", "finish_update", "end_epoch", "publish", "export_snapshot"])
@pytest.mark.parametrize("error", [OOM, ActorDiedError()])
def test_a_learner_that_dies_learns_the_same_again(make: Any, call: str, error: BaseException) -> None:
    whole = make(Ranks())
    whole.learner.begin(0, {})
    expected = whole.epochs(1, 2, 3, 4)
    bench = make(Ranks())
    bench.learner.begin(0, {})
    first = bench.epochs(1, 2)
    bench.ranks.dies[call] = [error]
    assert first + bench.epochs(3, 4) == expected
    assert (bench.deaths.total, bench.ranks.started) == (1, 1)


def test_ranks_that_fail_while_they_meet_are_started_again_within_the_limit(make: Any) -> None:
    bench = make(Ranks(), restarts=3)
    bench.learner.begin(0, {})
    bench.ranks.dies = {"finish_update": [OOM], "ready": [IN_WAKE, ActorDiedError()]}
    bench.epochs(1)
    assert bench.deaths.total == 3
    bench.ranks.dies["finish_update"] = [OOM]
    with pytest.raises(StuckError, match=r"(?s)learner\.restarts = 3.*low on memory"):
        bench.epochs(2)


def redo(bench: Bench) -> None:
    """Learn an epoch twice, because the learner dies before the snapshot after it has arrived."""
    bench.learner.begin(0, {})
    bench.arrives = False
    bench.epochs(1)
    bench.ranks.dies["accumulate"] = [OOM]
    bench.epochs(2)


def test_other_weights_of_the_same_groups_stop_a_run_whose_sums_are_exact(make: Any) -> None:
    bench = make(Ranks(exact=False))
    bench.ranks.says_exact = True
    with pytest.raises(WeightsError, match="After 1 epochs the weights must be"):
        redo(bench)


def test_where_sums_are_not_exact_the_epochs_come_again_and_may_differ(make: Any) -> None:
    bench = make(Ranks(exact=False))
    with pytest.raises(RewindNeeded, match="other weights"):
        redo(bench)
    bench.learner.restart()
    bench.arrives = True
    bench.learner.begin(0, {})
    bench.epochs(1, 2, 3)
    assert bench.deaths.total == 1


def test_loaded_weights_must_be_those_on_record_on_any_hardware(make: Any) -> None:
    bench = make(Ranks(exact=False))
    bench.learner.begin(2, {"weights": 7})
    bench.learner.restart()
    with pytest.raises(WeightsError, match="After 2 epochs the weights must be"):
        bench.learner.begin(2, {"weights": 8})


def test_ranks_must_agree_on_any_hardware(make: Any) -> None:
    bench = make(Ranks(exact=False))
    bench.learner.begin(0, {})
    bench.ranks.apart = 1
    with pytest.raises(WeightsError, match="ranks hold different weights"):
        bench.epochs(1)


def test_ranks_must_have_loaded_the_same_model(make: Any) -> None:
    bench = make(Ranks())
    bench.ranks.bases[1] = "another"
    with pytest.raises(WeightsError, match=r"host-1:1.*another pretrained model"):
        bench.learner.begin(0, {})
    again = make(Ranks())
    again.learner.begin(0, {})
    again.ranks.bases = ["another", "another"]
    again.ranks.dies["finish_update"] = [OOM]
    with pytest.raises(WeightsError, match=r"host-0:1.*another pretrained model"):
        again.epochs(1)


def test_without_snapshots_a_death_counts_once_and_models_load_once(make: Any) -> None:
    bench = make(Ranks(), snapshots=False)
    bench.learner.begin(0, {})
    expected = bench.epochs(1, 2)
    bench.ranks.dies["finish_update"] = [OOM]
    with pytest.raises(RewindNeeded, match=r"running low.*no snapshot is kept"):
        bench.epochs(3)
    bench.learner.restart()
    bench.learner.begin(0, {})
    assert bench.epochs(1, 2) == expected
    assert (bench.deaths.total, bench.ranks.started) == (1, 1)


def test_this_node_keeps_its_copy_of_the_newest_snapshot(make: Any) -> None:
    bench = make(Ranks())
    bench.learner.begin(0, {})
    bench.epochs(1, 2, 3)
    gc.collect()
    alive = [fetched() is not None for fetched in bench.rollouts.fetched]
    assert alive == [False] * (len(alive) - 1) + [True]


def test_a_snapshot_that_does_not_come_stops_the_run_before_the_next_updates(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After them it would be unclear which epoch the learner's weights are of."""
    bench = make(Ranks())
    bench.learner.begin(0, {})
    bench.epochs(1)
    bench.arrives = False
    wait = bench.rollouts.wait

    def stuck(references: list[Any], what: str, limit_s: float) -> list[Any]:
        if what == "the learner's snapshot":
            raise StuckError(what)
        return wait(references, what, limit_s)

    monkeypatch.setattr(bench.rollouts, "wait", stuck)
    weights = bench.ranks.export_snapshot().value
    with pytest.raises(StuckError, match="snapshot"):
        bench.epochs(2)
    assert bench.ranks.export_snapshot().value == weights
