"""Both content types: what is encoded is decoded, and nothing unsound becomes a score."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pyarrow import ipc

from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.contract.results import NoShadow, RewardFailure, RewardScores
from reward_service.http.limits import HttpLimits
from reward_service.http.wire import ARROW, JSON, WIRES, Group, Wire, WireError

LIMITS = HttpLimits()
BOTH = pytest.mark.parametrize("wire", [JSON, ARROW], ids=["json", "arrow"])
STAMP = ScorerStamp("clip", "1+b", "0" * 64)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def _free(count: int) -> None:
    """Room without limit."""


def _pixels(seed: int, count: int = 3, height: int = 5, width: int = 7) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def _part(count: int, seed: int = 0) -> RewardScores:
    generator = np.random.default_rng(seed)
    rewards = generator.normal(size=count) * 10.0 ** generator.integers(-8, 8)
    matrix = generator.normal(size=(count, count))
    return RewardScores(rewards, matrix - matrix.T, 0.25, STAMP)


def _same(one: RewardScores, other: RewardScores) -> None:
    np.testing.assert_array_equal(one.rewards, other.rewards)
    np.testing.assert_array_equal(one.differences, other.differences)
    assert (one.residual, one.stamp) == (other.residual, other.stamp)


@BOTH
@given(st.integers(0, 99), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), TEXT)
@settings(max_examples=30, deadline=None)
def test_a_group_arrives_as_it_was_sent(
    wire: Wire, seed: int, count: int, height: int, width: int, prompt: str
) -> None:
    sent = _pixels(seed, count, height, width)
    group = wire.decode_group(wire.encode_group(Group(prompt, sent)), LIMITS, _free)
    assert group.prompt == prompt
    np.testing.assert_array_equal(group.pixels, sent)


@BOTH
@given(
    st.integers(0, 999), st.integers(1, 6), st.floats(0, 1e6), st.sampled_from(["none", "part", "failure"])
)
@settings(max_examples=30, deadline=None)
def test_a_reply_arrives_to_the_last_bit(
    wire: Wire, seed: int, count: int, busy_s: float, shadow_kind: str
) -> None:
    part = _part(count, seed)
    shadow = {"none": NoShadow(), "part": _part(count, seed + 1), "failure": RewardFailure("out\nof order")}
    reply = wire.decode_reply(wire.encode_reply(part, busy_s, shadow[shadow_kind]), count)
    assert isinstance(reply.outcome, RewardScores)
    _same(reply.outcome, part)
    assert reply.busy_s == busy_s
    if isinstance(reply.shadow, RewardScores):
        _same(reply.shadow, shadow["part"])  # type: ignore[arg-type]
    else:
        assert reply.shadow == shadow[shadow_kind]


def test_arrow_is_the_documented_stream_for_a_plain_reader() -> None:
    sent = _pixels(1)
    reader = ipc.open_stream(ARROW.encode_group(Group("a prompt", sent)))
    (batch,) = list(reader)
    assert reader.schema.names == ["pixels"]
    assert reader.schema.types == [pa.binary(5 * 7 * 3)]
    assert reader.schema.metadata == {b"prompt": b"a prompt", b"height": b"5", b"width": b"7"}
    assert [value.as_py() for value in batch.column(0)] == [picture.tobytes() for picture in sent]


def test_an_arrow_reply_is_the_documented_stream_for_a_plain_reader() -> None:
    part = _part(3)
    reader = ipc.open_stream(ARROW.encode_reply(part, 0.5, NoShadow()))
    table = reader.read_all()
    assert table.schema.types == [pa.float64(), pa.list_(pa.float64(), 3)]
    assert table.column("rewards").to_pylist() == part.rewards.tolist()
    assert table.column("differences").to_pylist() == part.differences.tolist()
    metadata = table.schema.metadata
    assert [metadata[key] for key in (b"name", b"version", b"digest", b"residual", b"busy_s", b"shadow")] == [
        b"clip",
        b"1+b",
        b"0" * 64,
        b"0.25",
        b"0.5",
        b"null",
    ]


def test_an_arrow_stream_of_another_writer_is_read() -> None:
    sent = _pixels(2, count=4, height=2, width=2)
    fixed = pa.array([picture.tobytes() for picture in sent], pa.binary(12))
    metadata = {"width": "2", "height": "2", "prompt": "ü", "pandas": "{}"}
    schema = pa.schema([pa.field("pixels", pa.binary(12), nullable=False)], metadata=metadata)
    sink = io.BytesIO()
    with ipc.new_stream(sink, schema, options=ipc.IpcWriteOptions(use_legacy_format=True)) as writer:
        writer.write_batch(pa.record_batch([fixed], schema=schema))
    group = ARROW.decode_group(sink.getvalue(), LIMITS, _free)
    assert group.prompt == "ü"
    np.testing.assert_array_equal(group.pixels, sent)


def test_arrow_pixels_are_a_view_of_the_body() -> None:
    body = ARROW.encode_group(Group("a", _pixels(3)))
    taken: list[int] = []
    group = ARROW.decode_group(body, LIMITS, taken.append)
    assert np.shares_memory(group.pixels, np.frombuffer(body, dtype=np.uint8))
    assert taken == []


def test_json_takes_room_before_it_decodes() -> None:
    body = JSON.encode_group(Group("a", _pixels(3)))
    taken: list[int] = []
    JSON.decode_group(body, LIMITS, taken.append)
    assert taken == [3 * 5 * 7 * 3]


def test_json_is_what_the_documentation_shows() -> None:
    buffer = io.BytesIO()
    Image.fromarray(_pixels(4)[0]).save(buffer, format="PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    group = JSON.decode_group(json.dumps({"prompt": "a", "images": [image]}).encode(), LIMITS, _free)
    np.testing.assert_array_equal(group.pixels, _pixels(4)[:1])
    reply = json.loads(JSON.encode_reply(_part(2), 0.5, NoShadow()))
    assert sorted(reply) == ["busy_s", "differences", "residual", "rewards", "shadow", "stamp"]
    assert reply["stamp"] == {"name": "clip", "version": "1+b", "digest": "0" * 64}
    assert reply["shadow"] is None


@BOTH
@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"images": 2}, "too_large"),
        ({"image_pixels": 34}, "too_large"),
        ({"prompt_characters": 3}, "too_large"),
        ({"images": 3, "image_pixels": 35, "prompt_characters": 4}, ""),
    ],
)
def test_limits_are_kept(wire: Wire, limits: dict[str, Any], code: str) -> None:
    body = wire.encode_group(Group("four", _pixels(0)))
    if code:
        with pytest.raises(WireError) as caught:
            wire.decode_group(body, HttpLimits(**limits), _free)
        assert caught.value.code == code
    else:
        assert len(wire.decode_group(body, HttpLimits(**limits), _free).pixels) == 3


def test_pixels_of_a_group_are_limited_by_the_body_limit_also_where_they_are_packed() -> None:
    flat = np.zeros((8, 64, 64, 3), dtype=np.uint8)
    body = JSON.encode_group(Group("a", flat))
    limits = HttpLimits(body_bytes=flat.nbytes - 1)
    assert len(body) < limits.body_bytes
    with pytest.raises(WireError, match="bytes of pixels"):
        JSON.decode_group(body, limits, _free)


_UNSOUND = {
    "other count": _part(4),
    "not finite": replace(_part(3), rewards=np.array([0.0, np.inf, 1.0])),
    "NaN in the matrix": replace(_part(3), differences=np.full((3, 3), np.nan)),
    "not antisymmetric": replace(_part(3), differences=np.ones((3, 3))),
    "negative residual": replace(_part(3), residual=-1.0),
    "no version": replace(_part(3), stamp=ScorerStamp("clip", "", "")),
    "no name": replace(_part(3), stamp=ScorerStamp("", "1", "")),
    "long stamp": replace(_part(3), stamp=ScorerStamp("clip", "1", "0" * 5000)),
}


@pytest.mark.parametrize("what", _UNSOUND)
def test_an_unsound_arrow_reply_is_an_error(what: str) -> None:
    with pytest.raises(RewardError):
        ARROW.decode_reply(ARROW.encode_reply(_UNSOUND[what], 0.0, NoShadow()), 3)


@pytest.mark.parametrize("what", [what for what in _UNSOUND if "inite" not in what and "NaN" not in what])
def test_an_unsound_json_reply_is_an_error(what: str) -> None:
    with pytest.raises(RewardError):
        JSON.decode_reply(JSON.encode_reply(_UNSOUND[what], 0.0, NoShadow()), 3)


_SOUND_REPLY = json.loads(JSON.encode_reply(_part(2), 0.0, NoShadow()))


@pytest.mark.parametrize(
    "change",
    [
        {"rewards": ["1", "2"]},
        {"rewards": [True, False]},
        {"rewards": [1.0]},
        {"rewards": [[1.0], [2.0]]},
        {"rewards": None},
        {"differences": [[0.0, 1.0], [0.0]]},
        {"differences": []},
        {"residual": -0.5},
        {"stamp": None},
        {"stamp": [{"name": "a", "version": "1", "digest": ""}] * 2},
        {"shadow": {"rewards": [1.0]}},
    ],
)
def test_a_json_reply_of_another_form_is_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(RewardError):
        JSON.decode_reply(json.dumps({**_SOUND_REPLY, **change}).encode(), 2)


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"1e999"])
def test_a_json_reply_with_no_finite_number_is_an_error(number: bytes) -> None:
    body = json.dumps({**_SOUND_REPLY, "rewards": [0.5, 0.125]}).encode().replace(b"0.125", number)
    with pytest.raises(RewardError):
        JSON.decode_reply(body, 2)


@BOTH
@given(st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_no_reply(wire: Wire, body: bytes) -> None:
    with pytest.raises(RewardError):
        wire.decode_reply(body, 3)


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_a_damaged_arrow_reply_is_an_error_or_sound(at: int, new: bytes) -> None:
    body = bytearray(ARROW.encode_reply(_part(3), 0.0, NoShadow()))
    body[at % len(body) : at % len(body) + len(new)] = new
    try:
        reply = ARROW.decode_reply(bytes(body), 3)
    except RewardError:
        return
    assert isinstance(reply.outcome, RewardScores)
    assert np.isfinite(reply.outcome.rewards).all()
    np.testing.assert_array_equal(reply.outcome.differences, -reply.outcome.differences.T)


@BOTH
def test_an_unsound_shadow_harms_nothing(wire: Wire) -> None:
    reply = wire.decode_reply(wire.encode_reply(_part(3), 0.0, _part(2)), 3)
    assert isinstance(reply.outcome, RewardScores)
    assert isinstance(reply.shadow, RewardFailure)


def test_each_wire_is_found_by_its_content_type() -> None:
    assert WIRES == {"application/json": JSON, "application/vnd.apache.arrow.stream": ARROW}
