"""Whole nodes of a cluster die, and with them processes and objects: the run ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any, cast

import pytest
import ray
from ray._private.internal_api import free
from ray.cluster_utils import Cluster

from benchmarks.chaos_run import Outcome
from common.config.schema import Config
from common.prompts import PromptStream, open_prompts
from driver.display_state import Phase
from driver.patience import Patience
from driver.rollouts import Rollouts
from driver.services import ray_cluster, services
from driver.source import OnlineSource
from driver.steady_learner import SteadyLearner
from learner.checkpoint import checkpoint_folder, read_checkpoint
from reward_service.ledger import PendingScore
from reward_service.mix import RewardMix
from tests.faults.conftest import LIMIT_S, MakeFaulty, Start

pytestmark = pytest.mark.faults

NODE = {"num_cpus": 1, "object_store_memory": 100_000_000}
SETTINGS = {
    # The tiny trajectories and pictures must lie on their node, as large ones do, not in the driver.
    "max_direct_call_object_size": 1000,
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, which drivers join, and two nodes that work."""
    head = {"num_cpus": 0, "object_store_memory": 100_000_000, "_system_config": SETTINGS}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**NODE)
    yield cluster
    cluster.shutdown()


def test_a_run_survives_the_death_of_a_node(
    cluster: Cluster, whole: Outcome, faulty: MakeFaulty, start: Start
) -> None:
    running = start(faulty(ray__address=cluster.address, actors__count=2))
    status = running.until(lambda now: now.epoch == 2 and now.phase == "learning", LIMIT_S)
    (of_learner,) = {own.node_id for own in status.processes if own.kind == "learner rank"}
    (node,) = [own for own in cluster.worker_nodes if own.node_id == of_learner]
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    assert running.wait(LIMIT_S) == 0, running.shown
    assert "The learner is started again" in running.shown
    assert whole.differences(Outcome.of(running.config)) == []


class LosingMix:
    """The rewards, which lose the first pictures that they are given, as a dying node does."""

    def __init__(self, mix: RewardMix) -> None:
        self._mix = mix
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._mix, name)

    def submit(self, prompt: str, images: ray.ObjectRef, count: int, with_gold: bool) -> PendingScore:
        """See RewardMix."""
        if not self.lost:
            self.lost += 1
            free([images])
        return self._mix.submit(prompt, images, count, with_gold)


class Told:
    """What an observer is told, as far as a learner tells it."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """See Observer."""
        self.notes.append(text)

    def phase(self, phase: Phase, total: int) -> None:
        """See Observer."""

    def progress(self, done: int) -> None:
        """See Observer."""


def published_digests(config: Config, epoch: int) -> list[str]:
    """Digests of the weights that the learner had published last, after so many epochs."""
    header = read_checkpoint(checkpoint_folder(config.run_folder, epoch)).files["learner.json"]
    return [digest for _, digest in json.loads(header)["published"]]


def test_lost_pictures_and_trajectories_are_sampled_again(
    cluster: Cluster, whole_config: Config, faulty: MakeFaulty
) -> None:
    config, told = faulty(ray__address=cluster.address), Told()
    cluster.add_node(**NODE)
    stream = PromptStream(open_prompts(config.prompts.train), config.run.seed)
    with ray_cluster(config), services(config, "lost") as started:
        rewards = LosingMix(started.rewards)
        rollouts = Rollouts(started.pool, cast(RewardMix, rewards), 0.0, lambda: None, Patience(told.note))
        learner = SteadyLearner(config, started.learner, rollouts, cast(Any, told))
        source = OnlineSource(config, stream, rollouts)
        published = learner.begin(0, {})
        digests = [published.stamp.digest]
        for epoch in range(2):
            source.prepare(epoch, published)
            learner.begin_epoch()
            for position, group in enumerate(source.groups(epoch)):
                if (epoch, position) in ((0, 1), (1, 0), (1, 2)):
                    free([group.trajectory])
                learner.take_in(group)
            _, published = learner.finish_epoch()
            digests.append(published.stamp.digest)
    assert rewards.lost == 1
    assert [note.split()[0] for note in told.notes if "were lost" in note] == ["1", "2"], told.notes
    assert digests == published_digests(whole_config, 2)
