"""Whole nodes of a cluster die, and with them processes and objects: the run ends with the same bits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence

import pytest
from ray.cluster_utils import Cluster

from benchmarks.chaos_run import Outcome
from common.config.schema import Config
from common.trajectory import GroupScore
from driver.loop.cluster import ray_cluster
from driver.loop.learner import FaultTolerantLearner
from driver.loop.rollouts import Rollouts
from driver.loop.services import services
from driver.loop.source import OnlineSource
from driver.observe.status import ProcessStatus, living_processes
from driver.run.checkpoints import checkpoint_folder, read_checkpoint
from driver.run.prompts import PromptStream, open_prompts
from driver.stalls import StallReporter
from driver.stop import StopFlag
from reward_service.client.reward_sum import RewardSum
from reward_service.client.transport import ImagesRef
from reward_service.contract.results import RewardFailure
from tests.conftest import WholeRun
from tests.faults.conftest import LIMIT_S, MakeFaulty, Start, at

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

STORE = {"object_store_memory": 100_000_000}
MORTAL = {**STORE, "num_cpus": 1, "labels": {"role": "mortal"}}
SETTINGS = {
    # The tiny trajectories and pictures must lie on their node, as large ones do, not in the driver.
    "max_direct_call_object_size": 1000,
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, which drivers join, and two nodes that can be killed."""
    head = {**STORE, "num_cpus": 1, "labels": {"role": "steady"}, "_system_config": SETTINGS}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**MORTAL)
    yield cluster
    cluster.shutdown()


def kill_node_of(cluster: Cluster, processes: Sequence[ProcessStatus], kind: str) -> None:
    """Kill the node that a kind of process is on, and give the cluster another one."""
    (node_id,) = {process.node_id for process in processes if process.kind == kind}
    (node,) = [own for own in cluster.worker_nodes if own.node_id == node_id]
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(**MORTAL)


def on(role: str, *sections: str) -> dict[str, dict[str, str]]:
    """Settings that place these pools on nodes of a role."""
    return {f"{section}__labels": {"role": role} for section in sections}


def test_a_run_survives_the_death_of_a_node(
    cluster: Cluster, whole: Outcome, faulty: MakeFaulty, start: Start
) -> None:
    places = on("mortal", "actors", "learner", "reward_service")
    running = start(faulty(ray__address=cluster.address, **places))
    status = running.until(at(2, "learning"), LIMIT_S)
    kill_node_of(cluster, status.processes, "learner rank")
    assert running.wait(LIMIT_S) == 0, running.shown
    assert "The learner is started again" in running.shown
    assert whole.differences(Outcome.of(running.config)) == []


class LosingSum(RewardSum):
    """Rewards of a run; what happens just before they get the first group of an epoch can be set."""

    def __init__(self, rewards: RewardSum) -> None:
        vars(self).update(vars(rewards))
        self.before: Callable[[], None] | None = None

    async def score(
        self, prompt: str, images: ImagesRef, count: int, with_gold: bool = False
    ) -> GroupScore | RewardFailure:
        """See RewardSum."""
        before, self.before = self.before, None
        if before:
            before()
        return await super().score(prompt, images, count, with_gold)


def published_digests(config: Config, epoch: int) -> list[str]:
    """Digests of the weights that the learner had published last, after so many epochs."""
    header = read_checkpoint(checkpoint_folder(config.run_folder, epoch)).files["learner.json"]
    return [digest for _, digest in json.loads(header)["published"]]


def test_lost_pictures_and_trajectories_are_sampled_again(
    cluster: Cluster, whole_run: WholeRun, faulty: MakeFaulty
) -> None:
    """The actors' node dies before the learner has an epoch's groups, then before a reward has pictures."""
    places = {**on("mortal", "actors"), **on("steady", "learner", "reward_service")}
    config, notes = faulty(ray__address=cluster.address, **places), list[str]()
    stream = PromptStream(open_prompts(config.prompts.train), config.run.seed)

    def kill() -> None:
        kill_node_of(cluster, living_processes(config), "actor")

    async def run() -> str:
        stop, stalls = StopFlag(), StallReporter(notes.append)
        async with services(config, "lost", stop, stalls) as started:
            rewards = LosingSum(started.rewards)
            rollouts = Rollouts(started.pool, rewards, 0.0, stop, stalls)
            again = rollouts.sample_again
            learner = FaultTolerantLearner(config, started.learner, stalls, started.deaths, again)
            source = OnlineSource(config, stream, rollouts, with_reference=True)
            published = await learner.begin(0, {})
            for epoch in range(2):
                source.prepare(epoch, published)
                learner.begin_epoch()
                groups = [group async for group in source.groups(epoch)]
                if epoch == 0:
                    kill()
                    rewards.before = kill
                for group in groups:
                    await learner.submit(group)
                _, published = await learner.finish_epoch(lambda _: None)
            assert rewards.before is None
            return published.stamp.digest

    with ray_cluster(config):
        digest = asyncio.run(run())
    assert notes[0].startswith("3 groups were lost with their node"), notes
    assert [digest] == published_digests(whole_run.config, 2)
