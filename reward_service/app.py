"""The Serve edge: one deployment whose replicas each hold a RewardService. Nothing is reachable over HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from ray import serve

from common.config.services import RewardServiceSection, RewardSpec
from common.placement import process_options
from common.trajectory import GroupScore, ImageGroup, ScorerStamp
from reward_service.service import RewardFailure, RewardService, build_service

LOGGER = logging.getLogger("ray.serve")
DEPLOYMENT = "RewardReplica"
HEALTH_PERIOD_S = 2.0
PROBE_AFTER_IDLE_S = 30.0
STOP_LIMIT_S = 5.0
BUILD_TRIES = 2

Specs = Mapping[str, RewardSpec]
Outcome = GroupScore | RewardFailure
T = TypeVar("T")


@dataclass(frozen=True)
class ScoreRequest:
    """One group as it waits to be batched. pixels: uint8 (B, height, width, 3)."""

    prompt: str
    pixels: NDArray[np.uint8]
    with_gold: bool


@dataclass(frozen=True)
class Reply:
    """What a replica answers. busy_s: this group's share of the seconds that scorers took for its batch."""

    outcome: Outcome
    busy_s: float


class RewardReplica:
    """A replica: builds the service, checks each scorer's contract, then answers in batches.

    Scorers run in one thread of their own, so the replica answers Serve while they work. A thread that hangs
    cannot be stopped, so a replica whose scorers work longer than `timeout_s` on one batch ends its process,
    and Serve starts another.
    """

    def __init__(self, rewards: Specs, gold: Specs, section: RewardServiceSection) -> None:
        self._timeout_s = section.timeout_s
        self._work = _ScoringThread(section.threads)
        self._service = build_service(rewards, gold)
        self._work.run_now(self._service.check)
        self._stamps = {flag: self._service.stamps(flag) for flag in (False, True)}
        self._score_batched = serve.batch(
            max_batch_size=section.max_batch_groups, batch_wait_timeout_s=section.batch_wait_s
        )(self._score_batch)

    async def score(self, prompt: str, images: ImageGroup, with_gold: bool) -> Reply:
        """The score of one group. `images` is passed to the handle as an object reference."""
        if images.prompt != prompt:
            wrong = f"The pictures are of prompt {images.prompt!r}, not of {prompt!r}."
            return Reply(RewardFailure(wrong), busy_s=0.0)
        return await self._score_batched(ScoreRequest(prompt, images.pixels, with_gold))

    async def stamps(self, with_gold: bool) -> tuple[ScorerStamp, ...]:
        """Which scorers this replica holds."""
        return self._stamps[with_gold]

    async def check_health(self) -> None:
        """Serve's health check: do scorers that have been idle for a while still work? Raises RewardError."""
        if self._work.idle_s() > PROBE_AFTER_IDLE_S:
            await self._work.run(self._service.probe, self._timeout_s)

    async def _score_batch(self, requests: list[ScoreRequest]) -> list[Reply]:
        return await self._work.run(lambda: _score_requests(self._service, requests), self._timeout_s)


class _ScoringThread:
    """One thread for all scorer code, with a clock on what it does."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, initializer=torch.set_num_threads, initargs=(threads,))
        self._busy = False
        self._since = time.monotonic()

    def run_now(self, call: Callable[[], T]) -> T:
        """Run in the thread and wait without limit; for start-up, which the driver limits."""
        return self._pool.submit(self._timed, call).result()

    async def run(self, call: Callable[[], T], limit_s: float) -> T:
        """Run in the thread, after what it does already. More than limit_s seconds end the process."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._limited, call, limit_s)

    def idle_s(self) -> float:
        """Seconds since the last call ended; 0 while one runs."""
        return 0.0 if self._busy else time.monotonic() - self._since

    def _limited(self, call: Callable[[], T], limit_s: float) -> T:
        # A timer beside the thread, not a timeout of the caller: a cancelled request leaves its call running.
        alarm = threading.Timer(limit_s, _end_process, [limit_s])
        alarm.start()
        try:
            return self._timed(call)
        finally:
            alarm.cancel()

    def _timed(self, call: Callable[[], T]) -> T:
        self._busy, self._since = True, time.monotonic()
        try:
            return call()
        finally:
            self._busy, self._since = False, time.monotonic()


def _end_process(limit_s: float) -> None:
    """End this replica at once. Its callers see it die and send their groups again."""
    LOGGER.error("Scorers have worked for more than %g s on a batch; the replica ends.", limit_s)
    os._exit(1)


def build_app(rewards: Specs, gold: Specs, section: RewardServiceSection) -> serve.Application:
    """The Serve application for a configuration: replicas, their resources, threads, labels and limits."""
    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=section.replicas,
        ray_actor_options=process_options(section),
        max_ongoing_requests=groups_at_a_replica(section),
        max_queued_requests=section.queue_groups,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=max(section.timeout_s, HEALTH_PERIOD_S),
        graceful_shutdown_timeout_s=STOP_LIMIT_S,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=BUILD_TRIES,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )(RewardReplica)
    return deployment.bind(dict(rewards), dict(gold), section)


def groups_at_a_replica(section: RewardServiceSection) -> int:
    """Groups that a replica holds at most: one batch in work and the next one filling."""
    return 2 * section.max_batch_groups


def _score_requests(service: RewardService, requests: list[ScoreRequest]) -> list[Reply]:
    started = time.monotonic()
    outcomes: dict[int, Outcome] = {}
    for with_gold in (False, True):
        rows = [row for row, request in enumerate(requests) if request.with_gold is with_gold]
        groups = [(requests[row].prompt, requests[row].pixels) for row in rows]
        outcomes.update(zip(rows, service.score_groups(groups, with_gold), strict=True))
    share = (time.monotonic() - started) / len(requests)
    return [Reply(outcomes[row], share) for row in range(len(requests))]
