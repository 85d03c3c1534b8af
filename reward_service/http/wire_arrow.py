"""The protocol's Arrow: for machines. Raw pixels, so nothing is compressed, decoded or copied on arrival."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import ipc
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import RewardError
from common.trajectory import Float64, ScorerStamp
from reward_service.contract.results import NoShadow, Outcome, Reply, RewardScores
from reward_service.http.arrow_batch import FlatBatch, read_one_batch
from reward_service.http.limits import HttpLimits
from reward_service.http.wire_checks import (
    BAD_REQUEST,
    WRONG_CONTENT,
    Group,
    Reserve,
    WireError,
    check_count,
    check_part,
    check_prompt,
    check_size,
)
from reward_service.http.wire_json import FailureBody, PartBody, StampBody, read_shadow, shadow_object

ARROW_TYPE = "application/vnd.apache.arrow.stream"
_SIDE = re.compile(rb"[0-9]{1,9}")
_SPARE_METADATA = 1 << 16
_BYTES_OF_A_CHARACTER = 4
_JSON_BYTES_OF_A_NUMBER = 30


class _ReplyMetadata(BaseModel):
    """The texts beside the columns of a reply, as JSON values."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    residual: float = Field(ge=0.0)
    busy_s: float = Field(ge=0.0)
    stamp: StampBody
    shadow: PartBody | FailureBody | None


@dataclass(frozen=True)
class ArrowWire:
    """application/vnd.apache.arrow.stream: a schema message and one record batch."""

    content_type: str = ARROW_TYPE

    def encode_group(self, group: Group) -> bytes:
        """Column pixels, fixed_size_binary(height * width * 3); metadata prompt, height, width."""
        count, height, width, _ = group.pixels.shape
        metadata = {"prompt": group.prompt, "height": str(height), "width": str(width)}
        flat = np.ascontiguousarray(group.pixels)
        kind = pa.binary(height * width * 3)
        column = pa.Array.from_buffers(kind, count, [None, pa.py_buffer(flat)])
        return _stream(pa.schema([pa.field("pixels", kind)], metadata=metadata), [column])

    def decode_group(self, body: bytes, limits: HttpLimits, reserve: Reserve) -> Group:
        """The group of a body; its pixels are a read-only view of the body. Raises WireError."""
        most_metadata = limits.prompt_characters * _BYTES_OF_A_CHARACTER + _SPARE_METADATA
        batch = read_one_batch(body, most_metadata)
        metadata: Mapping[bytes, bytes] = batch.schema.metadata or {}
        prompt = _text(metadata, b"prompt")
        height, width = _side(metadata, b"height"), _side(metadata, b"width")
        check_prompt(prompt, limits)
        check_count(batch.rows, limits)
        check_size(batch.rows, height, width, limits)
        _check_pixel_column(batch, height, width)
        pixels = np.frombuffer(batch.data(1, batch.rows * height * width * 3), dtype=np.uint8)
        return Group(prompt, pixels.reshape(batch.rows, height, width, 3))

    def encode_reply(self, part: RewardScores, busy_s: float, shadow: Outcome | NoShadow) -> bytes:
        """Columns rewards and differences; metadata: residual, the stamp, busy_s, shadow (JSON)."""
        count = len(part.rewards)
        rows = pa.FixedSizeListArray.from_arrays(pa.array(part.differences.ravel(), pa.float64()), count)
        metadata = {
            "residual": repr(float(part.residual)),
            "busy_s": repr(float(busy_s)),
            **vars(part.stamp),
            "shadow": json.dumps(shadow_object(shadow), allow_nan=False),
        }
        return _stream(_reply_schema(count).with_metadata(metadata), [pa.array(part.rewards), rows])

    def decode_reply(self, body: bytes, images: int) -> Reply:
        """The reply to a group of so many pictures. Raises RewardError."""
        most_metadata = _SPARE_METADATA + images * (images + 4) * _JSON_BYTES_OF_A_NUMBER
        try:
            batch = read_one_batch(body, most_metadata)
            if batch.rows != images or not batch.schema.equals(_reply_schema(images)):
                raise RewardError(
                    f"It answered {batch.rows} rows of {_columns(batch.schema)}; "
                    f"needed are {images} rows of {_columns(_reply_schema(images))}."
                )
            rewards = _numbers(batch.data(1, images * 8))
            differences = _numbers(batch.data(4, images * images * 8)).reshape(images, images)
            read = _read_metadata(batch.schema.metadata or {})
        except WireError as error:
            raise RewardError(f"It answered an Arrow stream that cannot be used. {error.reason}") from error
        stamp = ScorerStamp(read.stamp.name, read.stamp.version, read.stamp.digest)
        part = check_part(RewardScores(rewards, differences, read.residual, stamp), images)
        return Reply(part, read.busy_s, read_shadow(read.shadow, images))


def _stream(schema: pa.Schema, columns: list[pa.Array]) -> bytes:
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return bytes(sink.getvalue())


def _reply_schema(images: int) -> pa.Schema:
    differences = pa.list_(pa.float64(), images)
    return pa.schema([pa.field("rewards", pa.float64()), pa.field("differences", differences)])


def _check_pixel_column(batch: FlatBatch, height: int, width: int) -> None:
    names, kinds = batch.schema.names, batch.schema.types
    if names != ["pixels"] or kinds != [pa.binary(height * width * 3)]:
        raise WireError(
            WRONG_CONTENT,
            f"The Arrow schema has the columns {_columns(batch.schema)}; needed is only pixels: "
            f"fixed_size_binary[{height * width * 3}] (height {height} x width {width} x 3).",
        )


def _columns(schema: pa.Schema) -> str:
    shown = [f"{field.name[:40]}: {str(field.type)[:60]}" for field in list(schema)[:5]]
    return ", ".join(shown) + (", ..." if len(schema) > len(shown) else "")


def _text(metadata: Mapping[bytes, bytes], key: bytes) -> str:
    if key not in metadata:
        raise WireError(
            WRONG_CONTENT, f"The Arrow schema's metadata lacks {key.decode()}; needed: prompt, height, width."
        )
    try:
        return metadata[key].decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError(BAD_REQUEST, f"The metadata {key.decode()} is not UTF-8: {error.reason}.") from error


def _side(metadata: Mapping[bytes, bytes], key: bytes) -> int:
    text = _text(metadata, key)
    if not _SIDE.fullmatch(metadata[key]):
        raise WireError(
            WRONG_CONTENT, f"The metadata {key.decode()} must be a whole number of pixels, got {text[:40]!r}."
        )
    return int(text)


def _numbers(data: memoryview) -> Float64:
    values: NDArray[np.float64] = np.frombuffer(data, dtype="<f8")
    return values.astype(np.float64)


def _read_metadata(metadata: Mapping[bytes, bytes]) -> _ReplyMetadata:
    texts = {key: _text(metadata, key.encode()) for key in ("name", "version", "digest")}
    numbers = {key: _text(metadata, key.encode()) for key in ("residual", "busy_s", "shadow")}
    values = ", ".join(f'"{key}": {text}' for key, text in numbers.items())
    try:
        return _ReplyMetadata.model_validate_json(f'{{"stamp": {json.dumps(texts)}, {values}}}')
    except ValidationError as error:
        raise RewardError(
            f"It answered metadata that cannot be used: {error.errors()[0]['msg'][:200]}."
        ) from error
