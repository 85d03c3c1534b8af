"""Whatever happens to a group while it is submitted, `collect` tells of it: exactly once."""

from __future__ import annotations

import time
from typing import cast

import pytest
import ray

from common.config.services import RewardServiceSection
from common.trajectory import ScorerStamp
from reward_service.client.channel import Channel, PartAnswer
from reward_service.client.ledger import PendingScore
from reward_service.client.transport import (
    FailedError,
    FinalError,
    LineError,
    LostError,
    RefusedError,
    Request,
)
from reward_service.contract.results import Reply, RewardFailure

GROUP = PendingScore(0, "a red cup")
IMAGES = cast(ray.ObjectRef, "a reference that nobody looks behind")


class FailingLine:
    """A line that nobody is at the end of; also the request on its way there. trouble: what it raises, when
    sending or, with is_sent, when asked who took it."""

    window = 4
    limit_s = 10.0
    answers_as = ScorerStamp("jpeg", 1, "0" * 64)

    def __init__(self, trouble: LineError, is_sent: bool) -> None:
        self._trouble = trouble
        self._is_sent = is_sent
        self.sent = 0

    def send(self, request: Request) -> FailingLine:
        """See Line."""
        self.sent += 1
        if not self._is_sent:
            raise self._trouble
        return self

    def taken(self, wait_s: float) -> list[ray.ObjectRef]:
        """See Sending."""
        raise self._trouble

    def cancel(self) -> None:
        """See Sending."""

    def read(self, reference: ray.ObjectRef, held_s: float) -> Reply:
        """See Line."""
        raise AssertionError(reference)

    def state(self) -> str:
        """See Line."""
        return ""


def collected(channel: Channel, calls: int) -> list[PartAnswer]:
    """What so many calls in a row give."""
    return [answer for _ in range(calls) for answer in channel.collect()]


@pytest.mark.parametrize("is_sent", [False, True])
@pytest.mark.parametrize("trouble", [FinalError("gone"), FailedError("gone"), LostError("gone")])
@pytest.mark.parametrize("retries", [0, 2])
def test_a_group_that_fails_while_it_is_submitted_is_told_of(
    is_sent: bool, trouble: LineError, retries: int
) -> None:
    line = FailingLine(trouble, is_sent)
    channel = Channel("size", line, RewardServiceSection(retries=retries))
    channel.submit(GROUP, Request(GROUP.prompt, IMAGES, 4))
    ((pending, outcome),) = collected(channel, retries + 2)
    assert pending == GROUP
    assert isinstance(outcome, RewardFailure)
    assert "gone" in outcome.reason
    assert line.sent == (1 if isinstance(trouble, FinalError) else retries + 1)
    assert channel.outstanding == 0


def test_a_failure_that_is_known_is_not_waited_for() -> None:
    channel = Channel("size", FailingLine(FinalError("gone"), is_sent=True), RewardServiceSection())
    channel.submit(GROUP, Request(GROUP.prompt, IMAGES, 4))
    assert channel.poll_s() == 0.0
    assert len(channel.collect()) == 1
    assert channel.poll_s() > 0.0


def test_groups_that_nobody_takes_for_too_long_are_told_of() -> None:
    line = FailingLine(RefusedError("full", wait_s=0.0), is_sent=False)
    channel = Channel("size", line, RewardServiceSection(outage_s=0.05))
    channel.submit(GROUP, Request(GROUP.prompt, IMAGES, 4))
    # Longer than the outage, and than the pause after the first refusal.
    time.sleep(0.2)
    channel.submit(PendingScore(1, "a dog"), Request("a dog", IMAGES, 4))
    answers = channel.collect()
    assert [pending.number for pending, _ in answers] == [0, 1]
    assert all(isinstance(outcome, RewardFailure) and "full" in outcome.reason for _, outcome in answers)
