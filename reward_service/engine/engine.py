"""One reward in one process, without Ray: a queue, a scoring thread with a clock, settings that change live.

consumes: groups, from an event loop. produces: Replies. waits for: the scorer. unblocked by: its answer, or
by the end of the process where it works longer than `timeout_s`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ConfigError, RewardError
from common.hidden import hide, hide_in_logs
from reward_service.contract.results import BusyError, Description, Reply, RewardFailure
from reward_service.contract.reward import Reward
from reward_service.contract.settings import ServedReward, read_settings
from reward_service.engine.build import build_aside, use_threads
from reward_service.engine.meter import Meter
from reward_service.engine.queue import Check, GroupQueue, WaitingGroup

LOGGER = logging.getLogger("ray.serve")
PROBE_WAIT_S = 5.0
PROOF_LASTS_S = 1.0
RETRY_AFTER_S = (0.05, 30.0)
WITHDRAWN = "Withdrawn before they were taken: newer settings were given, or the reward ended."

EndProcess = Callable[[str], None]
"""Ends this process for the reason given. It returns only in tests."""


@dataclass(frozen=True)
class RunningReward:
    """The scorer that answers and the settings it was built from."""

    reward: Reward
    settings: ServedReward


class Engine:
    """Answers groups by one reward; a results.Backend.

    Scorer code runs in one thread of its own. A thread that hangs cannot be stopped, so where the scorer
    works longer than `timeout_s` on a batch, or ends its thread, `end_process` is called. A batch is scored
    by one scorer, so a group has one version always.
    """

    def __init__(self, name: str, running: RunningReward, end_process: EndProcess, meter: Meter) -> None:
        self._name = name
        self._running = running
        self._end_process = end_process
        self._meter = meter
        self._queue = GroupQueue(running.settings)
        self._thread = threading.Thread(target=self._work, name=f"scores {name}", daemon=True)
        self._change: asyncio.Task[str] | None = None
        self._refused = ""
        self._at_work = False
        self._worked_at = time.monotonic()
        self._group_s = 0.0

    @classmethod
    async def start(cls, name: str, settings: ServedReward, end_process: EndProcess, meter: Meter) -> Engine:
        """Build the scorer, check its contract, and take groups.

        Raises RewardError where it cannot be built, breaks its contract, or is not ready in time.
        """
        hide_in_logs()
        engine = cls(name, RunningReward(await build_aside(name, settings), settings), end_process, meter)
        engine._thread.start()
        return engine

    @property
    def settings(self) -> ServedReward:
        """Those that answer now."""
        return self._running.settings

    async def score(self, prompt: str, images: NDArray[np.uint8]) -> Reply:
        """Score one group, uint8 (B, height, width, 3). Raises BusyError where the queue is full."""
        group = WaitingGroup(prompt, images)
        if not self._queue.put(group):
            self._meter.turned_away()
            raise BusyError(self._retry_after_s())
        self._meter.waiting(len(self._queue))
        reply = await asyncio.wrap_future(group.reply)
        self._meter.answered(time.monotonic() - group.came_at)
        return reply

    async def describe(self) -> Description:
        """Which reward this is, how it is set, and why the last change was refused, if it was."""
        running = self._running
        return Description(
            name=self._name,
            stamp=running.reward.stamp,
            scorer=running.settings.scorer,
            kind=running.reward.kind,
            settings=running.settings.without_secrets(),
            refused=self._refused,
            ready=self._thread.is_alive(),
        )

    async def probe(self) -> float:
        """Does the scorer work, and how many seconds ago did it last? Raises RewardError where it does not.

        Asks for a warm forward pass, unless the scorer has worked in the last PROOF_LASTS_S, or is paid.
        """
        self._check_thread()
        if not self._running.reward.paid and self._idle_s >= PROOF_LASTS_S:
            # Shielded, because others may wait for the same pass.
            await asyncio.shield(asyncio.wrap_future(self._queue.check()))
        return self._idle_s

    async def check_health(self) -> None:
        """Does the scorer work? Raises RewardError where it does not.

        Asks for a forward pass where the scorer is not paid and has been idle for `probe_idle_s`. A pass that
        takes longer than PROBE_WAIT_S counts as working: the clock beside the thread ends what hangs.
        """
        self._check_thread()
        running = self._running
        longest_idle_s = running.settings.probe_idle_s
        if self._at_work or not longest_idle_s or running.reward.paid or self._idle_s < longest_idle_s:
            return
        passed = asyncio.wrap_future(self._queue.check())
        await asyncio.wait([passed], timeout=PROBE_WAIT_S)
        if passed.done():
            passed.result()

    async def change(self, given: Mapping[str, Any]) -> str:
        """Answer by other settings from the next batch on, while the present ones answer until then.

        A new scorer is built and checked beside the old one. Settings that cannot work change nothing; the
        reason is returned, logged, counted, and shown by `describe`. Empty where they were taken.

        The newest settings win: those before them that are not taken yet never answer, even where the newest
        are refused, and WITHDRAWN is returned for them.
        """
        if self._change is not None:
            self._change.cancel()
        change = self._change = asyncio.create_task(self._take(given))
        await asyncio.wait([change])
        return WITHDRAWN if change.cancelled() else change.result()

    def close(self) -> None:
        """Take no more groups, cancel those that wait, and let the threads end."""
        if self._change is not None:
            self._change.cancel()
        self._queue.close()

    @property
    def _idle_s(self) -> float:
        """Seconds since the scorer was last seen to work."""
        return time.monotonic() - self._worked_at

    def _check_thread(self) -> None:
        if not self._thread.is_alive():
            raise RewardError(f"Reward {self._name!r}: its scoring thread has ended.")

    async def _take(self, given: Mapping[str, Any]) -> str:
        running = self._running
        try:
            settings = read_settings(given, f"Settings of reward {self._name!r}")
            is_same = settings.same_scorer(running.settings)
            reward = running.reward if is_same else await build_aside(self._name, settings)
        except (ConfigError, RewardError) as error:
            LOGGER.error("Settings refused, the old ones stay: %s", error)
            self._meter.refused()
            self._refused = hide(str(error))
            return self._refused
        self._queue.change(settings)
        # The scoring thread reads this once a batch.
        self._running = RunningReward(reward, settings)
        self._meter.swapped()
        self._refused = ""
        return ""

    def _work(self) -> None:
        try:
            while (work := self._queue.take()) is not None:
                running = self._running
                use_threads(running.settings.threads)
                if isinstance(work, Check):
                    self._make_pass(work, running)
                else:
                    self._score_batch(work, running)
        except BaseException:
            # Nothing of ours survives without this thread, whatever a user's code did to it.
            LOGGER.exception("The scoring thread of reward %r ended.", self._name)
            self._queue.close()
            self._end_process(f"The scoring thread of reward {self._name!r} ended; the process ends.")

    def _make_pass(self, check: Check, running: RunningReward) -> None:
        try:
            # A group that was scored meanwhile is proof enough.
            if self._worked_at < check.asked_at:
                with self._clock(running):
                    running.reward.probe()
                self._worked_at = time.monotonic()
        except RewardError as error:
            check.done.set_exception(error)
        else:
            check.done.set_result(None)

    def _score_batch(self, batch: list[WaitingGroup], running: RunningReward) -> None:
        groups = [group for group in batch if group.reply.set_running_or_notify_cancel()]
        if not groups:
            return
        started = time.monotonic()
        outcomes = running.reward.score_groups(
            [(group.prompt, group.images) for group in groups], lambda: self._clock(running)
        )
        seconds = time.monotonic() - started
        failed = sum(isinstance(outcome, RewardFailure) for outcome in outcomes)
        if failed < len(groups):
            self._worked_at = time.monotonic()
        self._group_s = seconds / len(groups)
        self._meter.batch(len(groups), failed, seconds)
        self._meter.waiting(len(self._queue))
        for group, outcome in zip(groups, outcomes, strict=True):
            group.reply.set_result(Reply(outcome, self._group_s, refused=self._refused))

    @contextmanager
    def _clock(self, running: RunningReward) -> Iterator[None]:
        # A clock beside the thread, not a timeout of the caller: a cancelled request leaves its call running.
        limit_s = running.settings.timeout_s
        reason = f"Reward {self._name!r} has worked for more than {limit_s:g} s on a batch; the process ends."
        clock = threading.Timer(min(limit_s, threading.TIMEOUT_MAX), self._end_process, [reason])
        clock.daemon = True
        clock.start()
        self._at_work = True
        try:
            yield
        finally:
            self._at_work = False
            clock.cancel()

    def _retry_after_s(self) -> float:
        shortest, longest = RETRY_AFTER_S
        return min(max(shortest, self._group_s * len(self._queue) / 2), longest)


def end_process(reason: str) -> None:
    """End this process at once. Its callers see it die and send their groups again."""
    LOGGER.error(reason)
    os._exit(1)
