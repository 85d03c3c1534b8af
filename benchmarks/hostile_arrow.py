"""Arrow streams that no honest client sends: cut, compressed, of other schemas and sizes, patched by hand."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa
from pyarrow import ipc

from benchmarks.hostile_pictures import flipped

_SIDE = 8
_BYTES = _SIDE * _SIDE * 3
_PIXELS = pa.field("pixels", pa.binary(_BYTES))
_SIZE = {"height": str(_SIDE), "width": str(_SIDE)}
_SIDES = ("-8", "0", "8.0", "8 ", "0x8", "", "99999999", "9" * 400, "NaN", "٨", "8\x00", "+8", "1e1")
_EXTENSIONS = ("arrow.py_extension_type", "arrow.uuid", "arrow.json", "ray.data.arrow_tensor")
_HUGE_ROWS = (1 << 62, -1, 1 << 31, 1000)
_FIELDS = 5000

ArrowMaker = Callable[[random.Random], bytes]


def stream(
    columns: Sequence[pa.Array],
    fields: Sequence[pa.Field] = (_PIXELS,),
    metadata: Mapping[str, str | bytes] | None = None,
    batches: int = 1,
    compression: str | None = None,
) -> bytes:
    """An Arrow stream of any columns; by default the metadata of 8 x 8 pictures of the prompt "a"."""
    given = {"prompt": "a", **_SIZE} if metadata is None else metadata
    schema = pa.schema(list(fields), metadata=given)
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, schema, options=ipc.IpcWriteOptions(compression=compression)) as writer:
        for _ in range(batches):
            writer.write_batch(pa.record_batch(list(columns), schema=schema))
    return bytes(sink.getvalue())


def pixels(rng: random.Random, rows: int = 3) -> pa.Array:
    """A sound column of 8 x 8 pictures."""
    return pa.array([rng.randbytes(_BYTES) for _ in range(rows)], pa.binary(_BYTES))


def good(rng: random.Random) -> bytes:
    """A sound stream."""
    return stream([pixels(rng, rng.randint(1, 4))])


def _cut(rng: random.Random) -> bytes:
    whole = good(rng)
    return whole[: rng.randrange(len(whole) - 16)]


def _sides(rng: random.Random) -> bytes:
    sizes = {**_SIZE, rng.choice(["height", "width"]): rng.choice(_SIDES)}
    return stream([pixels(rng)], metadata={"prompt": "a", **sizes})


def _swapped_sides(rng: random.Random) -> bytes:
    """Metadata that does not fit the column."""
    sizes = {"height": str(rng.randint(1, 7)), "width": str(rng.choice([7, 9, 11]))}
    return stream([pixels(rng)], metadata={"prompt": "a", **sizes})


def _missing(rng: random.Random) -> bytes:
    metadata = {"prompt": "a", **_SIZE}
    del metadata[rng.choice(sorted(metadata))]
    return stream([pixels(rng)], metadata=rng.choice([metadata, {}]))


def _other_column(rng: random.Random) -> bytes:
    column, kind = rng.choice(
        [
            (pa.array([b"a"] * 3), pa.binary()),
            (pa.array(["a"] * 3), pa.string()),
            (pa.array([1.0] * 3), pa.float64()),
            (pa.array([[1]] * 3), pa.list_(pa.int64())),
            (pa.array([None] * 3), pa.null()),
            (pa.array([{"a": 1}] * 3), pa.struct([("a", pa.int64())])),
            (pa.array(["a"] * 3).dictionary_encode(), pa.dictionary(pa.int32(), pa.string())),
        ]
    )
    return stream([column], [pa.field(rng.choice(["pixels", "image"]), kind)])


def _extra_column(rng: random.Random) -> bytes:
    return stream([pixels(rng), pa.array([1, 2, 3])], [_PIXELS, pa.field("rewards", pa.int64())])


def _many_columns(rng: random.Random) -> bytes:
    fields = [pa.field(f"c{number}", pa.null()) for number in range(_FIELDS)]
    return stream([pa.nulls(1)] * _FIELDS, fields)


def _nulls(rng: random.Random) -> bytes:
    return stream([pa.array([rng.randbytes(_BYTES), None], pa.binary(_BYTES))])


def _extension(rng: random.Random) -> bytes:
    """A column that asks the reader to build a Python type, from a pickle that would run a command."""
    called = b"cos\nsystem\n(S'touch /tmp/hostile_pickle_ran'\ntR."
    extra = {"ARROW:extension:name": rng.choice(_EXTENSIONS), "ARROW:extension:metadata": called}
    kind = pa.binary(rng.choice([_BYTES, 16]))
    column = pa.array([bytes(kind.byte_width)] * 2, kind)
    return stream([column], [pa.field(rng.choice(["pixels", "object"]), kind, metadata=extra)])


def _claims_rows(rng: random.Random) -> bytes:
    """A batch that says it has other rows than it has bytes for."""
    rows = 57
    whole = stream([pixels(rng, rows)])
    return whole.replace(struct.pack("<q", rows), struct.pack("<q", rng.choice(_HUGE_ROWS)))


def _claims_body(rng: random.Random) -> bytes:
    """A batch that says its buffer is longer, or elsewhere."""
    rows = 59
    whole = stream([pixels(rng, rows)])
    return whole.replace(struct.pack("<q", rows * _BYTES), struct.pack("<q", rng.choice(_HUGE_ROWS)))


def _unreadable_name(rng: random.Random) -> bytes:
    """A column, or a part of one, whose name is no text."""
    inner = pa.array([{"pixels": 1}] * 3)
    whole = rng.choice([good(rng), stream([inner], [pa.field("a", inner.type)])])
    return whole.replace(b"pixels", b"pix\xff\xfes")


def _long_prompt(rng: random.Random) -> bytes:
    return stream([pixels(rng)], metadata={"prompt": "é" * rng.choice([10_001, 300_000]), **_SIZE})


def _bad_prompt(rng: random.Random) -> bytes:
    return stream([pixels(rng)], metadata={"prompt": b"\xff\xfe\xed\xa0\x80", **_SIZE})


NO_STREAMS: dict[str, ArrowMaker] = {
    "cut Arrow": _cut,
    "Arrow of no bytes": lambda rng: b"",
    "random bytes as Arrow": lambda rng: rng.randbytes(rng.randrange(1, 4000)),
    "random bytes after an Arrow mark": lambda rng: b"\xff\xff\xff\xff" + rng.randbytes(500),
    "Arrow of a huge message": lambda rng: b"\xff\xff\xff\xff" + struct.pack("<i", 0x7FFFFFFF) + bytes(64),
    "Arrow file": lambda rng: b"ARROW1\0\0" + good(rng),
    "compressed Arrow": lambda rng: stream([pixels(rng)], compression=rng.choice(["lz4", "zstd"])),
    "Arrow bomb": lambda rng: stream(
        [pa.array([bytes(_BYTES)] * 20_000, pa.binary(_BYTES))], compression="zstd"
    ),
    "Arrow of impossible sides": _sides,
    "Arrow of other sides": _swapped_sides,
    "Arrow without metadata": _missing,
    "Arrow of another column": _other_column,
    "Arrow of a column too many": _extra_column,
    "Arrow of 5000 columns": _many_columns,
    "Arrow with nulls": _nulls,
    "Arrow with a Python type": _extension,
    "Arrow of two batches": lambda rng: stream([pixels(rng)], batches=2),
    "Arrow without a batch": lambda rng: stream([pixels(rng)], batches=0),
    "Arrow of no rows": lambda rng: stream([pixels(rng, 0)]),
    "Arrow of too many rows": lambda rng: stream([pixels(rng, 65)]),
    "Arrow that claims rows": _claims_rows,
    "Arrow that claims bytes": _claims_body,
    "Arrow with bytes after its end": lambda rng: good(rng) + rng.randbytes(9),
    "Arrow with a name of no text": _unreadable_name,
    "Arrow with a long prompt": _long_prompt,
    "Arrow with a prompt of no text": _bad_prompt,
}
"""Streams that must never be scored, by what is wrong with them."""

MAYBE_STREAMS: dict[str, ArrowMaker] = {
    "Arrow with flipped bytes": lambda rng: flipped(rng, good(rng)),
    "Arrow with flipped bytes at its start": lambda rng: (
        flipped(rng, (whole := good(rng))[:600]) + whole[600:]
    ),
}
"""Streams that may or may not be readable."""
