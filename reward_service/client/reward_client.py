"""One reward as a driver asks it: a gate, tries, limits and pauses, over any RewardTransport.

A group that failed or was lost is sent again up to `retries` times, then it has a RewardFailure. What nobody
takes (a full queue, a restart, a redeploy) is sent again after a pause, with jitter and a cap, and is held
against no group, until the reward has answered nothing for `outage_s`: about none of the groups that it was
asked about all that time. As long as it answers others, a group waits for its turn.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from common.config.services import RewardServiceSection
from common.errors import RewardError
from common.trajectory import RewardScores
from reward_service.client.report import RewardReport
from reward_service.client.transport import (
    FailedError,
    FinalError,
    ImagesRef,
    LostError,
    RefusedError,
    RewardTransport,
)
from reward_service.contract.results import Outcome, Reply, RewardFailure, check_scores

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
LOOK_S = 5.0
"""How often to look whether somebody is at work, once nothing has been answered for long."""
KEPT_ASKS = 20_000


@dataclass(frozen=True)
class Ask:
    """When one reward was asked about one group, and when it answered: for the timeline of an epoch.

    images: ImagesRef.hex() of the group's images. reward: its name in the configuration. sent_at,
    answered_at: seconds since 1970 by the driver's clock; what was tried again begins with the try that was
    answered. busy_s: the group's share of the scorer's work.
    """

    images: str
    reward: str
    sent_at: float
    answered_at: float
    busy_s: float


class Gate:
    """Lets at most `size` in at once, in the order in which they came, or one suspect alone.

    While a suspect waits nobody else is let in; so what it does to the scorer is done to no other group.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._inside = 0
        self._alone = False
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._suspects: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def place(self, alone: bool) -> AsyncIterator[None]:
        """Wait for a place and hold it. alone: as a suspect."""
        turn = asyncio.get_running_loop().create_future()
        (self._suspects if alone else self._waiting).append(turn)
        try:
            self._admit()
            await turn
            yield
        finally:
            # Also where it was let in and cancelled at once.
            if turn.done() and not turn.cancelled():
                self._inside -= 1
                self._alone = False
            turn.cancel()
            self._admit()

    def _admit(self) -> None:
        for queue in (self._suspects, self._waiting):
            while queue and queue[0].done():
                queue.popleft()
        if self._alone or (self._suspects and self._inside):
            return
        if self._suspects:
            self._alone = True
            self._let_in(self._suspects.popleft())
            return
        while self._waiting and self._inside < self._size:
            turn = self._waiting.popleft()
            if not turn.done():
                self._let_in(turn)

    def _let_in(self, turn: asyncio.Future[None]) -> None:
        self._inside += 1
        turn.set_result(None)


class RewardClient:
    """Groups in, scores out, of the reward called `name` in the configuration. Used from one event loop."""

    def __init__(self, name: str, transport: RewardTransport, section: RewardServiceSection) -> None:
        self._name = name
        self._transport = transport
        self._section = section
        self._gate = Gate(min(transport.window, section.queue_groups))
        self._asked: dict[object, str] = {}
        self._report = RewardReport()
        self._asks: deque[Ask] = deque(maxlen=KEPT_ASKS)
        self._heard_at = 0.0
        self._told: set[str] = set()
        self._refusals: list[str] = []
        self.retries = 0
        """Groups sent again after a failure, since the start."""

    async def score(self, prompt: str, images: ImagesRef, count: int) -> Outcome:
        """Ask about one group of `count` images until it has a score, or is given up for the reason returned.

        The score is of one answer of one version; what other tries brought is no part of it.
        """
        if not self._asked:
            # Nobody was asked, so nobody has been silent.
            self._heard_at = _now()
        ticket = object()
        self._asked[ticket] = prompt
        try:
            return await self._try_all(prompt, images, count)
        finally:
            del self._asked[ticket]

    def in_work(self) -> list[str]:
        """Prompts of the groups that wait for this reward."""
        return list(self._asked.values())

    def take_report(self) -> RewardReport:
        """What happened since the last call."""
        report, self._report = self._report, RewardReport()
        return report

    def take_asks(self) -> list[Ask]:
        """When groups were asked about and answered since the last call; of very many, the last."""
        asks = list(self._asks)
        self._asks.clear()
        return asks

    def take_refusals(self) -> list[str]:
        """Why changes of its settings were refused, as replies have told since the last call; each reason
        once."""
        refusals, self._refusals = self._refusals, []
        return refusals

    async def _try_all(self, prompt: str, images: ImagesRef, count: int) -> Outcome:
        tries = self._section.retries + 1
        reason, is_suspect = "", False
        for tried in range(1, tries + 1):
            try:
                async with self._gate.place(alone=is_suspect):
                    return await self._until_taken(prompt, images, count)
            except FinalError as error:
                return RewardFailure(f"Dropped: {error} (prompt {prompt!r})")
            except (LostError, FailedError) as error:
                reason, is_suspect = str(error), isinstance(error, LostError)
            if tried < tries:
                self.retries += 1
                await asyncio.sleep(_pause_s(tried))
        many = "1 try" if tries == 1 else f"{tries} tries"
        return RewardFailure(f"Dropped after {many}: {reason} (prompt {prompt!r})")

    async def _until_taken(self, prompt: str, images: ImagesRef, count: int) -> RewardScores:
        """Ask again while it is refused. Raises LostError, FailedError, or FinalError past an outage."""
        refusals = 0
        while True:
            try:
                return await self._ask(prompt, images, count)
            except RefusedError as error:
                if self._silence_left_s <= 0.0:
                    raise await self._outage(str(error)) from error
                refusals += 1
                pause_s = error.wait_s + _pause_s(refusals)
                await asyncio.sleep(min(pause_s, max(self._silence_left_s, 0.0)))

    async def _ask(self, prompt: str, images: ImagesRef, count: int) -> RewardScores:
        sent_at, wall_clock = _now(), time.time()
        request = asyncio.create_task(self._transport.score(prompt, images))
        try:
            await self._await(request, sent_at)
            reply = request.result()
        except (LostError, FailedError, FinalError):
            if request.done():
                # Whoever fails or dies over a group was there to take it.
                self._heard_at = _now()
            raise
        finally:
            request.cancel()
        self._heard_at = _now()
        waited_s = self._heard_at - sent_at
        scores = self._note(reply, count, waited_s)
        ask = Ask(images.hex(), self._name, wall_clock, wall_clock + waited_s, reply.busy_s)
        self._asks.append(ask)
        return scores

    async def _await(self, request: asyncio.Task[Reply], sent_at: float) -> None:
        """Wait for a request. Raises FinalError past an outage, LostError where it never ends otherwise."""
        # Only a backstop: a replica ends itself where a batch takes too long, and its requests with it.
        limit_s = self._section.outage_s + self._transport.limit_s
        while not request.done():
            left_s = self._silence_left_s
            await asyncio.wait([request], timeout=left_s if left_s > 0.0 else LOOK_S)
            if request.done():
                return
            if _now() - sent_at > limit_s:
                raise LostError(f"No answer {limit_s:g} s after it was sent.")
            if self._silence_left_s <= 0.0 and await self._transport.absence() is not None:
                raise await self._outage("Nobody took it.")

    def _note(self, reply: Reply, count: int, waited_s: float) -> RewardScores:
        if reply.refused and reply.refused not in self._told:
            self._told.add(reply.refused)
            self._refusals.append(reply.refused)
        outcome = usable_scores(reply.outcome, count, self._transport.stamp.name, self._name)
        self._report = self._report.with_reply(replace(reply, outcome=outcome), waited_s)
        if isinstance(outcome, RewardFailure):
            raise FailedError(outcome.reason)
        return outcome

    @property
    def _silence_left_s(self) -> float:
        """Until the reward has been silent for too long."""
        return self._heard_at + self._section.outage_s - _now()

    async def _outage(self, reason: str) -> FinalError:
        silence = f"nothing was answered for {self._section.outage_s:g} s (reward_service.outage_s)"
        return FinalError(f"{silence}. {reason} {await self._transport.absence() or ''}".strip())


def usable_scores(outcome: Outcome, images: int, answers_as: str, name: str) -> Outcome:
    """Scores as they may be used: finite, of `images` images, by the reward that was asked.

    answers_as: the name that the reward gave of itself at the start. name: its key in the configuration,
    which the stamp carries from here on. Scores that are not usable become a RewardFailure.
    """
    if isinstance(outcome, RewardFailure):
        return outcome
    if outcome.stamp.name != answers_as:
        return RewardFailure(f"Answered by the reward {outcome.stamp.name!r}, not by {answers_as!r}.")
    try:
        scores = check_scores(outcome, images)
    except RewardError as error:
        return RewardFailure(f"Its answer is not sound. {error}")
    return replace(scores, stamp=replace(scores.stamp, name=name))


def _now() -> float:
    """Seconds, by the clock of the event loop."""
    return asyncio.get_running_loop().time()


def _pause_s(tried: int) -> float:
    """Before the next try, after so many: doubling up to LONGEST_PAUSE_S, with jitter."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tried - 1, 30)) * random.uniform(0.5, 1.0)
