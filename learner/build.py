"""From the configuration to a Learner."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch

from common.config.schema import Config
from common.config.training import OptimizerSection
from common.errors import ConfigError
from common.model.loading import digest_base, load_policy
from common.model.policy import Policy
from common.model.probe import Probe
from common.model.steps import Steps
from common.model.trainable import Reference
from common.passes import learned_items
from learner.denoising import DenoisingEngine
from learner.denoising_learner import DenoisingLearner
from learner.gradient import GradientEngine, Wave, to_device
from learner.learner import Learner, LearnerSettings
from learner.objectives.denoising import WeightedDenoising
from learner.objectives.registry import build_objective
from learner.old_policy import Offline, OldPolicy, Online
from learner.optimizer import CheckedOptimizer, LearningRate
from learner.parallel import Parallel


def build_rate(section: OptimizerSection) -> LearningRate:
    """The step size of the configuration."""
    return LearningRate(
        peak=section.learning_rate,
        warmup=section.warmup_updates,
        decay=section.decay_updates,
        final_share=section.final_share,
    )


def build_old_policy(config: Config) -> OldPolicy:
    """Online or offline. An online learner remembers the versions that tasks in flight can name.

    There is one version an epoch, and epoch e is sampled with that of epoch e - max_staleness or later.
    """
    modes: dict[str, OldPolicy] = {"online": Online(config.data.max_staleness + 1), "offline": Offline()}
    return modes[config.data.mode]


def build_engine(
    policy: Policy,
    steps: Steps,
    parallel: Parallel,
    micro_batch: int,
    reference: Reference | None = None,
) -> GradientEngine:
    """What passes trajectories through the policy. reference: for a loss that has a KL to it."""
    idle = idle_wave(policy, steps)
    return GradientEngine(policy, steps, parallel, micro_batch, idle, reference=reference)


def groups_in_a_wave(config: Config) -> int:
    """Groups that a rank takes in together: as many as fill a micro-batch, at least one."""
    return max(1, config.learner.micro_batch_size // math.ceil(learned_items(config)))


def idle_wave(policy: Policy, steps: Steps) -> Wave:
    """One item of finite numbers, for passes that only keep ranks in step."""
    family = policy.family
    step = steps.stochastic_steps[0]
    condition = {name: rows[:, None] for name, rows in policy.example().items()}
    kind = torch.promote_types(next(policy.guided.network.parameters()).dtype, torch.float32)
    latents = torch.zeros(1, *family.latent_shape, device=family.device, dtype=kind)
    items = to_device(np.array([[0], [0], [step]]), family.device)
    return Wave(latents, condition, items, torch.zeros(2, 0, dtype=torch.int64), places=())


def build_denoising(
    engine: GradientEngine, objective: WeightedDenoising, sampled_steps: int, policy: Policy
) -> DenoisingEngine:
    """The engine of an objective without likelihoods, of the same passes as the other's.

    sampled_steps: T. policy: just loaded, see Policy.reference. Raises ConfigError.
    """
    is_sampled = objective.section.noise_levels == "sampled"
    levels = policy.family.noise_levels(sampled_steps if is_sampled else None)
    if objective.section.pairs_per_image > levels.count:
        raise ConfigError(
            f"objective.pairs_per_image is {objective.section.pairs_per_image}, but the model was trained at "
            f"{levels.count} noise levels; give at most so many"
        )
    reference = policy.reference() if objective.reference_weight else None
    # The same item, at the first noise level and with its latent for a noise.
    idle = replace(engine.idle, items=torch.zeros_like(engine.idle.items[:1]).expand(4, -1))
    return DenoisingEngine(
        **{**vars(engine), "idle": idle, "reference": reference},
        levels=levels,
        mirror=objective.mirror,
        old=None,
    )


def build_learner(config: Config, run_id: str, parallel: Parallel) -> Learner:
    """Load the model and make it ready to learn. Raises ModelError."""
    policy, steps = load_policy(config, network_only=True)
    policy.trainable.check_saved()
    network = policy.guided.network
    if config.learner.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    base = digest_base(policy)
    objective = build_objective(config.objective, math.prod(policy.family.latent_shape))
    # Before anything is trained or placed.
    reference = policy.reference() if objective.needs.kl else None
    parallel.place(network)
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        policy.trainable.parameters().values(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    probe, rate = Probe.of(policy, steps), build_rate(settings)
    engine = build_engine(policy, steps, parallel, config.learner.micro_batch_size, reference)
    checked = CheckedOptimizer(policy, optimizer, probe, rate, parallel)
    numbers = LearnerSettings(
        run_id=run_id,
        max_gradient_norm=settings.max_gradient_norm,
        ema_decay=settings.ema_decay,
        updates_per_epoch=config.objective.updates_per_epoch,
        step_norms_every=config.learner.step_norms_every,
        base=base,
        term_share=settings.term_share,
    )
    if isinstance(objective, WeightedDenoising):
        denoising = build_denoising(engine, objective, config.sampling.steps, policy)
        return DenoisingLearner(denoising, objective, checked, build_old_policy(config), numbers)
    return Learner(engine, objective, checked, build_old_policy(config), numbers)
