"""The forward process against diffusers' own: noised latents, targets, and what an output says of x_0."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.model.forward_process import NoiseLevels, forward_noise
from common.model.schedules import ddim_noise_levels, flow_noise_levels, flow_sigmas
from common.trajectory import NoiseKey

SHAPE = (3, 2, 4, 4)


def _draw(seed: int) -> Tensor:
    return torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _config(prediction: str) -> dict[str, Any]:
    return {"prediction_type": prediction, "beta_schedule": "scaled_linear", "beta_end": 0.012}


def _all(levels: NoiseLevels) -> Tensor:
    return torch.linspace(0, levels.count - 1, SHAPE[0]).long()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [None, 7])
def test_it_is_what_diffusers_trains_with(prediction: str, steps: int | None) -> None:
    levels = ddim_noise_levels(_config(prediction), steps)
    scheduler: Any = DDPMScheduler.from_config(_config(prediction))
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    sampler: Any = DDIMScheduler.from_config(_config(prediction))
    sampler.set_timesteps(steps or 1000)
    wanted = sampler.timesteps.tolist()
    assert list(levels.times) == (wanted if steps else wanted[::-1])
    clean, noise, at = _draw(1), _draw(2), _all(levels)
    timesteps = levels.time(at).long()
    torch.testing.assert_close(
        levels.noised(clean, noise, at), scheduler.add_noise(clean, noise, timesteps), rtol=1e-12, atol=1e-12
    )
    targets = {
        "epsilon": noise,
        "v_prediction": scheduler.get_velocity(clean, noise, timesteps),
        "sample": clean,
    }
    torch.testing.assert_close(levels.target(clean, noise, at), targets[prediction], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_an_outputs_error_in_x_0_is_that_of_diffusers_prediction(prediction: str) -> None:
    levels = ddim_noise_levels(_config(prediction), 5)
    sampler: Any = DDIMScheduler.from_config({**_config(prediction), "clip_sample": False})
    sampler.alphas_cumprod = sampler.alphas_cumprod.double()
    sampler.set_timesteps(5)
    clean, noise, at = _draw(1), _draw(2), torch.tensor([0, 2, 4])
    noised, target = levels.noised(clean, noise, at), levels.target(clean, noise, at)
    for item, level in enumerate(at.tolist()):
        off = target[item] + 0.01
        predicted = sampler.step(off, int(levels.times[level]), noised[item]).pred_original_sample
        error = (predicted - clean[item]).abs().mean()
        assert float(error) == pytest.approx(0.01 * float(levels.clean_error(at)[item]), rel=1e-9)


def test_a_flow_models_velocity_leads_from_x_0_to_noise() -> None:
    sigmas = flow_sigmas({"shift": 3.0}, 6, 16)[:-1]
    levels = flow_noise_levels(sigmas, 1000.0)
    clean, noise, at = _draw(1), _draw(2), torch.tensor([0, 3, 5])
    noised, velocity = levels.noised(clean, noise, at), levels.target(clean, noise, at)
    assert torch.equal(noised[0], noise[0])
    torch.testing.assert_close(velocity, noise - clean)
    level = torch.tensor([sigmas[step] for step in at.tolist()]).double()
    torch.testing.assert_close(noised - level.view(-1, 1, 1, 1) * velocity, clean)
    torch.testing.assert_close(levels.clean_error(at), level)
    assert levels.time(at).tolist() == pytest.approx((1000 * level).tolist())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 6))
def test_levels_are_drawn_without_replacement_anew_in_each_update(
    prompt: int, update: int, images: int, pairs: int
) -> None:
    key, shape = NoiseKey(3, "train", 2, prompt), (1, 2, 2)
    levels, noise = forward_noise(key, update, images, pairs, 6, shape)
    assert (levels.shape, noise.shape) == ((images, pairs), (images, pairs, *shape))
    assert (levels.dtype, noise.dtype) == (np.int64, np.float32)
    assert all(len(set(row)) == pairs and set(row) <= set(range(6)) for row in levels.tolist())
    more, later = (forward_noise(key, number, images + 1, pairs, 6, shape) for number in (update, update + 1))
    assert np.array_equal(more[0][:images], levels)
    assert np.array_equal(more[1][:images], noise)
    assert not np.array_equal(later[1], more[1])
    assert not np.array_equal(key.normal(images, pairs, shape), noise)


def test_every_level_is_drawn_equally_often() -> None:
    levels, _ = forward_noise(NoiseKey(3, "train", 2, 17), 0, 4000, 2, 5, (1,))
    shares = np.bincount(levels.ravel(), minlength=5) / levels.size
    np.testing.assert_allclose(shares, 0.2, atol=4 * np.sqrt(0.16 / levels.size))
