"""Both forms of a request and the reply: what is encoded is decoded, and nothing unsound becomes a score."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from common.errors import RewardError
from common.trajectory import RewardScores, ScorerStamp
from reward_service.contract.results import RewardFailure
from reward_service.http.client import HttpReward
from reward_service.http.errors import Refusal
from reward_service.http.limits import HttpLimits
from reward_service.http.replies import decode_reply, encode_reply
from reward_service.http.wire import JSON, SAFETENSORS, Group, Wire

LIMITS = HttpLimits()
BOTH = pytest.mark.parametrize("wire", [JSON, SAFETENSORS], ids=["json", "safetensors"])
STAMP = ScorerStamp("clip", "1+b", "0" * 64)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def _free(count: int) -> None:
    """Room without limit."""


def _pixels(seed: int, count: int = 3, height: int = 5, width: int = 7) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def _scores(count: int, seed: int = 0) -> RewardScores:
    generator = np.random.default_rng(seed)
    rewards = generator.normal(size=count) * 10.0 ** generator.integers(-8, 8)
    matrix = generator.normal(size=(count, count))
    return RewardScores(rewards, matrix - matrix.T, 0.25, STAMP)


def _same(one: RewardScores, other: RewardScores) -> None:
    np.testing.assert_array_equal(one.rewards, other.rewards)
    np.testing.assert_array_equal(one.differences, other.differences)
    assert (one.residual, one.stamp) == (other.residual, other.stamp)


@BOTH
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 8), st.integers(1, 8), TEXT)
@settings(max_examples=30, deadline=None)
def test_a_group_arrives_as_it_was_sent(
    wire: Wire, seed: int, count: int, height: int, width: int, prompt: str
) -> None:
    sent = _pixels(seed, count, height, width)
    group = wire.decode_group(wire.encode_group(Group(prompt, sent)), LIMITS, _free)
    assert group.prompt == prompt
    np.testing.assert_array_equal(group.images, sent)


def test_safetensors_are_a_file_for_any_reader_and_of_any_writer() -> None:
    sent = _pixels(1)
    np.testing.assert_array_equal(
        safetensors.numpy.load(SAFETENSORS.encode_group(Group("a", sent)))["images"], sent
    )
    header = {
        "images": {"data_offsets": [0, sent.nbytes], "shape": list(sent.shape), "dtype": "U8"},
        "__metadata__": {"prompt": "ü", "made by": "another writer"},
    }
    packed = json.dumps(header, indent=1).encode()
    group = SAFETENSORS.decode_group(
        len(packed).to_bytes(8, "little") + packed + sent.tobytes(), LIMITS, _free
    )
    assert group.prompt == "ü"
    np.testing.assert_array_equal(group.images, sent)


def test_safetensors_images_are_a_view_of_the_body_and_json_takes_room_before_it_decodes() -> None:
    taken: list[int] = []
    body = SAFETENSORS.encode_group(Group("a", _pixels(3)))
    group = SAFETENSORS.decode_group(body, LIMITS, taken.append)
    assert np.shares_memory(group.images, np.frombuffer(body, dtype=np.uint8))
    assert taken == []
    JSON.decode_group(JSON.encode_group(Group("a", _pixels(3))), LIMITS, taken.append)
    assert taken == [3 * 5 * 7 * 3]


@pytest.mark.parametrize(
    "change",
    [
        {"images": {"dtype": "F32"}},
        {"images": {"shape": [3, 5, 7, 4]}},
        {"images": {"shape": [3, 5, 7]}},
        {"images": {"shape": [-3, 5, -7, 3]}},
        {"images": {"shape": [0, 5, 7, 3]}},
        {"images": {"shape": [1 << 40, 1 << 40, 1, 3]}},
        {"images": {"shape": [True, 5, 21, 3]}},
        {"images": {"data_offsets": [0, 314]}},
        {"images": {"data_offsets": [1, 316]}},
        {"images": {"data_offsets": [315, 0]}},
        {"__metadata__": {"prompt": 3}},
        {"__metadata__": {"prompt": "x" * 10_001}},
        {"more": {"dtype": "U8", "shape": [0], "data_offsets": [315, 315]}},
    ],
)
def test_a_safetensors_header_of_another_form_is_refused(change: dict[str, dict[str, Any]]) -> None:
    sent = _pixels(0)
    header: dict[str, dict[str, Any]] = {
        "__metadata__": {"prompt": "a"},
        "images": {"dtype": "U8", "shape": [3, 5, 7, 3], "data_offsets": [0, 315]},
    }
    packed = json.dumps(
        {**header, **{key: {**header.get(key, {}), **new} for key, new in change.items()}}
    ).encode()
    with pytest.raises(Refusal) as caught:
        SAFETENSORS.decode_group(len(packed).to_bytes(8, "little") + packed + sent.tobytes(), LIMITS, _free)
    assert caught.value.code in ("wrong_content", "too_large")


def test_json_is_what_the_documentation_shows() -> None:
    buffer = io.BytesIO()
    Image.fromarray(_pixels(4)[0]).save(buffer, format="PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    group = JSON.decode_group(json.dumps({"prompt": "a", "images": [image]}).encode(), LIMITS, _free)
    np.testing.assert_array_equal(group.images, _pixels(4)[:1])
    reply = json.loads(encode_reply(_scores(2), 0.5))
    assert sorted(reply) == ["busy_s", "differences", "refused", "residual", "rewards", "shadow", "stamp"]
    assert reply["stamp"] == {"name": "clip", "version": "1+b", "digest": "0" * 64}
    assert reply["shadow"] is None


@BOTH
@pytest.mark.parametrize(
    "limits",
    [{"images": 2}, {"image_pixels": 34}, {"prompt_characters": 3}],
    ids=lambda limits: next(iter(limits)),
)
def test_limits_are_kept(wire: Wire, limits: dict[str, Any]) -> None:
    body = wire.encode_group(Group("four", _pixels(0)))
    with pytest.raises(Refusal) as caught:
        wire.decode_group(body, HttpLimits(**limits), _free)
    assert caught.value.code == "too_large"
    wire.decode_group(body, HttpLimits(images=3, image_pixels=35, prompt_characters=4), _free)


def test_pixels_of_a_group_are_limited_by_the_body_limit_also_where_they_are_packed() -> None:
    flat = np.zeros((8, 64, 64, 3), dtype=np.uint8)
    body = JSON.encode_group(Group("a", flat))
    limits = HttpLimits(body_bytes=flat.nbytes - 1)
    assert len(body) < limits.body_bytes
    with pytest.raises(Refusal, match="pixels"):
        JSON.decode_group(body, limits, _free)


@BOTH
def test_half_a_character_and_images_of_another_form_are_not_sent(wire: Wire) -> None:
    with pytest.raises(RewardError, match="character"):
        wire.encode_group(Group("\ud800", _pixels(0)))
    with pytest.raises(RewardError, match="uint8"):
        HttpReward("http://127.0.0.1:9", wire=wire).score("a", _pixels(0).astype(np.float32))  # type: ignore[arg-type]


@given(
    st.integers(0, 999), st.integers(1, 6), st.floats(0, 1e6), st.sampled_from(["none", "scores", "failure"])
)
@settings(max_examples=30, deadline=None)
def test_a_reply_arrives_to_the_last_bit(seed: int, count: int, busy_s: float, shadow_kind: str) -> None:
    scores = _scores(count, seed)
    shadow = {
        "none": None,
        "scores": _scores(count, seed + 1),
        "failure": RewardFailure("out\nof order"),
    }
    reply = decode_reply(encode_reply(scores, busy_s, shadow[shadow_kind]), count)
    assert isinstance(reply.outcome, RewardScores)
    _same(reply.outcome, scores)
    assert reply.busy_s == busy_s
    if isinstance(reply.shadow, RewardScores):
        _same(reply.shadow, shadow["scores"])  # type: ignore[arg-type]
    else:
        assert reply.shadow == shadow[shadow_kind]


def test_what_else_is_told_does_not_harm_the_score() -> None:
    body = encode_reply(_scores(3), 0.0, RewardFailure("half \ud800"), "of no use \udfff" * 100_000)
    reply = decode_reply(body, 3)
    assert isinstance(reply.outcome, RewardScores)
    assert reply.shadow == RewardFailure("half ?")
    assert reply.refused.startswith("of no use ?")
    assert len(body) < 3000


@pytest.mark.parametrize(
    "unsound",
    [
        _scores(4),
        replace(_scores(3), differences=np.ones((3, 3))),
        replace(_scores(3), residual=-1.0),
        replace(_scores(3), stamp=ScorerStamp("clip", "", "")),
        replace(_scores(3), stamp=ScorerStamp("", "1", "")),
        replace(_scores(3), stamp=ScorerStamp("clip", "1", "0" * 5000)),
    ],
    ids=["count", "not antisymmetric", "residual", "no version", "no name", "long stamp"],
)
def test_an_unsound_reply_is_an_error_and_an_unsound_shadow_harms_nothing(unsound: RewardScores) -> None:
    with pytest.raises(RewardError):
        decode_reply(encode_reply(unsound, 0.0), 3)
    if unsound.residual >= 0.0:
        reply = decode_reply(encode_reply(_scores(3), 0.0, unsound), 3)
        assert isinstance(reply.outcome, RewardScores)
        assert isinstance(reply.shadow, RewardFailure)


_SOUND_REPLY = json.loads(encode_reply(_scores(2), 0.0))


@pytest.mark.parametrize(
    "change",
    [
        {"rewards": ["1", "2"]},
        {"rewards": [True, False]},
        {"rewards": [1.0]},
        {"rewards": [[1.0], [2.0]]},
        {"rewards": [10**400, 0]},
        {"rewards": None},
        {"rewards": [float("nan"), 0.5]},
        {"rewards": [float("inf"), 0.5]},
        {"differences": [[0.0, 1.0], [0.0]]},
        {"differences": []},
        {"residual": -0.5},
        {"stamp": None},
        {"shadow": {"rewards": [1.0]}},
        {"refused": None},
    ],
)
def test_a_reply_of_another_form_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(RewardError):
        decode_reply(json.dumps({**_SOUND_REPLY, **change}).encode(), 2)


@given(st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_no_reply(body: bytes) -> None:
    with pytest.raises(RewardError):
        decode_reply(body, 3)
