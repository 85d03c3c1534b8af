"""Hostile requests straight into the application: no crash, no score that must not be, errors in one form."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.hostile_requests import ARROW_TYPE, JSON_TYPE, Target, one_request, sound_request
from benchmarks.hostile_rules import broken_rules
from reward_service.http.app import build_http_app
from reward_service.http.limits import HttpLimits
from reward_service.http.wire import WIRES, Group, WireError
from tests.reward_service.http_calls import SMALL, TOKEN, call, engine, get, post

REQUESTS = 400
MARK = Path("/tmp/hostile_pickle_ran")


def test_hostile_requests_are_refused_and_the_next_group_is_scored() -> None:
    async def attack() -> tuple[list[str], list[int]]:
        async with engine() as backend:
            app = build_http_app(backend, SMALL, TOKEN)
            schema = (await call(app, get("/openapi.json", TOKEN))).json
            target = Target(TOKEN.value, schema, SMALL.body_bytes)
            problems: list[str] = []
            for seed in range(REQUESTS):
                request = one_request(seed, target)
                answer = await call(app, request)
                problems += [f"seed {seed}: {found}" for found in broken_rules(request, answer, target)]
            sound = [sound_request(random.Random(seed)) for seed in range(4)]
            after = [await call(app, post(one.headers[0][1], one.body, TOKEN)) for one in sound]
            return problems, [answer.status for answer in after]

    MARK.unlink(missing_ok=True)
    problems, after = asyncio.run(attack())
    assert problems == []
    assert after == [200] * 4
    assert not MARK.exists()


def _change(body: bytes, at: int, new: bytes, cut: int) -> bytes:
    place = at % (len(body) + 1)
    return (body[:place] + new + body[place + len(new) :])[: len(body) - cut % len(body)]


@pytest.mark.parametrize("content_type", [JSON_TYPE, ARROW_TYPE])
@given(seed=st.integers(0, 1000), at=st.integers(0, 5000), new=st.binary(max_size=16), cut=st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_sound_body_is_a_group_or_a_wire_error(
    content_type: str, seed: int, at: int, new: bytes, cut: int
) -> None:
    rng = random.Random(seed)
    bodies: dict[str, bytes] = {}
    while content_type not in bodies:
        sound = sound_request(rng)
        bodies[sound.headers[0][1]] = sound.body
    body = _change(bodies[content_type], at, new, cut)
    _decodes_or_refuses(content_type, body)


@pytest.mark.parametrize("content_type", [JSON_TYPE, ARROW_TYPE])
@given(body=st.binary(max_size=2000))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_group_or_a_wire_error(content_type: str, body: bytes) -> None:
    _decodes_or_refuses(content_type, body)


@given(
    body=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["prompt", "images", "x"]), inner, max_size=3)
        ),
        max_leaves=10,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_group_or_a_wire_error(body: Any) -> None:
    _decodes_or_refuses(JSON_TYPE, json.dumps(body).encode())


def _decodes_or_refuses(content_type: str, body: bytes) -> None:
    limits = HttpLimits()
    try:
        group = WIRES[content_type].decode_group(body, limits, lambda count: None)
    except WireError as error:
        code = error.code
    else:
        _is_within(group, limits)
        return
    assert code in ("bad_request", "wrong_content", "too_large")


def _is_within(group: Group, limits: HttpLimits) -> None:
    images, height, width, channels = group.pixels.shape
    assert 1 <= images <= limits.images
    assert height * width <= limits.image_pixels
    assert channels == 3
    assert len(group.prompt) <= limits.prompt_characters
