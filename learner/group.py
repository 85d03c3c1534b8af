"""The Ray edge of the learner: n ranks as Ray actors, seen by the driver as one learner.

consumes: references to trajectory groups, and scores. produces: object references to reports, weights and state.
waits for: nothing (every method returns references). unblocked by: the driver.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch

from common.config.schema import Config
from common.config.services import PlacementSection
from common.loading import choose_device
from common.trajectory import GroupScore, ScoredGroup, TrajectoryGroup
from common.weights import WeightBlob
from learner.build import build_learner
from learner.ranks import Ranks, SingleRank, TorchRanks
from learner.report import UpdateReport
from learner.state import Files, export_state, restore_state


def process_options(placement: PlacementSection) -> dict[str, Any]:
    """Ray options of a process that computes: its resources, labels, and no more OpenMP threads than stated."""
    threads = str(placement.threads)
    return {
        "num_cpus": placement.cpus,
        "num_gpus": placement.gpus,
        "label_selector": dict(placement.labels),
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
    }


def free_address() -> tuple[str, int]:
    """This node's address and a port that is free now, where the ranks meet."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), int(probe.getsockname()[1])


class LearnerRank:
    """One rank's process. Thin: every method is the Learner's."""

    def __init__(self, config: Config, run_id: str, rank: int) -> None:
        torch.set_num_threads(config.learner.threads)
        self._config = config
        self._run_id = run_id
        self._rank = rank

    def address(self) -> tuple[str, int]:
        """Where the other ranks can meet this one."""
        return free_address()

    def start(self, address: str, port: int) -> None:
        """Meet the other ranks and load the model."""
        count = self._config.learner.workers
        device = choose_device(self._config.model.device)
        ranks: Ranks = (
            SingleRank()
            if count == 1
            else TorchRanks.join(self._rank, count, address, port, device, self._config.learner.timeout_s)
        )
        self._learner = build_learner(self._config, self._run_id, ranks)

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
    def start(config: Config, run_id: str) -> tuple[LearnerGroup, list[ray.ObjectRef]]:
        """Create the ranks. Returns the group and the references that are ready when the models are loaded."""
        remote = ray.remote(LearnerRank)
        options = process_options(config.learner)
        ranks = [remote.options(**options).remote(config, run_id, rank) for rank in range(config.learner.workers)]
        address, port = ray.get(ranks[0].address.remote(), timeout=config.learner.timeout_s)
        return LearnerGroup(ranks), [rank.start.remote(address, port) for rank in ranks]

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
