"""Sample one prompt's denoising trajectories.

Pure: tensors in, data classes out; no Ray, no configuration.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import WeightsError
from common.model.guidance import Condition, Denoiser, for_items
from common.model.policy import Policy
from common.model.steps import Steps
from common.model.trainable import Reference
from common.trajectory import Float32, PromptTask, TrajectoryGroup, separate_nodes


@torch.no_grad()
def denoise(
    policy: Denoiser, distribution: Steps, noise: Tensor, condition: Condition
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the sampler over all T steps (Algorithm 1 of the paper, the trajectories of pi_old).

    noise: (B, T_s+1, C, H, W), draw 0 is x_T. Returns the latents x_T..x_0, T+1 of (B, C, H, W), and the T
    step means.
    """
    latents, means = [noise[:, 0]], []
    draws = {step: draw for draw, step in enumerate(distribution.stochastic_steps, start=1)}
    for step in range(distribution.num_steps):
        output = policy.predict(latents[-1], distribution.time(step, len(noise)), condition)
        mean = distribution.mean(latents[-1], output, step)
        means.append(mean)
        latents.append(distribution.sample(mean, noise[:, draws[step]], step) if step in draws else mean)
    return latents, means


@torch.no_grad()
def log_probs(distribution: Steps, latents: Sequence[Tensor], means: Sequence[Tensor]) -> Tensor:
    """log pi_old of the stochastic steps, MEAN over C H W, float64 (B, T_s)."""
    images, device = latents[0].shape[0], latents[0].device
    result = torch.zeros(images, len(distribution.stochastic_steps), dtype=torch.float64, device=device)
    for column, step in enumerate(distribution.stochastic_steps):
        result[:, column] = distribution.log_prob(latents[step + 1], means[step], step)
    return result


@torch.no_grad()
def reference_log_ratios(
    reference: Reference,
    distribution: Steps,
    latents: Sequence[Tensor],
    means: Sequence[Tensor],
    condition: Condition,
) -> Tensor:
    """log pi_old - log pi_ref of the stochastic steps (eq. 19 at theta = old), MEAN over C H W.

    Returns float32 (B, T_s). The reference predicts at the sampler's own batch shape, so equal weights give
    exactly 0 on any device.
    """
    images, device = latents[0].shape[0], latents[0].device
    result = torch.zeros(images, len(distribution.stochastic_steps), device=device)
    with reference.active() as denoiser:
        for column, step in enumerate(distribution.stochastic_steps):
            output = denoiser.predict(latents[step], distribution.time(step, images), condition)
            reference_mean = distribution.mean(latents[step], output, step)
            result[:, column] = distribution.log_ratio(latents[step + 1], means[step], reference_mean, step)
    return result


def sample_group(
    task: PromptTask, policy: Policy, reference: Reference | None, distribution: Steps
) -> tuple[TrajectoryGroup, NDArray[np.uint8]]:
    """B trajectories of the task's prompt and their images, uint8 (B, height, width, 3).

    The policy must hold the weights that the task names. reference: None where no task asks for log ratios.
    """
    family = policy.family
    draws = len(distribution.stochastic_steps) + 1
    noise = torch.from_numpy(task.noise.normal(task.images, draws, family.latent_shape)).to(family.device)
    condition = policy.embed(task.prompt)
    each = for_items(condition, task.images)
    latents, means = denoise(policy, distribution, noise, each)
    trajectory = TrajectoryGroup(
        prompt=task.prompt,
        noise=task.noise,
        stamp=task.stamp,
        latents=torch.stack(latents, dim=1).flatten(0, 1).cpu().numpy(),
        nodes=separate_nodes(task.images, distribution.num_steps),
        times=np.array(distribution.times),
        stochastic_steps=np.array(distribution.stochastic_steps, dtype=np.int64),
        log_prob=log_probs(distribution, latents, means).cpu().numpy(),
        log_ratio=_log_ratio(task, reference, distribution, latents, means, each),
        condition={name: rows.cpu().numpy() for name, rows in condition.items()},
        schedule=policy.schedule(distribution),
    )
    return trajectory, family.decode(latents[-1])


def _log_ratio(
    task: PromptTask,
    reference: Reference | None,
    distribution: Steps,
    latents: Sequence[Tensor],
    means: Sequence[Tensor],
    condition: Condition,
) -> Float32 | None:
    if not task.with_reference:
        return None
    if task.stamp.version == 0:
        # The policy is the reference (paper.md, identity 4).
        return np.zeros((task.images, len(distribution.stochastic_steps)), dtype=np.float32)
    if reference is None:
        raise WeightsError("A task asks for log ratios, but this process has no reference.")
    return reference_log_ratios(reference, distribution, latents, means, condition).cpu().numpy()
