"""JPEG rewards against the bytes that Pillow writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from reward_service.scorers.jpeg import JpegCompressibility, JpegIncompressibility


def test_is_the_size_of_the_file(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 24, 3), dtype=np.uint8)
    sizes = []
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.jpg", quality=95)
        sizes.append((tmp_path / f"{number}.jpg").stat().st_size / 1000.0)
    prompts = ["a", "b", "c"]
    np.testing.assert_array_equal(JpegIncompressibility().score(prompts, images), sizes)
    np.testing.assert_array_equal(JpegCompressibility().score(prompts, images), -np.array(sizes))
    assert JpegCompressibility.digest != JpegIncompressibility.digest
