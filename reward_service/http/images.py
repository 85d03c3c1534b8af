"""PNG and JPEG files, of a stranger or of this machine -> pixels. All headers are read before any decoding.

What would be a guess is refused: transparency, CMYK, more than 8 bits a channel, several images in a file, a
note that the image lies on its side. Colour profiles and gamma are not applied: numbers are taken as sRGB, as
diffusion models write them.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, PngImagePlugin

from common.errors import RewardError
from reward_service.http.errors import TOO_LARGE, WRONG_CONTENT, Refusal
from reward_service.http.limits import HttpLimits, Reserve

_FORMATS = ("PNG", "JPEG")
_MODES = ("RGB", "L", "P", "1", "RGBA", "LA")
_UPRIGHT = 1
"""The EXIF orientation of an image whose first row is its top."""

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

    Beside `files` and the pixels no more than one opened image is held at a time, with at most 64 MiB of its
    texts (Pillow's limit).

    Raises Refusal where a file is no such image, is damaged, of another size than the first, or too large.
    """
    sizes = [_size(file, f"Image {number}", limits) for number, file in enumerate(files)]
    height, width = sizes[0]
    for number, size in enumerate(sizes):
        if size != (height, width):
            raise Refusal(
                WRONG_CONTENT,
                f"Image {number} is {size[0]} x {size[1]} and image 0 is {height} x {width}; all images of a "
                "group must have one size.",
            )
    limits.check_size(len(files), height, width)
    reserve(len(files) * height * width * 3)
    pixels = np.empty((len(files), height, width, 3), dtype=np.uint8)
    for number, file in enumerate(files):
        pixels[number] = _decode(file, f"Image {number}")
    return pixels


def read_pictures(paths: Sequence[str | Path], limits: HttpLimits) -> list[NDArray[np.uint8]]:
    """Files of this machine, of any sizes -> uint8 (height, width, 3) RGB each. Raises RewardError naming the
    file."""
    try:
        files = {str(path): Path(path).read_bytes() for path in paths}
        for name, file in files.items():
            _size(file, name, limits)
        return [_decode(files[str(path)], str(path)) for path in paths]
    except OSError as error:
        raise RewardError(f"{error.filename} cannot be read: {error.strerror}.") from error
    except Refusal as refusal:
        raise RewardError(refusal.reason) from refusal


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """One image, uint8 (height, width, 3), as a PNG file; compressed lightly, because time matters more."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _size(file: bytes, name: str, limits: HttpLimits) -> tuple[int, int]:
    """Height and width, by the header. Raises Refusal."""
    width, height = _open(file, name).size
    try:
        limits.check_size(1, height, width)
    except Refusal as refusal:
        raise Refusal(refusal.code, f"{name}: {refusal.reason}") from refusal
    return height, width


def _open(file: bytes, name: str) -> ImageFile.ImageFile:
    """Read the header. Nothing of the image is decoded yet."""
    try:
        image = Image.open(io.BytesIO(file), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise Refusal(TOO_LARGE, f"{name} is far too large: {error}") from error
    except _BROKEN as error:
        raise Refusal(WRONG_CONTENT, f"{name} is no readable PNG or JPEG file.") from error
    # JPEG files of several images open as another format, MPO.
    if image.format not in _FORMATS or (isinstance(image, PngImagePlugin.PngImageFile) and image.is_animated):
        raise _refused(name, "holds several images", "one image a file")
    if any(";16" in str(tile.args) for tile in image.tile):
        raise _refused(name, "has 16 bits a channel", "8 bits")
    if image.format == "JPEG" and file.count(b"\xff\xda") > _MOST_SCANS:
        raise _refused(name, f"is a JPEG of more than {_MOST_SCANS} scans", "an ordinary JPEG or a PNG")
    if image.mode not in _MODES:
        raise _refused(name, f"has the colour mode {image.mode}", "RGB or grey, 8 bits a channel")
    return image


def _decode(file: bytes, name: str) -> NDArray[np.uint8]:
    image = _open(file, name)
    try:
        image.load()
        may_be_clear = image.mode in ("RGBA", "LA") or "transparency" in image.info
        alpha = image.convert("RGBA").getchannel("A").getextrema()[0] if may_be_clear else 255
        orientation = image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT)
        colours = np.asarray(image.convert("RGB"))
    except (*_BROKEN, Image.DecompressionBombError) as error:
        raise Refusal(WRONG_CONTENT, f"{name} is damaged or cut short.") from error
    if alpha != 255:
        raise _refused(name, "is partly transparent", "an opaque image, put on the background you mean")
    if orientation != _UPRIGHT:
        raise _refused(name, f"has the EXIF orientation {orientation}", "pixels as they are to be seen")
    return colours


def _refused(name: str, what: str, wanted: str) -> Refusal:
    return Refusal(WRONG_CONTENT, f"{name} {what}; needed: {wanted}.")
