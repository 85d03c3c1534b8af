"""Rewards without a model: how large an image is as a JPEG file."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from reward_service.contract.scorer import digest_settings

QUALITY = 95


def jpeg_kilobytes(image: NDArray[np.uint8]) -> float:
    """Size of an image, uint8 (height, width, 3) RGB, as a JPEG of quality 95, in kilobytes (1000 bytes)."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.tell() / 1000.0


class JpegIncompressibility:
    """Plus the kilobytes of each image as a JPEG of quality 95: rewards detail and noise."""

    version = "1"
    sign = 1
    digest = digest_settings({"quality": QUALITY, "sign": sign})

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB -> float64 (M,), kilobytes with the class's sign."""
        return self.sign * np.array([jpeg_kilobytes(image) for image in images], dtype=np.float64)


class JpegCompressibility(JpegIncompressibility):
    """Minus the kilobytes of each image as a JPEG of quality 95: rewards smooth, plain images."""

    sign = -1
    digest = digest_settings({"quality": QUALITY, "sign": sign})
