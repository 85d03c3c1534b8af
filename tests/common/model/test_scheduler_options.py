"""Options of schedulers: honoured, or refused by key and value."""

from __future__ import annotations

import pytest
from diffusers import DDIMScheduler

from common.errors import ModelError
from common.model.scheduler_options import check_discrete, check_flow, fill_scheduler_config


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "LCMScheduler"])
def test_unsupported_schedulers_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"{name}.*DDIMScheduler"):
        check_discrete(name, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("clip_sample", True),
        ("thresholding", True),
        ("prediction_type", "flow_prediction"),
        ("beta_schedule", "sigmoid"),
        ("timestep_spacing", "even"),
        ("timestep_type", "continuous"),
        ("interpolation_type", "log_linear"),
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("use_flow_sigmas", True),
        ("use_lu_lambdas", True),
        ("use_dynamic_shifting", True),
        ("flow_shift", 3.0),
        ("sigma_min", 0.002),
        ("sigma_max", 700.0),
        ("final_sigmas_type", "other"),
        ("variance_type", "learned_range"),
        ("variance_type", "fixed_large"),
        ("rescale_betas_zero_snr", "yes"),
        ("trained_betas", [0.1, 0.2]),
        ("steps_offset", "1"),
        ("num_train_timesteps", 1000.5),
        ("of_a_later_version", 2),
        ("lambda_min_clipped", -5.1),
    ],
)
def test_settings_without_a_counterpart_are_refused(key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key):
        check_discrete("DPMSolverMultistepScheduler", {"clip_sample": False, key: value})


@pytest.mark.parametrize(
    ("key", "value"), [("invert_sigmas", True), ("stochastic_sampling", True), ("num_train_timesteps", 500)]
)
def test_flow_settings_without_a_counterpart_are_refused(key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key):
        check_flow("FlowMatchEulerDiscreteScheduler", {key: value})


def test_what_belongs_to_the_solver_or_is_off_is_taken() -> None:
    solver = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3, "skip_prk_steps": True, "later": None}
    check_discrete("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, **solver})


@pytest.mark.parametrize(
    "raw", [{"beta_schedule": "cosine"}, {"beta_start": "small"}, {"algorithm_type": "magic"}]
)
def test_a_configuration_that_its_class_does_not_take_is_refused(raw: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=str(next(iter(raw.values())))):
        fill_scheduler_config("DPMSolverMultistepScheduler", raw)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("EulerDiscreteScheduler", "timestep_spacing", "linspace"),
        ("PNDMScheduler", "set_alpha_to_one", False),
    ],
)
def test_defaults_that_are_filled_in_stay_those_of_the_class(name: str, key: str, value: object) -> None:
    assert DDIMScheduler.from_config(fill_scheduler_config(name, {})).config[key] == value


def test_all_that_is_off_is_named_at_once() -> None:
    with pytest.raises(ModelError, match=r"timestep_type is 'continuous'.*: 'discrete'.*sigma_max is 7"):
        check_discrete("EulerDiscreteScheduler", {"timestep_type": "continuous", "sigma_max": 7.0})
