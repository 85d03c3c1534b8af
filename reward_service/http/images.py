"""PNG and JPEG files that a stranger sent -> pixels. Sizes are read from the headers before any decoding."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin

from reward_service.http.errors import TOO_LARGE, WRONG_CONTENT, Refusal
from reward_service.http.limits import HttpLimits, Reserve

_FORMATS = ("PNG", "JPEG")
_MODES = ("RGB", "L", "P", "1", "RGBA", "LA")
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
)
"""What Pillow's readers raise on damaged files."""


def decode_images(files: Sequence[bytes], limits: HttpLimits, reserve: Reserve) -> NDArray[np.uint8]:
    """Files of one size -> uint8 (B, height, width, 3) RGB.

    Colour profiles, gamma and an orientation note are not applied. Beside `files` and the pixels no more than
    one opened image is held at a time, with at most 64 MiB of its texts (Pillow's limit).

    Raises Refusal where a file is no PNG or JPEG, is damaged, animated, transparent, CMYK, 16 bits deep, of
    another size than the first, or too large.
    """
    sizes = [_open(file, number).size for number, file in enumerate(files)]
    width, height = sizes[0]
    for number, size in enumerate(sizes):
        if size != (width, height):
            raise Refusal(
                WRONG_CONTENT,
                f"Image {number} is {size[1]} x {size[0]} and image 0 is {height} x {width}; all images of a "
                "group must have one size.",
            )
    limits.check_size(len(files), height, width)
    reserve(len(files) * height * width * 3)
    pixels = np.empty((len(files), height, width, 3), dtype=np.uint8)
    for number, file in enumerate(files):
        pixels[number] = _decode(_open(file, number), number)
    return pixels


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """One image, uint8 (height, width, 3), as a PNG file; compressed lightly, because time matters more."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _open(file: bytes, number: int) -> ImageFile.ImageFile:
    """Read the header. Nothing of the image is decoded yet."""
    try:
        image = Image.open(io.BytesIO(file), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise Refusal(TOO_LARGE, f"Image {number} is far too large: {error}") from error
    except _BROKEN as error:
        raise Refusal(WRONG_CONTENT, f"Image {number} is no readable PNG or JPEG file.") from error
    # JPEG files of several images open as another format, MPO.
    if image.format not in _FORMATS or (isinstance(image, PngImagePlugin.PngImageFile) and image.is_animated):
        raise _refused(number, "holds several images", "one image a file")
    if any(";16" in str(tile.args) for tile in image.tile):
        raise _refused(number, "has 16 bits a channel", "8 bits")
    if image.format == "JPEG" and file.count(b"\xff\xda") > _MOST_SCANS:
        raise _refused(number, f"is a JPEG of more than {_MOST_SCANS} scans", "an ordinary JPEG or a PNG")
    if image.mode not in _MODES:
        raise _refused(number, f"has the colour mode {image.mode}", "RGB or grey, 8 bits a channel")
    return image


def _decode(image: ImageFile.ImageFile, number: int) -> NDArray[np.uint8]:
    try:
        image.load()
        may_be_clear = image.mode in ("RGBA", "LA") or "transparency" in image.info
        alpha = image.convert("RGBA").getchannel("A").getextrema()[0] if may_be_clear else 255
        colours = np.asarray(image.convert("RGB"))
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise Refusal(WRONG_CONTENT, f"Image {number} is damaged or cut short.") from error
    if alpha != 255:
        raise _refused(number, "is partly transparent", "an opaque image, put on the background you mean")
    return colours


def _refused(number: int, what: str, wanted: str) -> Refusal:
    return Refusal(WRONG_CONTENT, f"Image {number} {what}; send {wanted}.")
