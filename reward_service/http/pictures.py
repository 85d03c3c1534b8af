"""PNG and JPEG files that a stranger sent -> pixels. Sizes are read from the headers before any decoding.

Texts and profiles inside the files are left out before a reader sees them, see bare_files.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from reward_service.http.bare_files import bare_file
from reward_service.http.limits import HttpLimits
from reward_service.http.wire_checks import TOO_LARGE, WRONG_CONTENT, Reserve, WireError, check_size

_FORMATS = ("PNG", "JPEG")
_LOSSLESS_TO_RGB = ("RGB", "L", "P", "1")
_PNG_DEPTH_AT = 24
_DEEP = 16
_MOST_SCANS = 100
"""A progressive JPEG of thousands of scans is small and takes minutes to decode; real ones have about ten."""

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow's readers raise on damaged files."""


def decode_pictures(files: Sequence[bytes], limits: HttpLimits, reserve: Reserve) -> NDArray[np.uint8]:
    """Files of one size -> uint8 (B, height, width, 3) RGB.

    Colour profiles, gamma and an orientation note are not applied. Beside `files` and the pixels no more than
    one opened picture is held at a time.

    Raises WireError where a file is no PNG or JPEG, is damaged, animated, transparent, CMYK, 16 bits deep, of
    another size than the first, or too large.
    """
    sizes = [_open(file, number).size for number, file in enumerate(files)]
    width, height = sizes[0]
    for number, size in enumerate(sizes):
        if size != (width, height):
            raise WireError(
                WRONG_CONTENT,
                f"Picture {number} is {size[1]} x {size[0]} and picture 0 is {height} x "
                f"{width}; all pictures of a group must have one size.",
            )
    check_size(len(files), height, width, limits)
    reserve(len(files) * height * width * 3)
    pixels = np.empty((len(files), height, width, 3), dtype=np.uint8)
    for number, file in enumerate(files):
        pixels[number] = _decode(_open(file, number), number)
    return pixels


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """One picture, uint8 (height, width, 3), as a PNG file; compressed lightly, because time matters more."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _open(file: bytes, number: int) -> ImageFile.ImageFile:
    """Read the header. Nothing of the picture is decoded yet."""
    try:
        bare = bare_file(file)
        picture = Image.open(io.BytesIO(bare.content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise WireError(TOO_LARGE, f"Picture {number} is far too large: {error}") from error
    except _BROKEN as error:
        raise WireError(WRONG_CONTENT, f"Picture {number} is no readable PNG or JPEG file.") from error
    if bare.several:
        raise _refused(number, "holds several pictures", "one picture a file")
    if picture.format == "PNG" and bare.content[_PNG_DEPTH_AT] == _DEEP:
        raise _refused(number, "has 16 bits a channel", "8 bits")
    if picture.format == "JPEG" and bare.content.count(b"\xff\xda") > _MOST_SCANS:
        raise _refused(number, f"is a JPEG of more than {_MOST_SCANS} scans", "an ordinary JPEG or a PNG")
    if picture.mode not in (*_LOSSLESS_TO_RGB, "RGBA", "LA"):
        raise _refused(number, f"has the colour mode {picture.mode}", "RGB or grey, 8 bits a channel")
    return picture


def _decode(picture: ImageFile.ImageFile, number: int) -> NDArray[np.uint8]:
    try:
        picture.load()
        visible = picture.convert("RGBA").getchannel("A").getextrema()[0] if _may_be_clear(picture) else 255
        colours = np.asarray(picture.convert("RGB"))
    except _BROKEN as error:
        raise WireError(WRONG_CONTENT, f"Picture {number} is damaged or cut short.") from error
    if visible != 255:
        raise _refused(number, "is partly transparent", "an opaque picture, put on the background you mean")
    return colours


def _may_be_clear(picture: ImageFile.ImageFile) -> bool:
    return picture.mode in ("RGBA", "LA") or "transparency" in picture.info


def _refused(number: int, what: str, wanted: str) -> WireError:
    return WireError(WRONG_CONTENT, f"Picture {number} {what}; send {wanted}.")
