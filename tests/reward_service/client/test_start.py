"""Waiting for applications that are being changed, by statuses of the test's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.serve.schema import ApplicationStatus

from common.config.services import AppReward
from common.errors import RewardError, StuckError
from reward_service.client import start
from reward_service.client.start import wait_until_running

APPS = {"mine": AppReward(app="colours")}


def serve_says(monkeypatch: pytest.MonkeyPatch, *statuses: ApplicationStatus) -> None:
    """Serve tells these one after the other, the last one for ever."""
    left = list(statuses)

    def status() -> dict[str, SimpleNamespace]:
        told = left.pop(0) if len(left) > 1 else left[0]
        return {"colours": SimpleNamespace(status=told)}

    monkeypatch.setattr(start, "applications", status)
    monkeypatch.setattr(start, "describe", lambda app: f"{app} is {left[0].value}.")
    monkeypatch.setattr(start, "POLL_S", 0.01)


@pytest.mark.parametrize(
    "status", [ApplicationStatus.NOT_STARTED, ApplicationStatus.DEPLOYING, ApplicationStatus.UNHEALTHY]
)
def test_an_application_that_is_being_changed_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, status: ApplicationStatus
) -> None:
    serve_says(monkeypatch, status, status, ApplicationStatus.RUNNING)
    wait_until_running(APPS, limit_s=60.0)


def test_the_wait_has_a_limit_and_says_what_for(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_says(monkeypatch, ApplicationStatus.DEPLOYING)
    with pytest.raises(StuckError, match=r"'mine'.*DEPLOYING"):
        wait_until_running(APPS, limit_s=0.05)


@pytest.mark.parametrize(
    ("app", "last", "named"),
    [
        ("colours", ApplicationStatus.DEPLOY_FAILED, "DEPLOY_FAILED"),
        ("other", ApplicationStatus.RUNNING, "'other'.*colours"),
    ],
)
def test_an_application_that_failed_or_is_missing_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, app: str, last: ApplicationStatus, named: str
) -> None:
    serve_says(monkeypatch, ApplicationStatus.DEPLOYING, last)
    with pytest.raises(RewardError, match=named):
        wait_until_running({"mine": AppReward(app=app)}, limit_s=60.0)
