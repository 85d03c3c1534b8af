"""Start Ray, the actors, the learner and the reward service; end exactly what was started."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayActorError, RayTaskError

from actors.pool import ActorPool
from common.config.schema import Config
from common.errors import ConfigError, PrdpError, StuckError
from driver.joined import worker_environment
from learner.group import LearnerGroup
from reward_service.asking.mix import RewardMix
from reward_service.asking.start import start_mix

START_LIMIT_S = 600.0


@dataclass(frozen=True)
class Services:
    """What runs on Ray. actors and learner may still be loading their models: `await_models`."""

    pool: ActorPool
    learner: LearnerGroup
    rewards: RewardMix


@contextmanager
def ray_cluster(config: Config) -> Iterator[None]:
    """Connect to the cluster, or start one on this machine and stop it at the end.

    Raises ConfigError where there is no cluster to join, or it does not let us in.
    """
    _connect(config)
    try:
        if config.ray.address == "local":
            check_room(config, ray.cluster_resources())
        yield
    finally:
        ray.shutdown()


def _connect(config: Config) -> None:
    section = config.ray
    if section.address == "local":
        own: dict[str, Any] = {
            "object_store_memory": int(section.object_store_gb * 1e9),
            "include_dashboard": section.dashboard,
        }
    else:
        own = {"runtime_env": worker_environment(os.environ, Path.cwd())}
    try:
        ray.init(
            address=section.address, logging_level=logging.ERROR, log_to_driver=False, namespace="prdp", **own
        )
    except AuthenticationError as error:
        raise ConfigError(
            f"The Ray cluster at {section.address!r} wants a token. Put the cluster's into "
            "~/.ray/auth_token and set RAY_AUTH_MODE=token."
        ) from error
    except ConnectionError as error:
        raise ConfigError(
            f"ray.address is {section.address!r}, but no Ray cluster answers there: {error} Start this on a "
            "node of the cluster, or as a job (ray job submit), or set ray.address=local."
        ) from error


def check_room(config: Config, resources: Mapping[str, float]) -> None:
    """Raise ConfigError where this machine can never hold all processes at once."""
    pools = {
        "actors": (config.actors, config.actors.count),
        "learner": (config.learner, config.learner.workers),
        "reward_service": (config.reward_service, len(config.embedded) * config.reward_service.replicas),
    }
    for unit, attribute in {"CPU": "cpus", "GPU": "gpus"}.items():
        wanted = {name: count * float(vars(section)[attribute]) for name, (section, count) in pools.items()}
        there = resources.get(unit, 0.0)
        if sum(wanted.values()) > there:
            parts = ", ".join(f"{name} {value:g}" for name, value in wanted.items())
            raise ConfigError(
                f"The configuration asks for {sum(wanted.values()):g} {unit}s at once ({parts}); this "
                "machine has "
                f"{there:g}. Lower {attribute} (what Ray reserves a process, shares allowed) or the "
                "number of processes."
            )


@contextmanager
def services(config: Config, run_id: str) -> Iterator[Services]:
    """Start all three, side by side, and end them whatever happens."""
    with ExitStack() as stack:
        learner = LearnerGroup.start(config, run_id)
        stack.callback(learner.shutdown)
        pool = ActorPool.start(config)
        stack.callback(pool.shutdown)
        # A cluster of our own ends right after, and Serve with it.
        lasting = config.ray.address != "local"
        rewards = start_mix(
            config.rewards,
            config.gold,
            config.reward_service,
            run_name=config.run.name,
            owner=str(config.run_folder.resolve()),
            start_limit_s=START_LIMIT_S,
            stop_serve=lasting,
        )
        stack.callback(rewards.shutdown)
        started = Services(pool, learner, rewards)
        await_models(started)
        yield started


def await_models(started: Services) -> None:
    """Wait until every actor and learner rank has loaded its model. Raises their own error, or StuckError."""
    waits = {"the actors": started.pool.ready(), "the learner": started.learner.ready()}
    for who, references in waits.items():
        try:
            ray.get(references, timeout=START_LIMIT_S)
        except GetTimeoutError as error:
            raise StuckError(
                f"Waited {START_LIMIT_S:.0f} s for {who} to load the model. Does the cluster have the "
                "CPUs, GPUs and labels that "
                f"the configuration asks for? Resources: {ray.cluster_resources()}"
            ) from error
        except (RayActorError, RayTaskError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, PrdpError):
                raise cause from error
            raise StuckError(f"{who.capitalize()} could not start: {error}") from error
