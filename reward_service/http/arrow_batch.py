"""One Arrow record batch out of a stream, as views of its bytes: nothing is decompressed or copied.

Arrow's own reader would decompress a batch before anybody could see how large it becomes. So only the
messages are split by Arrow, which verifies their metadata; the batch's metadata (a flatbuffer, format/
Message.fbs of Apache Arrow) is read here, and its buffers are cut out of the body.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import ipc

from reward_service.http.wire_checks import BAD_REQUEST, TOO_LARGE, WRONG_CONTENT, WireError

_ENDS = (b"", b"\xff\xff\xff\xff\x00\x00\x00\x00", b"\x00\x00\x00\x00")
_RECORD_BATCH = 3
_HEADER_TYPE, _HEADER = 1, 2
_LENGTH, _NODES, _BUFFERS, _COMPRESSION = 0, 1, 2, 3
_PADDING = 64


@dataclass(frozen=True)
class FlatBatch:
    """One uncompressed record batch without nulls. buffers: in the format's order, with padding."""

    schema: pa.Schema
    rows: int
    buffers: tuple[memoryview, ...]

    def data(self, buffer: int, size: int) -> memoryview:
        """The first `size` bytes of a buffer. Raises WireError unless it holds them and at most padding."""
        if not 0 <= buffer < len(self.buffers):
            raise WireError(WRONG_CONTENT, "The Arrow record batch lacks the buffers of its columns.")
        whole = self.buffers[buffer]
        if not size <= len(whole) < size + _PADDING:
            raise WireError(
                WRONG_CONTENT, f"An Arrow buffer has {len(whole)} bytes; its schema and rows need {size}."
            )
        return whole[:size]


def read_one_batch(body: bytes, most_metadata: int) -> FlatBatch:
    """The one batch of an Arrow stream. most_metadata: longest allowed metadata of a message, in bytes.

    Raises WireError where the stream is damaged, compressed, has nulls, or is not a schema and one batch.
    """
    reader = pa.BufferReader(body)
    schema_message = _next_message(reader, "schema", most_metadata)
    try:
        schema = ipc.read_schema(schema_message)
        _ = schema.names, [str(kind) for kind in schema.types]  # names may be no text, which raises only here
    except (pa.ArrowException, OSError, ValueError) as error:
        raise WireError(BAD_REQUEST, f"The Arrow stream's schema cannot be read: {_short(error)}") from error
    batch = _next_message(reader, "record batch", most_metadata)
    if body[reader.tell() :] not in _ENDS:
        raise WireError(
            WRONG_CONTENT, "The Arrow stream goes on after its record batch; send one batch, a row a picture."
        )
    try:
        rows, buffers = _read_flatbuffer(memoryview(batch.metadata), memoryview(batch.body or b""))
    except (struct.error, IndexError) as error:
        raise WireError(BAD_REQUEST, f"The Arrow record batch's metadata is damaged: {error}") from error
    return FlatBatch(schema, rows, buffers)


def _next_message(reader: pa.BufferReader, kind: str, most_metadata: int) -> ipc.Message:
    try:
        message = ipc.read_message(reader)
    except EOFError as error:
        raise WireError(BAD_REQUEST, f"The Arrow stream ends where a {kind} message must be.") from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise WireError(BAD_REQUEST, f"The body is no Arrow stream: {_short(error)}") from error
    if message.type != kind:
        raise WireError(
            WRONG_CONTENT, f"The Arrow stream has a {message.type} message where a {kind} message must be."
        )
    if message.metadata.size > most_metadata:
        raise WireError(
            TOO_LARGE,
            f"The Arrow {kind} message has {message.metadata.size} bytes of metadata; "
            f"allowed: {most_metadata}.",
        )
    return message


def _read_flatbuffer(metadata: memoryview, body: memoryview) -> tuple[int, tuple[memoryview, ...]]:
    message = _Table(metadata, _u32(metadata, 0))
    header_type = metadata[message.place(_HEADER_TYPE)]
    if header_type != _RECORD_BATCH:
        raise WireError(BAD_REQUEST, f"The Arrow message says it is of type {header_type}, no record batch.")
    batch = message.table(_HEADER)
    if batch.has(_COMPRESSION):
        raise WireError(
            WRONG_CONTENT, "The Arrow record batch is compressed; send it uncompressed (compression: none)."
        )
    rows = _i64(metadata, batch.place(_LENGTH)) if batch.has(_LENGTH) else 0
    if any(nulls for _, nulls in batch.pairs(_NODES)):
        raise WireError(WRONG_CONTENT, "The Arrow record batch has nulls; every value must be given.")
    if any(length != rows for length, _ in list(batch.pairs(_NODES))[:1]):
        raise WireError(BAD_REQUEST, "The Arrow record batch's columns are not as long as the batch.")
    buffers = tuple(_cut(body, offset, length) for offset, length in batch.pairs(_BUFFERS))
    return rows, buffers


def _cut(body: memoryview, offset: int, length: int) -> memoryview:
    if offset < 0 or length < 0 or offset + length > len(body):
        raise WireError(BAD_REQUEST, "An Arrow buffer lies outside the message's body.")
    return body[offset : offset + length]


@dataclass(frozen=True)
class _Table:
    """A flatbuffer table: its position, and through its vtable its fields' positions."""

    data: memoryview
    position: int

    def place(self, field: int) -> int:
        """Where a field is. Raises IndexError where the table does not have it."""
        offset = self._offset(field)
        if not offset:
            raise IndexError(f"field {field} is missing")
        return self.position + offset

    def has(self, field: int) -> bool:
        """Whether the table has a field."""
        return self._offset(field) != 0

    def table(self, field: int) -> _Table:
        """The table that a field refers to."""
        place = self.place(field)
        return _Table(self.data, place + _u32(self.data, place))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A field that is a vector of two int64 an item; empty where the table does not have it."""
        if not self.has(field):
            return []
        place = self.place(field)
        start = place + _u32(self.data, place)
        count = _u32(self.data, start)
        if start + 4 + 16 * count > len(self.data):
            raise IndexError(f"{count} items do not fit")
        return [
            (_i64(self.data, at), _i64(self.data, at + 8))
            for at in range(start + 4, start + 4 + 16 * count, 16)
        ]

    def _offset(self, field: int) -> int:
        vtable = self.position - _unpack("<i", self.data, self.position)
        slot = 4 + 2 * field
        return _unpack("<H", self.data, vtable + slot) if slot < _unpack("<H", self.data, vtable) else 0


def _u32(data: memoryview, at: int) -> int:
    return _unpack("<I", data, at)


def _i64(data: memoryview, at: int) -> int:
    return _unpack("<q", data, at)


def _unpack(form: str, data: memoryview, at: int) -> int:
    if at < 0:
        raise IndexError(f"position {at} is before the metadata")
    (value,) = struct.unpack_from(form, data, at)
    return int(value)


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
