"""Start Ray, the actors, the learner and the reward service; end exactly what was started."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import ray
from ray.exceptions import ActorAlreadyExistsError

from actors.pool import ActorPool
from common.cluster.process_failures import (
    DEATHS,
    DeathCounter,
    failed_to_start,
    in_a_line,
    own_error,
)
from common.cluster.references import first_line, value_of
from common.config.schema import Config
from common.errors import StuckError
from driver.loop.cluster import missing_room
from driver.loop.ranks import LearnerLost
from driver.stalls import StallReporter
from driver.stop import StopFlag
from learner.ranks import DEATH_LIMIT_S, LearnerRanks
from learner.report import LearnerFacts
from reward_service.client.reward_sum import RewardSum
from reward_service.client.start import start_rewards

TELL_S = 1.0
GIVE_UP_S = 10.0
"""Longest wait for rewards to end that are not wanted any more."""
TURN_POLL_S = 0.5


@dataclass(frozen=True)
class Services:
    """What runs on Ray: the learner and actors.minimum actors are ready; more actors may join.

    deaths: of the learner so far, also while it was started.
    """

    pool: ActorPool
    learner: LearnerRanks
    rewards: RewardSum
    deaths: DeathCounter


@contextmanager
def beside(work: Coroutine[Any, Any, None]) -> Iterator[None]:
    """Inside, this coroutine runs too; it is cancelled at the end. Raises what it raised."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        yield
    finally:
        task.cancel()
    if task.done() and not task.cancelled():
        task.result()


@asynccontextmanager
async def turn_to_start(stop: StopFlag, stalls: StallReporter, limit_s: float) -> AsyncIterator[None]:
    """Inside, no other run on this cluster starts: two that ask for their processes at once may each get a
    part of the room, and wait for the rest of it until both give up.

    A placement group would not do: Serve places replicas by itself. The name of an actor of this driver's own
    is free again when the driver ends, however it does. Raises StuckError after limit_s seconds,
    StopRequested.
    """
    clock = asyncio.get_running_loop().time
    end_at, turn = clock() + limit_s, None
    # Nobody calls it: its name is what counts.
    actor: Any = ray.remote(object)
    with stalls.waiting_for("its turn to start: another run on this cluster is starting"):
        while turn is None:
            try:
                turn = actor.options(name="turn-to-start", num_cpus=0).remote()
            except ActorAlreadyExistsError as taken:
                if clock() > end_at:
                    raise StuckError(
                        f"For {limit_s:.0f} s other runs on this cluster were starting. What they wait "
                        "for stands in their logs; start this one again once they run or have been stopped."
                    ) from taken
                await stop.first_of(asyncio.ensure_future(asyncio.sleep(TURN_POLL_S)))
    try:
        yield
    finally:
        ray.kill(turn)


@asynccontextmanager
async def services(
    config: Config,
    run_id: str,
    stop: StopFlag,
    stalls: StallReporter,
    waits_for: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Services]:
    """Start all three, side by side, and end them whatever happens. Raises StopRequested.

    waits_for: told what the start waits for, in words, as that changes.
    """
    deaths = DeathCounter("The learner", "learner.restarts", config.learner.restarts)
    with ExitStack() as stack:
        pool = ActorPool(config)
        with beside(stalls.watch(pool.in_work)), beside(_tell(waits_for, stalls, pool)):
            # Nobody else starts on a cluster of our own.
            limit_s = config.ray.start_limit_s
            turn = turn_to_start(stop, stalls, limit_s) if config.ray.address != "local" else nullcontext()
            async with turn:
                for line in missing_room(config, ray.available_resources()):
                    stalls.note(line)
                learner = LearnerRanks.start(config, run_id)
                stack.callback(learner.shutdown)
                stack.callback(pool.shutdown)
                loading = asyncio.gather(await_learner(learner, deaths, stalls, limit_s), pool.start(limit_s))
                # Where the start ends before it is looked at, nobody is to hear of it.
                loading.add_done_callback(lambda done: None if done.cancelled() else done.exception())
                # Ray begins to place the processes while the rewards are deployed.
                await asyncio.sleep(0)
                rewards = await started_rewards(config, loading, stop, stalls)
                stack.callback(rewards.shutdown)
                await stop.first_of(loading)
                facts, _ = loading.result()
        pool.require_base(facts.base)
        pool.grow()
        yield Services(pool, learner, rewards, deaths)


class GivenUp(Exception):  # noqa: N818 - an event
    """Nobody waits for the rewards any more."""


async def started_rewards(
    config: Config, loading: asyncio.Future[Any], stop: StopFlag, stalls: StallReporter
) -> RewardSum:
    """Start the rewards in a thread, so that a failure of what loads beside them is heard of.

    loading: the others. Raises what either raises, or StopRequested; then nothing of the rewards stays.
    """
    state, given_up = ["the rewards"], threading.Event()

    def told(what: str) -> None:
        state[0] = what
        if given_up.is_set():
            raise GivenUp

    call = partial(
        start_rewards,
        config.rewards,
        config.gold,
        config.reward_service,
        run_name=config.run.name,
        owner=str(config.run_folder.resolve()),
        start_limit_s=config.ray.start_limit_s,
        # A cluster of our own ends right after, and Serve with it.
        stop_serve=config.ray.address != "local",
        waits_for=told,
    )
    # Not the loop's own executor, whose threads asyncio waits for at the end.
    executor = ThreadPoolExecutor(1, thread_name_prefix="starts the rewards")
    starting = asyncio.get_running_loop().run_in_executor(executor, call)
    executor.shutdown(wait=False)
    try:
        with stalls.waiting_for("", lambda: state[0]):
            while not starting.done():
                await stop.first_of(starting, *([] if loading.done() else [loading]))
                if loading.done():
                    loading.result()
            return starting.result()
    except BaseException:
        given_up.set()
        await asyncio.wait({starting}, timeout=GIVE_UP_S)
        if starting.done() and starting.exception() is None:
            starting.result().shutdown()
        raise


async def _tell(waits_for: Callable[[str], None], stalls: StallReporter, pool: ActorPool) -> None:
    """Once a second, until cancelled."""
    while True:
        if waits := [*stalls.waits(), *pool.in_work()]:
            waits_for("; ".join(waits))
        await asyncio.sleep(TELL_S)


async def await_learner(
    learner: LearnerRanks, deaths: DeathCounter, stalls: StallReporter, limit_s: float
) -> LearnerFacts:
    """Wait until every rank has loaded its model. Where one dies meanwhile, all are started anew.

    Raises StuckError where they die more often than `deaths` allows, and where they cannot start; then their
    own error, if it is one of ours.
    """
    while True:
        try:
            return await _await_ranks(learner, stalls, limit_s)
        except LearnerLost as loss:
            deaths.add(loss.error, learner.nodes())
            stalls.note(f"The learner is started again: {loss}")
            learner.restart()


async def _await_ranks(learner: LearnerRanks, stalls: StallReporter, limit_s: float) -> LearnerFacts:
    """Raises LearnerLost where a rank died, StuckError or the ranks' own error where they cannot start."""
    ranks = [asyncio.ensure_future(value_of(reference)) for reference in learner.ready()]
    who = "1 learner rank" if len(ranks) == 1 else f"{len(ranks)} learner ranks"
    what = f"{who} to find room in the cluster and load the model"
    with stalls.waiting_for(what, lambda: f" ({sum(one.done() for one in ranks)} are ready)"):
        done, missing = await asyncio.wait(ranks, timeout=limit_s, return_when=asyncio.FIRST_EXCEPTION)
        if missing and any(one.exception() for one in done):
            # The others' failures may be its cause.
            _, missing = await asyncio.wait(missing, timeout=DEATH_LIMIT_S)
    for one in missing:
        one.cancel()
    failures = [error for one in ranks if one not in missing and (error := one.exception())]
    if failures:
        _refuse_start(failures)
    if missing:
        raise StuckError(
            f"Waited {limit_s:.0f} s for the learner to load the model. Does the cluster have the CPUs, GPUs "
            "and labels that the configuration asks for, and do weights come fast enough "
            f"(ray.start_limit_s)? Resources: {ray.cluster_resources()}"
        )
    facts: LearnerFacts = ranks[0].result()
    return facts


def _refuse_start(failures: Sequence[BaseException]) -> NoReturn:
    """A death goes before what other ranks raise in its wake."""
    for error in failures:
        if isinstance(error, DEATHS) and not failed_to_start(error):
            raise LearnerLost(first_line(error), error) from error
    for error in failures:
        if own := own_error(error):
            raise own from error
    raise StuckError(
        f"The learner could not start: {in_a_line(failures[0])} Ray's logs (worker-*.err) have the rest."
    ) from failures[0]
