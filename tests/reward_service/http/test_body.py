"""What requests hold together: counted while anybody works for them, and given back to the last byte."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from dataclasses import dataclass, field

import pytest
from fastapi import FastAPI

from reward_service.http.app import build_http_app
from reward_service.http.body import Room, Share
from reward_service.http.errors import Refusal
from reward_service.http.limits import HttpLimits, Reserve
from reward_service.http.token import NO_TOKEN
from reward_service.http.wire import JSON, SAFETENSORS, WIRES, Group, SafetensorsWire
from tests.reward_service.http_calls import SMALL, call, engine, post

LIMIT_S = 20.0
BODY = bytes(SMALL.body_bytes)
PIXELS = SMALL.body_bytes // 4
LIMITS = SMALL.model_copy(update={"held_bytes": 2 * SMALL.body_bytes})


@dataclass(frozen=True)
class SlowWire(SafetensorsWire):
    """Takes room for pixels, waits until it may go on, and takes as much again."""

    entered: threading.Event = field(default_factory=threading.Event)
    may_go_on: threading.Event = field(default_factory=threading.Event)

    def decode_group(self, body: bytes, limits: HttpLimits, reserve: Reserve) -> Group:
        reserve(PIXELS)
        self.entered.set()
        assert self.may_go_on.wait(LIMIT_S)
        reserve(PIXELS)
        return super().decode_group(body, limits, reserve)


async def _cancel_while_it_decodes(app: FastAPI, wire: SlowWire) -> None:
    request = asyncio.create_task(call(app, post(wire.content_type, BODY)))
    assert await asyncio.to_thread(wire.entered.wait, LIMIT_S)
    request.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await request


async def _is_full(app: FastAPI) -> bool:
    """Whether there is no room for one more body."""
    return (await call(app, post(JSON.content_type, BODY))).code == "overloaded"


def test_what_a_cancelled_request_holds_is_counted_until_its_thread_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def crowd() -> None:
        async with engine() as backend:
            app = build_http_app(backend, LIMITS, NO_TOKEN)
            for _ in range(5):
                wire = SlowWire()
                monkeypatch.setitem(WIRES, SAFETENSORS.content_type, wire)
                await _cancel_while_it_decodes(app, wire)
                assert await _is_full(app)
                wire.may_go_on.set()
                end_at = time.monotonic() + LIMIT_S
                while await _is_full(app):
                    assert time.monotonic() < end_at, "bytes of a cancelled request were not given back"
                    await asyncio.sleep(0.01)

    asyncio.run(crowd())


def test_a_share_is_given_back_where_its_last_block_ends() -> None:
    room = Room(10)
    share = Share(room)
    with share:
        share.take(3)
        with share:
            share.take(4)
        with pytest.raises(Refusal, match="memory"):
            room.take(4)
    room.take(10)


def test_a_share_that_was_given_back_takes_nothing_more() -> None:
    room = Room(10)
    share = Share(room)
    with share:
        share.take(3)
    with pytest.raises(Refusal, match="has ended"):
        share.take(1)
    with pytest.raises(Refusal, match="has ended"), share:
        pass
    room.take(10)
