"""Start Ray, the actors, the learner and the reward service; end exactly what was started."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray.exceptions import AuthenticationError, GetTimeoutError, RayTaskError

from actors.pool import ActorPool
from common.cluster.process_failures import DEATHS, failed_to_start
from common.config.schema import Config
from common.errors import ConfigError, PrdpError, StuckError
from driver.loop.cluster_env import worker_environment
from driver.loop.learner_calls import LearnerLost, first_line
from driver.loop.learner_deaths import LearnerDeaths
from driver.loop.stalls import StallReporter
from learner.group import DEATH_LIMIT_S, LearnerGroup
from learner.report import LearnerFacts
from reward_service.client.reward_sum import RewardSum
from reward_service.client.start import start_rewards

START_LIMIT_S = 600.0
WAIT_SLICE_S = 1.0
FETCH_LIMIT_S = 30.0


@dataclass(frozen=True)
class Services:
    """What runs on Ray: the learner and actors.minimum actors are ready; more actors may join.

    deaths: of the learner so far, also while it was started.
    """

    pool: ActorPool
    learner: LearnerGroup
    rewards: RewardSum
    deaths: LearnerDeaths


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
    """Raise ConfigError where this machine can never hold all processes at once; of actors, the minimum."""
    pools = {
        "actors": (config.actors, config.actors.minimum),
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


def unheard(_: str) -> None:
    """Nobody reads notes."""


@contextmanager
def services(config: Config, run_id: str, note: Callable[[str], None] = unheard) -> Iterator[Services]:
    """Start all three, side by side, and end them whatever happens. note: shows a person a line."""
    deaths = LearnerDeaths(config.learner.restarts)
    with ExitStack() as stack:
        learner = LearnerGroup.start(config, run_id)
        stack.callback(learner.shutdown)
        pool = ActorPool.start(config)
        stack.callback(pool.shutdown)
        # A cluster of our own ends right after, and Serve with it.
        lasting = config.ray.address != "local"
        rewards = start_rewards(
            config.rewards,
            config.gold,
            config.reward_service,
            run_name=config.run.name,
            owner=str(config.run_folder.resolve()),
            start_limit_s=START_LIMIT_S,
            stop_serve=lasting,
        )
        stack.callback(rewards.shutdown)
        pool.expect(await_learner(learner, deaths, note).base)
        await_actors(pool, note)
        pool.grow()
        yield Services(pool, learner, rewards, deaths)


def await_actors(pool: ActorPool, note: Callable[[str], None] = unheard) -> None:
    """Wait until actors.minimum actors have loaded their model. Raises StuckError."""
    patience = StallReporter(note)
    while not pool.is_enough:
        ready, _ = ray.wait(pool.references, timeout=WAIT_SLICE_S)
        for reference in ready:
            pool.complete(reference)
            patience.moved()
        if not ready:
            pool.check_start(START_LIMIT_S)
            patience.look(pool.in_start)


def await_learner(
    learner: LearnerGroup, deaths: LearnerDeaths, note: Callable[[str], None] = unheard
) -> LearnerFacts:
    """Wait until every rank has loaded its model. Where one dies meanwhile, all are started anew.

    Raises StuckError where they die more often than `deaths` allows, and where they cannot start; then their
    own error, if it is one of ours.
    """
    while True:
        try:
            return _await_ranks(learner, note)
        except LearnerLost as loss:
            deaths.add(loss.error, learner.nodes())
            note(f"The learner is started again: {loss}")
            learner.restart()


def _await_ranks(learner: LearnerGroup, note: Callable[[str], None]) -> LearnerFacts:
    """Raises LearnerLost where a rank died, StuckError or the ranks' own error where they cannot start."""
    patience, missing = StallReporter(note), learner.ready()
    facts: list[LearnerFacts] = []
    failures: list[Exception] = []
    end_at = time.monotonic() + START_LIMIT_S
    while missing and time.monotonic() <= end_at:
        ready, missing = ray.wait(missing, timeout=WAIT_SLICE_S)
        for reference in ready:
            patience.moved()
            try:
                facts.append(ray.get(reference, timeout=FETCH_LIMIT_S))
            except (*DEATHS, RayTaskError, GetTimeoutError) as error:
                failures.append(error)
                # The others' failures may be its cause.
                end_at = min(end_at, time.monotonic() + DEATH_LIMIT_S)
        if not ready:
            patience.look(partial(_in_start, len(missing)))
    if failures:
        _refuse_start(failures)
    if missing:
        raise StuckError(
            f"Waited {START_LIMIT_S:.0f} s for the learner to load the model. Does the cluster have the "
            f"CPUs, GPUs and labels that the configuration asks for? Resources: {ray.cluster_resources()}"
        )
    return facts[0]


def _in_start(ranks: int) -> list[str]:
    return [f"{ranks} learner ranks are not ready; they wait for room in the cluster, or load the model"]


def _refuse_start(failures: Sequence[Exception]) -> NoReturn:
    """A death goes before what other ranks raise in its wake."""
    for error in failures:
        if isinstance(error, DEATHS) and not failed_to_start(error):
            raise LearnerLost(first_line(error), error) from error
    for error in failures:
        if isinstance(error, RayTaskError) and isinstance(error.cause, PrdpError):
            raise error.cause from error
    raise StuckError(f"The learner could not start: {failures[0]}") from failures[0]
