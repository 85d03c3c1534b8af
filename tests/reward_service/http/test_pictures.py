"""Files to pixels: lossless where it can be, refused where it would be a guess."""

from __future__ import annotations

import io
import random
import tracemalloc
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.hostile_pictures import NO_PICTURES, inflating, many_tags, saved
from reward_service.http.limits import HttpLimits
from reward_service.http.pictures import decode_pictures, encode_png
from reward_service.http.wire_checks import WireError

LIMITS = HttpLimits()


def _free(count: int) -> None:
    """Room without limit."""


def _noise(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)


def test_png_is_lossless() -> None:
    files = [encode_png(_noise(seed)) for seed in range(3)]
    np.testing.assert_array_equal(decode_pictures(files, LIMITS, _free), [_noise(seed) for seed in range(3)])


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB"])
def test_other_modes_give_the_same_colours(mode: str) -> None:
    picture = Image.fromarray(_noise()).convert(mode)
    (pixels,) = decode_pictures([saved(picture, "PNG")], LIMITS, _free)
    np.testing.assert_array_equal(pixels, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_gives_what_pillow_gives(mode: str) -> None:
    file = saved(Image.fromarray(_noise()).convert(mode), "JPEG")
    (pixels,) = decode_pictures([file], LIMITS, _free)
    np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


def test_an_opaque_alpha_channel_is_dropped() -> None:
    picture = Image.fromarray(_noise()).convert("RGBA")
    (pixels,) = decode_pictures([saved(picture, "PNG")], LIMITS, _free)
    np.testing.assert_array_equal(pixels, _noise())


def test_a_transparent_palette_colour_is_refused() -> None:
    picture = Image.fromarray(_noise()).convert("P")
    index = int(np.asarray(picture)[0, 0])
    with pytest.raises(WireError, match="transparent"):
        decode_pictures([saved(picture, "PNG", transparency=index)], LIMITS, _free)


@pytest.mark.parametrize("what", NO_PICTURES)
@pytest.mark.parametrize("seed", range(3))
def test_what_is_no_picture_is_refused(what: str, seed: int) -> None:
    with pytest.raises(WireError) as caught:
        decode_pictures([NO_PICTURES[what](random.Random(seed))], LIMITS, _free)
    assert caught.value.code in ("wrong_content", "too_large")


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_what_a_picture_does_not_need_is_never_inflated(kind: bytes) -> None:
    files = [inflating(kind)] * 8
    tracemalloc.start()
    try:
        decode_pictures(files, LIMITS, _free)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 1 << 20  # of the 504 MiB that they hold


def test_tags_of_a_jpeg_are_never_read() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_pictures([many_tags()], LIMITS, _free)


def test_a_large_picture_is_refused_before_room_is_taken() -> None:
    def reserve(count: int) -> None:
        raise AssertionError(f"{count} bytes were taken")

    file = saved(Image.new("L", (300, 300)), "PNG")
    with pytest.raises(WireError, match="300 x 300 have 90000 pixels; allowed: 89999"):
        decode_pictures([file], HttpLimits(image_pixels=89_999), reserve)
