"""One reward in one process that answers HTTP, without Ray: for one machine, or an environment of its own."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import uvicorn
from fastapi import FastAPI

from common.errors import RewardError
from common.terminal import say
from reward_service.contract.settings import ServedReward
from reward_service.engine.engine import Engine, end_process
from reward_service.engine.meter import Meter
from reward_service.http.address import is_loopback
from reward_service.http.app import build_http_app
from reward_service.http.connections import BACKLOG, BoundedProtocol, Waiting, most_waiting
from reward_service.http.limits import HttpLimits
from reward_service.http.token import Token

_STOP_LIMIT_S = 10
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run_server(
    name: str, served: ServedReward, host: str, port: int, token: Token, limits: HttpLimits
) -> None:
    """Build the scorer, then answer at host:port until SIGTERM or Ctrl-C, which let open requests end.

    port: 0 = any free one; the address is printed once it answers. A scorer that works longer than
    served.timeout_s on a batch ends the process, so run it where something starts it again.
    Raises RewardError where host is no loopback address and there is no token, where a shadow is asked for,
    where the port is not free, or where the scorer cannot be built or breaks its contract.
    """
    check_listening(host, token)
    _check_no_shadow(served)
    with _listen(host, port) as listener:
        asyncio.run(_serve(name, served, listener, token, limits))


def check_listening(host: str, token: Token) -> None:
    """Raises RewardError where a server without a token would listen to other machines."""
    if not token.is_set and not is_loopback(host):
        raise RewardError(
            f"Without a token the server listens only on this machine (127.0.0.1 or ::1), not on {host!r}. "
            "Give it a token, by an environment variable or a file, to listen there."
        )


def _check_no_shadow(served: ServedReward) -> None:
    if served.shadow_app:
        raise RewardError(
            f"A server of one process has no shadow, and shadow_app is {served.shadow_app!r}. Leave it out, "
            "or deploy both rewards as applications of Ray Serve (reward_service/serve.yaml)."
        )


async def _serve(
    name: str, served: ServedReward, listener: socket.socket, token: Token, limits: HttpLimits
) -> None:
    engine = await Engine.start(name, served, end_process, Meter())
    server = http_server(build_http_app(engine, limits, token), limits)
    say(f"Reward {name!r} answers at {_address(listener)} ({_who(token)}).")
    try:
        with _signals_end_quietly():
            await server.serve(sockets=[listener])
    finally:
        engine.close()


def http_server(app: FastAPI, limits: HttpLimits) -> uvicorn.Server:
    """What answers HTTP by the application; `serve` it sockets."""
    config = uvicorn.Config(
        app,
        http=partial(BoundedProtocol, Waiting(limits.head_seconds, most_waiting())),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        # A forwarding header would otherwise change who the peer is taken for.
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=_STOP_LIMIT_S,
    )
    return uvicorn.Server(config)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise RewardError(f"Cannot listen on {host} port {port}: {error}.") from error


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _who(token: Token) -> str:
    return "to holders of the token" if token.is_set else "without a token, to this machine only"


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """uvicorn ends on these signals and raises them again afterwards; that second time is nothing."""
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
