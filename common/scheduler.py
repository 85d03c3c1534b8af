"""From a pipeline's scheduler configuration to our step distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler

from common.diffusion import PREDICTION_TYPES, StepDistribution, ddim_coefficients
from common.errors import ModelError

# Schedulers of discrete-time diffusion: they differ in how they sample, not in the noise schedule that they configure.
SUPPORTED_SCHEDULERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
)


def check_scheduler(class_name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError where the scheduler is not one whose noise schedule DDIM can take."""
    if class_name not in SUPPORTED_SCHEDULERS:
        raise ModelError(
            f"The pipeline's scheduler is {class_name}; supported are {', '.join(SUPPORTED_SCHEDULERS)} "
            "(discrete-time diffusion). Flow-matching and continuous-time schedulers have no step distribution here."
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise ModelError(f"The scheduler predicts {prediction!r}; supported are {', '.join(PREDICTION_TYPES)}.")
    for key in ("thresholding", "clip_sample"):
        if config.get(key, False):
            raise ModelError(
                f"The scheduler has {key}: true, which makes the step's mean a non-linear function of the model's output. "
                f"Set {key} to false in scheduler/scheduler_config.json (latent diffusion models are trained without it)."
            )


def build_step_distribution(
    config: Mapping[str, Any], steps: int, eta: float, stochastic_steps: Sequence[int]
) -> StepDistribution:
    """The step distribution that diffusers' DDIMScheduler samples from with this configuration.

    config: the scheduler's configuration; steps: T; eta: noise level of the stochastic steps; stochastic_steps: their
    positions, the others being DDIM steps with eta 0. Raises ModelError where a stochastic step has no noise.
    """
    scheduler = DDIMScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.to(torch.int64).cpu()
    previous = timesteps - scheduler.config.num_train_timesteps // steps
    alphas = scheduler.alphas_cumprod.double()
    final = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    alpha_bar_prev = torch.where(previous >= 0, alphas[previous.clamp(min=0)], final)
    eta_per_step = torch.zeros(steps, dtype=torch.float64)
    eta_per_step[list(stochastic_steps)] = eta
    a, b, std = ddim_coefficients(alphas[timesteps], alpha_bar_prev, eta_per_step, scheduler.config.prediction_type)
    silent = [step for step in stochastic_steps if not std[step] > 0]
    if silent:
        raise ModelError(
            f"Steps {silent} of {steps} draw no noise in this model's schedule, so they have no log-probability. "
            "Leave them out of sampling.stochastic_steps (the default, all_but_last, does)."
        )
    if not bool(torch.isfinite(torch.stack([a, b, std])).all()):
        raise ModelError(
            f"The noise schedule gives non-finite coefficients at {steps} steps with prediction type "
            f"{scheduler.config.prediction_type!r}; a zero-SNR schedule needs v_prediction or sample."
        )
    return StepDistribution(timesteps, a, b, std, tuple(stochastic_steps))
