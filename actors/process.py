"""One actor's process on Ray, and how it is started."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import ray
import torch

from actors.actor import Actor, Sample
from common.cluster.fate import end_with_parent
from common.cluster.process_options import process_options
from common.cluster.work_meter import WorkMeter
from common.config.schema import Config
from common.model.loading import digest_base, digest_ends, load_policy
from common.model.weights import Weights
from common.trajectory import PromptTask


@dataclass(frozen=True)
class Place:
    """Where a process runs. node: Ray's id of it, hex."""

    pid: int
    node: str


@dataclass(frozen=True)
class Arrival:
    """What a process says once it is ready.

    base, ends: digests of its pretrained network, and of its text encoders and VAE (common.model.loading).
    """

    place: Place
    base: str
    ends: str


def build_actor(config: Config) -> Actor:
    """Load the model and make it ready to sample. Raises ModelError."""
    return Actor.of(*load_policy(config))


class ActorProcess:
    """One actor's process. Thin: the work is Actor's."""

    def __init__(self, config: Config) -> None:
        end_with_parent()
        torch.set_num_threads(config.actors.threads)
        policy, distribution = load_policy(config)
        self._base, self._ends = digest_base(policy), digest_ends(policy)
        self._actor = Actor.of(policy, distribution)
        self._meter = WorkMeter.start(config.run.name, "actors")

    def ready(self) -> Arrival:
        """Where this process runs and what it has loaded, once the constructor is through."""
        place = Place(os.getpid(), ray.get_runtime_context().get_node_id())
        return Arrival(place, self._base, self._ends)

    def sample(self, task: PromptTask, weights: Weights) -> Sample:
        """See Actor.sample. Returns three objects, so that each can be moved alone."""
        sampled = self._actor.sample(task, weights)
        report = sampled[2]
        self._meter.worked(report.busy_s, report.images, report.nbytes)
        return sampled


def start_process(config: Config) -> Any:
    """Ask Ray for one more process. Where there is no room, the request waits, and is what makes an
    autoscaler add a node."""
    return ray.remote(ActorProcess).options(**process_options(config.actors), max_restarts=0).remote(config)
