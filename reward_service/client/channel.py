"""One reward as a driver asks it: a bounded queue, tries, limits and pauses, over any Line.

A group that failed or was lost is sent again up to `retries` times, then its part is a RewardFailure. What
nobody takes (a full queue, a restart, a redeploy) is sent again after a pause, with jitter and a cap, and is
held against no group, until the reward has answered nothing for `outage_s`: about none of the groups that it
was asked about all that time. As long as it answers others, a group waits for its turn.
"""

from __future__ import annotations

import random
import time
from collections import deque
from dataclasses import dataclass, replace

import ray

from common.config.services import RewardServiceSection
from common.trajectory import ScorerStamp
from reward_service.client.asks import Ask
from reward_service.client.combine import sound_part
from reward_service.client.ledger import Ledger, PendingScore
from reward_service.client.report import RewardReport
from reward_service.client.transport import (
    FinalError,
    Line,
    LineError,
    LostError,
    RefusedError,
    Request,
    Sending,
)
from reward_service.contract.results import Outcome, RewardFailure

TAKE_WAIT_S = 0.02
IDLE_POLL_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
KEPT_ASKS = 20_000

PartAnswer = tuple[PendingScore, Outcome]


@dataclass(frozen=True)
class _Sent:
    """A request on its way to somebody."""

    sending: Sending
    sent_at: float


@dataclass(frozen=True)
class _Scoring:
    """A request that somebody has taken."""

    sending: Sending
    reference: ray.ObjectRef
    sent_at: float
    taken_at: float


class Channel:
    """Groups in, parts out, of the reward called `name` in the configuration. Owned by one thread."""

    def __init__(self, name: str, line: Line, section: RewardServiceSection) -> None:
        self._name = name
        self._line = line
        self._section = section
        self._ledger = Ledger(min(line.window, section.queue_groups), section.queue_groups, section.retries)
        self._requests: dict[PendingScore, Request] = {}
        self._sent: dict[PendingScore, _Sent] = {}
        self._scoring: dict[PendingScore, _Scoring] = {}
        self._given_up: list[PartAnswer] = []
        self._report = RewardReport()
        self._asks: deque[Ask] = deque(maxlen=KEPT_ASKS)
        self._retries = 0
        self._busy_s = 0.0
        self._refusals = 0
        self._paused_until = 0.0
        self._heard_at = 0.0

    @property
    def stamp(self) -> ScorerStamp:
        """The version that answered at the start, under the configuration's name."""
        return replace(self._line.answers_as, name=self._name)

    @property
    def retries(self) -> int:
        """Groups sent again after a failure, since the start."""
        return self._retries

    @property
    def busy_s(self) -> float:
        """Seconds that the scorer worked for us, since the start."""
        return self._busy_s

    @property
    def outstanding(self) -> int:
        """Groups that were asked about and have no part yet."""
        return self._ledger.outstanding

    def submit(self, pending: PendingScore, request: Request) -> None:
        """Ask for one group. Waits at most some milliseconds. Raises RewardError where the queue is full."""
        is_first = not self._ledger.outstanding
        self._ledger.add(pending)
        self._requests[pending] = request
        if is_first:
            # Nobody was asked, so nobody has been silent.
            self._heard_at = time.monotonic()
        self._given_up += self._send()

    def refs(self) -> list[ray.ObjectRef]:
        """References of the replies that are being worked on."""
        return [scoring.reference for scoring in self._scoring.values()]

    def in_work(self) -> list[str]:
        """Prompts of the groups that wait for this reward."""
        return [pending.prompt for pending in self._requests]

    def poll_s(self) -> float:
        """Seconds after which `collect` should be called even if none of `refs` is ready."""
        if self._given_up:
            return 0.0
        if self._sent:
            return TAKE_WAIT_S
        now = time.monotonic()
        until = [scoring.taken_at + self._line.limit_s for scoring in self._scoring.values()]
        if self._refusals and self._ledger.outstanding > len(self._scoring):
            until.append(self._paused_until)
        return max(0.0, min([*(moment - now for moment in until), IDLE_POLL_S]))

    def collect(self) -> list[PartAnswer]:
        """Parts that are there now, and failures of groups that were given up. Sends what waits here."""
        answers, self._given_up = self._given_up, []
        return answers + self._note_taken() + self._note_ready() + self._note_late() + self._send()

    def take_report(self) -> RewardReport:
        """What happened since the last call."""
        report, self._report = self._report, RewardReport()
        return report

    def take_asks(self) -> list[Ask]:
        """When groups were asked about and answered since the last call; of very many, the last."""
        asks = list(self._asks)
        self._asks.clear()
        return asks

    def _send(self) -> list[PartAnswer]:
        answers: list[PartAnswer] = []
        if time.monotonic() < self._paused_until:
            return answers
        for pending in self._ledger.take():
            nobody_waits = not self._sent
            try:
                sending = self._line.send(self._requests[pending])
                self._sent[pending] = _Sent(sending, time.monotonic())
                if nobody_waits:
                    # A request is taken within milliseconds, so the driver rarely has to ask again.
                    self._take(pending, TAKE_WAIT_S)
            except LineError as trouble:
                self._sent.pop(pending, None)
                answers += self._settle(pending, trouble)
        return answers

    def _take(self, pending: PendingScore, wait_s: float) -> None:
        sent = self._sent[pending]
        for reference in sent.sending.taken(wait_s):
            del self._sent[pending]
            self._scoring[pending] = _Scoring(sent.sending, reference, sent.sent_at, time.monotonic())

    def _note_taken(self) -> list[PartAnswer]:
        answers: list[PartAnswer] = []
        for pending in list(self._sent):
            try:
                self._take(pending, 0.0)
            except LineError as trouble:
                del self._sent[pending]
                answers += self._settle(pending, trouble)
                continue
            if pending in self._sent and self._is_silent():
                self._sent.pop(pending).sending.cancel()
                answers += self._given_up_on(pending, "Nobody took it.")
        return answers

    def _note_ready(self) -> list[PartAnswer]:
        of_reference = {scoring.reference: pending for pending, scoring in self._scoring.items()}
        if not of_reference:
            return []
        ready, _ = ray.wait(list(of_reference), num_returns=len(of_reference), timeout=0)
        return [answer for reference in ready for answer in self._read(of_reference[reference])]

    def _read(self, pending: PendingScore) -> list[PartAnswer]:
        scoring = self._scoring.pop(pending)
        now = time.monotonic()
        try:
            reply = self._line.read(scoring.reference, now - scoring.taken_at)
        except LineError as trouble:
            return self._settle(pending, trouble)
        self._heard_at, self._refusals, self._paused_until = now, 0, 0.0
        self._busy_s += reply.busy_s
        count, answers_as = self._requests[pending].count, self._line.answers_as.name
        outcome = sound_part(reply.outcome, count, answers_as, self._name)
        self._report = self._report.with_reply(replace(reply, outcome=outcome), now - scoring.sent_at)
        if isinstance(outcome, RewardFailure):
            return self._settle(pending, LineError(outcome.reason))
        self._ledger.answered(pending)
        del self._requests[pending]
        answered_at = time.time()
        sent_at = answered_at - (now - scoring.sent_at)
        self._asks.append(Ask(pending.number, self._name, sent_at, answered_at, reply.busy_s))
        return [(pending, outcome)]

    def _note_late(self) -> list[PartAnswer]:
        now, limit_s = time.monotonic(), self._line.limit_s
        late = [pending for pending, scoring in self._scoring.items() if scoring.taken_at + limit_s <= now]
        for pending in late:
            self._scoring.pop(pending).sending.cancel()
        reason = f"No answer {limit_s:g} s after it was taken."
        return [answer for pending in late for answer in self._settle(pending, LostError(reason))]

    def _settle(self, pending: PendingScore, trouble: LineError) -> list[PartAnswer]:
        """What follows for a group that was out and has no part."""
        if isinstance(trouble, RefusedError):
            return self._refused(pending, trouble)
        # Whoever fails or dies over a group was there to take it.
        self._heard_at = time.monotonic()
        if isinstance(trouble, FinalError):
            self._ledger.given_up(pending)
            return self._dropped(pending, f"Dropped: {trouble}")
        if self._ledger.failed(pending, lost=isinstance(trouble, LostError)):
            self._retries += 1
            return []
        tries = self._section.retries + 1
        return self._dropped(pending, f"Dropped after {tries} {'try' if tries == 1 else 'tries'}: {trouble}")

    def _refused(self, pending: PendingScore, trouble: RefusedError) -> list[PartAnswer]:
        if self._is_silent():
            return self._given_up_on(pending, str(trouble))
        now = time.monotonic()
        self._ledger.refused(pending)
        if now >= self._paused_until:
            # Requests that were out together are refused together: that is one refusal.
            own = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(self._refusals, 30))
            self._refusals += 1
            self._paused_until = now + trouble.wait_s + own * random.uniform(0.5, 1.0)
        return []

    def _is_silent(self) -> bool:
        return time.monotonic() - self._heard_at > self._section.outage_s

    def _given_up_on(self, pending: PendingScore, reason: str) -> list[PartAnswer]:
        self._ledger.given_up(pending)
        silence = f"nothing was answered for {self._section.outage_s:g} s (reward_service.outage_s)"
        return self._dropped(pending, f"Dropped, {silence}: {reason} {self._line.state()}".strip())

    def _dropped(self, pending: PendingScore, reason: str) -> list[PartAnswer]:
        prompt = self._requests.pop(pending).prompt
        return [(pending, RewardFailure(f"{reason} (prompt {prompt!r})"))]
