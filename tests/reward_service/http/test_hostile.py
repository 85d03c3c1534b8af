"""Requests that no honest client sends: no crash, no score that must not be, errors as the document says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from common.trajectory import RewardScores
from reward_service.http.client import HttpReward
from reward_service.http.errors import Refusal
from reward_service.http.limits import HttpLimits
from reward_service.http.wire import JSON, SAFETENSORS, WIRES, Group
from tests.reward_service.http_calls import TOKEN, served_engine

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
BODIES = {wire.content_type: wire.encode_group(Group("a prompt", PIXELS)) for wire in (JSON, SAFETENSORS)}
KNOWS_NO_413 = [
    schemathesis.checks.negative_data_rejection,
    schemathesis.checks.positive_data_acceptance,  # nor that a text may be no PNG
]
EACH = pytest.mark.parametrize("content_type", BODIES)


def _decodes_or_refuses(content_type: str, body: bytes) -> None:
    limits = HttpLimits()
    refused = ""
    try:
        group = WIRES[content_type].decode_group(body, limits, lambda count: None)
    except Refusal as refusal:
        refused = refusal.code
    if refused:
        assert refused in ("bad_request", "wrong_content", "too_large")
        return
    count, height, width, channels = group.images.shape
    assert 1 <= count <= limits.images
    assert height * width <= limits.image_pixels
    assert channels == 3
    assert len(group.prompt) <= limits.prompt_characters


@EACH
@given(at=st.integers(0, 5000), new=st.binary(max_size=16), cut=st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_any_change_of_a_sound_body_is_a_group_or_refused(
    content_type: str, at: int, new: bytes, cut: int
) -> None:
    body = BODIES[content_type]
    place = at % (len(body) + 1)
    _decodes_or_refuses(content_type, (body[:place] + new + body[place + len(new) :])[: len(body) - cut])


@EACH
@given(body=st.binary(max_size=2000))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_group_or_refused(content_type: str, body: bytes) -> None:
    _decodes_or_refuses(content_type, body)


@EACH
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["prompt", "images", "__metadata__", "shape", "dtype"]), inner, max_size=3
            )
        ),
        max_leaves=10,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_group_or_refused(content_type: str, body: Any) -> None:
    packed = json.dumps(body).encode()
    size = len(packed).to_bytes(8, "little") if content_type == SAFETENSORS.content_type else b""
    _decodes_or_refuses(content_type, size + packed)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served_engine("Redness", TOKEN) as url:
        yield url


schemathesis.openapi.media_type(SAFETENSORS.content_type, st.binary(max_size=200))


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(
    ("path", "method"),
    [("/v1/score", "POST"), ("/v1/describe", "GET"), ("/v1/ready", "GET"), ("/v1/health", "GET")],
)
def test_answers_are_what_the_document_says(
    address: str, path: str, method: str, mode: GenerationMode
) -> None:
    document = schemathesis.openapi.from_url(f"{address}/openapi.json", headers=TOKEN.headers())

    @given(case=document[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    def attack(case: schemathesis.Case) -> None:
        response = case.call_and_validate(headers=TOKEN.headers(), excluded_checks=KNOWS_NO_413)
        if method == "POST" and mode is GenerationMode.NEGATIVE:
            assert response.status_code != 200

    attack()
    client = HttpReward(address, TOKEN)
    assert isinstance(client.score("a", PIXELS).outcome, RewardScores)
    client.close()
