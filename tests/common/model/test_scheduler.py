"""The step distribution of a scheduler configuration against diffusers' DDIMScheduler, step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ModelError
from common.model.scheduler import SUPPORTED_SCHEDULERS, build_step_distribution, check_scheduler

SCHEDULES = {
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {},
    "linear": {"beta_start": 0.0001, "beta_end": 0.02},
}


def _reference(config: dict[str, Any], steps: int) -> Any:
    scheduler: Any = DDIMScheduler(**config)
    # The same betas in double: what is compared is the arithmetic of a step, not diffusers' float32 rounding.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(steps)
    return scheduler


@settings(max_examples=40, deadline=None)
@given(
    prediction=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    eta=st.sampled_from([1e-3, 0.5, 1.0]),
    steps=st.sampled_from([1, 2, 7, 10, 30, 50]),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    to_one=st.booleans(),
    offset=st.sampled_from([0, 1]),
)
def test_steps_are_those_of_diffusers(
    prediction: str, eta: float, steps: int, spacing: str, schedule: str, to_one: bool, offset: int
) -> None:
    config = {
        "beta_schedule": schedule,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "set_alpha_to_one": to_one,
        "steps_offset": offset,
        "clip_sample": False,
        **SCHEDULES[schedule],
    }
    chosen = tuple(range(0, steps - 1, 2))
    distribution = build_step_distribution(config, steps, eta, chosen)
    scheduler = _reference(config, steps)
    assert torch.equal(distribution.timesteps, scheduler.timesteps)
    generator = torch.Generator().manual_seed(steps)
    for step, timestep in enumerate(scheduler.timesteps.tolist()):
        own_eta = eta if step in chosen else 0.0
        latents, output, noise = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64, generator=generator)
        zero, one = torch.zeros_like(noise), torch.ones_like(noise)
        index = torch.full((2,), step)
        mean = distribution.mean(latents, output, index)
        silent = scheduler.step(output, timestep, latents, eta=own_eta, variance_noise=zero)[0]
        unit = scheduler.step(output, timestep, latents, eta=own_eta, variance_noise=one)[0]
        drawn = scheduler.step(output, timestep, latents, eta=own_eta, variance_noise=noise)[0]
        torch.testing.assert_close(mean, silent, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close((unit - silent).mean(), distribution.std[step], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(distribution.sample(mean, noise, index), drawn, rtol=1e-9, atol=1e-9)


def test_steps_left_out_are_deterministic_and_the_others_draw_noise() -> None:
    distribution = build_step_distribution({"steps_offset": 1}, 6, 1.0, (1, 3))
    assert (distribution.std > 0).tolist() == [False, True, False, True, False, False]
    assert distribution.stochastic_steps == (1, 3)


def test_no_stochastic_step_is_plain_ddim() -> None:
    assert not build_step_distribution({}, 5, 1.0, ()).std.any()


def test_last_step_without_noise_is_refused() -> None:
    """set_alpha_to_one ends at abar = 1, where the posterior is a point."""
    with pytest.raises(ModelError, match=r"Steps \[4\] of 5 draw no noise .* all_but_last"):
        build_step_distribution({"set_alpha_to_one": True}, 5, 1.0, range(5))
    last = build_step_distribution({"set_alpha_to_one": False, "steps_offset": 1}, 5, 1.0, range(5))
    assert last.std[-1] > 0


def test_zero_signal_is_refused_for_epsilon_and_fine_for_v() -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    with pytest.raises(ModelError, match="zero-SNR schedule needs v_prediction"):
        build_step_distribution({**config, "prediction_type": "epsilon"}, 5, 1.0, range(4))
    distribution = build_step_distribution({**config, "prediction_type": "v_prediction"}, 5, 1.0, range(4))
    assert distribution.timesteps[0] == 999


def test_more_steps_than_the_schedule_has_are_refused() -> None:
    with pytest.raises(ModelError, match=r"sampling\.steps is 51, but the model's schedule has only 50"):
        build_step_distribution({"num_train_timesteps": 50}, 51, 1.0, (0,))


@pytest.mark.parametrize(
    ("config", "steps"), [({"timestep_spacing": "trailing"}, 61), ({"steps_offset": 1}, 1000)]
)
def test_schedules_that_run_past_an_end_are_refused(config: dict[str, Any], steps: int) -> None:
    with pytest.raises(ModelError, match=f"cannot be cut into {steps} steps"):
        build_step_distribution(config, steps, 1.0, (0,))


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "LCMScheduler"])
def test_unsupported_schedulers_are_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"scheduler is {name}; supported are DDIMScheduler"):
        check_scheduler(name, {})


@pytest.mark.parametrize("name", SUPPORTED_SCHEDULERS)
def test_supported_schedulers_exist_and_their_own_configuration_is_taken(name: str) -> None:
    import diffusers

    config = {**dict(getattr(diffusers, name)().config), "clip_sample": False}
    check_scheduler(name, config)
    assert build_step_distribution(config, 4, 1.0, range(3)).num_steps == 4


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("clip_sample", True, "clip_sample: true, which makes the step's mean a non-linear"),
        ("thresholding", True, "thresholding: true, which makes the step's mean a non-linear"),
        ("prediction_type", "flow_prediction", "predicts 'flow_prediction'; supported are epsilon"),
        ("beta_schedule", "sigmoid", "beta_schedule is 'sigmoid'; supported are linear"),
        ("timestep_spacing", "even", "timestep_spacing is 'even'; supported are leading"),
    ],
)
def test_settings_that_cannot_work_are_refused(key: str, value: object, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        check_scheduler("DDIMScheduler", {"clip_sample": False, key: value})


def test_trained_betas_stand_in_for_any_schedule_name() -> None:
    betas = [0.01] * 20
    check_scheduler("DDPMScheduler", {"trained_betas": betas, "beta_schedule": "sigmoid"})
    distribution = build_step_distribution(
        {"trained_betas": betas, "num_train_timesteps": 20, "clip_sample": False}, 4, 1.0, range(3)
    )
    assert distribution.timesteps.tolist() == [15, 10, 5, 0]
