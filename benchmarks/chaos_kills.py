"""What chaos kills and when: drawn from a seed, done to a run, and what came of it."""

from __future__ import annotations

import itertools
import os
import random
import signal
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.chaos_cluster import ChaosCluster
from benchmarks.chaos_run import POLL_S, Outcome, Running
from common.config.schema import Config
from driver.observe.status import RunStatus

DRIVER, NODE = "driver", "node"
KINDS = (
    "actor",
    "reward replica",
    "Serve controller",
    "Serve proxy",
    "learner rank",
    DRIVER,
    NODE,
)
PHASES = ("sampling", "learning", "publishing", "evaluating", "checkpointing")
LATEST_MS = 150
RUN_LIMIT_S = 240.0
FULL_SPEED = 1.5
"""An epoch that takes at most so many times the undisturbed one's median is at full throughput."""


@dataclass(frozen=True)
class Kill:
    """One drawn kill: as soon as `phase` begins with at least `epoch` finished epochs, and delay_ms later."""

    kind: str
    epoch: int
    phase: str
    delay_ms: int


@dataclass(frozen=True)
class Recovery:
    """What came of it.

    when: what the run did at the kill. recovered_s: from the kill until the epoch in work then is finished;
    full_s: until the end of the first epoch at full throughput, 0 where there was none left.
    """

    kill: Kill
    when: str
    recovered_s: float
    full_s: float
    finished: bool
    differences: tuple[str, ...]


def draw(seed: int, runs: int, epochs: int) -> list[Kill]:
    """Every kind and every phase about equally often, in an order and at moments that the seed draws."""
    chance = random.Random(seed)
    kinds, phases = _shuffled(chance, KINDS, runs), _shuffled(chance, PHASES, runs)
    # Late enough for something to lose, early enough for a checkpoint and a quick epoch to follow.
    return [
        Kill(kind, chance.randint(1, epochs - 4), phase, chance.randint(0, LATEST_MS))
        for kind, phase in zip(kinds, phases, strict=True)
    ]


def _shuffled(chance: random.Random, values: Sequence[str], count: int) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        found += chance.sample(values, len(values))
    return found[:count]


def disturb(cluster: ChaosCluster, config: Config, kill: Kill, whole: Outcome, epoch_s: float) -> Recovery:
    """Run the configuration, kill, let it come to its end, and compare. epoch_s: of an undisturbed epoch."""
    running = Running.start(config)
    try:
        running.until(lambda now: now.epoch >= kill.epoch and now.phase == kill.phase, RUN_LIMIT_S)
        time.sleep(kill.delay_ms / 1000)
        (status,) = running.status()
        killed_at = time.monotonic()
        strike(cluster, running, status, kill.kind)
        if kill.kind == DRIVER:
            running.wait(RUN_LIMIT_S)
            running = Running.start(config)
        ends = watch(running)
    finally:
        running.end()
    finished = running.process.returncode == 0
    after = [(epoch, at - killed_at) for epoch, at in ends if epoch > status.epoch]
    return Recovery(
        kill=kill,
        when=f"epoch {status.epoch + 1}, {status.phase}",
        recovered_s=after[0][1] if after else 0.0,
        full_s=full_throughput(after, epoch_s),
        finished=finished,
        differences=tuple(whole.differences(Outcome.of(config))) if finished else ("it did not finish",),
    )


def strike(cluster: ChaosCluster, running: Running, status: RunStatus, kind: str) -> None:
    """Kill one process of the kind, or the node that the run has most processes on."""
    if kind == DRIVER:
        os.killpg(running.process.pid, signal.SIGKILL)
    elif kind == NODE:
        nodes = [process.node_id for process in status.processes if process.node_id in cluster.worker_ids]
        cluster.kill_node(statistics.mode(nodes))
    else:
        os.kill(next(process.pid for process in status.processes if process.kind == kind), signal.SIGKILL)


def watch(running: Running) -> list[tuple[int, float]]:
    """Follow a run to its end: the times at which each number of finished epochs was first seen."""
    ends: dict[int, float] = {}
    end_at = time.monotonic() + RUN_LIMIT_S
    while running.process.poll() is None and time.monotonic() < end_at:
        for status in running.status():
            ends.setdefault(status.epoch, time.monotonic())
        time.sleep(POLL_S)
    return list(ends.items())


def epoch_times(ends: Sequence[tuple[int, float]]) -> list[float]:
    """Seconds from the end of each epoch to the next one's."""
    return [later[1] - former[1] for former, later in itertools.pairwise(ends)]


def full_throughput(after: Sequence[tuple[int, float]], epoch_s: float) -> float:
    """Seconds from the kill to the end of the first epoch that was quick again; 0 where none was."""
    quick = [
        later[1]
        for former, later in itertools.pairwise(after)
        if later[1] - former[1] <= FULL_SPEED * epoch_s
    ]
    return quick[0] if quick else 0.0
