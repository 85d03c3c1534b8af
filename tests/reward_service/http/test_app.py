"""The HTTP application around a real engine: scores, each error, the gate, and bodies that are too much."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray

from common.errors import RewardError
from common.trajectory import RewardScores
from reward_service.contract.results import Description, Reply
from reward_service.http.app import build_http_app
from reward_service.http.limits import HttpLimits
from reward_service.http.replies import decode_reply
from reward_service.http.token import NO_TOKEN, Token
from reward_service.http.wire import JSON, SAFETENSORS, Group, Wire
from tests.reward_service.http_calls import HERE, SMALL, TOKEN, Answer, Request, call, engine, get, post

BOTH = pytest.mark.parametrize("wire", [JSON, SAFETENSORS], ids=["json", "safetensors"])
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
Asks = Callable[[FastAPI], Awaitable[Answer]]


def run(
    ask: Asks, scorer: str = "Redness", token: Token = NO_TOKEN, limits: HttpLimits = SMALL, **settings: Any
) -> Answer:
    """The answer of an application around a scorer of the tests."""

    async def serve() -> Answer:
        async with engine(scorer, **settings) as backend:
            return await ask(build_http_app(backend, limits, token))

    return asyncio.run(serve())


def group(wire: Wire, prompt: str = "calm", pixels: NDArray[np.uint8] = PIXELS) -> bytes:
    """A body."""
    return wire.encode_group(Group(prompt, pixels))


@BOTH
def test_a_group_is_scored(wire: Wire) -> None:
    body = group(wire)
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    answer = run(lambda app: call(app, post(wire.content_type, body), pieces=pieces))
    assert answer.status == 200
    outcome = decode_reply(answer.body, 3).outcome
    assert isinstance(outcome, RewardScores)
    np.testing.assert_array_equal(outcome.rewards, PIXELS[..., 0].mean(axis=(1, 2)) / 255.0)
    assert (outcome.stamp.name, outcome.stamp.version) == ("red", "1")


def test_a_reward_says_what_it_is_and_that_it_works() -> None:
    described = run(lambda app: call(app, get("/v1/describe")), version="b").json
    assert (described["name"], described["kind"], described["ready"]) == ("red", "pointwise", True)
    assert described["stamp"]["version"] == "1+b"
    answer = run(lambda app: call(app, get("/v1/ready")))
    assert (answer.status, answer.json) == (200, {"ready": True})
    answer = run(lambda app: call(app, get("/v1/health")))
    assert (answer.status, answer.json["healthy"]) == (200, True)
    assert 0.0 <= answer.json["worked_s_ago"] < 60.0


def test_a_refused_change_of_settings_is_told_with_every_score() -> None:
    async def ask() -> str:
        async with engine("Redness") as backend:
            await backend.change({"scorer": "no_such_scorer"})
            app = build_http_app(backend, SMALL, NO_TOKEN)
            answer = await call(app, post(JSON.content_type, group(JSON)))
            return decode_reply(answer.body, 3).refused

    assert "no scorer named 'no_such_scorer'" in asyncio.run(ask())


@pytest.mark.parametrize("mood", ["raise", "nan"])
def test_a_scorer_that_fails_is_no_number_and_no_crash(mood: str) -> None:
    answer = run(lambda app: call(app, post(JSON.content_type, group(JSON, f"{mood} always"))), "Moody")
    assert (answer.status, answer.code) == (424, "scorer_failed")
    assert "Traceback" not in answer.body.decode()


def test_a_full_queue_is_429_with_a_time_to_come_back() -> None:
    async def crowd(app: FastAPI) -> Answer:
        requests = [
            post(SAFETENSORS.content_type, group(SAFETENSORS, f"nap {number}")) for number in range(12)
        ]
        answers = await asyncio.gather(*(call(app, request) for request in requests))
        assert {answer.status for answer in answers} == {200, 429}
        return next(answer for answer in answers if answer.status == 429)

    answer = run(crowd, "Moody", max_batch_groups=1, queue_groups=2)
    assert answer.code == "busy"
    assert answer.json["error"]["retry_after_s"] > 0.0
    assert int(answer.headers["retry-after"]) >= 1


class _Broken:
    """A backend whose replicas are gone, or that has a fault of its own."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def score(self, prompt: str, pixels: NDArray[np.uint8]) -> Reply:
        raise self._error

    async def describe(self) -> Description:
        raise self._error

    async def probe(self) -> float:
        raise self._error


@pytest.mark.parametrize("path", ["/v1/describe", "/v1/ready", "/v1/health", "/v1/score"])
def test_a_backend_that_is_gone_is_503(path: str) -> None:
    app = build_http_app(_Broken(RewardError("No replica answers.")), SMALL, NO_TOKEN)
    request = post(SAFETENSORS.content_type, group(SAFETENSORS)) if path == "/v1/score" else get(path)
    answer = asyncio.run(call(app, request))
    assert (answer.status, answer.code) == (503, "not_ready")
    assert answer.json["error"]["retry_after_s"] == 1.0


def test_a_fault_of_our_own_shows_nothing_of_itself() -> None:
    app = build_http_app(_Broken(KeyError("/secret/path")), SMALL, NO_TOKEN)
    answer = asyncio.run(call(app, get("/v1/describe")))
    assert (answer.status, answer.code) == (500, "internal")
    assert b"secret" not in answer.body


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (get("/"), 404, "not_found"),
        (get("/v1/score"), 405, "method_not_allowed"),
        (post("text/plain", b"x"), 415, "wrong_type"),
        (post("application/octet-stream", b"\x80\x04."), 415, "wrong_type"),
        (post(JSON.content_type, b"{"), 400, "bad_request"),
        (post(JSON.content_type, b"{}"), 422, "wrong_content"),
        (post(SAFETENSORS.content_type, b"{}"), 400, "bad_request"),
        (post(JSON.content_type + "; charset=utf-8", b'{"prompt": "a", "images": []}'), 422, "wrong_content"),
    ],
)
def test_each_error_has_its_status_and_code(request_: Any, status: int, code: str) -> None:
    answer = run(lambda app: call(app, request_))
    assert (answer.status, answer.code) == (status, code)
    assert answer.json["error"]["reason"]
    if status == 405:
        assert answer.headers["allow"] == "POST"
        assert "allowed: POST" in answer.json["error"]["reason"]


@pytest.mark.parametrize(
    "path", ["/v1/score", "/v1/describe", "/v1/ready", "/v1/health", "/openapi.json", "/x"]
)
def test_with_a_token_every_path_asks_for_it(path: str) -> None:
    def request(token: Token) -> Request:
        scores = path == "/v1/score"
        return post(SAFETENSORS.content_type, group(SAFETENSORS), token) if scores else get(path, token)

    async def ask(app: FastAPI) -> Answer:
        right = await call(app, request(TOKEN), client=("203.0.113.9", 1), host="rewards.example.org")
        assert right.status == (404 if path == "/x" else 200)
        return await call(app, request(NO_TOKEN))

    answer = run(ask, token=TOKEN)
    assert (answer.status, answer.code) == (401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN.get_secret_value().encode() not in answer.body


@pytest.mark.parametrize(
    ("client", "host", "headers"),
    [
        (("203.0.113.9", 1), "localhost", ()),
        (("10.0.0.1", 1), "localhost", ()),
        (("::ffff:10.0.0.1", 1), "localhost", ()),
        (None, "localhost", ()),
        (HERE, "evil.example.org", ()),
        *(
            (HERE, "localhost", ((name, "203.0.113.9"),))
            for name in (
                *("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"),
                *("X-Real-IP", "CF-Connecting-IP", "True-Client-IP", "Via"),
            )
        ),
    ],
)
def test_without_a_token_other_machines_foreign_names_and_proxies_are_refused(
    client: tuple[str, int] | None, host: str, headers: tuple[tuple[str, str], ...]
) -> None:
    request = post(SAFETENSORS.content_type, group(SAFETENSORS))
    request = replace(request, headers=request.headers + headers)
    answer = run(lambda app: call(app, request, client=client, host=host))
    assert (answer.status, answer.code) == (401, "unauthorized")


@pytest.mark.parametrize("client", [("127.0.0.1", 1), ("127.8.8.8", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)])
@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_without_a_token_this_machine_is_answered(client: tuple[str, int], host: str) -> None:
    assert run(lambda app: call(app, get("/v1/ready"), client=client, host=host)).status == 200


def test_a_body_is_refused_while_it_arrives() -> None:
    """No length is announced, and the body is far larger: what is over the limit is let go, not kept."""
    pieces = [bytes(1 << 16)] * 200
    answer = run(lambda app: call(app, post(SAFETENSORS.content_type, b""), pieces=pieces))
    assert (answer.status, answer.code) == (413, "too_large")
    assert answer.taken <= 2 * SMALL.body_bytes // (1 << 16) + 2


@pytest.mark.parametrize(
    ("limit", "pieces", "status", "code"),
    [
        ("seconds", None, 504, "too_late"),
        ("body_seconds", [b"abc"], 408, "too_slow"),
    ],
)
def test_what_takes_too_long_is_given_up(
    limit: str, pieces: list[bytes] | None, status: int, code: str
) -> None:
    request = post(SAFETENSORS.content_type, group(SAFETENSORS, "nap a while"))
    limits = SMALL.model_copy(update={limit: 0.2})
    answer = run(
        lambda app: call(app, request, pieces=pieces, silent=pieces is not None), "Moody", limits=limits
    )
    assert (answer.status, answer.code) == (status, code)


def test_requests_together_hold_no_more_than_the_room() -> None:
    async def crowd(app: FastAPI) -> Answer:
        request = post(SAFETENSORS.content_type, b"")
        slow = [call(app, request, pieces=[bytes(900_000)], silent=True) for _ in range(6)]
        answers = await asyncio.gather(*slow)
        assert sorted(answer.code for answer in answers) == ["overloaded"] * 2 + ["too_slow"] * 4
        return await call(app, post(SAFETENSORS.content_type, group(SAFETENSORS)))

    assert run(crowd).status == 200


def test_the_document_names_both_forms_all_errors_and_the_limits() -> None:
    limits = SMALL.model_copy(update={"images": 5, "prompt_characters": 77})
    document = run(lambda app: call(app, get("/openapi.json", TOKEN)), token=TOKEN, limits=limits).json
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
    methods = [method for path in document["paths"].values() for method in path.values()]
    assert [method["security"] for method in methods] == [[{"bearer": []}]] * 4
    assert set(document["paths"]) == {"/v1/score", "/v1/describe", "/v1/ready", "/v1/health"}
    score = document["paths"]["/v1/score"]["post"]
    assert set(score["requestBody"]["content"]) == {JSON.content_type, SAFETENSORS.content_type}
    statuses = {"400", "401", "405", "408", "413", "415", "422", "424", "429", "500", "503", "504"}
    assert set(score["responses"]) == statuses | {"200"}
    for path in ("/v1/describe", "/v1/ready", "/v1/health"):
        responses = document["paths"][path]["get"]["responses"]
        assert set(responses) == {"200", "401", "405", "429", "500", "503", "504"}
    schema = score["requestBody"]["content"][JSON.content_type]["schema"]
    assert schema["properties"]["images"]["maxItems"] == 5
    assert schema["properties"]["prompt"]["maxLength"] == 77


def test_limits_must_leave_room_for_a_group() -> None:
    with pytest.raises(ValueError, match="body_bytes"):
        HttpLimits(body_bytes=4096, held_bytes=8191)
