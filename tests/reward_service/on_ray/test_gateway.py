"""The gateway's backend: what replicas raise becomes what the HTTP front knows, without tracebacks."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from common.errors import RewardError
from reward_service.contract.results import BusyError, Reply, RewardFailure
from reward_service.http.errors import LOST, Refusal
from reward_service.http.limits import HttpLimits
from reward_service.http.token import TokenSource
from reward_service.on_ray.gateway import HttpGateway, ReplicaBackend

PIXELS = np.zeros((2, 4, 4, 3), dtype=np.uint8)
REPLY = Reply(RewardFailure("a reply"), 0.0)


class _Handle:
    """A deployment handle whose answer is known: a value, or what Ray raises when it is awaited."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.asked: list[tuple[Any, ...]] = []
        self.cancelled = False

    @property
    def score(self) -> _Handle:
        return self

    describe = probe = score

    def remote(self, *arguments: Any) -> _Handle:
        self.asked.append(arguments)
        return self

    def cancel(self) -> None:
        self.cancelled = True

    def __await__(self) -> Any:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        if isinstance(self._answer, BaseException):
            raise self._answer
        if self._answer == "never":
            await asyncio.sleep(60.0)
        return self._answer


def _of_replica(cause: Exception) -> Exception:
    """What awaiting a replica's answer raises where the replica raised `cause`."""
    return RayTaskError("score", "Traceback (most recent call last): secret.py", cause).as_instanceof_cause()


def _score(handle: _Handle) -> Reply:
    return asyncio.run(ReplicaBackend(handle).score("a", PIXELS))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "wait_s"),
    [
        (_of_replica(BusyError(0.25)), 0.25),
        (BackPressureError(5, 4), 1.0),
        (BackPressureError(5, 4, 429, 3.0), 3.0),
        (_of_replica(BackPressureError(5, 4)), 1.0),
    ],
)
def test_full_queues_are_busy(error: Exception, wait_s: float) -> None:
    with pytest.raises(BusyError) as caught:
        _score(_Handle(error))
    assert type(caught.value) is BusyError
    assert caught.value.retry_after_s == wait_s


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (_of_replica(RewardError("the scorer does not work")), "the scorer does not work"),
        (_of_replica(ValueError("/secret/path")), "ValueError"),
        (DeploymentUnavailableError("x"), "replica"),
    ],
)
def test_what_cannot_answer_is_a_reward_error_without_a_traceback(error: Exception, reason: str) -> None:
    with pytest.raises(RewardError, match=reason) as caught:
        _score(_Handle(error))
    assert type(caught.value) is RewardError
    assert "secret" not in str(caught.value)


def test_a_replica_that_dies_of_a_group_has_a_code_of_its_own() -> None:
    with pytest.raises(Refusal, match="died") as caught:
        _score(_Handle(ActorDiedError()))
    assert caught.value.code == LOST
    with pytest.raises(RewardError, match="died"):
        asyncio.run(ReplicaBackend(_Handle(ActorDiedError())).describe())  # type: ignore[arg-type]


def test_nobody_waiting_is_told_to_the_replica() -> None:
    handle = _Handle("never")

    async def give_up() -> None:
        async with asyncio.timeout(0.05):
            await ReplicaBackend(handle).score("a", PIXELS)  # type: ignore[arg-type]

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert handle.cancelled


def test_a_bad_token_stops_the_gateway_when_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "short")
    gateway = HttpGateway(_Handle(REPLY), HttpLimits(), TokenSource(env="A_TOKEN"))  # type: ignore[arg-type]
    with pytest.raises(RewardError, match="A_TOKEN"):
        gateway.__serve_build_asgi_app__()
