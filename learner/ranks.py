"""The Ray edge of the learner: n ranks as Ray actors, seen by the driver as one learner.

consumes: references to trajectory groups, and scores. produces: object references to reports, weights and
state.
waits for: nothing (every method returns references). unblocked by: the driver.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch

from common.cluster.fate import end_with_parent
from common.cluster.process_failures import nodes_of, place_of
from common.cluster.process_options import process_options
from common.cluster.work_meter import WorkMeter
from common.config.schema import Config
from common.model.loading import choose_device
from common.model.weights import Weights
from common.trajectory import Float64, GroupScore, PolicyStamp, ScoredGroup, TrajectoryGroup
from learner.build import build_learner, groups_in_a_wave
from learner.parallel import Parallel, Replicated, Single, connect, listen, listen_only_at
from learner.report import LearnerFacts, UpdateReport
from learner.state import Files, Snapshot, export_snapshot, export_state, restore_snapshot, restore_state

Scores = tuple[GroupScore, Float64 | None]
"""A group's score and advantages."""

LOOPBACK = "127.0.0.1"
DEATH_LIMIT_S = 20.0
"""How long a dead rank may stay unnoticed after another one failed in its wake."""


class Rendezvous:
    """A small process where the ranks come together, and rank 0 leaves the address at which it listens."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._nodes: list[str] = []
        self._together: asyncio.Future[bool] = asyncio.Future()
        self._offered: asyncio.Future[tuple[str, int]] = asyncio.Future()

    async def share_a_node(self, node: str) -> bool:
        """Whether all ranks run on one node, once each has said the address of its own."""
        self._nodes.append(node)
        if len(self._nodes) == self._count:
            self._together.set_result(len(set(self._nodes)) == 1)
        return await asyncio.shield(self._together)

    async def offer(self, address: str, port: int) -> None:
        """Rank 0 listens here."""
        self._offered.set_result((address, port))

    async def address(self) -> tuple[str, int]:
        """Where rank 0 listens, once it has said so."""
        return await asyncio.shield(self._offered)


def join_ranks(config: Config, rank: int, rendezvous: Any) -> Parallel:
    """Meet the other ranks. Waits at most learner.timeout_s."""
    count, limit = config.learner.workers, config.learner.timeout_s
    if count == 1:
        return Single()
    own = ray.util.get_node_ip_address()
    if ray.get(rendezvous.share_a_node.remote(own), timeout=limit):
        own = LOOPBACK
    listen_only_at(own)
    if rank == 0:
        store = listen(own, limit)
        ray.get(rendezvous.offer.remote(own, store.port), timeout=limit)
    else:
        address, port = ray.get(rendezvous.address.remote(), timeout=limit)
        store = connect(address, port, limit)
    return Replicated.join(rank, count, store, choose_device(config.model.device), limit)


class LearnerRank:
    """One rank's process. Thin: every method is the Learner's."""

    def __init__(self, config: Config, run_id: str, rank: int, rendezvous: Any) -> None:
        end_with_parent()
        torch.set_num_threads(config.learner.threads)
        self._learner = build_learner(config, run_id, join_ranks(config, rank, rendezvous))
        self._meter = WorkMeter.start(config.run.name, "learner")

    def ready(self) -> LearnerFacts:
        """What the learner learns from, once the constructor is through."""
        return self._learner.facts

    def accumulate(self, scores: Sequence[Scores], *trajectories: TrajectoryGroup) -> None:
        """See Learner.accumulate. Trajectories come as arguments, which Ray fetches."""
        groups = [
            ScoredGroup(trajectory, score, advantages)
            for trajectory, (score, advantages) in zip(trajectories, scores, strict=True)
        ]
        with self._meter.working(sum(trajectory.num_images for trajectory in trajectories)):
            self._learner.accumulate(groups)

    def finish_update(self) -> UpdateReport:
        """See Learner.finish_update."""
        with self._meter.working():
            report = self._learner.finish_update()
        self._meter.updated()
        return report

    def repeat_update(self) -> UpdateReport:
        """See Learner.repeat_update."""
        with self._meter.working():
            report = self._learner.repeat_update()
        self._meter.updated()
        return report

    def end_epoch(self) -> None:
        """See Learner.end_epoch."""
        self._learner.end_epoch()

    def reset_epoch(self) -> None:
        """See Learner.reset_epoch."""
        self._learner.reset_epoch()

    def publish(self) -> tuple[PolicyStamp, Weights]:
        """See Learner.publish. The weights are copied into the object store before the rank's next call."""
        with self._meter.working():
            weights = self._learner.publish()
        return weights.stamp, weights

    def agree(self) -> PolicyStamp:
        """See Learner.agree."""
        with self._meter.working():
            return self._learner.agree()

    def export_snapshot(self) -> Snapshot:
        """See learner.state."""
        return export_snapshot(self._learner)

    def export_state(self) -> Files:
        """See learner.state."""
        return export_state(self._learner)

    def restore_snapshot(self, snapshot: Snapshot, weights: Weights) -> None:
        """See learner.state."""
        restore_snapshot(self._learner, snapshot, weights)

    def restore_state(self, files: Files) -> None:
        """See learner.state."""
        restore_state(self._learner, files)


@dataclass(frozen=True)
class PublishedReferences:
    """stamps: one PolicyStamp a rank. weights: the Weights of rank 0, for the actors. They lie where the rank
    is, and where actors have fetched them."""

    stamps: list[ray.ObjectRef]
    weights: ray.ObjectRef


class LearnerRanks:
    """All ranks as one."""

    def __init__(self, config: Config, run_id: str, ranks: Sequence[Any]) -> None:
        self._config = config
        self._run_id = run_id
        self._ranks = list(ranks)

    @staticmethod
    def start(config: Config, run_id: str) -> LearnerRanks:
        """Create the ranks' processes. They are usable at once; `ready` says when their models are loaded."""
        return LearnerRanks(config, run_id, _start_ranks(config, run_id))

    def restart(self) -> None:
        """End all ranks, whichever still live, and start new ones with the pretrained weights."""
        self.shutdown()
        self._ranks = _start_ranks(self._config, self._run_id)

    def ready(self) -> list[ray.ObjectRef]:
        """LearnerFacts of each rank, ready when its model is loaded and it is through with earlier calls."""
        return [rank.ready.remote() for rank in self._ranks]

    @property
    def wave_size(self) -> int:
        """Groups that are handed over together: as many to each rank as fill a micro-batch, at least one."""
        return len(self._ranks) * groups_in_a_wave(self._config)

    def accumulate(self, wave: Sequence[tuple[ray.ObjectRef, Scores]]) -> list[ray.ObjectRef]:
        """Hand over the epoch's next groups, at most wave_size; they go round the ranks, each of which gets a
        part, though it may be empty. wave: trajectories and scores of each group."""
        answers = []
        for number, rank in enumerate(self._ranks):
            part = wave[number :: len(self._ranks)]
            scores = [score for _, score in part]
            answers.append(rank.accumulate.remote(scores, *(trajectory for trajectory, _ in part)))
        return answers

    def finish_update(self) -> list[ray.ObjectRef]:
        """One UpdateReport a rank."""
        return [rank.finish_update.remote() for rank in self._ranks]

    def repeat_update(self) -> list[ray.ObjectRef]:
        """One UpdateReport a rank."""
        return [rank.repeat_update.remote() for rank in self._ranks]

    def end_epoch(self) -> list[ray.ObjectRef]:
        """Forget the epoch's groups."""
        return [rank.end_epoch.remote() for rank in self._ranks]

    def reset_epoch(self) -> list[ray.ObjectRef]:
        """Forget what was accumulated since the last update."""
        return [rank.reset_epoch.remote() for rank in self._ranks]

    def publish(self) -> PublishedReferences:
        """The current weights, which every rank accepts trajectories of from then on."""
        first, *others = self._ranks
        stamp, weights = first.publish.options(num_returns=2).remote()
        return PublishedReferences([stamp, *(rank.agree.remote() for rank in others)], weights)

    def export_snapshot(self) -> ray.ObjectRef:
        """What an exact continuation needs beside the weights published last, from rank 0."""
        return self._ranks[0].export_snapshot.remote()

    def export_state(self) -> ray.ObjectRef:
        """The learner's files of a checkpoint, from rank 0."""
        return self._ranks[0].export_state.remote()

    def restore_snapshot(self, snapshot: ray.ObjectRef, weights: ray.ObjectRef) -> list[ray.ObjectRef]:
        """Every rank continues from a snapshot and the weights published before it."""
        return [rank.restore_snapshot.remote(snapshot, weights) for rank in self._ranks]

    def restore_state(self, files: ray.ObjectRef) -> list[ray.ObjectRef]:
        """Every rank continues from the files of a checkpoint."""
        return [rank.restore_state.remote(files) for rank in self._ranks]

    def nodes(self) -> frozenset[str]:
        """Ray's ids of the nodes that the ranks run on, or ran on where they have died."""
        return nodes_of(self._ranks)

    def describe(self, rank: int) -> str:
        """Which process a rank is, in words."""
        return f"learner rank {rank} ({place_of(self._ranks[rank])})"

    def shutdown(self) -> None:
        """End the ranks' processes."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []


def _start_ranks(config: Config, run_id: str) -> list[Any]:
    remote = ray.remote(LearnerRank).options(**process_options(config.learner), max_restarts=0)
    rendezvous = ray.remote(Rendezvous).options(num_cpus=0).remote(config.learner.workers)
    return [remote.remote(config, run_id, rank, rendezvous) for rank in range(config.learner.workers)]
