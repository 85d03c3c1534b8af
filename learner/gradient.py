"""The exact gradient of a loss over whole trajectories, in memory that grows with neither T nor B.

A loss L of the log-probs (paper.md, identity 7) has the gradient

    dL/dtheta = sum over (i, t) of c_it d log pi_theta,it / dtheta,        c = dL / d log pi   (B, T_s)

so once c is known, any mix of images, steps and prompts can be backpropagated in micro-batches of any size.

Inside the loop over micro-batches nothing waits for the device. What does, once a wave: the log-probs on
their way back to the host. What is copied to it, once a wave and without a wait: latents, conditions, indices
and coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.model.guidance import Condition, Denoiser
from common.model.steps import Steps
from common.trajectory import TrajectoryGroup
from learner.parallel import Parallel


def _on_host(shape: Sequence[int], dtype: np.dtype, device: torch.device) -> Tensor:
    """Room for what goes to the device; pinned for a GPU, so that nobody waits for the copy."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    return torch.empty(tuple(shape), dtype=kind, pin_memory=device.type == "cuda")


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device."""
    room = _on_host(values.shape, values.dtype, device)
    np.copyto(room.numpy(), values)
    return room.to(device, non_blocking=True)


def _join_on_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Arrays (R, ...) one after the other on the device, with one copy on the host."""
    rows = sum(len(array) for array in arrays)
    room = _on_host((rows, *arrays[0].shape[1:]), arrays[0].dtype, device)
    np.concatenate(arrays, out=room.numpy())
    return room.to(device, non_blocking=True)


@dataclass(frozen=True)
class Wave:
    """One rank's groups of a wave, on the device, as M distinct items: steps from one latent to the next.

    latents: (R, ...) of all groups. condition: by argument, (k, G, ...): k = 1 row a group, or 2 where
    guidance moves away from another prompt. items: int64 (4, M), each item's row of x_t, row of x_{t-1},
    group and step; ordered by step. places: on the host, by group: int64 (B, T_s), the item that image i
    takes at a stochastic step. Trajectories that share a step share its item.
    """

    latents: Tensor
    condition: Condition
    items: Tensor
    places: tuple[Tensor, ...]

    @staticmethod
    def of(groups: Sequence[TrajectoryGroup], device: torch.device) -> Wave:
        """At least one group; all of one step distribution."""
        tables, first_row = [], 0
        for number, group in enumerate(groups):
            steps = group.stochastic_steps
            rows, next_rows = (group.nodes[:, at].astype(np.int64) + first_row for at in (steps, steps + 1))
            table = np.stack(np.broadcast_arrays(steps, number, rows, next_rows), axis=-1)
            tables.append(table.reshape(-1, 4))
            first_row += len(group.latents)
        items, inverse = np.unique(np.concatenate(tables), axis=0, return_inverse=True)
        sizes = [group.log_prob.size for group in groups]
        parts = torch.from_numpy(inverse.reshape(-1)).split(sizes)
        names = groups[0].condition
        return Wave(
            latents=_join_on_device([group.latents for group in groups], device),
            condition={
                name: to_device(np.stack([group.condition[name] for group in groups], axis=1), device)
                for name in names
            },
            items=to_device(items[:, [2, 3, 1, 0]].T, device),
            places=tuple(part.view(group.log_prob.shape) for part, group in zip(parts, groups, strict=True)),
        )

    @property
    def size(self) -> int:
        """M."""
        return self.items.shape[1]

    def item_sums(self, coefficients: Sequence[Tensor]) -> Tensor:
        """Each item's coefficient, float64 (M,): the sum over the images that share it.

        coefficients: by group, float64 (B, T_s).
        """
        sums = torch.zeros(self.size, dtype=torch.float64)
        for place, values in zip(self.places, coefficients, strict=True):
            sums.index_add_(0, place.reshape(-1), values.reshape(-1))
        return sums

    def by_group(self, values: Tensor) -> list[Tensor]:
        """Values of the items (M,) on the host -> by group, (B, T_s)."""
        return [values[place] for place in self.places]


@dataclass(frozen=True)
class _MicroBatch:
    """Items of a wave with their coefficients, on the device: int64 and float64, both (micro_batch,)."""

    wave: Wave
    items: Tensor
    weights: Tensor


@dataclass(frozen=True)
class GradientEngine:
    """Passes waves of trajectories through the policy, in micro-batches of one size that cut across groups.

    micro_batch: items a pass; the last pass is filled up with items of weight 0. idle: a wave of one finite
    item, for passes that this rank only makes because other ranks make them. Every method is called by all
    ranks.
    """

    policy: Denoiser
    steps: Steps
    parallel: Parallel
    micro_batch: int
    idle: Wave

    @torch.no_grad()
    def evaluate(self, wave: Wave | None) -> list[Tensor]:
        """log pi_theta by group, float64 (B, T_s), MEAN over a latent's elements. None: nothing to do."""
        everything = torch.arange(wave.size if wave else 0)
        batches = self._batches(wave, everything, torch.zeros(len(everything), dtype=torch.float64))
        values = [self._log_prob(batch) for batch in batches]
        return wave.by_group(torch.cat(values)[: wave.size].cpu()) if wave else []

    def accumulate(self, wave: Wave | None, coefficients: Tensor, chosen: Tensor) -> Tensor:
        """Add sum of c d log pi_theta / dtheta over the chosen items to the parameters' .grad.

        coefficients: of the wave's items, float64 (M,), see Wave.item_sums; chosen: int64 (K,), items to pass
        through. Returns log pi_theta of the chosen items, float64 (K,) on the host: the same pass gives both
        (identity 7).
        """
        values = self.backward(self._batches(wave, chosen, coefficients[chosen]))
        return torch.cat(values)[: len(chosen)].cpu() if len(chosen) else torch.zeros(0, dtype=torch.float64)

    def backward(self, batches: Sequence[_MicroBatch]) -> list[Tensor]:
        """The loop over micro-batches: nothing in it waits for the device. log pi_theta of each."""
        values = []
        for number, batch in enumerate(batches, start=1):
            with self.parallel.micro_batch(is_last=number == len(batches)):
                value = self._log_prob(batch)
                (value * batch.weights).sum().backward()
            # Rebound, so that nothing of this pass's graph is held while the next one is built.
            value = value.detach()
            values.append(value)
        return values

    def accumulate_by_step(
        self, wave: Wave | None, coefficients: Tensor, chosen: Tensor, parameters: Sequence[nn.Parameter]
    ) -> tuple[Tensor, Tensor]:
        """`accumulate` one step at a time, with the L2 norm of each step's own gradient.

        Returns log pi_theta (K,) and norms float64 (T_s,). Takes one more copy of the gradients: for
        diagnosis.
        """
        result, norms = torch.zeros(len(chosen), dtype=torch.float64), []
        steps = wave.items[3].cpu()[chosen] if wave else chosen
        for step in self.steps.stochastic_steps:
            earlier = [value.grad for value in parameters]
            for value in parameters:
                value.grad = None
            (at,) = torch.nonzero(steps == step, as_tuple=True)
            result[at] = self.accumulate(wave, coefficients, chosen[at])
            norms.append(self.parallel.norm([value.grad for value in parameters if value.grad is not None]))
            for value, before in zip(parameters, earlier, strict=True):
                value.grad = _sum(value.grad, before)
        return result, torch.stack(norms).cpu()

    def _batches(self, wave: Wave | None, chosen: Tensor, weights: Tensor) -> list[_MicroBatch]:
        """As many as every rank needs to make. chosen, weights: (K,) on the host."""
        passes = -(-len(chosen) // self.micro_batch)
        device = self.idle.items.device
        batches: list[_MicroBatch] = []
        if wave and passes:
            filled = torch.full((passes * self.micro_batch,), int(chosen[0]), dtype=torch.int64)
            filled[: len(chosen)] = chosen
            padded = torch.zeros(len(filled), dtype=torch.float64)
            padded[: len(chosen)] = weights
            on_device = [
                to_device(values.numpy(), device).split(self.micro_batch) for values in (filled, padded)
            ]
            batches = [_MicroBatch(wave, *part) for part in zip(*on_device, strict=True)]
        spare = self.parallel.most(passes) - passes
        nothing = torch.zeros(self.micro_batch, dtype=torch.int64, device=device)
        return batches + [_MicroBatch(self.idle, nothing, nothing.double())] * spare

    def _log_prob(self, batch: _MicroBatch) -> Tensor:
        """log pi_theta of a micro-batch's items, MEAN over a latent's elements, float64, maybe a graph."""
        wave = batch.wave
        rows, next_rows, groups, steps = wave.items[:, batch.items]
        latents, following = wave.latents[rows], wave.latents[next_rows]
        condition = {name: value[:, groups].flatten(0, 1) for name, value in wave.condition.items()}
        output = self.policy.predict(latents, self.steps.time(steps, len(steps)), condition)
        return self.steps.log_prob(following, self.steps.mean(latents, output, steps), steps)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first.add_(second)
