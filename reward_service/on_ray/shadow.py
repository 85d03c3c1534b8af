"""A second version of a reward that scores every group too: for the log, never used, and never harmful."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
from numpy.typing import NDArray
from ray.serve.handle import DeploymentHandle

from common.trajectory import RewardScores, ScorerStamp
from reward_service.contract.results import Outcome, Reply, RewardFailure
from reward_service.on_ray.handles import reward_handle

LOGGER = logging.getLogger("ray.serve")
PAUSE_S = 5.0


class Shadow:
    """Asks another application about groups. After a failure it rests for PAUSE_S, so that a dead shadow
    costs one wait and not one a group."""

    def __init__(self) -> None:
        self._handles: dict[str, DeploymentHandle] = {}
        self._stamps: dict[str, ScorerStamp] = {}
        self._rests_until = 0.0
        self._reason = ""

    @asynccontextmanager
    async def asked(
        self, app: str, prompt: str, images: NDArray[np.uint8]
    ) -> AsyncIterator[asyncio.Task[Outcome]]:
        """Ask now; the task ends with what the shadow says. It is cancelled where nobody waits for it."""
        task = asyncio.create_task(self._ask(app, prompt, images))
        try:
            yield task
        finally:
            task.cancel()

    async def say(self, task: asyncio.Task[Outcome], wait_s: float) -> Outcome:
        """What the shadow says, after at most wait_s seconds."""
        done, _ = await asyncio.wait([task], timeout=wait_s)
        if not done:
            return self._rest(f"No answer {wait_s:g} s after the own score.")
        # Whatever went wrong there must not harm the own score.
        error = task.exception()
        return task.result() if error is None else self._rest(f"{type(error).__name__}: {error}")

    async def _ask(self, app: str, prompt: str, images: NDArray[np.uint8]) -> Outcome:
        if time.monotonic() < self._rests_until:
            return RewardFailure(f"Not asked for {PAUSE_S:g} s after a failure: {self._reason}")
        response = (await self._handle(app)).score_alone.remote(prompt, images)
        try:
            reply: Reply = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        self._note(app, reply.outcome)
        return reply.outcome

    def _note(self, app: str, outcome: Outcome) -> None:
        if isinstance(outcome, RewardScores) and self._stamps.get(app) != outcome.stamp:
            self._stamps[app] = outcome.stamp
            # A warning, because replicas log nothing below.
            LOGGER.warning("The shadow %r answers as %s.", app, outcome.stamp)

    async def _handle(self, app: str) -> DeploymentHandle:
        if app not in self._handles:
            self._handles[app] = await asyncio.to_thread(reward_handle, app)
        return self._handles[app]

    def _rest(self, reason: str) -> RewardFailure:
        self._rests_until = time.monotonic() + PAUSE_S
        self._reason = reason
        self._handles.clear()
        return RewardFailure(reason)
