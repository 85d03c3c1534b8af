"""The latent code: principal components of 8 x 8 patches, which the autoencoder learns to compute and invert.

A linear code needs no training, so the UNet and the autoencoder can be trained side by side on it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from models.compose import compose_many
from models.train_tiny.data import random_scene, to_tensor

CHANNELS = 24
PATCH = 8
SEED = 3
_PICTURES = 3000
# Deviations to this power divide the components: 0 would be plain patches, 1 would whiten the noise up too.
_WHITENING = 0.5


@dataclass(frozen=True)
class PatchCode:
    """A linear map between patches (192 numbers in -1..1) and 24 latent channels, and back.

    ``forward`` is (24, 192), ``backward`` (192, 24), ``mean`` (192,).
    """

    mean: torch.Tensor
    forward: torch.Tensor
    backward: torch.Tensor

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """(N, 3, 64, 64) in -1..1 -> latents (N, 24, 8, 8) of mean 0 and unit overall deviation."""
        patches = functional.pixel_unshuffle(pictures, PATCH) - self.mean[:, None, None]
        return torch.einsum("kp,nphw->nkhw", self.forward, patches).contiguous()

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The pictures (N, 3, 64, 64) that the linear code alone gives back: sharp only to 24 components."""
        patches = torch.einsum("pk,nkhw->nphw", self.backward, latents) + self.mean[:, None, None]
        return functional.pixel_shuffle(patches, PATCH)


@functools.cache
def patch_code() -> PatchCode:
    """The code of the training pictures, computed from 3000 of them (the same at every call)."""
    rng = np.random.default_rng(SEED)
    pictures = to_tensor(compose_many([random_scene(rng) for _ in range(_PICTURES)], rng))
    patches = (
        functional.pixel_unshuffle(pictures, PATCH).permute(0, 2, 3, 1).reshape(-1, 3 * PATCH**2).double()
    )
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    # An eigenvector's sign is arbitrary: its largest entry is made positive.
    vectors = vectors * vectors[vectors.abs().argmax(0), torch.arange(CHANNELS)].sign()
    scale = values.sqrt() ** _WHITENING
    scale = scale * (values / scale**2).mean().sqrt()
    return PatchCode(mean.float(), (vectors / scale).T.float().contiguous(), (vectors * scale).float())
