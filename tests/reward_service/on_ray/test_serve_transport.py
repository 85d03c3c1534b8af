"""The transport to an application, over handles and a Serve of the test's own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError, RayTaskError
from ray.serve.exceptions import RayServeException

from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.client.transport import FailedError, FinalError, LostError, RefusedError, RequestError
from reward_service.contract.results import BusyError, Description, Reply
from reward_service.on_ray import app
from reward_service.on_ray.app import ONGOING_GROUPS, ServeTransport
from tests.reward_service.client.scripted import Images

SETTINGS = {"timeout_s": 20.0, "max_batch_groups": 1}


class FakeHandle:
    """A handle whose requests end as `ends` says; also the request."""

    def __init__(self, serve: str, ends: asyncio.Future[Reply]) -> None:
        self.serve = serve
        self.ends = ends
        self.is_sent = False
        self.cancelled = False

    @property
    def score(self) -> FakeHandle:
        return self

    def remote(self, *_: Any) -> FakeHandle:
        self.is_sent = True
        return self

    def __await__(self) -> Any:
        return self.ends.__await__()

    def cancel(self) -> None:
        self.cancelled = True


class FakeServe:
    """Which Serve runs, by its controller, whether it has the application, and the handles it gave out."""

    def __init__(self) -> None:
        self.controller: str | None = "first"
        self.has_app = True
        self.handles: list[FakeHandle] = []
        self.ends: Any = None

    def connect(self) -> str:
        if self.controller is None:
            raise RewardError("No Serve runs on this cluster.")
        return self.controller

    def handle(self, app: str) -> FakeHandle:
        if not self.has_app:
            raise RewardError(f"No reward application {app!r} runs on this cluster.")
        assert self.controller is not None
        self.handles.append(FakeHandle(self.controller, self.ends))
        return self.handles[-1]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    fake = FakeServe()
    monkeypatch.setattr(app, "LOOK_S", 0.0)
    monkeypatch.setattr(app, "serve_controller", lambda: fake.controller)
    monkeypatch.setattr(app, "connect_serve", fake.connect)
    monkeypatch.setattr(app, "reward_handle", fake.handle)
    return fake


def transport(held: int = ONGOING_GROUPS, **settings: float) -> ServeTransport:
    """To an application that runs."""
    stamp = ScorerStamp("size", "1", "")
    described = Description("size", stamp, "x", "pointwise", {**SETTINGS, **settings}, "", ready=True)
    return ServeTransport("sizes", ONGOING_GROUPS, held, described)


@pytest.mark.parametrize(
    ("timeout_s", "batch", "held", "limit_s"),
    [(20.0, 1, 32, 660.0), (20.0, 8, 32, 100.0), (20.0, 5, 32, 160.0), (120.0, 4, 8, 360.0)],
)
def test_the_last_group_that_a_replica_holds_has_the_time_of_all_batches_before_it(
    timeout_s: float, batch: int, held: int, limit_s: float
) -> None:
    assert transport(held, timeout_s=timeout_s, max_batch_groups=batch).limit_s == limit_s


def of_replica(cause: Exception) -> RayTaskError:
    return RayTaskError("score", "a traceback", cause)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ObjectLostError("00", None, ""), FinalError),
        (ActorDiedError(), LostError),
        (of_replica(BusyError(1.5)), RefusedError),
        (of_replica(ValueError("a bug")), FailedError),
        (RayServeException("no replica"), RefusedError),
        (asyncio.CancelledError(), FailedError),
    ],
)
def test_who_is_to_blame_decides_what_follows(
    serve: FakeServe, error: BaseException, kind: type[RequestError]
) -> None:
    async def ask() -> None:
        serve.ends = asyncio.get_running_loop().create_future()
        if isinstance(error, asyncio.CancelledError):
            serve.ends.cancel()
        else:
            serve.ends.set_exception(error)
        with pytest.raises(kind) as raised:
            await transport().score("a", Images())
        if isinstance(raised.value, RefusedError) and isinstance(error, RayTaskError):
            assert raised.value.wait_s == 1.5

    asyncio.run(ask())


def test_groups_go_to_the_serve_that_runs(serve: FakeServe) -> None:
    async def ask() -> None:
        serve.ends = asyncio.get_running_loop().create_future()
        serve.ends.set_result("a reply")
        asked = transport()
        assert [await asked.score("a", Images()) for _ in range(2)] == ["a reply"] * 2
        assert len(serve.handles) == 1
        serve.controller = "second"
        await asked.score("a", Images())
        assert [handle.serve for handle in serve.handles] == ["first", "second"]

    asyncio.run(ask())


def test_a_serve_that_is_away_or_has_no_such_application_yet_takes_nothing(serve: FakeServe) -> None:
    async def ask() -> None:
        serve.ends = asyncio.get_running_loop().create_future()
        serve.ends.set_result("a reply")
        asked = transport()
        serve.controller = None
        with pytest.raises(RefusedError, match="Serve"):
            await asked.score("a", Images())
        serve.controller, serve.has_app = "second", False
        with pytest.raises(RefusedError, match="'sizes'"):
            await asked.score("a", Images())
        serve.has_app = True
        assert await asked.score("a", Images()) == "a reply"

    asyncio.run(ask())


@pytest.mark.parametrize("next_serve", [None, "first", "second"])
def test_a_group_of_a_serve_that_ended_or_that_nobody_waits_for_is_taken_back(
    serve: FakeServe, next_serve: str | None
) -> None:
    async def ask() -> None:
        serve.ends = asyncio.get_running_loop().create_future()
        asked = asyncio.create_task(transport().score("a", Images()))
        while not any(handle.is_sent for handle in serve.handles):
            await asyncio.sleep(0)
        serve.controller = next_serve
        if next_serve == "first":
            asked.cancel()
        with pytest.raises(asyncio.CancelledError if next_serve == "first" else RefusedError):
            await asked
        assert serve.handles[0].cancelled

    asyncio.run(ask())


def test_a_state_that_cannot_be_asked_for_is_no_error(
    serve: FakeServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died() -> str:
        raise ActorDiedError

    monkeypatch.setattr(app, "connect_serve", died)
    assert "ActorDiedError" in str(asyncio.run(transport().absence()))
