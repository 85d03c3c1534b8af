"""Who is answered: holders of the token, or without one what this machine sends. Read before the body."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from reward_service.http.address import is_loopback
from reward_service.http.body import Arrivals, discard
from reward_service.http.errors import OVERLOADED, UNAUTHORIZED, Refusal, refusal_response
from reward_service.http.limits import HttpLimits
from reward_service.http.token import Token

_FORWARDED = ("forwarded", "x-forwarded-", "x-real-ip", "x-client-ip", "cf-", "true-client-ip", "via")
"""How the names of the headers begin that proxies add."""

MOST_REQUESTS = 384
"""Requests that are answered at one time. Together with the connections that send none (connections.py) fewer
than the 1024 open files that a process usually may have."""

_MOST_UNWANTED = 32
_RETRY_S = 1.0


class Gate:
    """ASGI middleware around every path, the schema's and unknown ones included. MOST_REQUESTS at a time.

    With a token: the header `Authorization: Bearer <token>` must carry it, from wherever the request comes.
    Without: the peer must be a loopback address, the Host header must name this machine (else a web page
    could reach the server by a name that it points here), and no header may say that a proxy forwarded it.
    A proxy on this machine that sends its own Host header and says nothing, as nginx does unless told, cannot
    be told from a program of this machine: behind any proxy only a token keeps strangers out.
    """

    def __init__(self, app: ASGIApp, token: Token, limits: HttpLimits) -> None:
        self._app = app
        self._token = token
        self._limits = limits
        self._unwanted = Arrivals(_MOST_UNWANTED)
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass; answer 401 to the rest. Web sockets are closed."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        reason = self._objection(scope, headers)
        if reason:
            await discard(receive, headers, self._limits, self._unwanted)
            await refusal_response(Refusal(UNAUTHORIZED, reason))(scope, receive, send)
        elif self._open >= MOST_REQUESTS:
            many = Refusal(OVERLOADED, f"{MOST_REQUESTS} requests are being answered.", _RETRY_S)
            await refusal_response(many)(scope, receive, send)
        else:
            self._open += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._open -= 1

    def _objection(self, scope: Scope, headers: Headers) -> str:
        """Why this request is not answered; empty where it is."""
        if self._token.is_set:
            given = headers.getlist("authorization")
            allowed = len(given) == 1 and self._token.matches(given[0].encode("latin-1"))
            return (
                ""
                if allowed
                else "Needed is the header 'Authorization: Bearer TOKEN' with the server's token."
            )
        peer = scope.get("client") or ("", 0)
        local = is_loopback(peer[0]) and is_loopback(_host(headers.get("host", "")))
        if local and not any(name.startswith(_FORWARDED) for name in headers):
            return ""
        return (
            "This server has no token, so it answers only what comes from its own machine, by a loopback "
            "address and without a proxy. Start it with a token to answer others."
        )


def _host(header: str) -> str:
    """A Host header without its port."""
    if header.startswith("["):
        return header.partition("]")[0] + "]"
    return header.partition(":")[0]
