"""Files without texts and profiles: the same pixels, and damage is still damage."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from benchmarks.hostile_pictures import chunk, png, saved
from reward_service.http.bare_files import bare_file

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
"""An orientation note: a quarter turn."""
ROWS = (b"\0" + bytes(range(24))) * 8
START = b"\x89PNG\r\n\x1a\n"


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def pixels_of(file: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def notes() -> PngInfo:
    info = PngInfo()
    info.add_text("Title", "a red apple", zip=True)
    info.add_itxt("Author", "nobody", zip=True)
    info.add(b"gAMA", struct.pack(">I", 200_000))
    info.add(b"cHRM", struct.pack(">8I", *range(1, 9)))
    info.add(b"teSt", b"of somebody's own")
    info.add(b"tEXt", b"Comment\0after the pixels", after_idat=True)
    return info


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA"])
def test_a_png_keeps_its_pixels_and_nothing_else(mode: str) -> None:
    file = saved(picture(mode), "PNG", pnginfo=notes(), icc_profile=SRGB, exif=EXIF, dpi=(300, 300))
    bare = bare_file(file)
    assert not bare.several
    np.testing.assert_array_equal(pixels_of(bare.content), pixels_of(file))
    read = Image.open(io.BytesIO(bare.content))
    read.load()
    assert (read.mode, dict(read.info)) == (mode, {})
    assert {b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"tEXt"} & _kinds(file)
    assert _kinds(bare.content) <= {b"IHDR", b"PLTE", b"IDAT", b"IEND"}


def test_a_png_keeps_what_is_transparent_in_it() -> None:
    bare = bare_file(saved(picture("P"), "PNG", transparency=3))
    assert Image.open(io.BytesIO(bare.content)).info["transparency"] == 3


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"keep_rgb": True}, {"restart_marker_rows": 1}, {"subsampling": 2}]
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_keeps_its_pixels_and_nothing_else(mode: str, options: dict[str, Any]) -> None:
    file = saved(picture(mode), "JPEG", icc_profile=SRGB, exif=EXIF, comment=b"a red apple", **options)
    bare = bare_file(file)
    assert not bare.several
    np.testing.assert_array_equal(pixels_of(bare.content), pixels_of(file))
    info = Image.open(io.BytesIO(file)).info
    assert {"icc_profile", "exif", "comment"} <= set(info)
    assert not {"icc_profile", "exif", "comment"} & set(Image.open(io.BytesIO(bare.content)).info)


def test_fill_bytes_and_junk_between_segments_are_passed_over() -> None:
    file = saved(picture(), "JPEG")
    odd = file[:2] + b"\xff\xff\x00junk" + file[2:]
    np.testing.assert_array_equal(pixels_of(bare_file(odd).content), pixels_of(file))


def test_a_file_that_says_it_holds_several_pictures_is_told() -> None:
    assert bare_file(saved(picture(), "PNG", save_all=True, append_images=[picture("L")])).several
    assert bare_file(saved(picture(), "MPO", save_all=True, append_images=[picture()])).several


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_a_file_cut_before_its_pixels_is_damaged(form: str) -> None:
    file = saved(picture(), form, icc_profile=SRGB)
    start = file.index(b"IDAT" if form == "PNG" else b"\xff\xda")
    for length in range(start):
        with pytest.raises((ValueError, struct.error)):
            bare_file(file[:length])


def _kinds(file: bytes) -> set[bytes]:
    known = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"tEXt")
    return {kind for kind in known if kind in file}


def _png_of(*chunks: bytes) -> bytes:
    return START + b"".join(chunks)


def _chunks() -> tuple[bytes, bytes, bytes]:
    file = png(8, 8, ROWS)
    head, end = file[8:33], file[-12:]
    return head, file[33:-12], end


DAMAGED: dict[str, Callable[[], bytes]] = {
    "no file": lambda: b"",
    "another format": lambda: saved(picture(), "GIF"),
    "no end": lambda: png(8, 8, ROWS)[:-12],
    "no header": lambda: _png_of(*_chunks()[1:]),
    "two headers": lambda: _png_of(_chunks()[0], *_chunks()),
    "no pixels": lambda: _png_of(_chunks()[0], _chunks()[2]),
    "pixels in two places": lambda: _png_of(
        _chunks()[0], _chunks()[1], chunk(b"tEXt", b"a\0b"), _chunks()[1], _chunks()[2]
    ),
    "a chunk beyond the end": lambda: _png_of(_chunks()[0], struct.pack(">I4s", 1 << 31, b"IDAT"), bytes(99)),
    "too many chunks": lambda: png(8, 8, ROWS, extra=chunk(b"tEXt", b"") * 10_000),
    "too many segments": lambda: b"\xff\xd8" + b"\xff\xfe\0\x02" * 10_001 + saved(picture(), "JPEG")[2:],
    "a segment without a length": lambda: b"\xff\xd8\xff\xd0" + saved(picture(), "JPEG")[2:],
    "a segment that is too short": lambda: b"\xff\xd8\xff\xfe\0\x01" + saved(picture(), "JPEG")[2:],
    "a segment beyond the end": lambda: b"\xff\xd8\xff\xfe\xff\xff" + bytes(99),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_told(what: str) -> None:
    with pytest.raises((ValueError, struct.error)):
        bare_file(DAMAGED[what]())
