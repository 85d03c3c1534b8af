"""Waves of denoising items through the policy: the engine of all objectives without likelihoods.

An item is an image's x_0 with a noise level and a noise. Micro-batches, waves and ranks are those of
learner.gradient; what differs is what of an item a coefficient multiplies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from common.model.forward_process import NoiseLevels, forward_noise
from common.model.guidance import Condition, Denoiser
from common.model.weights import Tensors
from common.trajectory import TrajectoryGroup
from learner.gradient import GradientEngine, MicroBatch, Wave, join_conditions, join_on_device, to_device
from learner.objectives.denoising import Mirror


def noised_wave(
    groups: Sequence[TrajectoryGroup], update: int, pairs: int, levels: int, device: torch.device
) -> Wave:
    """A wave of items (image, pair): int64 (4, M), row of x_0, group, noise level and row of the noise, to
    which each makes its one transition. update, pairs, levels: see forward_noise. At least one group."""
    latents, items, places = [], [], []
    first_row = first_item = 0
    for number, group in enumerate(groups):
        clean = group.latents[group.clean_rows]
        chosen, noise = forward_noise(group.noise, update, len(clean), pairs, levels, clean.shape[1:])
        count = chosen.size
        latents += [clean, noise.reshape(count, *clean.shape[1:]).astype(clean.dtype, copy=False)]
        rows = first_row + np.arange(len(clean)).repeat(pairs)
        noise_rows = first_row + len(clean) + np.arange(count)
        items.append(np.stack([rows, np.full(count, number), chosen.reshape(-1), noise_rows]))
        places.append(first_item + torch.arange(count).view(len(clean), pairs))
        first_row, first_item = first_row + len(clean) + count, first_item + count
    table = np.concatenate(items, axis=1)
    return Wave(
        latents=join_on_device(latents, device),
        condition=join_conditions(groups, device),
        items=to_device(table, device),
        transitions=torch.from_numpy(np.stack([np.arange(first_item), table[3]])),
        places=tuple(places),
    )


@dataclass(frozen=True)
class HeldWeights:
    """The policy as it predicts with other weights than those that are trained, which it holds meanwhile.

    parameters: the trained tensors, live; held: what stands in for them, by the same names, live too.
    """

    policy: Denoiser
    parameters: Mapping[str, nn.Parameter]
    held: Tensors

    @torch.no_grad()
    def predict(self, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Denoiser. Without a graph."""
        with self._active():
            return self.policy.predict(latents, times, condition)

    def is_current(self) -> bool:
        """Whether they are the trained weights, to the bit."""
        return all(torch.equal(value, self.held[name]) for name, value in self.parameters.items())

    @contextmanager
    def _active(self) -> Iterator[None]:
        # Storage changes hands; nothing is copied.
        own = {name: value.data for name, value in self.parameters.items()}
        try:
            for name, value in self.parameters.items():
                value.data = self.held[name]
            yield
        finally:
            for name, value in self.parameters.items():
                value.data = own[name]


@dataclass(frozen=True)
class DenoisingEngine(GradientEngine):
    """Passes waves of denoising items through the policy.

    old: f_old; None where it is the policy as it is. reference: f_ref.
    """

    levels: NoiseLevels
    mirror: Mirror
    old: Denoiser | None

    def _values(self, batch: MicroBatch) -> Tensor:
        """See Mirror.values: of the transitions, float64 (e, 4), maybe a graph."""
        wave = batch.wave
        rows, groups, levels, noise_rows = wave.items[:, batch.items]
        clean, noise = wave.latents[rows], wave.latents[noise_rows]
        condition = {name: value[:, groups].flatten(0, 1) for name, value in wave.condition.items()}
        given = self.levels.noised(clean, noise, levels), self.levels.time(levels), condition
        # Before the pass with a graph, because both may change the network's weights for a while.
        others = [None if one is None else one.predict(*given) for one in (self.old, self.reference)]
        output = self.policy.predict(*given)
        old, reference = (output.detach() if one is None else one for one in others)
        target = self.levels.target(clean, noise, levels)
        values = self.mirror.values(output, old, reference, target, self.levels.clean_error(levels))
        return values.index_select(0, batch.makers)
