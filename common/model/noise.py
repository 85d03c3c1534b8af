"""Noise as a function of (run seed, stream, epoch, prompt index, image index, step), whoever computes it."""

from __future__ import annotations

import hashlib

import numpy as np

from common.trajectory import Float32, NoiseKey


def image_generator(key: NoiseKey, image_index: int) -> np.random.Generator:
    """The generator of one image's noise: Philox keyed by 128 bits of SHA-256 over the key's fields.

    (torch's CPU generator keeps 32 bits of its seed: half a million images would meet by the dozen.)
    """
    text = f"{key.run_seed}/{key.stream}/{key.epoch}/{key.prompt_index}/{image_index}"
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=bits))


def group_noise(key: NoiseKey, images: int, draws: int, shape: tuple[int, ...]) -> Float32:
    """Standard normal noise of one group, float32 (images, draws, *shape), drawn on the CPU.

    Draw 0 is x_T, draw k >= 1 the noise of the k-th stochastic step. Each image has a generator of its own,
    and the device of the policy has no say, so the bits depend on neither the number of images nor the kind
    of device.
    """
    return np.stack(
        [
            image_generator(key, index).standard_normal((draws, *shape), dtype=np.float32)
            for index in range(images)
        ]
    )
