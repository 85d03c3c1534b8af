"""Files to pixels: lossless where it can be, refused where it would be a guess."""

from __future__ import annotations

import contextlib
import io
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import ExifTags, Image

from common.errors import RewardError
from reward_service.http.errors import Refusal
from reward_service.http.images import decode_images, encode_png, read_pictures
from reward_service.http.limits import HttpLimits

LIMITS = HttpLimits()


def _free(count: int) -> None:
    """Room without limit."""


def _noise(seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (9, 11, channels), dtype=np.uint8)


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    body = kind + content
    return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def _with_chunk(kind: bytes, content: bytes) -> bytes:
    """A sound PNG with one chunk more after its header."""
    file = encode_png(_noise())
    return file[:33] + _chunk(kind, content) + file[33:]


NOISE = Image.fromarray(_noise())
TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6
REFUSED = {
    "nothing": b"",
    "text": b"no image at all",
    "a GIF": _saved(NOISE, "GIF"),
    "a TIFF": _saved(NOISE, "TIFF"),
    "a WebP": _saved(NOISE, "WEBP"),
    "half a PNG": encode_png(_noise())[:200],
    "half a JPEG": _saved(NOISE, "JPEG")[:300],
    "a header alone": encode_png(_noise())[:33],
    "animated": _saved(NOISE, "PNG", save_all=True, append_images=[Image.fromarray(_noise(1))]),
    "several in a JPEG": _saved(NOISE, "MPO", save_all=True, append_images=[Image.fromarray(_noise(1))]),
    "CMYK": _saved(NOISE.convert("CMYK"), "JPEG"),
    "16 bits grey": _saved(Image.fromarray(_noise()[..., 0].astype(np.uint16) * 257), "PNG"),
    "transparent": _saved(Image.fromarray(_noise(0, 4)), "PNG"),
    "a transparent colour": _saved(
        NOISE.convert("P"), "PNG", transparency=int(np.asarray(NOISE.convert("P"))[0, 0])
    ),
    "lying on its side": _saved(NOISE, "JPEG", exif=TURNED),
    "wrong check sum": encode_png(_noise()).replace(b"IDAT", b"IDAZ"),
    "far too large": encode_png(_noise())[:16] + b"\x00\x01\x00\x00" * 2 + encode_png(_noise())[24:],
}


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "RGBA"])
def test_png_is_lossless_in_every_mode_without_transparency(mode: str) -> None:
    image = NOISE.convert(mode)
    files = [_saved(image, "PNG"), encode_png(np.asarray(image.convert("RGB")))]
    for pixels in decode_images(files, LIMITS, _free):
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_plain_image_is_refused(what: str) -> None:
    with pytest.raises(Refusal) as caught:
        decode_images([REFUSED[what]], LIMITS, _free)
    assert caught.value.code in ("wrong_content", "too_large")


def test_deep_colours_are_refused_and_not_halved() -> None:
    header = (1).to_bytes(4, "big") * 2 + bytes([16, 2, 0, 0, 0])
    pixels = _chunk(b"IDAT", zlib.compress(bytes(7)))
    file = encode_png(_noise())[:8] + _chunk(b"IHDR", header) + pixels + _chunk(b"IEND", b"")
    with pytest.raises(Refusal, match="16 bits"):
        decode_images([file], LIMITS, _free)


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_a_text_or_profile_that_inflates_is_refused_or_left_out(kind: bytes) -> None:
    swollen = _with_chunk(kind, b"name\x00\x00" + zlib.compress(bytes(64 << 20)))
    tracemalloc.start()
    try:
        with contextlib.suppress(Refusal):
            decode_images([swollen], LIMITS, _free)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 8 << 20


def test_a_large_image_is_refused_before_room_is_taken() -> None:
    def reserve(count: int) -> None:
        raise AssertionError(f"{count} bytes were taken")

    with pytest.raises(Refusal, match="90000"):
        decode_images([_saved(Image.new("L", (300, 300)), "PNG")], HttpLimits(image_pixels=89_999), reserve)


@pytest.mark.parametrize("size", [(1, 9), (1, 50_000), (170_000, 1)])
def test_a_narrow_image_is_refused_whatever_its_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(Refusal, match=rf"Image 1: .*{size[1]} x {size[0]}.* 8 times"):
        decode_images([encode_png(_noise()), _saved(Image.new("L", size), "PNG")], LIMITS, _free)


def test_files_of_this_machine_are_read_by_the_same_rules(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(encode_png(_noise()))
    (tmp_path / "other.jpg").write_bytes(_saved(Image.new("L", (4, 2), 7), "JPEG"))
    good, other = read_pictures([tmp_path / "good.png", str(tmp_path / "other.jpg")], LIMITS)
    np.testing.assert_array_equal(good, _noise())
    np.testing.assert_array_equal(other, np.full((2, 4, 3), 7))
    for what, file in REFUSED.items():
        (tmp_path / what).write_bytes(file)
        with pytest.raises(RewardError, match=f"{what}"):
            read_pictures([tmp_path / what], LIMITS)
    with pytest.raises(RewardError, match="nowhere"):
        read_pictures([tmp_path / "nowhere"], LIMITS)


def test_all_headers_are_read_before_any_image_is_decoded(tmp_path: Path) -> None:
    """The first is damaged behind its header, the second narrow."""
    for name, file in (("a", encode_png(_noise())[:200]), ("b", _saved(Image.new("L", (1, 9)), "PNG"))):
        (tmp_path / name).write_bytes(file)
    with pytest.raises(RewardError, match="9 x 1"):
        read_pictures([tmp_path / "a", tmp_path / "b"], LIMITS)
    with pytest.raises(Refusal, match="9 x 1"):
        decode_images([(tmp_path / name).read_bytes() for name in "ab"], LIMITS, _free)
