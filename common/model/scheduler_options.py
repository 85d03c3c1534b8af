"""Which schedulers' configurations can be honoured: their noise schedule is, their solver is not used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers

from common.errors import ModelError
from common.model.options import Allowed, check_options, option_names

# Schedulers of discrete-time diffusion: they differ in how they sample, not in the noise schedule that they
# configure.
DISCRETE = (
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
FLOW = ("FlowMatchEulerDiscreteScheduler",)

# What the options that shape a schedule or a step's mean may be. Options of these schedulers that are not
# listed are honoured, or belong to the solver, whose place DDIM takes.
_DISCRETE_SHAPES: Allowed = {
    "use_karras_sigmas": (False, None),
    "use_exponential_sigmas": (False, None),
    "use_beta_sigmas": (False, None),
    "shift_terminal": (None,),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "use_dynamic_shifting": (False, None),
    "time_shift_type": ("exponential",),
    "flow_shift": (1.0, None),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "thresholding": (False, None),
    "clip_sample": (False, None),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "timestep_type": ("discrete",),
    "interpolation_type": ("linear",),
    "final_sigmas_type": ("zero", "sigma_min"),
    # The posterior's variance, which is DDIM's with eta = 1; fixed_large and learned ones are others.
    "variance_type": ("fixed_small", "fixed_small_log", None),
    "lambda_min_clipped": (-math.inf, "-Infinity"),
    "rescale_betas_zero_snr": (False, True),
    "set_alpha_to_one": (False, True),
}
# Of a flow model the scheduler itself computes the noise levels, so what shapes them is honoured.
_FLOW_SHAPES: Allowed = {
    "invert_sigmas": (False, None),
    "stochastic_sampling": (False, None),
    "num_train_timesteps": (1000,),
}
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
_COUNTS = ("num_train_timesteps", "steps_offset")


def check_discrete(class_name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError where DDIM cannot take the scheduler's noise schedule exactly."""
    _check(class_name, config, DISCRETE, _DISCRETE_SHAPES)
    betas, steps = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
    if betas is not None:
        if not isinstance(betas, list) or len(betas) != steps:
            raise ModelError(f"The scheduler's trained_betas must be num_train_timesteps = {steps} numbers.")
    elif config.get("beta_schedule", "linear") not in BETA_SCHEDULES:
        raise ModelError(
            f"The scheduler's beta_schedule is {config['beta_schedule']!r}; supported are "
            f"{', '.join(BETA_SCHEDULES)}."
        )


def check_flow(class_name: str, config: Mapping[str, Any]) -> None:
    """Raise ModelError where the flow samplers cannot take the scheduler's sigmas exactly."""
    _check(class_name, config, FLOW, _FLOW_SHAPES)


def fill_scheduler_config(class_name: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration with the defaults of its class: they differ between classes.

    Raises ModelError where the class is none of those known here, or does not take the values.
    """
    check_class(class_name)
    try:
        filled = dict(getattr(diffusers, class_name).from_config({**raw, "_class_name": class_name}).config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ModelError(f"No {class_name} can be made of {dict(raw)}: {error}") from error
    # Another class would put its own defaults in the place of those that are listed here.
    filled.pop("_use_default_values", None)
    return filled


def check_class(class_name: str, classes: Sequence[str] = (*DISCRETE, *FLOW)) -> None:
    """Raise ModelError where a scheduler is none of these."""
    if class_name not in classes:
        raise ModelError(f"The pipeline's scheduler is {class_name}; supported are {', '.join(classes)}.")


def _check(class_name: str, config: Mapping[str, Any], classes: Sequence[str], shapes: Allowed) -> None:
    check_class(class_name, classes)
    # A configuration keeps options of the classes that it was made for before.
    known = frozenset().union(*(option_names(getattr(diffusers, name)) for name in classes))
    check_options(Path("scheduler", "scheduler_config.json"), config, known, shapes)
    for key in _COUNTS:
        value = config.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ModelError(f"The scheduler's {key} is {value!r}; it must be a whole number.")
