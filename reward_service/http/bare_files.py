"""Picture files without what their pixels do not need.

A file of a few kilobytes may carry texts and profiles that are a thousand times larger once inflated, or tags
that take seconds to parse. A reader of pictures does both when it opens the file; no pixel depends on them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_CHUNK = struct.Struct(">I4s")
_CHECKSUM_BYTES = 4

_JPEG_START = b"\xff\xd8"
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_LENGTH = struct.Struct(">H")
_SCAN = 0xDA
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
_NOTES = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""APP1 to APP15 and comments. Not APP0 (JFIF) and APP14 (Adobe), which say what the colours mean."""
_OTHER_PICTURES = re.compile(rb"\xff\xe2..MPF\x00", re.DOTALL)

_MOST_PARTS = 10_000
"""Of a file, in chunks or segments. Tiny ones cost time by their number; real files have a few hundred."""


@dataclass(frozen=True)
class BareFile:
    """content: a file with the same pixels. several: it says of itself that it holds several pictures."""

    content: bytes
    several: bool


def bare_file(file: bytes) -> BareFile:
    """Leave texts, profiles, thumbnails and comments out of a PNG or JPEG file. Inflates nothing.

    Raises ValueError or struct.error where it is neither, or its chunks or segments are damaged or cut short.
    """
    for start, strip in _FORMATS.items():
        if file.startswith(start):
            return strip(file)
    raise ValueError("neither a PNG nor a JPEG file")


def _bare_png(file: bytes) -> BareFile:
    view = memoryview(file)
    needed: list[bytes | memoryview] = [_PNG_START]
    kinds: list[bytes] = []
    at = len(_PNG_START)
    while kinds[-1:] != [b"IEND"]:
        length, kind = _CHUNK.unpack_from(file, at)
        end = at + _CHUNK.size + length + _CHECKSUM_BYTES
        if end > len(file) or len(kinds) == _MOST_PARTS:
            raise ValueError("a PNG that is cut short, or of far too many chunks")
        if kind in _PNG_NEEDED:
            needed.append(view[at:end])
        kinds.append(kind)
        at = end
    _check_order(kinds)
    return BareFile(b"".join(needed), several=b"acTL" in kinds)


def _check_order(kinds: list[bytes]) -> None:
    """One header, first; and the pixels in one row of chunks."""
    pixels = [place for place, kind in enumerate(kinds) if kind == b"IDAT"]
    in_a_row = bool(pixels) and pixels[-1] - pixels[0] == len(pixels) - 1
    if kinds[0] != b"IHDR" or kinds.count(b"IHDR") != 1 or not in_a_row:
        raise ValueError("a PNG whose chunks are out of order")


def _bare_jpeg(file: bytes) -> BareFile:
    view = memoryview(file)
    needed: list[bytes | memoryview] = [_JPEG_START]
    several = False
    at = len(_JPEG_START)
    for _ in range(_MOST_PARTS):
        found = _MARKER.search(file, at)
        if found is None:
            break
        marker, start = found[1][0], found.start()
        if marker == _SCAN:
            return BareFile(b"".join([*needed, view[start:]]), several)
        (length,) = _LENGTH.unpack_from(file, found.end())
        at = found.end() + length
        if marker in _WITHOUT_LENGTH or length < _LENGTH.size or at > len(file):
            break
        several = several or _OTHER_PICTURES.match(file, start) is not None
        if marker not in _NOTES:
            needed.append(view[start:at])
    raise ValueError("a JPEG that is damaged, cut short, or of far too many segments")


_FORMATS: Mapping[bytes, Callable[[bytes], BareFile]] = {_PNG_START: _bare_png, _JPEG_START: _bare_jpeg}
