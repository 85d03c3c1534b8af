"""The exact gradient of a loss over whole trajectories, in memory that grows with neither T nor B.

A loss L of the log-probs (paper.md, identity 7) has the gradient

    dL/dtheta = sum over (i, t) of c_it d log pi_theta,it / dtheta,        c = dL / d log pi   (B, T_s)

so once c is known, any mix of images and steps can be backpropagated in micro-batches of any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.model.families.stable_diffusion import Condition
from common.model.policy import Denoiser
from common.model.steps import Steps
from common.trajectory import TrajectoryGroup


@dataclass(frozen=True)
class TrajectoryTensors:
    """A group's trajectories as tensors on the policy's device: see TrajectoryGroup.

    latents: (R, C, H, W), float32 or float64; nodes: int64 (B, T+1), rows of latents.
    """

    latents: Tensor
    nodes: Tensor
    condition: Condition

    @staticmethod
    def of(group: TrajectoryGroup, device: torch.device) -> TrajectoryTensors:
        """Copies of the group's arrays on the device."""
        return TrajectoryTensors(
            latents=torch.tensor(group.latents, device=device),
            nodes=torch.tensor(group.nodes, dtype=torch.int64, device=device),
            condition={name: torch.tensor(rows, device=device) for name, rows in group.condition.items()},
        )

    @property
    def images(self) -> int:
        """B."""
        return self.nodes.shape[0]


def _log_prob(
    policy: Denoiser, distribution: Steps, group: TrajectoryTensors, images: Tensor, steps: Tensor
) -> Tensor:
    """log pi_theta of the items (images[m], steps[m]), MEAN over C H W, float64 (M,), maybe with a graph."""
    latents, previous = (group.latents[group.nodes[images, at]] for at in (steps, steps + 1))
    output = policy.predict(latents, distribution.time(steps, len(images)), group.condition)
    return distribution.log_prob(previous, distribution.mean(latents, output, steps), steps)


def _items(chosen: Tensor, distribution: Steps, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Image index, step position and column of each True in chosen (B, T_s), ordered by step."""
    columns, images = torch.nonzero(chosen.T, as_tuple=True)
    steps = torch.tensor(distribution.stochastic_steps)[columns]
    return images.to(device), steps.to(device), columns.to(device)


@torch.no_grad()
def evaluate_log_prob(
    policy: Denoiser, distribution: Steps, group: TrajectoryTensors, micro_batch: int
) -> Tensor:
    """log pi_theta of every stochastic step without a graph, MEAN over C H W, float64 (B, T_s)."""
    shape = (group.images, len(distribution.stochastic_steps))
    images, steps, columns = _items(torch.ones(shape, dtype=torch.bool), distribution, group.latents.device)
    result = torch.zeros(shape, dtype=torch.float64, device=group.latents.device)
    for start in range(0, len(images), micro_batch):
        part = slice(start, start + micro_batch)
        value = _log_prob(policy, distribution, group, images[part], steps[part])
        result[images[part], columns[part]] = value
    return result.cpu()


def accumulate_gradient(
    policy: Denoiser,
    distribution: Steps,
    group: TrajectoryTensors,
    coefficients: Tensor,
    chosen: Tensor,
    micro_batch: int,
) -> Tensor:
    """Add sum c_it d log pi_theta,it / dtheta to the parameters' .grad.

    coefficients: c, float64 (B, T_s); chosen: bool (B, T_s), the items to pass through. Returns log pi_theta
    of the chosen items (0 elsewhere), MEAN over C H W, float64 (B, T_s): the same pass gives both (identity
    7).
    """
    device = group.latents.device
    images, steps, columns = _items(chosen, distribution, device)
    weights = coefficients.to(device)
    result = torch.zeros_like(weights)
    for start in range(0, len(images), micro_batch):
        part = slice(start, start + micro_batch)
        value = _log_prob(policy, distribution, group, images[part], steps[part])
        (value * weights[images[part], columns[part]]).sum().backward()
        # Rebound, so that nothing of this pass's graph is held while the next one is built.
        value = value.detach()
        result[images[part], columns[part]] = value
    return result.cpu()


def accumulate_by_step(
    policy: Denoiser,
    distribution: Steps,
    group: TrajectoryTensors,
    coefficients: Tensor,
    micro_batch: int,
    parameters: list[nn.Parameter],
) -> tuple[Tensor, Tensor]:
    """accumulate_gradient over all items, one step at a time, with the L2 norm of each step's own gradient.

    Returns (log pi_theta (B, T_s), norms float64 (T_s,)). Takes one more copy of the gradients: for
    diagnosis.
    """
    result, norms = torch.zeros_like(coefficients), []
    for column, chosen in _one_step_at_a_time(coefficients):
        earlier = [value.grad for value in parameters]
        for value in parameters:
            value.grad = None
        values = accumulate_gradient(policy, distribution, group, coefficients, chosen, micro_batch)
        result[:, column] = values[:, column]
        own = [value.grad for value in parameters if value.grad is not None]
        norms.append(torch.linalg.vector_norm(torch.stack([grad.double().norm() for grad in own])).cpu())
        for value, before in zip(parameters, earlier, strict=True):
            value.grad = _sum(value.grad, before)
    return result, torch.stack(norms)


def _one_step_at_a_time(coefficients: Tensor) -> Iterator[tuple[int, Tensor]]:
    for column in range(coefficients.shape[1]):
        chosen = torch.zeros(coefficients.shape, dtype=torch.bool)
        chosen[:, column] = True
        yield column, chosen


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first.add_(second)
