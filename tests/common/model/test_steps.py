"""The step distribution against the Gaussian density written out, and against DDPM's posterior."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Normal

from common.model.schedules import PREDICTION_TYPES, ddim_coefficients, ddim_steps
from common.model.steps import Chosen, Steps

SD_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _distribution(steps: int, eta: float = 1.0) -> Steps:
    return ddim_steps(SD_SCHEDULE, steps, eta, Chosen(range(steps - 1), math.inf))


def _slow_log_prob(previous: Tensor, mean: Tensor, std: float) -> float:
    """Mean over the elements of the normal log-density, one element at a time, in Python's own float64."""
    total = 0.0
    for value, centre in zip(previous.flatten().tolist(), mean.flatten().tolist(), strict=True):
        total += -((value - centre) ** 2) / (2 * std * std) - math.log(std * math.sqrt(2 * math.pi))
    return total / previous.numel()


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 998),
    st.integers(1, 900),
    st.sampled_from(["epsilon", "v_prediction", "sample"]),
    st.integers(0, 999),
)
def test_eta_one_is_the_posterior_of_ddpm(start: int, gap: int, prediction: str, seed: int) -> None:
    """Ho et al. 2020, eqs. 6 and 7, with the betas of a strided chain."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bars = torch.cumprod(1 - betas, 0)
    now, before = min(999, start + gap), start - 1
    abar, abar_prev = alpha_bars[now], alpha_bars[before]
    alpha = abar / abar_prev
    beta = 1 - alpha
    generator = torch.Generator().manual_seed(seed)
    clean, noise = torch.randn(2, 7, dtype=torch.float64, generator=generator)
    latent = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    posterior_mean = (
        abar_prev.sqrt() * beta / (1 - abar) * clean + alpha.sqrt() * (1 - abar_prev) / (1 - abar) * latent
    )
    posterior_variance = (1 - abar_prev) / (1 - abar) * beta
    output = {
        "epsilon": noise,
        "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * clean,
        "sample": clean,
    }[prediction]
    one = torch.ones(1, dtype=torch.float64)
    a, b, std = ddim_coefficients(abar.view(1), abar_prev.view(1), one, prediction)
    torch.testing.assert_close(a * latent + b * output, posterior_mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(std.square(), posterior_variance.view(1), rtol=1e-9, atol=0)


def test_every_prediction_type_is_covered_by_the_posterior_test() -> None:
    assert set(PREDICTION_TYPES) == {"epsilon", "v_prediction", "sample"}


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 60), st.floats(0.05, 1.0), st.integers(0, 999))
def test_log_prob_is_the_mean_of_the_gaussian_density(steps: int, eta: float, seed: int) -> None:
    distribution = _distribution(steps, eta)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, steps - 1, (3,), generator=generator)
    mean = torch.randn(3, 4, 2, 2, generator=generator)
    previous = distribution.sample(mean, torch.randn(3, 4, 2, 2, generator=generator), chosen)
    result = distribution.log_prob(previous, mean, chosen)
    assert result.dtype == torch.float64
    for item, step in enumerate(chosen.tolist()):
        std = distribution.std[step]
        slow = _slow_log_prob((previous - mean)[item], torch.zeros(4, 2, 2), std)
        difference = (previous - mean)[item].double()
        library = (
            Normal(0.0, torch.tensor(distribution.std[step], dtype=torch.float64)).log_prob(difference).mean()
        )
        assert float(result[item]) == pytest.approx(slow, rel=1e-12)
        assert float(result[item]) == pytest.approx(float(library), rel=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 60), st.floats(0.1, 1.0), st.floats(1e-4, 1.0), st.integers(0, 999))
def test_log_ratio_is_the_difference_of_log_probs(steps: int, eta: float, size: float, seed: int) -> None:
    distribution = _distribution(steps, eta)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(0, steps - 1, (3,), generator=generator)
    mean, shift, noise = torch.randn(3, 3, 4, 2, 2, dtype=torch.float64, generator=generator)
    previous = distribution.sample(mean, noise, chosen)
    other = mean + size * torch.tensor(distribution.std)[chosen].view(-1, 1, 1, 1) * shift
    expected = distribution.log_prob(previous, mean, chosen) - distribution.log_prob(previous, other, chosen)
    ratio = distribution.log_ratio(previous, mean, other, chosen)
    assert ratio.dtype == torch.float32
    torch.testing.assert_close(ratio.double(), expected, rtol=1e-6, atol=1e-12)


def test_log_ratio_of_float32_latents_keeps_its_digits() -> None:
    """Two float32 log-probs near 1 would differ by rounding; the difference form resolves a millionth."""
    distribution = _distribution(50)
    generator = torch.Generator().manual_seed(0)
    steps = torch.arange(49)
    mean = torch.randn(49, 4, 8, 8, generator=generator)
    previous = distribution.sample(mean, torch.randn(49, 4, 8, 8, generator=generator), steps)
    shift = (
        1e-3
        * torch.tensor(distribution.std)[:49].view(-1, 1, 1, 1)
        * torch.randn(49, 4, 8, 8, generator=generator)
    )
    other = mean + shift
    exact = distribution.log_prob(previous.double(), mean.double(), steps) - distribution.log_prob(
        previous.double(), other.double(), steps
    )
    ratio = distribution.log_ratio(previous, mean, other, steps).double()
    assert float((ratio - exact).abs().max()) < 1e-7


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 50), st.integers(0, 999))
def test_log_ratio_of_equal_means_is_exactly_zero(steps: int, seed: int) -> None:
    distribution = _distribution(steps)
    generator = torch.Generator().manual_seed(seed)
    mean, previous = torch.randn(2, steps - 1, 4, 4, 4, generator=generator)
    ratio = distribution.log_ratio(previous, mean, mean.clone(), torch.arange(steps - 1))
    assert torch.equal(ratio, torch.zeros(steps - 1))


def test_log_prob_stays_float64_for_reduced_precision_outputs() -> None:
    distribution = _distribution(4)
    latents, steps = torch.randn(2, 4, 2, 2), torch.tensor([0, 1])
    mean = distribution.mean(latents, torch.randn(2, 4, 2, 2).bfloat16(), steps)
    assert mean.dtype == torch.float32
    assert distribution.log_prob(latents, mean, steps).dtype == torch.float64


def test_each_item_of_a_batch_uses_its_own_step() -> None:
    distribution = _distribution(6)
    latents, output, noise = torch.randn(3, 5, 2, 2, 2, dtype=torch.float64)
    steps = torch.tensor([4, 0, 3, 3, 1])
    together = distribution.sample(distribution.mean(latents, output, steps), noise, steps)
    for item in range(5):
        one = slice(item, item + 1)
        mean = distribution.mean(latents[one], output[one], steps[one])
        assert torch.equal(distribution.sample(mean, noise[one], steps[one]), together[one])


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([4, 50]), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 999))
def test_one_step_for_all_items_gives_the_bits_of_a_step_each(
    steps: int, dtype: torch.dtype, seed: int
) -> None:
    """The sampler counts on it: it works step by step, the learner with items of all steps."""
    distribution = _distribution(steps)
    generator = torch.Generator().manual_seed(seed)
    latents, output, noise, other = torch.randn(4, 3, 2, 5, 5, generator=generator).to(dtype)
    for step in distribution.stochastic_steps:
        each = torch.full((3,), step)
        assert torch.equal(distribution.time(step, 3), distribution.time(each, 3))
        mean = distribution.mean(latents, output, step)
        previous = distribution.sample(mean, noise, step)
        assert torch.equal(mean, distribution.mean(latents, output, each))
        assert torch.equal(previous, distribution.sample(mean, noise, each))
        one, many = (distribution.log_prob(previous, mean, at) for at in (step, each))
        assert torch.equal(one, many)
        one, many = (distribution.log_ratio(previous, mean, other, at) for at in (step, each))
        assert torch.equal(one, many)


def test_fingerprint_tells_every_setting_apart() -> None:
    base = _distribution(6)
    others = [
        base.fingerprint("guidance 1"),
        base.fingerprint("guidance 5"),
        *(
            other.fingerprint("guidance 1")
            for other in (
                _distribution(7),
                _distribution(6, 0.5),
                ddim_steps(SD_SCHEDULE, 6, 1.0, Chosen((0, 1), math.inf)),
                ddim_steps({**SD_SCHEDULE, "prediction_type": "sample"}, 6, 1.0, Chosen(range(5), math.inf)),
                ddim_steps({**SD_SCHEDULE, "steps_offset": 0}, 6, 1.0, Chosen(range(5), math.inf)),
            )
        ),
    ]
    assert len(set(others)) == len(others)
    assert _distribution(6).fingerprint("guidance 1") == base.fingerprint("guidance 1")
