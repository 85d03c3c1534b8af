"""The Ray edge of the learner: n ranks as Ray actors, seen by the driver as one learner.

consumes: references to trajectory groups, and scores. produces: object references to reports, weights and
state.
waits for: nothing (every method returns references). unblocked by: the driver.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch

from common.config.schema import Config
from common.loading import choose_device
from common.placement import process_options
from common.trajectory import GroupScore, ScoredGroup, TrajectoryGroup
from common.weights import WeightBlob
from learner.build import build_learner
from learner.learner import LearnerFacts
from learner.ranks import Ranks, SingleRank, TorchRanks
from learner.report import UpdateReport
from learner.state import Files, export_state, restore_state


class Rendezvous:
    """A small process where rank 0 leaves its address and the other ranks wait for it."""

    def __init__(self) -> None:
        self._offered: asyncio.Future[tuple[str, int]] = asyncio.Future()

    async def offer(self, address: str, port: int) -> None:
        """Rank 0 listens here."""
        self._offered.set_result((address, port))

    async def address(self) -> tuple[str, int]:
        """Where rank 0 listens, once it has said so."""
        return await asyncio.shield(self._offered)


def free_address() -> tuple[str, int]:
    """This node's address and a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), int(probe.getsockname()[1])


def join_ranks(config: Config, rank: int, rendezvous: Any) -> Ranks:
    """Meet the other ranks. Waits at most learner.timeout_s."""
    if config.learner.workers == 1:
        return SingleRank()
    limit = config.learner.timeout_s
    if rank == 0:
        ray.get(rendezvous.offer.remote(*free_address()), timeout=limit)
    address, port = ray.get(rendezvous.address.remote(), timeout=limit)
    device = choose_device(config.model.device)
    return TorchRanks.join(rank, config.learner.workers, address, port, device, limit)


class LearnerRank:
    """One rank's process. Thin: every method is the Learner's."""

    def __init__(self, config: Config, run_id: str, rank: int, rendezvous: Any) -> None:
        torch.set_num_threads(config.learner.threads)
        self._learner = build_learner(config, run_id, join_ranks(config, rank, rendezvous))

    def ready(self) -> LearnerFacts:
        """What the learner learns from, once the constructor is through."""
        return self._learner.facts

    def accumulate(self, trajectory: TrajectoryGroup, score: GroupScore) -> None:
        """See Learner.accumulate."""
        self._learner.accumulate(ScoredGroup(trajectory, score))

    def finish_update(self) -> UpdateReport:
        """See Learner.finish_update."""
        return self._learner.finish_update()

    def repeat_update(self) -> UpdateReport:
        """See Learner.repeat_update."""
        return self._learner.repeat_update()

    def end_epoch(self) -> None:
        """See Learner.end_epoch."""
        self._learner.end_epoch()

    def publish(self) -> WeightBlob:
        """See Learner.publish. Every rank publishes, so that every rank accepts what is sampled."""
        return self._learner.publish()

    def export_state(self) -> Files:
        """See learner.state."""
        return export_state(self._learner)

    def restore_state(self, files: Mapping[str, bytes]) -> None:
        """See learner.state."""
        restore_state(self._learner, files)


class LearnerGroup:
    """All ranks as one."""

    def __init__(self, ranks: Sequence[Any]) -> None:
        self._ranks = list(ranks)

    @staticmethod
    def start(config: Config, run_id: str) -> LearnerGroup:
        """Create the ranks' processes. They are usable at once; `ready` says when their models are loaded."""
        remote = ray.remote(LearnerRank).options(**process_options(config.learner))
        rendezvous = ray.remote(Rendezvous).options(num_cpus=0).remote()
        return LearnerGroup(
            [remote.remote(config, run_id, rank, rendezvous) for rank in range(config.learner.workers)]
        )

    def ready(self) -> list[ray.ObjectRef]:
        """LearnerFacts of each rank, ready when its model is loaded."""
        return [rank.ready.remote() for rank in self._ranks]

    def accumulate(self, position: int, trajectory: ray.ObjectRef, score: GroupScore) -> ray.ObjectRef:
        """Hand over the epoch's group number `position`; groups go round the ranks."""
        return self._ranks[position % len(self._ranks)].accumulate.remote(trajectory, score)

    def finish_update(self) -> list[ray.ObjectRef]:
        """One UpdateReport a rank."""
        return [rank.finish_update.remote() for rank in self._ranks]

    def repeat_update(self) -> list[ray.ObjectRef]:
        """One UpdateReport a rank."""
        return [rank.repeat_update.remote() for rank in self._ranks]

    def end_epoch(self) -> list[ray.ObjectRef]:
        """Forget the epoch's groups."""
        return [rank.end_epoch.remote() for rank in self._ranks]

    def publish(self) -> list[ray.ObjectRef]:
        """WeightBlobs, equal on all ranks: the first is the one to hand out."""
        return [rank.publish.remote() for rank in self._ranks]

    def export_state(self) -> ray.ObjectRef:
        """The learner's files of a checkpoint, from rank 0."""
        return self._ranks[0].export_state.remote()

    def restore_state(self, files: Mapping[str, bytes]) -> list[ray.ObjectRef]:
        """Every rank continues from the files."""
        reference = ray.put(dict(files))
        return [rank.restore_state.remote(reference) for rank in self._ranks]

    def shutdown(self) -> None:
        """End the ranks' processes."""
        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []
