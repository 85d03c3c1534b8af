"""What the driver talks to: groups in, scores or drops out, from a single thread and without asyncio."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import ray
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from common.config.services import RewardServiceSection, RewardSpec
from common.errors import RewardError, StuckError
from common.trajectory import ScorerStamp
from reward_service import deployment
from reward_service.app import Reply, build_app, groups_at_a_replica
from reward_service.ledger import Ledger, PendingScore
from reward_service.registry import check_rewards
from reward_service.rewards import Answer, RewardCounters
from reward_service.service import RewardFailure

APP_NAME = "rewards"
START_LIMIT_S = 600.0
_TAKE_WAIT_S = 0.02
_IDLE_POLL_S = 60.0


@dataclass(frozen=True)
class _Job:
    images: ray.ObjectRef
    with_gold: bool


@dataclass(frozen=True)
class _Sent:
    """A request on its way to a replica."""

    response: DeploymentResponse
    sent_at: float


@dataclass(frozen=True)
class _Scoring:
    """A request that a replica has taken."""

    response: DeploymentResponse
    ref: ray.ObjectRef
    taken_at: float


class RewardClient:
    """The reward application on Ray Serve, seen from one driver.

    Groups go to the replicas a few at a time: at each a batch in work and the next one. A replica whose
    scorers work longer than reward_service.timeout_s on a batch ends itself; one that answers nothing is
    given twice that. A group without a score is sent again up to reward_service.retries times and then
    answered with a RewardFailure: it is dropped. An answer by other scorers than those the application was
    started with is no score.

    A driver that also waits for other work puts `refs()` into its own ray.wait, for at most `poll_s()`
    seconds, and calls `collect()` after it.
    """

    def __init__(
        self,
        running: deployment.Deployment,
        section: RewardServiceSection,
        stamps: Mapping[bool, tuple[ScorerStamp, ...]],
        start_limit_s: float,
    ) -> None:
        self._running = running
        self._handle: DeploymentHandle = running.handle
        self._section = section
        self._stamps = stamps
        self._start_limit_s = start_limit_s
        self._limit_s = 2.0 * section.timeout_s
        self._ledger = Ledger(
            section.replicas * groups_at_a_replica(section), section.queue_groups, section.retries
        )
        self._numbers = itertools.count()
        self._counters = RewardCounters()
        self._jobs: dict[PendingScore, _Job] = {}
        self._sent: dict[PendingScore, _Sent] = {}
        self._scoring: dict[PendingScore, _Scoring] = {}

    @classmethod
    def start(
        cls,
        rewards: Mapping[str, RewardSpec],
        gold: Mapping[str, RewardSpec],
        section: RewardServiceSection,
        app_name: str = APP_NAME,
        start_limit_s: float = START_LIMIT_S,
        stop_serve: bool = True,
    ) -> RewardClient:
        """Deploy the rewards on the Ray cluster of this process and wait until they are healthy.

        stop_serve: let `shutdown` end Serve where Serve is started here; false where Ray itself ends right
        after. Raises RewardError where a reward is wrongly configured or cannot be built, StuckError past
        start_limit_s seconds.
        """
        check_rewards(rewards, gold)
        app = build_app(rewards, gold, section)
        running = deployment.deploy(app, app_name, start_limit_s, stop_serve)
        with contextlib.ExitStack() as undo:
            undo.callback(deployment.end, running)
            stamps = {flag: _ask_stamps(running.handle, flag, section.timeout_s) for flag in (False, True)}
            undo.pop_all()
        return cls(running, section, stamps, start_limit_s)

    @property
    def room(self) -> int:
        """Groups that can be submitted before scores are collected."""
        return self._ledger.room

    @property
    def outstanding(self) -> int:
        """Groups submitted and not yet collected."""
        return self._ledger.outstanding

    def stamps(self, with_gold: bool = False) -> tuple[ScorerStamp, ...]:
        """Which scorers the application was started with."""
        return self._stamps[with_gold]

    def counters(self) -> RewardCounters:
        """What has happened since the start."""
        return self._counters

    def submit(self, prompt: str, images: ray.ObjectRef, with_gold: bool = False) -> PendingScore:
        """Ask for the score of one group. images: reference of an ImageGroup of that prompt.

        Waits at most some milliseconds for a replica to take it. Raises RewardError where `room` is 0.
        """
        pending = PendingScore(next(self._numbers), prompt)
        self._ledger.add(pending)
        self._jobs[pending] = _Job(images, with_gold)
        self._send()
        return pending

    def refs(self) -> list[ray.ObjectRef]:
        """References of the answers that replicas are working on, for ray.wait."""
        return [scoring.ref for scoring in self._scoring.values()]

    def poll_s(self) -> float:
        """Seconds after which `collect` should be called even if none of `refs` is ready."""
        if self._sent:
            return _TAKE_WAIT_S
        now = time.monotonic()
        left = [scoring.taken_at + self._limit_s - now for scoring in self._scoring.values()]
        return max(0.0, min([*left, _IDLE_POLL_S]))

    def collect(self) -> list[Answer]:
        """Scores, and RewardFailures of dropped groups, that are there now. Sends groups that wait here.

        Raises StuckError where no replica has taken a group for start_limit_s.
        """
        answers = self._note_taken() + self._note_ready() + self._note_late()
        self._send()
        return answers

    def wait(self, timeout_s: float) -> list[Answer]:
        """Answers, as soon as there is one; empty after timeout_s or where nothing is outstanding."""
        end_at = time.monotonic() + timeout_s
        while True:
            answers = self.collect()
            left = end_at - time.monotonic()
            if answers or not self.outstanding or left <= 0:
                return answers
            refs = self.refs()
            if refs:
                ray.wait(refs, timeout=min(left, self.poll_s()), fetch_local=False)
            else:
                time.sleep(min(left, self.poll_s()))

    def shutdown(self) -> None:
        """Delete the application; shut Serve down only where `start` started it, unless told not to."""
        deployment.end(self._running)

    def _send(self) -> None:
        for pending in self._ledger.take():
            job = self._jobs[pending]
            response = self._handle.score.remote(pending.prompt, job.images, job.with_gold)
            replicas_answer = not self._sent
            self._sent[pending] = _Sent(cast(DeploymentResponse, response), time.monotonic())
            if replicas_answer:
                # A replica takes a group within milliseconds, so the driver rarely has to ask again.
                with contextlib.suppress(TimeoutError, RayError, RayServeException):
                    self._take(pending, wait_s=_TAKE_WAIT_S)

    def _take(self, pending: PendingScore, wait_s: float) -> None:
        ref = self._sent[pending].response._to_object_ref_sync(_timeout_s=wait_s)
        taken_at = time.monotonic()
        self._scoring[pending] = _Scoring(self._sent.pop(pending).response, ref, taken_at)

    def _note_taken(self) -> list[Answer]:
        answers = []
        for pending, sent in list(self._sent.items()):
            try:
                self._take(pending, wait_s=0.0)
            except TimeoutError:
                self._check_stuck(sent)
            except (RayError, RayServeException) as error:
                del self._sent[pending]
                answers += self._failed(pending, f"No replica took it: {error}", lost=False)
        return answers

    def _note_ready(self) -> list[Answer]:
        of_ref = {scoring.ref: pending for pending, scoring in self._scoring.items()}
        if not of_ref:
            return []
        ready, _ = ray.wait(list(of_ref), num_returns=len(of_ref), timeout=0)
        return [answer for ref in ready for answer in self._read(of_ref[ref])]

    def _read(self, pending: PendingScore) -> list[Answer]:
        scoring = self._scoring.pop(pending)
        try:
            reply: Reply = ray.get(scoring.ref, timeout=self._section.timeout_s)
        except RayActorError:
            reason = _why_died(time.monotonic() - scoring.taken_at, self._section.timeout_s)
            return self._failed(pending, reason, lost=True)
        except RayError as error:
            return self._failed(pending, f"The replica failed: {error}", lost=False)
        outcome = reply.outcome
        self._counters = replace(self._counters, busy_s=self._counters.busy_s + reply.busy_s)
        if isinstance(outcome, RewardFailure):
            return self._failed(pending, outcome.reason, lost=False)
        expected = self._stamps[self._jobs[pending].with_gold]
        if outcome.scorers != expected:
            return self._failed(pending, f"Answered by {outcome.scorers}, not by {expected}.", lost=False)
        self._counters = replace(self._counters, scored=self._counters.scored + 1)
        self._ledger.answered(pending)
        del self._jobs[pending]
        return [(pending, outcome)]

    def _note_late(self) -> list[Answer]:
        now = time.monotonic()
        late = [
            pending for pending, scoring in self._scoring.items() if scoring.taken_at + self._limit_s <= now
        ]
        for pending in late:
            self._scoring.pop(pending).response.cancel()
        reason = f"No answer {self._limit_s:g} s after a replica took it."
        return [answer for pending in late for answer in self._failed(pending, reason, lost=True)]

    def _failed(self, pending: PendingScore, reason: str, lost: bool) -> list[Answer]:
        if self._ledger.failed(pending, lost):
            self._counters = replace(self._counters, retries=self._counters.retries + 1)
            return []
        self._counters = replace(self._counters, dropped=self._counters.dropped + 1)
        del self._jobs[pending]
        tries = "1 try" if self._section.retries == 0 else f"{self._section.retries + 1} tries"
        return [(pending, RewardFailure(f"Dropped after {tries} for prompt {pending.prompt!r}: {reason}"))]

    def _check_stuck(self, sent: _Sent) -> None:
        if time.monotonic() - sent.sent_at > self._start_limit_s:
            raise StuckError(
                f"No replica of the reward service has taken a group for {self._start_limit_s:.0f} s: "
                f"{deployment.describe(self._running.name)}"
            )


def _ask_stamps(handle: DeploymentHandle, with_gold: bool, limit_s: float) -> tuple[ScorerStamp, ...]:
    try:
        stamps: tuple[ScorerStamp, ...] = handle.stamps.remote(with_gold).result(timeout_s=limit_s)
    except (TimeoutError, RayError, RayServeException) as error:
        raise RewardError(f"The reward service started but does not name its scorers: {error}") from error
    return stamps


def _why_died(held_s: float, timeout_s: float) -> str:
    if held_s >= timeout_s:
        return (
            f"Its scorers worked longer than reward_service.timeout_s ({timeout_s:g} s); the replica ended."
        )
    return "The replica that scored it died: killed, out of memory, or a crash in native code."
