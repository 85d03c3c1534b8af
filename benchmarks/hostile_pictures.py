"""Picture files that no honest client sends: cut, huge, animated, in other colours, or no pictures at all."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image

_SIDE = 16
_BOMB_SIDE = 50_000
_TEXT_BYTES = 1 << 20
_TEXTS = 63
_TAGS = 5000
_SMALL_SIDE = 8
_SCANS = 3000


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG file of any header, with these filtered rows compressed, and extra chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def noise(rng: random.Random, height: int = _SIDE, width: int = _SIDE) -> Image.Image:
    """A picture of random pixels."""
    pixels = np.frombuffer(rng.randbytes(height * width * 3), dtype=np.uint8)
    return Image.fromarray(pixels.reshape(height, width, 3))


def saved(picture: Image.Image, form: str, **options: object) -> bytes:
    """The picture as a file."""
    buffer = io.BytesIO()
    picture.save(buffer, format=form, **options)
    return buffer.getvalue()


def flipped(rng: random.Random, file: bytes) -> bytes:
    """The file with a few random bytes changed."""
    changed = bytearray(file)
    for _ in range(rng.randint(1, 12)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _good(rng: random.Random) -> bytes:
    return saved(noise(rng), rng.choice(["PNG", "JPEG"]))


def _cut(rng: random.Random) -> bytes:
    file = _good(rng)
    return file[: rng.randrange(len(file) - 40)]


def _animated(rng: random.Random) -> bytes:
    return saved(noise(rng), "PNG", save_all=True, append_images=[noise(rng), noise(rng)])


def _several(rng: random.Random) -> bytes:
    return saved(noise(rng), "MPO", save_all=True, append_images=[noise(rng)])


def _sixteen_bits(rng: random.Random) -> bytes:
    return png(_SIDE, _SIDE, (b"\0" + rng.randbytes(_SIDE * 6)) * _SIDE, depth=16)


def _sixteen_bits_grey(rng: random.Random) -> bytes:
    return png(_SIDE, _SIDE, (b"\0" + rng.randbytes(_SIDE * 2)) * _SIDE, depth=16, colour=0)


def _bomb(rng: random.Random) -> bytes:
    """Half a gigabyte of pixels and more in a few kilobytes."""
    return png(_BOMB_SIDE, _BOMB_SIDE, bytes(_BOMB_SIDE * 3 + 1) * rng.randint(1, 20))


def inflating(kind: bytes) -> bytes:
    """A small PNG whose chunks of that kind hold 63 MiB of text, a thousand times less while compressed."""
    rows = (b"\0" + bytes(_SMALL_SIDE * 3)) * _SMALL_SIDE
    return png(_SMALL_SIDE, _SMALL_SIDE, rows, extra=_swollen_chunks(kind))


@cache
def _swollen_chunks(kind: bytes) -> bytes:
    packed = zlib.compress(bytes(_TEXT_BYTES), 9)
    return b"".join(chunk(kind, _HEADS[kind] % number + packed) for number in range(_TEXTS))


_HEADS = {b"zTXt": b"%d\0\0", b"iTXt": b"%d\0\1\0\0\0", b"iCCP": b"%d\0\0"}
"""What stands before the compressed text, by the kind of chunk."""


def many_tags() -> bytes:
    """A small JPEG with thousands of Exif tags, all of which say that they are as large as the whole."""
    tags = b"".join(struct.pack(">HHLL", number + 1, 7, _TAGS * 12, 8) for number in range(_TAGS))
    note = b"Exif\0\0" + b"MM\0*" + struct.pack(">LH", 8, _TAGS) + tags + bytes(4)
    file = saved(Image.new("RGB", (_SMALL_SIDE, _SMALL_SIDE)), "JPEG")
    return file[:2] + b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note + file[2:]


def _endless_scans(rng: random.Random) -> bytes:
    """A JPEG that repeats its scan thousands of times."""
    file = saved(noise(rng), "JPEG", progressive=True)
    start = file.index(b"\xff\xda")
    return file[:-2] + file[start:-2] * _SCANS + file[-2:]


def _odd_header(rng: random.Random) -> bytes:
    depth, colour = rng.randrange(256), rng.choice([1, 5, 7, 200])
    return png(rng.randrange(1, 1 << 31), rng.randrange(1, 1 << 31), b"\0", depth=depth, colour=colour)


def _transparent(rng: random.Random) -> bytes:
    picture = noise(rng).convert("RGBA")
    picture.putalpha(rng.randrange(255))
    return saved(picture, "PNG")


def _other_format(rng: random.Random) -> bytes:
    return saved(noise(rng), rng.choice(["GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "PDF", "EPS"]))


PictureMaker = Callable[[random.Random], bytes]

NO_PICTURES: dict[str, PictureMaker] = {
    "cut picture": _cut,
    "picture of no bytes": lambda rng: b"",
    "random bytes as picture": lambda rng: rng.randbytes(rng.randrange(1, 400)),
    "PNG of size 0": lambda rng: png(0, rng.choice([0, _SIDE]), b"\0"),
    "PNG of impossible header": _odd_header,
    "PNG bomb": _bomb,
    "PNG without pixels": lambda rng: png(_SIDE, _SIDE, b""),
    "animated PNG": _animated,
    "several pictures in a JPEG": _several,
    "CMYK JPEG": lambda rng: saved(noise(rng).convert("CMYK"), "JPEG"),
    "16 bit PNG": _sixteen_bits,
    "16 bit grey PNG": _sixteen_bits_grey,
    "transparent PNG": _transparent,
    "JPEG of 3000 scans": _endless_scans,
    "another format": _other_format,
    "SVG": lambda rng: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
}
"""Files that must never be scored, by what is wrong with them."""

MAYBE_PICTURES: dict[str, PictureMaker] = {
    "picture with flipped bytes": lambda rng: flipped(rng, _good(rng)),
    "grey or palette picture": lambda rng: saved(noise(rng).convert(rng.choice(["L", "P", "1"])), "PNG"),
    "picture with bytes after its end": lambda rng: _good(rng) + rng.randbytes(200),
    "PNG text bomb": lambda rng: inflating(rng.choice(sorted(_HEADS))),
    "JPEG of thousands of tags": lambda rng: many_tags(),
}
"""Files that may or may not be readable."""
