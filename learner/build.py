"""From the configuration to a Learner."""

from __future__ import annotations

import math

import torch

from common.config.schema import Config
from common.config.training import ObjectiveSection, OptimizerSection
from common.model.loading import digest_base, load_policy
from common.model.probe import Probe
from learner.learner import Learner
from learner.objectives import Objective
from learner.objectives.prdp import PAIR_WEIGHTINGS, STEP_REDUCTIONS, Prdp
from learner.old_policy import Experience, Offline, Online
from learner.optimizer import CheckedOptimizer
from learner.parallel import Ranks
from learner.records import LearnerSettings
from learner.schedule import LearningRate


def build_objective(section: ObjectiveSection, latent_elements: int) -> Objective:
    """The objective of the configuration. latent_elements: C * H * W."""
    return Prdp(
        kl_weight=section.kl_weight,
        clip_range=section.clip_range if section.clip else math.inf,
        latent_scale={"mean": 1.0, "sum": float(latent_elements)}[section.latent_reduction],
        step_reduction=STEP_REDUCTIONS[section.step_reduction],
        counted=PAIR_WEIGHTINGS[section.pair_weighting],
    )


def build_rate(section: OptimizerSection) -> LearningRate:
    """The step size of the configuration."""
    return LearningRate(
        peak=section.learning_rate,
        warmup=section.warmup_updates,
        decay=section.decay_updates,
        final_share=section.final_share,
    )


def build_experience(config: Config) -> Experience:
    """Online or offline. An online learner remembers the versions that tasks in flight can name.

    There is one version an epoch, and epoch e is sampled with that of epoch e - max_staleness or later.
    """
    modes: dict[str, Experience] = {"online": Online(config.data.max_staleness + 1), "offline": Offline()}
    return modes[config.data.mode]


def build_learner(config: Config, run_id: str, ranks: Ranks) -> Learner:
    """Load the model and make it ready to learn. Raises ModelError."""
    policy, distribution = load_policy(config)
    if config.learner.gradient_checkpointing:
        policy.guided.unet.enable_gradient_checkpointing()
    settings = config.optimizer
    optimizer = torch.optim.AdamW(
        policy.trainable.parameters().values(),
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )
    return Learner(
        policy=policy,
        distribution=distribution,
        objective=build_objective(config.objective, math.prod(policy.family.latent_shape)),
        step=CheckedOptimizer(policy, optimizer, Probe.of(policy, distribution)),
        experience=build_experience(config),
        ranks=ranks,
        settings=LearnerSettings(
            run_id=run_id,
            rate=build_rate(settings),
            micro_batch=config.learner.micro_batch_size,
            max_gradient_norm=settings.max_gradient_norm,
            ema_decay=settings.ema_decay,
            keep_groups=config.objective.updates_per_epoch > 1,
            base=digest_base(policy),
        ),
    )
