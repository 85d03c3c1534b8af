"""The HTTP front of one reward: safetensors or JSON in, scores or errors out. Knows no Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from typing import TypeVar

from fastapi import Depends, FastAPI, Request
from fastapi.encoders import jsonable_encoder
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from common.errors import RewardError
from reward_service.contract.results import (
    Backend,
    BusyError,
    Description,
    Reply,
    RewardFailure,
)
from reward_service.http import schema as http_schema
from reward_service.http.body import Arrivals, Room, Share, discard, read_body
from reward_service.http.errors import (
    BAD_REQUEST,
    BUSY,
    INTERNAL,
    NOT_ALLOWED,
    NOT_FOUND,
    NOT_READY,
    SCORER_FAILED,
    TOO_LATE,
    WRONG_TYPE,
    Refusal,
    refusal_response,
)
from reward_service.http.gate import Gate
from reward_service.http.limits import HttpLimits
from reward_service.http.replies import encode_reply
from reward_service.http.token import Token
from reward_service.http.wire import JSON_TYPE, WIRES, Group, Wire

LOGGER = logging.getLogger("prdp.rewards")
_RETRY_S = 1.0
_MOST_ARRIVING = 128
"""Bodies that arrive at one time: a third of the requests that the gate lets in, and half of those that a
gateway on Serve takes."""

T = TypeVar("T")


def build_http_app(backend: Backend, limits: HttpLimits, token: Token) -> FastAPI:
    """The application: POST /v1/score, GET /v1/describe, /v1/ready, /v1/health and /openapi.json.

    token: asked of every request; with NO_TOKEN only what this machine sends is answered. backend: a
    RewardError from its methods means that it cannot answer now (503).
    """
    app = FastAPI(
        title="Reward service",
        version="1",
        description=http_schema.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(http_schema.BEARER)] if token.is_set else [],
    )
    app.add_middleware(Gate, token=token, limits=limits)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _crashed)
    _add_routes(app, _Front(backend, limits, Room(limits.held_bytes), Arrivals(_MOST_ARRIVING)), limits)
    return app


@dataclass(frozen=True)
class _Front:
    """The endpoints."""

    backend: Backend
    limits: HttpLimits
    room: Room
    arrivals: Arrivals

    async def score(self, request: Request) -> Response:
        """Score one group: the images of one prompt."""
        with Share(self.room) as share:
            wire = await self._wire(request)
            group = await self._group(request, wire, share)
            reply: Reply = await self._ask(self.backend.score(group.prompt, group.images))
        if isinstance(reply.outcome, RewardFailure):
            raise Refusal(SCORER_FAILED, reply.outcome.reason)
        body = encode_reply(reply.outcome, reply.busy_s, reply.shadow, reply.refused)
        return Response(body, media_type=JSON_TYPE)

    async def describe(self) -> Response:
        """Which reward answers: version, digest, settings, and why the last change of them was refused."""
        return JSONResponse(jsonable_encoder(asdict(await self._description())))

    async def ready(self) -> Response:
        """Whether it takes groups now."""
        description = await self._description()
        if not description.ready:
            raise Refusal(NOT_READY, "The scorer is not ready yet.", _RETRY_S)
        return JSONResponse({"ready": True})

    async def health(self) -> Response:
        """Whether the warm scorer works, and how many seconds ago it last did."""
        worked_s_ago = await self._ask(self.backend.probe())
        return JSONResponse({"healthy": True, "worked_s_ago": round(worked_s_ago, 3)})

    async def _wire(self, request: Request) -> Wire:
        given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        encoding = request.headers.get("content-encoding", "identity").lower()
        if given in WIRES and encoding == "identity":
            return WIRES[given]
        await discard(request.receive, request.headers, self.limits, self.arrivals)
        raise Refusal(
            WRONG_TYPE,
            f"The content type is {given[:100]!r} with encoding {encoding[:40]!r}; allowed: "
            f"{' or '.join(WIRES)}, without an encoding.",
        )

    async def _group(self, request: Request, wire: Wire, share: Share) -> Group:
        body = await read_body(request.receive, request.headers, self.limits, share, self.arrivals)
        # In a thread: decoding images takes a while, and the front answers others meanwhile.
        return await asyncio.to_thread(_decode, wire, body, self.limits, share)

    async def _description(self) -> Description:
        return await self._ask(self.backend.describe())

    async def _ask(self, answer: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await answer
        except BusyError as error:
            raise Refusal(BUSY, str(error), max(error.retry_after_s, 0.001)) from error
        except TimeoutError as error:
            raise Refusal(
                TOO_LATE, f"No answer within {self.limits.seconds:g} s, the queue included.", _RETRY_S
            ) from error
        except RewardError as error:
            raise Refusal(NOT_READY, str(error), _RETRY_S) from error


def _decode(wire: Wire, body: bytes, limits: HttpLimits, share: Share) -> Group:
    with share:
        return wire.decode_group(body, limits, share.take)


def _add_routes(app: FastAPI, front: _Front, limits: HttpLimits) -> None:
    app.post(
        "/v1/score",
        response_model=None,
        responses=http_schema.SCORE_RESPONSES,
        openapi_extra=http_schema.score_body(limits),
    )(front.score)
    app.get("/v1/describe", response_model=None, responses=http_schema.DESCRIBE_RESPONSES)(front.describe)
    ready, healthy = '{"ready": true}', '{"healthy": true, "worked_s_ago": 0.2}'
    app.get("/v1/ready", response_model=None, responses=http_schema.plain_responses(ready))(front.ready)
    app.get("/v1/health", response_model=None, responses=http_schema.plain_responses(healthy))(front.health)


async def _refused(_: Request, error: Exception) -> Response:
    return refusal_response(error) if isinstance(error, Refusal) else await _crashed(_, error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such path, no such method."""
    if not isinstance(error, HTTPException):
        return await _crashed(request, error)
    headers = error.headers or {}
    code = {404: NOT_FOUND, 405: NOT_ALLOWED}.get(error.status_code, BAD_REQUEST)
    allowed = f"{request.method[:20]} is not; allowed: {headers['Allow']}. " if "Allow" in headers else ""
    paths = "Paths: POST /v1/score, GET /v1/describe, /v1/ready, /v1/health, /openapi.json."
    return refusal_response(Refusal(code, allowed + paths), headers)


async def _crashed(_: Request, error: Exception) -> Response:
    """A fault of this server. The log has the traceback, the client does not."""
    LOGGER.error("A request crashed: %s", type(error).__name__)
    return refusal_response(Refusal(INTERNAL, "A fault of the server; its log says more."))
