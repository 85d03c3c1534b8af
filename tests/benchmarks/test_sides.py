"""Both sides of each comparison run on a tiny pipeline and do the same work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from benchmarks.bare import BareSampler
from benchmarks.learning import bare_gradient, sampled_wave
from benchmarks.sampling import at_guidance, bare_sampler
from common.config.schema import Config
from common.model.loading import load_policy
from tests.tiny_config import make_config


@pytest.fixture
def config(tiny_pipeline: Path, tmp_path: Path) -> Config:
    """A few images of a few steps."""
    return make_config(tiny_pipeline, tmp_path, {"learner.micro_batch_size": 5})


class _CountedCalls:
    """Counts the items that go through a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.sizes: list[int] = []
        module.register_forward_pre_hook(lambda _, inputs: self.sizes.append(len(inputs[0])))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_bare_sampler_is_diffusers_own_pipeline(config: Config, scale: float) -> None:
    policy, _ = load_policy(at_guidance(config, scale))
    bare = bare_sampler(at_guidance(config, scale), policy)
    pictures = bare.images("a cat", seed=3)
    assert pictures.shape == (4, 64, 64, 3)
    assert pictures.dtype == np.uint8
    pipeline: Any = bare.pipeline
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    expected = pipeline(
        "a cat",
        num_images_per_prompt=4,
        num_inference_steps=4,
        guidance_scale=scale,
        eta=1.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images
    difference = np.abs((expected * 255).round() - pictures.astype(float))
    assert difference.max() <= 1.0


def test_sampling_sides_take_as_many_unet_items(config: Config) -> None:
    from actors.actor import Actor
    from benchmarks.sampling import actor_calls
    from driver.run.prompts import PromptStream, open_prompts

    guided = at_guidance(config, 3.0)
    policy, steps = load_policy(guided)
    counted = _CountedCalls(policy.guided.network)
    prompts = PromptStream(open_prompts(config.prompts.train), 0)
    actor = Actor.of(policy, steps)
    without, _ = actor_calls(guided, policy, actor, prompts)
    without(0)
    counted.sizes.clear()  # of the weights' first loading
    without(1)
    ours, counted.sizes[:] = list(counted.sizes), []
    bare: BareSampler = bare_sampler(guided, policy)
    bare.images("a cat", 0)
    assert ours == counted.sizes == [8] * 4


def test_bare_gradient_takes_the_same_pairs_in_the_same_micro_batches(config: Config) -> None:
    policy, steps = load_policy(config)
    wave = sampled_wave(config, policy, steps)
    bare = bare_gradient(config, policy, steps, wave)
    assert torch.equal(bare.latents[4 * 2 + 1], wave.latents[2 * 4 + 1])  # image 1 at step 2
    assert bare.timesteps[4 * 2 + 1] == steps.times[2]
    counted = _CountedCalls(policy.guided.network)
    bare.accumulate()
    assert counted.sizes == [5, 5, 2]
    assert all(value.grad is not None for value in policy.trainable.parameters().values())
