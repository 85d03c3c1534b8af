"""The step distribution of a scheduler configuration against diffusers' DDIMScheduler, step by step."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ModelError
from common.model.scheduler_options import DISCRETE, check_discrete, check_flow
from common.model.schedules import FLOW_SAMPLERS, ddim_steps, flow_sigmas, flow_steps, std_of_gain
from common.model.steps import Chosen, Steps

STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
AUTO = Chosen(None, 2.5)
SCHEDULES = {
    "scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {},
    "linear": {"beta_start": 0.0001, "beta_end": 0.02},
}


def _named(config: Mapping[str, Any], steps: int, eta: float, positions: Iterable[int]) -> Steps:
    return ddim_steps(config, steps, eta, Chosen(tuple(positions), math.inf))


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
    distribution = _named(config, steps, eta, chosen)
    scheduler = _reference(config, steps)
    assert list(distribution.times) == scheduler.timesteps.tolist()
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
        assert float((unit - silent).mean()) == pytest.approx(distribution.std[step], rel=1e-6, abs=1e-9)
        torch.testing.assert_close(distribution.sample(mean, noise, index), drawn, rtol=1e-9, atol=1e-9)


def test_steps_left_out_are_deterministic_and_the_others_draw_noise() -> None:
    distribution = _named({"steps_offset": 1}, 6, 1.0, (1, 3))
    assert [std > 0 for std in distribution.std] == [False, True, False, True, False, False]
    assert distribution.stochastic_steps == (1, 3)


def test_no_stochastic_step_is_plain_ddim() -> None:
    assert not any(_named({}, 5, 1.0, ()).std)


def test_last_step_without_noise_is_refused() -> None:
    """set_alpha_to_one ends at abar = 1, where the posterior is a point."""
    with pytest.raises(ModelError, match="no noise"):
        _named({"set_alpha_to_one": True}, 5, 1.0, range(5))
    last = _named({"set_alpha_to_one": False, "steps_offset": 1}, 5, 1.0, range(5))
    assert last.std[-1] > 0


def test_zero_signal_is_refused_for_epsilon_and_fine_for_v() -> None:
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "clip_sample": False}
    with pytest.raises(ModelError, match="v_prediction"):
        _named({**config, "prediction_type": "epsilon"}, 5, 1.0, range(4))
    distribution = _named({**config, "prediction_type": "v_prediction"}, 5, 1.0, range(4))
    assert distribution.times[0] == 999


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        ({"num_train_timesteps": 50}, 51),
        ({"timestep_spacing": "trailing"}, 61),
        ({"steps_offset": 1}, 1000),
    ],
)
def test_more_steps_than_the_schedule_has_are_refused(config: dict[str, Any], steps: int) -> None:
    with pytest.raises(ModelError, match=str(steps)):
        _named(config, steps, 1.0, (0,))


@pytest.mark.parametrize("name", DISCRETE)
def test_supported_schedulers_exist_and_their_own_configuration_is_taken(name: str) -> None:
    import diffusers

    config = {**dict(getattr(diffusers, name)().config), "clip_sample": False}
    check_discrete(name, config)
    assert _named(config, 4, 1.0, range(3)).num_steps == 4


def test_the_end_of_the_schedule_is_honoured_under_either_name() -> None:
    ends = [{"set_alpha_to_one": False}, {"final_sigmas_type": "sigma_min"}]
    last = {_named({**STABLE_DIFFUSION, **end}, 5, 1.0, range(4)).sample_weight[-1] for end in ends}
    assert len(last) == 1
    zero = _named({**STABLE_DIFFUSION, "final_sigmas_type": "zero"}, 5, 1.0, range(4))
    assert zero.sample_weight[-1] not in last


def test_trained_betas_stand_in_for_any_schedule_name() -> None:
    betas = [0.01] * 20
    config = {"trained_betas": betas, "num_train_timesteps": 20, "clip_sample": False}
    check_discrete("DDPMScheduler", {**config, "beta_schedule": "sigmoid"})
    distribution = _named(config, 4, 1.0, range(3))
    assert distribution.times == (15, 10, 5, 0)


@pytest.mark.parametrize("steps", [4, 8, 10])
def test_auto_takes_all_but_the_last_of_the_shipped_model(steps: int) -> None:
    config = json.loads(Path("models/tiny-sd/scheduler/scheduler_config.json").read_text())
    assert ddim_steps(config, steps, 1.0, AUTO).stochastic_steps == tuple(range(steps - 1))


def test_auto_leaves_out_the_step_to_almost_no_noise() -> None:
    """Stable Diffusion 1.x in 50 steps: the step to t = 1 has a gain of 3.27, all others of 1.02 at most."""
    config = {**STABLE_DIFFUSION, "set_alpha_to_one": False, "steps_offset": 1}
    steps = ddim_steps(config, 50, 1.0, AUTO)
    assert set(range(50)) - set(steps.stochastic_steps) == {48}
    assert steps.times[49] == 1
    named = _named(config, 50, 1.0, range(50))
    gains = [abs(b) / std for b, std in zip(named.output_weight, named.std, strict=True)]
    assert gains[48] == pytest.approx(3.27, abs=0.01)
    assert max(gain for at, gain in enumerate(gains) if at != 48) == pytest.approx(1.02, abs=0.01)


def test_auto_that_finds_no_step_is_refused() -> None:
    with pytest.raises(ModelError, match="max_step_gain"):
        ddim_steps({}, 1, 1.0, AUTO)


def test_branching_at_a_step_without_noise_is_refused() -> None:
    config = {**STABLE_DIFFUSION, "set_alpha_to_one": False, "steps_offset": 1}
    with pytest.raises(ModelError, match=r"branch_at names steps \[48\]"):
        ddim_steps(config, 50, 1.0, replace(AUTO, branch_at=(3, 48)))


def _gains_of(steps: Steps) -> list[float]:
    return [abs(steps.output_weight[at]) / steps.std[at] for at in steps.stochastic_steps]


@settings(max_examples=30, deadline=None)
@given(
    prediction=st.sampled_from(["epsilon", "v_prediction", "sample"]),
    eta=st.sampled_from([0.3, 0.8, 1.0]),
    steps=st.sampled_from([2, 4, 10, 50]),
    schedule=st.sampled_from(sorted(SCHEDULES)),
)
def test_flat_noise_gives_every_step_the_gain_of_the_heaviest(
    prediction: str, eta: float, steps: int, schedule: str
) -> None:
    config = {"beta_schedule": schedule, "prediction_type": prediction, **SCHEDULES[schedule]}
    chosen = Chosen(tuple(range(steps - 1)), math.inf)
    usual, flat = (ddim_steps(config, steps, eta, chosen, flat) for flat in (False, True))
    gains = _gains_of(usual)
    assert _gains_of(flat) == pytest.approx([max(gains)] * (steps - 1), rel=1e-6)
    heaviest = gains.index(max(gains))
    assert flat.std[heaviest] == usual.std[heaviest]
    assert all(0 < less <= more for less, more in zip(flat.std[:-1], usual.std[:-1], strict=True))
    # The marginals are DDIM's: for x_t = sqrt(abar) x0 + sqrt(1 - abar) e and the true output, x_{t-1} has
    # the signal sqrt(abar') and the noise sqrt(1 - abar').
    scheduler = _reference({**config, "clip_sample": False}, steps)
    for at, timestep in enumerate(scheduler.timesteps.tolist()):
        before, after = (
            float(scheduler.alphas_cumprod[t]) if t >= 0 else float(scheduler.final_alpha_cumprod)
            for t in (timestep, timestep - 1000 // steps)
        )
        signal, noise = math.sqrt(before), math.sqrt(1 - before)
        clean, other = {
            "epsilon": (0.0, 1.0),
            "v_prediction": (-noise, signal),
            "sample": (1.0, 0.0),
        }[prediction]
        a, b = flat.sample_weight[at], flat.output_weight[at]
        assert a * signal + b * clean == pytest.approx(math.sqrt(after), abs=1e-6)
        assert math.hypot(a * noise + b * other, flat.std[at]) == pytest.approx(
            math.sqrt(1 - after), abs=1e-6
        )


def test_flat_noise_of_almost_no_eta_is_plain_ddim() -> None:
    flat = ddim_steps(STABLE_DIFFUSION, 10, 1e-6, Chosen(tuple(range(9)), math.inf), flat=True)
    plain = _named(STABLE_DIFFUSION, 10, 1.0, ())
    assert max(flat.std) < 1e-6
    assert flat.sample_weight == pytest.approx(plain.sample_weight, abs=1e-6)
    assert flat.output_weight == pytest.approx(plain.output_weight, abs=1e-6)


def test_no_deviation_has_less_gain_than_ddpms_and_a_larger_gain_has_a_smaller_one() -> None:
    abar, abar_prev = torch.tensor([[0.3], [0.55]], dtype=torch.float64)
    ddpm = ((1 - abar_prev) / (1 - abar) * (1 - abar / abar_prev)).sqrt()

    def gain(std: float) -> float:
        weight = -math.sqrt(0.55 * 0.7 / 0.3) + math.sqrt(0.45 - std**2)
        return abs(weight) / std

    least = gain(float(ddpm))
    tried = [gain(0.45**0.5 * share) for share in np.linspace(0.01, 0.999, 500)]
    assert min(tried) == pytest.approx(least, rel=1e-4)
    assert min(tried) >= least
    for wanted in (least * 1.01, 3.0, 100.0):
        std = std_of_gain(abar, abar_prev, torch.tensor([wanted], dtype=torch.float64), "epsilon")
        assert gain(float(std)) == pytest.approx(wanted, rel=1e-9)
        assert std < ddpm


FLOWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "SD3.5": {"shift": 3.0},
    "FLUX.1": {"use_dynamic_shifting": True, "shift": 3.0},
}


def _mu(tokens: int) -> float:
    return 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)


def _flow_reference(config: dict[str, Any], steps: int, tokens: int) -> Any:
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=_mu(tokens))
    return scheduler


def _shifted(shift: float, level: float) -> float:
    return shift * level / (1 + (shift - 1) * level)


@pytest.mark.parametrize("config", FLOWS.values(), ids=FLOWS)
@pytest.mark.parametrize("steps", [1, 6, 28])
def test_levels_that_a_pipeline_hands_over_are_shifted_once(config: dict[str, Any], steps: int) -> None:
    check_flow("FlowMatchEulerDiscreteScheduler", {**FlowMatchEulerDiscreteScheduler(**config).config})
    even = _even(steps)
    for tokens in (256, 1024, 4096):
        shift = math.exp(_mu(tokens)) if config.get("use_dynamic_shifting") else config.get("shift", 1.0)
        expected = [*(_shifted(shift, level) for level in even), 0.0]
        assert flow_sigmas(config, steps, tokens, even) == pytest.approx(expected, rel=1e-5)


def test_levels_that_the_scheduler_makes_itself_are_shifted_twice_as_in_diffusers() -> None:
    """SD3.5 in 10 steps."""
    expected = [1, 0.960, 0.913, 0.858, 0.790, 0.707, 0.602, 0.465, 0.278, 0.009, 0.0]
    assert flow_sigmas({"shift": 3.0}, 10, 1024) == pytest.approx(expected, abs=6e-4)
    assert flow_sigmas({"shift": 3.0}, 10, 1024)[9] == pytest.approx(_shifted(3.0, _shifted(3.0, 0.001)))


@pytest.mark.parametrize(
    "option",
    [
        {"shift_terminal": 0.02},
        {"use_karras_sigmas": True},
        {"time_shift_type": "linear"},
        {"base_shift": 0.9},
    ],
)
def test_options_that_shape_the_levels_are_honoured(option: dict[str, Any]) -> None:
    config = {**FLOWS["FLUX.1"], **option}
    check_flow("FlowMatchEulerDiscreteScheduler", {**FlowMatchEulerDiscreteScheduler(**config).config})
    scheduler: Any = FlowMatchEulerDiscreteScheduler(**config)
    mu = option.get("base_shift", 0.5) + (1.15 - option.get("base_shift", 0.5)) * 768 / 3840
    scheduler.set_timesteps(sigmas=_even(6), mu=mu)
    assert flow_sigmas(config, 6, 1024, _even(6)) == scheduler.sigmas.tolist()
    assert flow_sigmas(config, 6, 1024, _even(6)) != flow_sigmas(FLOWS["FLUX.1"], 6, 1024, _even(6))


def _even(steps: int) -> list[float]:
    return [1 - k / steps for k in range(steps)]


@pytest.mark.parametrize("kind", FLOW_SAMPLERS)
def test_without_noise_every_flow_sampler_takes_eulers_step(kind: str) -> None:
    scheduler = _flow_reference({"shift": 3.0}, 6, 1024)
    steps = flow_steps(flow_sigmas({"shift": 3.0}, 6, 1024, _even(6)), 1000.0, kind, 0.5, Chosen((), 1.0))
    assert not any(steps.std)
    latents, output = torch.randn(2, 6, 3, 4, dtype=torch.float64)
    assert steps.times == pytest.approx(scheduler.timesteps.tolist(), rel=1e-5)
    for at, timestep in enumerate(scheduler.timesteps):
        expected = scheduler.step(output, timestep, latents).prev_sample
        torch.testing.assert_close(steps.mean(latents, output, at), expected.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["cps", "precise"])
@pytest.mark.parametrize("level", [0.3, 0.8])
def test_with_the_true_velocity_the_marginals_are_kept(kind: str, level: float) -> None:
    """Of x0 and e given: x_n has the mean (1 - n) x0 and the deviation n, if x_s had (1 - s) x0 and s."""
    sigmas = flow_sigmas({"shift": 3.0}, 8, 256, _even(8))
    steps = flow_steps(sigmas, 1.0, kind, level, Chosen(range(7), math.inf))
    for at, (s, n) in enumerate(itertools.pairwise(sigmas)):
        a, b, std = steps.sample_weight[at], steps.output_weight[at], steps.std[at]
        # x_s = (1 - s) x0 + s e, v = e - x0
        of_clean, of_noise = a * (1 - s) - b, a * s + b
        assert of_clean == pytest.approx(1 - n, abs=1e-12)
        assert math.hypot(of_noise, std) == pytest.approx(n, abs=1e-12)


@pytest.mark.parametrize("kind", ["flow_sde", pytest.param("dance_sde", marks=pytest.mark.slow)])
def test_an_sde_keeps_the_marginals_in_small_steps(kind: str) -> None:
    sigmas = [1 - k / 20_000 for k in range(20_001)]
    chosen = Chosen(range(1, 19_000), math.inf)
    steps = flow_steps(sigmas, 1.0, kind, 0.7, chosen)
    mean, variance = 0.0, 1.0
    for at in range(19_000):
        a, b, std, s = steps.sample_weight[at], steps.output_weight[at], steps.std[at], sigmas[at]
        # For x0 = 1 the velocity that the network learns is linear in x: (x - 1) / s.
        mean, variance = (a + b / s) * mean - b / s, (a + b / s) ** 2 * variance + std**2
    assert mean == pytest.approx(1 - sigmas[19_000], abs=2e-3)
    assert math.sqrt(variance) == pytest.approx(sigmas[19_000], rel=0.02)


def test_written_out_coefficients() -> None:
    """Flow-GRPO's, DanceGRPO's and Precise's formulas, one step each."""
    s, n, d = 0.8, 0.6, -0.2
    g = 0.7 * math.sqrt(s / (1 - s))
    expected = {
        ("flow_sde", 0.7): (1 + g**2 * d / (2 * s), d * (1 + g**2 * (1 - s) / (2 * s)), g * math.sqrt(-d)),
        ("dance_sde", 0.3): (1 + 0.09 * d / 1.6, d * (1 + 0.09 * 0.2 / 1.6), 0.3 * math.sqrt(0.2)),
        ("precise", 1.5): (0.4 + n * math.sqrt(R), -0.4 * s + n * math.sqrt(R) * 0.2, n * math.sqrt(1 - R)),
    }
    for (kind, level), coefficients in expected.items():
        assert FLOW_SAMPLERS[kind](s, n, level) == pytest.approx(coefficients, rel=1e-12)


R = (0.6 * 0.2 / (0.8 * 0.4)) ** 2.25


def test_a_first_level_a_little_below_one_draws_as_much_as_one_does() -> None:
    """As DPM-Solver begins for Sana: of s itself, g would be 27 times as large."""
    steps = [
        flow_steps([first, 0.9, 0.0], 1.0, "flow_sde", 0.7, Chosen((0,), 1.0)) for first in (1.0, 0.9999)
    ]
    assert steps[0].std[0] == pytest.approx(0.7 * math.sqrt(0.9 / 0.1) * math.sqrt(0.1))
    assert steps[1].std[0] == pytest.approx(steps[0].std[0], rel=1e-3)


def test_auto_leaves_out_a_step_with_a_tiny_next_sigma() -> None:
    """The sigmas that diffusers gives SD3.5 in 10 steps."""
    sigmas = [1, 0.960, 0.913, 0.858, 0.790, 0.707, 0.602, 0.465, 0.278, 0.009, 0.0]
    for kind in ("cps", "precise"):
        level = {"cps": 0.8, "precise": 1.5}[kind]
        assert flow_steps(sigmas, 1.0, kind, level, AUTO).stochastic_steps == tuple(range(8))
