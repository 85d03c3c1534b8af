"""The exact gradient of a loss over whole trajectories, in memory that grows with neither T nor B.

A loss L of the log-probs (docs/algorithm.md, "The exact gradient") has the gradient

    dL/dtheta = sum over (i, t) of c_it d log pi_theta,it / dtheta,        c = dL / d log pi   (B, T_s)

so once c is known, any mix of images, steps and prompts can be backpropagated in micro-batches of any size.
Where images share steps, what passes the network is each distinct latent of a step, once: an item. It leads
to one latent, or at a branch to several, each a transition that has a log-prob of its own.

The KL of a step to the reference is a log-prob too: of Gaussians of one deviation, KL(pi_theta || pi_ref) is
|mu_theta - mu_ref|^2 / (2 sigma^2), which is log pi_theta at its peak less log pi_theta(mu_ref). So where the
loss has a KL, each item gets one more transition, to the reference's mean, with minus the KL's weight: one
pass gives the gradient of both.

Inside the loop over micro-batches nothing waits for the device. What does, once a wave: the log-probs on
their way back to the host. What is copied to it, once a wave and without a wait: latents, conditions, indices
and coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.model.guidance import Condition, Denoiser
from common.model.steps import Steps
from common.model.trainable import Reference
from common.trajectory import TrajectoryGroup
from learner.parallel import Parallel

ROUNDING = 1e-12
"""A sum of coefficients is 0 where no more is left of it than this share of their sizes: all the images of a
group share its first steps, and of PRDP's coefficients nothing else is left there."""


def _on_host(shape: Sequence[int], dtype: np.dtype, device: torch.device) -> Tensor:
    """Room for what goes to the device; pinned for a GPU, so that nobody waits for the copy."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    return torch.empty(tuple(shape), dtype=kind, pin_memory=device.type == "cuda")


def to_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """A copy on the device."""
    room = _on_host(values.shape, values.dtype, device)
    np.copyto(room.numpy(), values)
    return room.to(device, non_blocking=True)


def join_on_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> Tensor:
    """Arrays (R, ...) one after the other on the device, with one copy on the host."""
    rows = sum(len(array) for array in arrays)
    room = _on_host((rows, *arrays[0].shape[1:]), arrays[0].dtype, device)
    np.concatenate(arrays, out=room.numpy())
    return room.to(device, non_blocking=True)


def join_conditions(groups: Sequence[TrajectoryGroup], device: torch.device) -> Condition:
    """The groups' conditions as a wave has them."""
    return {
        name: to_device(np.stack([group.condition[name] for group in groups], axis=1), device)
        for name in groups[0].condition
    }


@dataclass(frozen=True)
class Wave:
    """One rank's groups of a wave, as M distinct items and the E >= M distinct transitions that they make.

    On the device, latents: (R, ...) of all groups. condition: by argument, (k, G, ...): k = 1 row a group, or
    2 where guidance moves away from another prompt. items: int64 (3, M), each item's row of x_t, group and
    step; ordered by step.
    On the host, transitions: int64 (2, E), each one's item, increasing, and row of x_{t-1}. places: by group,
    int64 (B, T_s), the transition that image i makes at a stochastic step; images that share it share its
    place. to_reference: int64 (M,), each item's transition to the reference's mean; None without them.
    """

    latents: Tensor
    condition: Condition
    items: Tensor
    transitions: Tensor
    places: tuple[Tensor, ...]
    to_reference: Tensor | None = None

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
        distinct, inverse = np.unique(np.concatenate(tables), axis=0, return_inverse=True)
        begins = np.any(np.diff(distinct[:, :3], axis=0, prepend=-1), axis=1)
        sizes = [group.log_prob.size for group in groups]
        parts = torch.from_numpy(inverse.reshape(-1)).split(sizes)
        return Wave(
            latents=join_on_device([group.latents for group in groups], device),
            condition=join_conditions(groups, device),
            items=to_device(distinct[begins][:, [2, 1, 0]].T, device),
            transitions=torch.from_numpy(np.stack([np.cumsum(begins) - 1, distinct[:, 3]])),
            places=tuple(part.view(group.log_prob.shape) for part, group in zip(parts, groups, strict=True)),
        )

    def with_reference(self, means: Tensor) -> Wave:
        """The wave with one more transition an item: to the mean of pi_ref there. means: (M, ...)."""
        items = torch.arange(self.size)
        makers, order = torch.cat([self.transitions[0], items]).sort(stable=True)
        following = torch.cat([self.transitions[1], len(self.latents) + items])[order]
        place_of = order.argsort()
        return replace(
            self,
            latents=torch.cat([self.latents, means]),
            transitions=torch.stack([makers, following]),
            places=tuple(place_of[place] for place in self.places),
            to_reference=place_of[self.transitions.shape[1] :],
        )

    @property
    def size(self) -> int:
        """M."""
        return self.items.shape[1]

    def sums(self, coefficients: Sequence[Tensor]) -> Tensor:
        """Each transition's coefficient, float64 (E,): the sum over the images that share it.

        coefficients: by group, float64 (B, T_s). What cancels but for rounding is 0.
        """
        sums = torch.zeros(self.transitions.shape[1], dtype=torch.float64)
        sizes = sums.clone()
        for place, values in zip(self.places, coefficients, strict=True):
            sums.index_add_(0, place.reshape(-1), values.reshape(-1))
            sizes.index_add_(0, place.reshape(-1), values.reshape(-1).abs())
        return torch.where(sums.abs() > ROUNDING * sizes, sums, 0.0)

    def kl_sums(self, weights: Sequence[Tensor]) -> Tensor:
        """Each transition's coefficient in a sum of weighted KLs to the reference, float64 (E,).

        weights: by group, float64 (B, T_s).
        """
        sums = torch.zeros(self.transitions.shape[1], dtype=torch.float64)
        for place, values in zip(self.reference_places(), weights, strict=True):
            sums.index_add_(0, place.reshape(-1), -values.reshape(-1))
        return sums

    def reference_places(self) -> list[Tensor]:
        """By group, int64 (B, T_s): the transition to the reference's mean at image i's step. Empty without
        them."""
        if self.to_reference is None:
            return []
        return [self.to_reference[self.transitions[0, place]] for place in self.places]

    def items_of(self, transitions: Tensor) -> Tensor:
        """The items, int64 (K,) increasing, that make any of the transitions of a mask, bool (E,)."""
        return torch.unique(self.transitions[0, transitions])

    def by_group(self, values: Tensor) -> list[Tensor]:
        """Values of the transitions (E,) on the host -> by group, (B, T_s)."""
        return [values[place] for place in self.places]


@dataclass(frozen=True)
class MicroBatch:
    """Items of a wave, int64 (micro_batch,), on the device, and their transitions, (e,).

    makers, following: int64, which of these items makes it, and its row of x_{t-1}. weights: float64.
    """

    wave: Wave
    items: Tensor
    makers: Tensor
    following: Tensor
    weights: Tensor


@dataclass(frozen=True)
class GradientEngine:
    """Passes waves of trajectories through the policy, in micro-batches of one size that cut across groups.

    micro_batch: items a pass; the last pass is filled up with items whose transitions do not count. idle: a
    wave of one finite item, for passes that this rank only makes because other ranks make them. reference:
    None where the loss has no term with it. Every method is called by all ranks.
    """

    policy: Denoiser
    steps: Steps
    parallel: Parallel
    micro_batch: int
    idle: Wave
    reference: Reference | None = field(default=None, kw_only=True)

    @torch.no_grad()
    def with_reference(self, wave: Wave | None) -> Wave | None:
        """The wave with transitions to the reference's means, at one pass of the reference an item; as it is
        where there is no reference. None: nothing to do."""
        if self.reference is None:
            return wave
        with self.reference.active() as denoiser:
            means = [self._mean(denoiser, batch) for batch in self._everything(wave)]
        return wave.with_reference(torch.cat(means)[: wave.size]) if wave else None

    @torch.no_grad()
    def evaluate(self, wave: Wave | None) -> list[Tensor]:
        """log pi_theta by group, float64 (B, T_s), MEAN over a latent's elements. None: nothing to do."""
        values = [self._values(batch) for batch in self._everything(wave)]
        return wave.by_group(torch.cat(values).cpu()) if wave else []

    def accumulate(self, wave: Wave | None, coefficients: Tensor, chosen: Tensor) -> Tensor:
        """Add sum of c d log pi_theta / dtheta over the chosen items' transitions to the parameters' .grad.

        coefficients: of the wave's transitions, float64 (E,), see Wave.sums; chosen: int64 (K,), increasing,
        items to pass through. Returns log pi_theta of the transitions, float64 (E,) on the host, 0 for those
        of other items: the same pass gives both.
        """
        values = self.backward(self._batches(wave, coefficients, chosen))
        result = torch.zeros_like(coefficients)
        if wave and len(chosen):
            result[torch.isin(wave.transitions[0], chosen)] = torch.cat(values).cpu()
        return result

    def backward(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """The loop over micro-batches: nothing in it waits for the device. log pi_theta of each."""
        values = []
        for number, batch in enumerate(batches, start=1):
            with self.parallel.micro_batch(is_last=number == len(batches)):
                value = self._values(batch)
                (value * batch.weights).sum().backward()
            # Rebound, so that nothing of this pass's graph is held while the next one is built.
            value = value.detach()
            values.append(value)
        return values

    def accumulate_by_step(
        self, wave: Wave | None, coefficients: Tensor, chosen: Tensor, parameters: Sequence[nn.Parameter]
    ) -> tuple[Tensor, Tensor]:
        """`accumulate` one step at a time, with the L2 norm of each step's own gradient.

        Returns log pi_theta (E,) and norms float64 (T_s,). Takes one more copy of the gradients: for
        diagnosis.
        """
        result, norms = torch.zeros_like(coefficients), []
        steps = wave.items[2].cpu()[chosen] if wave else chosen
        for step in self.steps.stochastic_steps:
            earlier = [value.grad for value in parameters]
            for value in parameters:
                value.grad = None
            result += self.accumulate(wave, coefficients, chosen[steps == step])
            gradients = [value.grad for value in parameters if value.grad is not None]
            # Of a step that nothing is learned from there is no gradient, and so no device of it.
            norms.append(self.parallel.norm(gradients).cpu())
            for value, before in zip(parameters, earlier, strict=True):
                value.grad = _sum(value.grad, before)
        return result, torch.stack(norms)

    def _everything(self, wave: Wave | None) -> list[MicroBatch]:
        """All items, whose transitions count nothing."""
        transitions = wave.transitions.shape[1] if wave else 0
        everything = torch.arange(wave.size if wave else 0)
        return self._batches(wave, torch.zeros(transitions, dtype=torch.float64), everything)

    def _batches(self, wave: Wave | None, coefficients: Tensor, chosen: Tensor) -> list[MicroBatch]:
        """As many as every rank needs to make. coefficients (E, ...), chosen (K,): on the host."""
        passes = -(-len(chosen) // self.micro_batch)
        device = self.idle.items.device
        batches: list[MicroBatch] = []
        if wave and passes:
            items = torch.full((passes * self.micro_batch,), int(chosen[0]), dtype=torch.int64)
            items[: len(chosen)] = chosen
            makers, following = wave.transitions
            (made,) = torch.nonzero(torch.isin(makers, chosen), as_tuple=True)
            places = torch.searchsorted(chosen, makers[made])
            counts = torch.bincount(places // self.micro_batch, minlength=passes).tolist()
            of_transitions = (places % self.micro_batch, following[made], coefficients[made])
            parts = [to_device(values.numpy(), device).split(counts) for values in of_transitions]
            on_device = [to_device(items.numpy(), device).split(self.micro_batch), *parts]
            batches = [MicroBatch(wave, *part) for part in zip(*on_device, strict=True)]
        spare = self.parallel.most(passes) - passes
        nothing = torch.zeros(self.micro_batch, dtype=torch.int64, device=device)
        none = nothing[:0]
        idle = MicroBatch(self.idle, nothing, none, none, coefficients[:0].to(device))
        return batches + [idle] * spare

    def _mean(self, denoiser: Denoiser, batch: MicroBatch) -> Tensor:
        """Means of x_{t-1} of a micro-batch's items, (micro_batch, ...)."""
        wave = batch.wave
        rows, groups, steps = wave.items[:, batch.items]
        latents = wave.latents[rows]
        condition = {name: value[:, groups].flatten(0, 1) for name, value in wave.condition.items()}
        output = denoiser.predict(latents, self.steps.time(steps, len(steps)), condition)
        return self.steps.mean(latents, output, steps)

    def _values(self, batch: MicroBatch) -> Tensor:
        """log pi_theta of a micro-batch's transitions, MEAN over a latent's elements, float64, maybe a
        graph."""
        means = self._mean(self.policy, batch).index_select(0, batch.makers)
        steps = batch.wave.items[2, batch.items][batch.makers]
        return self.steps.log_prob(batch.wave.latents[batch.following], means, steps)


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first.add_(second)
