"""From the configuration to a loaded policy: what actor, learner and the command-line tools share."""

from __future__ import annotations

import torch

from common.config.schema import Config
from common.diffusion import StepDistribution
from common.pipelines import load_family
from common.policy import Policy
from common.scheduler import build_step_distribution


def choose_device(wanted: str) -> torch.device:
    """auto = CUDA where this process sees a GPU."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def load_policy(config: Config) -> tuple[Policy, StepDistribution]:
    """The policy at version 0, that is the pretrained model, and its step distribution. Raises ModelError."""
    family = load_family(
        config.model.path, choose_device(config.model.device), config.model.revision, config.model.variant
    )
    distribution = build_step_distribution(
        family.scheduler_config,
        config.sampling.steps,
        config.sampling.eta,
        config.sampling.stochastic_step_indices,
    )
    policy = Policy.build(family, config.policy, config.sampling.guidance_scale, config.model.precision)
    return policy, distribution
