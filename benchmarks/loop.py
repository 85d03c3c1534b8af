"""The distributed quickstart's images per second over the same work in one process without Ray."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import ray
import torch

from actors.actor import Actor
from benchmarks.machine import Machine, usable_cores
from benchmarks.options import Options, run
from benchmarks.report import Result, Verdict, raw_of, verdict_of
from benchmarks.timing import Comparison, Seconds, Times, alternate
from common.config.schema import Config
from common.model.loading import choose_device, load_policy
from common.model.weights import Weights
from common.terminal import run_command
from common.trajectory import ScoredGroup
from driver.loop.cluster import ray_cluster
from driver.loop.learner import FaultTolerantLearner
from driver.loop.rollouts import Rollouts
from driver.loop.services import Services, services
from driver.loop.source import OnlineSource
from driver.run.prompts import PromptStream, open_prompts, training_tasks
from driver.stalls import StallReporter
from driver.stop import StopFlag
from learner.build import build_learner
from learner.learner import Learner
from learner.parallel import Single
from reward_service.client.entries import check_entries
from reward_service.client.local import LocalRewards, local_rewards

TARGET = 0.90
SNAPSHOT_LIMIT = 0.01
SINGLE_THREAD_EPOCHS = 2
RUN_ID = "benchmark"
ABOUT = (
    "Images per second of training epochs on Ray (actors, reward service and learner of the quickstart) "
    "over those of the same epochs in one process without Ray: sampling with the reference pass, scores, "
    "gradient, optimizer step, new weights. Epochs of the two take turns. The one process may use all "
    "threads that the Ray processes have together, but no more than there are cores."
)


@dataclass
class OneProcess:
    """The epochs by plain classes, one thing after the other. weights: those published last."""

    config: Config
    stream: PromptStream
    actor: Actor
    rewards: LocalRewards
    learner: Learner
    weights: Weights

    @staticmethod
    def build(config: Config, stream: PromptStream) -> OneProcess:
        """Load the models."""
        learner = build_learner(config, RUN_ID, Single())
        rewards = local_rewards(config.rewards, {}, config.reward_service)
        return OneProcess(config, stream, Actor.of(*load_policy(config)), rewards, learner, learner.publish())

    def epoch(self, number: int) -> None:
        """Train one epoch."""
        tasks = training_tasks(self.config, self.stream, number, self.weights.stamp, with_reference=True)
        for task in tasks:
            trajectory, images, _ = self.actor.sample(task, self.weights)
            score = self.rewards.score_group(task.prompt, images)
            self.learner.accumulate([ScoredGroup(trajectory, score)])
        self.learner.finish_update()
        for _ in range(1, self.config.objective.updates_per_epoch):
            self.learner.repeat_update()
        self.learner.end_epoch()
        self.weights = self.learner.publish()


class Distributed:
    """The same epochs by the driver's own parts, without display, tracker, evaluation, checkpoints and
    snapshots. runner: of the event loop that all of them live in."""

    def __init__(
        self, config: Config, stream: PromptStream, started: Services, runner: asyncio.Runner
    ) -> None:
        stalls = StallReporter(note=print)
        dropped = config.reward_service.max_dropped_share
        rollouts = Rollouts(started.pool, started.rewards, dropped, StopFlag(), stalls)
        self._source = OnlineSource(config, stream, rollouts, with_reference=True)
        again = rollouts.sample_again
        self._learner = FaultTolerantLearner(config, started.learner, stalls, started.deaths, again)
        self._ranks = started.learner
        self._runner = runner
        self._weights = runner.run(self._learner.begin(0, {}))

    def epoch(self, number: int) -> None:
        """Train one epoch."""
        self._runner.run(self._epoch(number))

    def snapshot(self, number: int) -> None:
        """Have a snapshot made, as after each epoch, and wait until every rank is free."""
        snapshot = self._ranks.export_snapshot()
        ray.get(self._ranks.ready())
        del snapshot

    async def _epoch(self, number: int) -> None:
        self._source.prepare(number, self._weights)
        self._learner.begin_epoch()
        async for group in self._source.groups(number):
            await self._learner.submit(group)
        _, self._weights = await self._learner.finish_epoch(lambda _: None)


@dataclass
class RayIdle:
    """CPU seconds that Ray's processes take while the one process trains and they have nothing to do."""

    seconds: list[float] = field(default_factory=list)

    def watch(self, epoch: Callable[[int], None], number: int) -> None:
        """Train an epoch in this process, and note what Ray's took meanwhile."""
        before = _children_cpu_s()
        epoch(number)
        # What a process that ended meanwhile had taken is not known: only those that are still there count.
        self.seconds.append(sum(taken - before.get(pid, 0.0) for pid, taken in _children_cpu_s().items()))


@dataclass(frozen=True)
class Loop:
    """The comparison; epochs in one process of 1 thread; Ray's CPU seconds in each timed bare epoch;
    snapshots of the learner, until it is free."""

    comparison: Comparison
    single_thread: Times
    ray_idle_s: Seconds
    snapshots: Times

    @property
    def snapshot_share(self) -> float:
        """What an epoch on Ray is at most longer with a snapshot."""
        return statistics.median(self.snapshots.wall) / statistics.median(self.comparison.ours.wall)


def measure_loop(config: Config, threads: int, repeats: int, warm_ups: int) -> Loop:
    """Epochs on Ray and in one process of so many threads, in turns; then some with one thread."""
    changed = {
        "run": config.run.model_copy(update={"epochs": repeats + warm_ups}),
        "learner": config.learner.model_copy(update={"snapshots": False}),
    }
    config = config.model_copy(update=changed)
    check_entries(config.rewards)
    # Ray runs its workers at niceness 15, which on a busy machine would compare priorities and not loops.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - that is its name
    stream = PromptStream(open_prompts(config.prompts.train), config.run.seed)
    one, idle = OneProcess.build(config, stream), RayIdle()
    with ray_cluster(config), asyncio.Runner() as runner:
        running = services(config, RUN_ID, StopFlag(), StallReporter(note=print))
        started = runner.run(running.__aenter__())
        distributed = Distributed(config, stream, started, runner)
        sides = [
            distributed.epoch,
            _with_threads(threads, lambda number: idle.watch(one.epoch, number)),
        ]
        device = choose_device(config.model.device)
        ours, bare = alternate(sides, repeats, warm_ups, device)
        (single,) = alternate([_with_threads(1, one.epoch)], min(repeats, SINGLE_THREAD_EPOCHS), 0, device)
        (snapshots,) = alternate([distributed.snapshot], repeats, warm_ups, device)
        runner.run(running.__aexit__(None, None, None))
    comparison = Comparison(
        what=f"epochs on Ray over epochs in one process of {threads} threads",
        items=config.trajectories_per_epoch,
        unit="images",
        ours=ours,
        bare=bare,
        target=TARGET,
    )
    return Loop(comparison, single, tuple(idle.seconds[warm_ups:]), snapshots)


def _with_threads(threads: int, epoch: Callable[[int], None]) -> Callable[[int], None]:
    def call(number: int) -> None:
        torch.set_num_threads(threads)
        epoch(number)

    return call


def ray_threads(config: Config) -> int:
    """Threads of all Ray processes together; gold rewards have nothing to do in an epoch."""
    actors, learner, rewards = config.actors, config.learner, config.reward_service
    scoring = sum(name in config.rewards for name in config.embedded) * rewards.replicas
    return actors.count * actors.threads + learner.workers * learner.threads + scoring * rewards.threads


def total_threads(config: Config) -> int:
    """Threads of the one process."""
    return min(ray_threads(config), usable_cores())


def measure(options: Options) -> Result:
    """Measure the configuration's loop."""
    config = options.config
    machine = Machine.here()
    found = measure_loop(config, total_threads(config), options.repeats, options.warm_ups)
    comparison = found.comparison
    single = comparison.items / statistics.median(found.single_thread.wall)
    idle = [taken / wall for taken, wall in zip(found.ray_idle_s, comparison.bare.wall, strict=True)]
    return Result(
        name="loop",
        command=options.command,
        settings={
            "model": config.model.path,
            "policy": config.policy.kind,
            "N": config.sampling.prompts_per_epoch,
            "B": config.sampling.images_per_prompt,
            "T": config.sampling.steps,
            "K": config.objective.updates_per_epoch,
            "guidance": config.sampling.guidance_scale,
            "actors": config.actors.count,
            "learner ranks": config.learner.workers,
            "Ray processes' threads": ray_threads(config),
            "one process's threads": total_threads(config),
        },
        machine=machine,
        verdicts=(
            verdict_of(comparison),
            Verdict(
                "part of an epoch that a snapshot after it keeps the learner",
                f"{found.snapshot_share:.2%}",
                f"at most {SNAPSHOT_LIMIT:.0%}",
                found.snapshot_share <= SNAPSHOT_LIMIT,
                f"{1e3 * statistics.median(found.snapshots.wall):.0f} ms, while the next epoch is "
                "sampled already; the epochs above have none",
            ),
        ),
        figures={
            "one process of 1 thread": f"{single:.4g} images/s",
            "cores that Ray's idle processes took from the one process": f"{statistics.median(idle):.3f}",
        },
        raw={
            "epochs": raw_of(comparison),
            "single_thread_s": list(found.single_thread.wall),
            "ray_idle_cpu_s": list(found.ray_idle_s),
            "snapshot_s": list(found.snapshots.wall),
        },
        notes=(
            "Both sides leave out the display, the tracker, evaluation and checkpoints. The first epochs "
            "are not timed: the very first trains without a reference pass. Ray's processes run at the same "
            "priority as the one process.",
        ),
    )


def _children_cpu_s() -> dict[int, float]:
    """CPU seconds so far, by process id, of all processes that this one started, directly or not."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        found[process.pid] = times.user + times.system
    return found


if __name__ == "__main__":
    run_command(lambda arguments: run("loop", ABOUT, 8, measure, arguments))
