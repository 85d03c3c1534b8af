"""Images as models want them: float32, resized to a square, normalised with OpenAI's mean and deviation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""OpenAI CLIP's, of each colour channel of images in 0..1."""


@dataclass(frozen=True)
class Letterbox:
    """The whole image in a square: longer side to `size`, black bars on both sides of the shorter one.

    As ToTensor, ResizeMaxSize, MaskAwareNormalize in hpsv2/src/open_clip/transform.py of the hpsv2 package:
    the image is resized (bicubic) as float tensor, so values may leave 0..1, and the bars are black before
    normalising.
    antialias: as torchvision's Resize has it since 0.17; older versions did not smooth tensors when
        shrinking.
    """

    size: int
    antialias: bool

    def __call__(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 (M, height, width, 3) -> float32 (M, 3, size, size)."""
        pixels = torch.tensor(images).permute(0, 3, 1, 2).float() / 255.0
        height, width = images.shape[1:3]
        scale = self.size / max(height, width)
        high, wide = max(1, round(height * scale)), max(1, round(width * scale))
        if (high, wide) != (height, width):
            pixels = torch.nn.functional.interpolate(
                pixels, size=(high, wide), mode="bicubic", align_corners=False, antialias=self.antialias
            )
        top, left = (self.size - high) // 2, (self.size - wide) // 2
        bars = (left, self.size - wide - left, top, self.size - high - top)
        return _normalise(torch.nn.functional.pad(pixels, bars))


@dataclass(frozen=True)
class CentreCrop:
    """The middle square of the image: shorter side to `size` by PIL (bicubic), then cut.

    As torchvision's Resize(size), CenterCrop(size), ToTensor on a PIL image.
    """

    size: int

    def __call__(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 (M, height, width, 3) -> float32 (M, 3, size, size)."""
        height, width = images.shape[1:3]
        shorter = min(height, width)
        high, wide = self.size * height // shorter, self.size * width // shorter
        top, left = round((high - self.size) / 2.0), round((wide - self.size) / 2.0)
        square = (left, top, left + self.size, top + self.size)
        cut = [
            np.asarray(Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC).crop(square))
            for image in images
        ]
        return _normalise(torch.tensor(np.stack(cut)).permute(0, 3, 1, 2).float() / 255.0)


def _normalise(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
