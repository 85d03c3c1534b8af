"""Sample one prompt's denoising trajectories.

Pure: tensors in, data classes out; no Ray, no configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import WeightsError
from common.model.guidance import Condition, Denoiser, for_items
from common.model.policy import Policy
from common.model.steps import Steps
from common.model.trainable import Reference
from common.passes import sampling_passes
from common.trajectory import Float32, PromptTask, TrajectoryGroup, tree_nodes, tree_widths


@torch.no_grad()
def denoise(
    policy: Denoiser,
    steps: Steps,
    noise: Tensor,
    condition: Condition,
    branch_at: Sequence[int] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the sampler over all T steps (Algorithm 1 of the paper, the trajectories of pi_old), each distinct
    latent once.

    noise: (B, T_s+1, ...), draw 0 is x_T. A latent that several images share takes the noise of the first
    of them, so the first image is that of independent trajectories. condition: the prompt's. branch_at: see
    tree_nodes. Returns the latents x_T..x_0, T+1 of (W, ...), W the distinct ones of a position, B at the
    end; and T step means, one for each latent that follows.
    """
    images = len(noise)
    widths = tree_widths(images, steps.num_steps, branch_at)
    each = {width: for_items(condition, width) for width in set(widths)}
    latents, means = [noise[:: images // widths[0], 0]], []
    draws = {step: draw for draw, step in enumerate(steps.stochastic_steps, start=1)}
    for step in range(steps.num_steps):
        width, following = widths[step], widths[step + 1]
        output = policy.predict(latents[-1], steps.time(step, width), each[width])
        mean = _for_each(steps.mean(latents[-1], output, step), following)
        means.append(mean)
        drawn = noise[:: images // following, draws[step]] if step in draws else None
        latents.append(mean if drawn is None else steps.sample(mean, drawn, step))
    return latents, means


def _for_each(values: Tensor, count: int) -> Tensor:
    """Values of latents as those of the `count` that stem from them, (W, ...) -> (count, ...)."""
    return values.repeat_interleave(count // len(values), 0)


@torch.no_grad()
def log_probs(steps: Steps, latents: Sequence[Tensor], means: Sequence[Tensor]) -> Tensor:
    """log pi_old of the stochastic steps, MEAN over a latent's elements, float64 (B, T_s). See denoise."""
    images, device = latents[-1].shape[0], latents[-1].device
    result = torch.zeros(images, len(steps.stochastic_steps), dtype=torch.float64, device=device)
    for column, step in enumerate(steps.stochastic_steps):
        values = steps.log_prob(latents[step + 1], means[step], step)
        result[:, column] = _for_each(values, images)
    return result


@torch.no_grad()
def reference_log_ratios(
    reference: Reference,
    steps: Steps,
    latents: Sequence[Tensor],
    means: Sequence[Tensor],
    condition: Condition,
) -> Tensor:
    """log pi_old - log pi_ref of the stochastic steps (eq. 19 at theta = old), MEAN over a latent's
    elements.

    Returns float32 (B, T_s). The reference predicts at the sampler's own batch shape, so equal weights give
    exactly 0 on any device. For the arguments see denoise.
    """
    images, device = latents[-1].shape[0], latents[-1].device
    each = {len(values): for_items(condition, len(values)) for values in latents}
    result = torch.zeros(images, len(steps.stochastic_steps), device=device)
    with reference.active() as denoiser:
        for column, step in enumerate(steps.stochastic_steps):
            width = len(latents[step])
            output = denoiser.predict(latents[step], steps.time(step, width), each[width])
            mean = _for_each(steps.mean(latents[step], output, step), len(means[step]))
            ratios = steps.log_ratio(latents[step + 1], means[step], mean, step)
            result[:, column] = _for_each(ratios, images)
    return result


def sample_group(
    task: PromptTask, policy: Policy, reference: Reference | None, steps: Steps
) -> tuple[TrajectoryGroup, NDArray[np.uint8]]:
    """B trajectories of the task's prompt and their images, uint8 (B, height, width, 3).

    The policy must hold the weights that the task names. reference: None where no task asks for log ratios.
    steps: of the run; the task's epoch says which of them draw noise.
    """
    family, fingerprint = policy.family, policy.steps_fingerprint(steps)
    if task.deterministic:
        steps = steps.without_noise()
    else:
        steps = steps.during(task.noise.run_seed, task.noise.epoch)
    draws = len(steps.stochastic_steps) + 1
    noise = torch.from_numpy(task.noise.normal(task.num_images, draws, family.latent_shape)).to(family.device)
    condition = policy.embed(task.prompt)
    latents, means = denoise(policy, steps, noise, condition, task.branch_at)
    kept, positions, learned = latents, (steps.num_steps, task.branch_at), steps
    if not task.with_steps:
        kept, positions, learned = latents[-1:], (0, ()), replace(steps, stochastic_steps=())
    trajectory = TrajectoryGroup(
        prompt=task.prompt,
        noise=task.noise,
        stamp=task.stamp,
        latents=torch.cat(kept).cpu().numpy(),
        nodes=tree_nodes(task.num_images, *positions),
        times=np.array(steps.times),
        stochastic_steps=np.array(learned.stochastic_steps, dtype=np.int64),
        log_prob=log_probs(learned, latents, means).cpu().numpy(),
        log_ratio=_log_ratio(task, reference, steps, latents, means, condition),
        condition={name: rows.cpu().numpy() for name, rows in condition.items()},
        steps_fingerprint=fingerprint,
    )
    return trajectory, family.decode(latents[-1])


def count_passes(task: PromptTask, trajectory: TrajectoryGroup) -> int:
    """Predictions that sample_group made, of one latent each."""
    reference_steps = trajectory.stochastic_steps.tolist() if _asks_reference(task) else []
    return sampling_passes(task.num_images, len(trajectory.times), task.branch_at, reference_steps)


def _asks_reference(task: PromptTask) -> bool:
    """At version 0 nothing has been trained: the policy is the reference, and the ratio 0."""
    return task.with_reference and task.stamp.version > 0


def _log_ratio(
    task: PromptTask,
    reference: Reference | None,
    steps: Steps,
    latents: Sequence[Tensor],
    means: Sequence[Tensor],
    condition: Condition,
) -> Float32 | None:
    if not (task.with_reference and task.with_steps):
        return None
    if not _asks_reference(task):
        return np.zeros((task.num_images, len(steps.stochastic_steps)), dtype=np.float32)
    if reference is None:
        raise WeightsError("A task asks for log ratios, but this process has no reference.")
    return reference_log_ratios(reference, steps, latents, means, condition).cpu().numpy()
