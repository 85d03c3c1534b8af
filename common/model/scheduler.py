"""From a pipeline's scheduler configuration to our step distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DDIMScheduler

from common.errors import ModelError
from common.model.steps import PREDICTION_TYPES, StepDistribution, ddim_coefficients

# Schedulers of discrete-time diffusion: they differ in how they sample, not in the noise schedule that they
# configure.
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
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")


def check_scheduler(class_name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError where the scheduler is not one whose noise schedule DDIM can take."""
    if class_name not in SUPPORTED_SCHEDULERS:
        raise ModelError(
            f"The pipeline's scheduler is {class_name}; supported are {', '.join(SUPPORTED_SCHEDULERS)} "
            "(discrete-time diffusion). Flow-matching and continuous-time schedulers have no step "
            "distribution here."
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        raise ModelError(
            f"The scheduler predicts {prediction!r}; supported are {', '.join(PREDICTION_TYPES)}."
        )
    spacing = config.get("timestep_spacing", "leading")
    if spacing not in TIMESTEP_SPACINGS:
        raise ModelError(
            f"The scheduler's timestep_spacing is {spacing!r}; supported are {', '.join(TIMESTEP_SPACINGS)}."
        )
    schedule = config.get("beta_schedule", "linear")
    if config.get("trained_betas") is None and schedule not in BETA_SCHEDULES:
        raise ModelError(
            f"The scheduler's beta_schedule is {schedule!r}; supported are {', '.join(BETA_SCHEDULES)}."
        )
    for key in ("thresholding", "clip_sample"):
        if config.get(key, False):
            raise ModelError(
                f"The scheduler has {key}: true, which makes the step's mean a non-linear function of the "
                f"model's output. Set {key} to false in scheduler/scheduler_config.json (latent diffusion "
                "models are trained without it)."
            )


def build_step_distribution(
    config: Mapping[str, Any], steps: int, eta: float, stochastic_steps: Sequence[int]
) -> StepDistribution:
    """The step distribution that diffusers' DDIMScheduler samples from with this configuration.

    config: the scheduler's configuration; steps: T; eta: noise level of the stochastic steps;
    stochastic_steps: their positions, the others being DDIM steps with eta 0. Raises ModelError where the
    schedule does not hold so many steps, or where a stochastic step has no noise.
    """
    scheduler: Any = DDIMScheduler.from_config(dict(config))
    timesteps = _timesteps(scheduler, steps)
    previous = timesteps - scheduler.config.num_train_timesteps // steps
    alphas = scheduler.alphas_cumprod.double()
    final = torch.as_tensor(scheduler.final_alpha_cumprod).double()
    alpha_bar_prev = torch.where(previous >= 0, alphas[previous.clamp(min=0)], final)
    eta_per_step = torch.zeros(steps, dtype=torch.float64)
    eta_per_step[list(stochastic_steps)] = eta
    a, b, std = ddim_coefficients(
        alphas[timesteps], alpha_bar_prev, eta_per_step, scheduler.config.prediction_type
    )
    silent = [step for step in stochastic_steps if not std[step] > 0]
    if silent:
        raise ModelError(
            f"Steps {silent} of {steps} draw no noise in this model's schedule, so they have no "
            "log-probability. Leave them out of sampling.stochastic_steps (the default, all_but_last, does)."
        )
    if not bool(torch.isfinite(torch.stack([a, b, std])).all()):
        raise ModelError(
            f"The noise schedule gives non-finite coefficients at {steps} steps with prediction type "
            f"{scheduler.config.prediction_type!r}; a zero-SNR schedule needs v_prediction or sample."
        )
    return StepDistribution(timesteps, a, b, std, tuple(stochastic_steps))


def _timesteps(scheduler: Any, steps: int) -> torch.Tensor:
    """What the UNet is told at each step, int64 (T,). Raises ModelError where there are not T of them."""
    trained, spacing = scheduler.config.num_train_timesteps, scheduler.config.timestep_spacing
    if steps > trained:
        raise ModelError(f"sampling.steps is {steps}, but the model's schedule has only {trained} steps.")
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.to(torch.int64).cpu()
    # diffusers' arithmetic goes past an end of the schedule for a few numbers, such as 61 with trailing
    # spacing.
    if len(timesteps) != steps or int(timesteps.min()) < 0 or int(timesteps.max()) >= trained:
        raise ModelError(
            f"The model's schedule ({spacing} spacing of {trained} steps, offset "
            f"{scheduler.config.steps_offset}) cannot be cut into {steps} steps: they would run from "
            f"{int(timesteps.max())} to {int(timesteps.min())}. Choose another sampling.steps."
        )
    return timesteps
