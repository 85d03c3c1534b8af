"""The line to an application, over handles and a Serve of the test's own."""

from __future__ import annotations

from typing import Any, cast

import pytest
import ray
from ray.exceptions import ActorDiedError

from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.client import serve_transport as app_channel
from reward_service.client.serve_transport import AppLine
from reward_service.client.transport import RefusedError, Request
from reward_service.contract.results import Description
from reward_service.on_ray.app import ONGOING_GROUPS

REQUEST = Request("a", cast(ray.ObjectRef, "a reference that nobody looks behind"), 2)
SETTINGS = {"timeout_s": 20.0, "max_batch_groups": 1}


class FakeHandle:
    """A handle whose requests nobody takes; also the request."""

    def __init__(self, serve: str) -> None:
        self.serve = serve
        self.cancelled = False

    @property
    def score(self) -> FakeHandle:
        return self

    def remote(self, *_: Any) -> FakeHandle:
        return self

    def _to_object_ref_sync(self, _timeout_s: float) -> ray.ObjectRef:
        raise TimeoutError

    def cancel(self) -> None:
        self.cancelled = True


class FakeServe:
    """Which Serve runs, by its id, and whether it has the application."""

    def __init__(self) -> None:
        self.id = "first"
        self.has_app = True

    def check(self, limit_s: float) -> None:
        if not self.id:
            raise RewardError("No Serve that answers runs on this cluster.")

    def handle(self, app: str) -> FakeHandle:
        if not self.has_app:
            raise RewardError(f"No reward application {app!r} runs on this cluster.")
        return FakeHandle(self.id)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    fake = FakeServe()
    monkeypatch.setattr(app_channel, "LOOK_S", 0.0)
    monkeypatch.setattr(app_channel, "serve_id", lambda: fake.id)
    monkeypatch.setattr(app_channel, "reward_handle", fake.handle)
    monkeypatch.setattr(app_channel, "forget_ended_serve", lambda: None)
    monkeypatch.setattr(app_channel, "check_serve", fake.check)
    return fake


def line(serve: FakeServe, held: int = ONGOING_GROUPS, **settings: float) -> AppLine:
    """To an application that runs."""
    stamp = ScorerStamp("size", "1", "")
    described = Description("size", stamp, "x", "pointwise", {**SETTINGS, **settings}, "", ready=True)
    handle: Any = FakeHandle(serve.id)
    return AppLine("sizes", handle, serve.id, ONGOING_GROUPS, held, described)


@pytest.mark.parametrize(
    ("timeout_s", "batch", "held", "limit_s"),
    [(20.0, 1, 32, 660.0), (20.0, 8, 32, 100.0), (20.0, 5, 32, 160.0), (120.0, 4, 8, 360.0)],
)
def test_the_last_group_that_a_replica_holds_has_the_time_of_all_batches_before_it(
    serve: FakeServe, timeout_s: float, batch: int, held: int, limit_s: float
) -> None:
    assert line(serve, held, timeout_s=timeout_s, max_batch_groups=batch).limit_s == limit_s


def test_groups_go_to_the_serve_that_runs(serve: FakeServe) -> None:
    asked = line(serve)
    before = cast(Any, asked.send(REQUEST))._response
    assert cast(Any, asked.send(REQUEST))._response is before
    serve.id = "second"
    assert cast(Any, asked.send(REQUEST))._response.serve == "second"


def test_a_serve_that_is_away_or_has_no_such_application_yet_takes_nothing(serve: FakeServe) -> None:
    asked = line(serve)
    serve.id = ""
    with pytest.raises(RefusedError, match="No Serve that answers"):
        asked.send(REQUEST)
    serve.id, serve.has_app = "second", False
    with pytest.raises(RefusedError, match="No reward application 'sizes'"):
        asked.send(REQUEST)
    serve.has_app = True
    assert asked.send(REQUEST).taken(0.0) == []


def test_a_group_in_the_queue_of_a_serve_that_ended_is_taken_back(serve: FakeServe) -> None:
    sending = line(serve).send(REQUEST)
    assert sending.taken(0.0) == []
    serve.id = ""
    with pytest.raises(RefusedError, match="Serve was shut down"):
        sending.taken(0.0)
    assert cast(Any, sending)._response.cancelled


def test_a_state_that_cannot_be_asked_for_is_no_error(
    serve: FakeServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(_: str) -> str:
        raise ActorDiedError

    monkeypatch.setattr(app_channel, "describe", died)
    assert "Serve does not say how it is: ActorDiedError" in line(serve).state()
