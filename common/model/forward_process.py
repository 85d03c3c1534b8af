"""The forward process q(x_t | x_0), and what the network is to predict of it: for losses that denoise.

For every schedule and prediction type that is known here

    x_t    = s_t x_0 + n_t e,        e ~ Normal(0, I)
    target = p_t x_0 + q_t e

with four numbers a noise level, which common.model.schedules computes in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.model.steps import CPU
from common.trajectory import Float32, NoiseKey


def forward_noise(
    key: NoiseKey, update: int, images: int, pairs: int, levels: int, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], Float32]:
    """Noise levels and noise that a group's x_0 are noised with in one update.

    Returns levels int64 (images, pairs), each image's drawn from 0..levels-1 without replacement, and
    standard normal noise float32 (images, pairs, *shape). A function of key, image and update, so that every
    process and every restart draws the same. update: the version of the weights that it begins from; one
    after a skipped update draws the same again. pairs: at most `levels`.
    """
    uses = [f"{index}, forward process of update {update}" for index in range(images)]
    generators = [key.generator(use) for use in uses]
    chosen = np.stack([one.permutation(levels)[:pairs] for one in generators]).astype(np.int64)
    noise = [one.standard_normal((pairs, *shape), dtype=np.float32) for one in generators]
    return chosen, np.stack(noise)


@dataclass(frozen=True)
class NoiseLevels:
    """L noise levels. Each method takes M items, each at a level: levels int64 (M,), on their device.

    times, signal, noise, target_clean, target_noise: L numbers each, what the network is told, s_t, n_t, p_t
    and q_t. device: of the latents.
    """

    times: tuple[float, ...]
    signal: tuple[float, ...]
    noise: tuple[float, ...]
    target_clean: tuple[float, ...]
    target_noise: tuple[float, ...]
    device: torch.device = CPU

    @property
    def count(self) -> int:
        """L."""
        return len(self.times)

    def time(self, levels: Tensor) -> Tensor:
        """What the network is told, float32 (M,)."""
        return self._times[levels]

    def noised(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """x_t, (M, ...). clean x_0 and noise e: (M, ...)."""
        return self._row(0, levels, clean) * clean + self._row(1, levels, clean) * noise

    def target(self, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """What the network's output is to be, in its own parameterisation, (M, ...)."""
        return self._row(2, levels, clean) * clean + self._row(3, levels, clean) * noise

    def clean_error(self, levels: Tensor) -> Tensor:
        """How far the x_0 that an output stands for is off where the output is off by 1, float64 (M,).

        x_0 is linear in the output f at fixed x_t: with e = (x_t - s x_0) / n, its slope is n / (p n - q s).
        """
        return self._table[4][levels]

    @cached_property
    def _table(self) -> Tensor:
        rows = torch.tensor(
            [self.signal, self.noise, self.target_clean, self.target_noise], dtype=torch.float64
        )
        signal, noise, of_clean, of_noise = rows
        slope = (noise / (of_clean * noise - of_noise * signal)).abs()
        return torch.cat([rows, slope[None]]).to(self.device)

    @cached_property
    def _times(self) -> Tensor:
        return torch.tensor(self.times, dtype=torch.float32, device=self.device)

    def _row(self, row: int, levels: Tensor, like: Tensor) -> Tensor:
        return self._table[row][levels].to(like.dtype).view(-1, *([1] * (like.dim() - 1)))
