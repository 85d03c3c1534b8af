"""Tiny policies in double precision, their trajectories, and Algorithm 1 as one whole autograd graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from actors.sampler import denoise, log_probs
from common.model.guidance import Denoiser
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.probe import Probe
from common.model.steps import Steps
from common.model.trainable import Reference
from common.trajectory import NoiseKey, PolicyStamp, ScoredGroup, TrajectoryGroup, tree_nodes
from learner.build import build_engine
from learner.gradient import GradientEngine
from learner.learner import Learner, LearnerSettings
from learner.objectives import Objective
from learner.objectives.prdp import PAIR_WEIGHTINGS, STEP_REDUCTIONS, Prdp
from learner.old_policy import OldPolicy, Online
from learner.optimizer import CheckedOptimizer, LearningRate
from learner.parallel import Parallel, Single
from tests.scored_groups import pointwise
from tests.tiny_config import make_config

ETA = 1.0


def double_policy(
    pipeline: Path, folder: Path, overrides: Mapping[str, Any]
) -> tuple[Policy, Reference, Steps]:
    """Policy, reference and steps of the configuration, all weights float64."""
    policy, steps = load_policy(make_config(pipeline, folder, overrides))
    family: Any = policy.family
    family.network.double()
    family.text.encoders["text_encoder"].encoder.double()
    return policy, policy.reference(), steps


def perturb(policy: Policy, size: float, seed: int = 0) -> None:
    """Move the trained weights by a random step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in policy.trainable.parameters().values():
            value.add_(size * torch.randn(value.shape, generator=generator, dtype=value.dtype))


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """Copies of the trained weights."""
    return {name: value.detach().clone() for name, value in policy.trainable.parameters().items()}


def has_weights(policy: Policy, weights: Mapping[str, Tensor]) -> bool:
    """Whether the trained weights are these, to the bit."""
    return all(torch.equal(value, weights[name]) for name, value in policy.trainable.parameters().items())


def slow_log_prob(policy: Denoiser, family: Any, steps: Steps, latents: Tensor, condition: Any) -> Tensor:
    """log p of every image and stochastic step with its graph, (B, T_s), from diffusers' own step."""
    scheduler: Any = DDIMScheduler.from_config(family.scheduler[1])
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps.num_steps)
    columns = []
    for step in steps.stochastic_steps:
        now, following = latents[:, step], latents[:, step + 1]
        timestep = scheduler.timesteps[step : step + 1]
        output = policy.predict(now, timestep.expand(len(now)), condition)
        noise = torch.zeros_like(now)
        mean = scheduler.step(output, int(timestep), now, eta=ETA, variance_noise=noise)[0]
        above = scheduler.step(output, int(timestep), now, eta=ETA, variance_noise=noise + 1)[0]
        std = (above - mean).detach().mean()
        columns.append(torch.distributions.Normal(mean, std).log_prob(following).flatten(1).mean(1))
    return torch.stack(columns, dim=1)


def sample_double(
    policy: Policy,
    reference: Reference,
    steps: Steps,
    stamp: PolicyStamp,
    prompt: str,
    images: int = 3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    branch_at: tuple[int, ...] = (),
) -> TrajectoryGroup:
    """Whole trajectories in the policy's type, with float64 log ratios of the behaviour to the reference."""
    generator = torch.Generator().manual_seed(seed)
    draws = len(steps.stochastic_steps) + 1
    noise = torch.randn(images, draws, *policy.family.latent_shape, dtype=dtype, generator=generator)
    condition = policy.embed(prompt)
    latents, means = denoise(policy, steps, noise, condition, branch_at)
    own = log_probs(steps, latents, means)
    stacked, nodes = torch.cat(latents), tree_nodes(images, steps.num_steps, branch_at)
    other = reference_log_probs(reference, steps, [stacked[rows] for rows in nodes.T], condition)
    arrays: dict[str, Any] = {"latents": stacked.numpy(), "log_ratio": (own - other).numpy()}
    return TrajectoryGroup(
        prompt=prompt,
        noise=NoiseKey(0, "train", 0, seed),
        stamp=stamp,
        nodes=nodes,
        times=np.array(steps.times),
        stochastic_steps=np.array(steps.stochastic_steps),
        log_prob=own.numpy(),
        condition={name: rows.numpy() for name, rows in condition.items()},
        steps_fingerprint=policy.steps_fingerprint(steps),
        **arrays,
    )


@torch.no_grad()
def reference_log_probs(
    reference: Denoiser, steps: Steps, latents: Sequence[Tensor], condition: Any
) -> Tensor:
    """log pi_ref of the stochastic steps, float64 (B, T_s)."""
    columns = []
    for step in steps.stochastic_steps:
        output = reference.predict(latents[step], steps.time(step, len(latents[step])), condition)
        mean = steps.mean(latents[step], output, step)
        columns.append(steps.log_prob(latents[step + 1], mean, step))
    return torch.stack(columns, dim=1)


def separated(group: TrajectoryGroup) -> TrajectoryGroup:
    """The same trajectories, as if they were independent: nothing is shared."""
    nodes = tree_nodes(group.num_images, len(group.times))
    return replace(group, latents=np.concatenate([group.at(at) for at in range(nodes.shape[1])]), nodes=nodes)


def whole(group: TrajectoryGroup) -> Tensor:
    """The latents of every image at every position, (B, T+1, ...)."""
    return torch.from_numpy(group.latents[group.nodes])


def scored(group: TrajectoryGroup, rewards: Sequence[float]) -> ScoredGroup:
    """The group with these rewards."""
    return ScoredGroup(group, pointwise(np.array(rewards, dtype=np.float64), {}, ()))


def slow_loss(
    policy: Policy,
    reference: Denoiser,
    steps: Steps,
    groups: Sequence[ScoredGroup],
    old: Sequence[Tensor],
    beta: float,
    clip_range: float,
) -> Tensor:
    """Mean loss of all prompts' untied pairs, with its graph: eqs. 10 to 21, means over C H W and steps.

    old: log pi_old of each group, (B, T_s).
    """
    losses = []
    for group, before in zip(groups, old, strict=True):
        latents = torch.from_numpy(group.trajectory.latents[group.trajectory.nodes])
        condition = policy.embed(group.trajectory.prompt)
        now = slow_log_prob(policy, policy.family, steps, latents, condition)
        with torch.no_grad():
            base = slow_log_prob(reference, policy.family, steps, latents, condition)
        free = now - base
        held = torch.minimum(torch.maximum(free, before - base - clip_range), before - base + clip_range)
        rewards = group.score.rewards
        for i, j in combinations(range(len(rewards)), 2):
            if rewards[i] == rewards[j]:
                continue
            target = (rewards[i] - rewards[j]) / beta
            first = (free[i].mean() - free[j].mean() - target) ** 2
            second = (held[i].mean() - held[j].mean() - target) ** 2
            losses.append(second if second > first else first)
    return torch.stack(losses).mean()


def slow_update(
    loss: Tensor, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, max_norm: float
) -> float:
    """One backward pass through everything, clip by the L2 norm, one optimizer step.

    Returns the norm before clipping.
    """
    optimizer.zero_grad()
    loss.backward()
    gradients = [value.grad for value in parameters.values() if value.grad is not None]
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    for gradient in gradients:
        gradient.mul_(min(1.0, max_norm / (norm + 1e-6)))  # torch's own offset
    optimizer.step()
    return norm


def prdp(beta: float = 0.01, clip_range: float = math.inf) -> Prdp:
    """PRDP on means over C H W and steps and untied pairs."""
    return Prdp(beta, clip_range, 1.0, STEP_REDUCTIONS["mean"], PAIR_WEIGHTINGS["untied"])


def make_engine(
    policy: Policy, steps: Steps, micro_batch: int = 5, parallel: Parallel | None = None
) -> GradientEngine:
    """With a micro-batch that divides nothing."""
    return build_engine(policy, steps, parallel or Single(), micro_batch)


def make_learner(
    policy: Policy,
    steps: Steps,
    *,
    objective: Objective | None = None,
    beta: float = 0.01,
    clip_range: float = math.inf,
    updates: int = 1,
    max_norm: float = 1.0,
    ema_decay: float = 0.0,
    rate: float = 1e-2,
    step_norms_every: int = 1,
    term_share: float = 1.0,
    old_policy: OldPolicy | None = None,
    run_id: str = "run",
    parallel: Parallel | None = None,
    engine: GradientEngine | None = None,
) -> Learner:
    """A learner of PRDP, unless another objective is given."""
    parallel = parallel or Single()
    optimizer = make_optimizer(policy)
    probe = Probe.of(policy, steps)
    return Learner(
        engine=engine or make_engine(policy, steps, parallel=parallel),
        objective=objective or prdp(beta, clip_range),
        optimizer=CheckedOptimizer(policy, optimizer, probe, LearningRate(rate, 0, 0, 1.0), parallel),
        old_policy=old_policy or Online(remembered=2),
        settings=LearnerSettings(
            run_id=run_id,
            max_gradient_norm=max_norm,
            ema_decay=ema_decay,
            updates_per_epoch=updates,
            step_norms_every=step_norms_every,
            base="",
            term_share=term_share,
        ),
    )


def make_optimizer(policy: Policy) -> torch.optim.Optimizer:
    """AdamW with a step and a decay that show, and an epsilon at which tiny gradients' rounding does not."""
    return torch.optim.AdamW(policy.trainable.parameters().values(), lr=1e-2, eps=1e-3, weight_decay=1e-2)
