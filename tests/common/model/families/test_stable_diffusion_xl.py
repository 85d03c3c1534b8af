"""Stable Diffusion XL against diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline

from actors.sampler import denoise
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.schedules import ddim_steps
from common.model.steps import Chosen
from tests.tiny_config import make_config
from tests.tiny_pipeline import make_tiny_xl_pipeline

CPU = torch.device("cpu")
LORA = {"kind": "lora", "rank": 2, "alpha": 6}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """By whether guidance moves away from zeros."""
    root = tmp_path_factory.mktemp("xl")
    return {zero: make_tiny_xl_pipeline(root / str(zero), zero) for zero in (True, False)}


def _plain(folder: Path) -> Any:
    pipeline: Any = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.vae.requires_grad_(False)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _policy(folder: Path, tmp_path: Path, **settings: Any) -> Policy:
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    return load_policy(make_config(folder, tmp_path, {"policy": LORA, **overrides}))[0]


def _train(policy: Policy) -> None:
    optimizer = torch.optim.AdamW(policy.trainable.parameters().values(), lr=0.02)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        output = policy.predict(latents, torch.tensor([900.0, 100.0]), policy.embed("a cat"))
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("zero", [True, False])
def test_conditions_are_those_of_diffusers(folders: dict[bool, Path], tmp_path: Path, zero: bool) -> None:
    policy, plain = _policy(folders[zero], tmp_path, sampling__guidance_scale=3.0), _plain(folders[zero])
    for prompt in ("a cat", "a prompt that does not fit into the few tokens of the tiny model"):
        condition = policy.embed(prompt)
        states, away, pooled, away_pooled = plain.encode_prompt(prompt, device=CPU)
        expected = {
            "encoder_hidden_states": torch.cat([states, away]),
            "text_embeds": torch.cat([pooled, away_pooled]),
            "time_ids": torch.tensor([[64.0, 64.0, 0.0, 0.0, 64.0, 64.0]] * 2),
        }
        assert set(condition) == set(expected)
        for name, rows in expected.items():
            torch.testing.assert_close(condition[name], rows, rtol=1e-5, atol=1e-6)
        assert bool((condition["text_embeds"][1] == 0).all()) == zero


@pytest.mark.parametrize(
    ("zero", "scale"),
    [(True, 4.0), *(pytest.param(*one, marks=pytest.mark.slow) for one in ((False, 4.0), (True, 1.0)))],
)
def test_plain_diffusers_loads_the_adapter_and_paints_the_same(
    folders: dict[bool, Path], tmp_path: Path, zero: bool, scale: float
) -> None:
    policy = _policy(folders[zero], tmp_path, sampling__guidance_scale=scale)
    family: Any = policy.family
    steps = ddim_steps(family.scheduler[1], 5, 1.0, Chosen((), 1.0))
    noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    untrained = denoise(policy, steps, noise, policy.embed("a red cat"))[0][-1]
    _train(policy)
    latents = denoise(policy, steps, noise, policy.embed("a red cat"))[0][-1]
    policy.trainable.save(tmp_path / "trained")

    def paint(pipeline: Any, output_type: str) -> Any:
        return pipeline(
            ["a red cat"] * 2,
            latents=noise[:, 0],
            num_inference_steps=5,
            guidance_scale=scale,
            eta=0.0,
            output_type=output_type,
        ).images

    plain = _plain(folders[zero])
    before = paint(plain, "latent")
    assert float((untrained - before).abs().max()) < 1e-4 * float(before.abs().max())
    plain.load_lora_weights(tmp_path / "trained")
    theirs = paint(plain, "latent")
    assert float((latents - untrained).abs().mean()) > 1e-2
    assert float((latents - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())
    pixels = np.stack([np.asarray(image) for image in paint(plain, "pil")]).astype(int)
    assert np.abs(policy.family.decode(latents).astype(int) - pixels).max() <= 1


def test_a_learner_loads_the_network_alone(folders: dict[bool, Path], tmp_path: Path) -> None:
    config = make_config(folders[True], tmp_path, {"sampling.guidance_scale": 3.0})
    (whole, steps), (alone, _) = load_policy(config), load_policy(config, network_only=True)
    assert alone.steps_fingerprint(steps) == whole.steps_fingerprint(steps)
    assert set(whole.family.parts()) == {"unet", "vae", "text_encoder", "text_encoder_2"}
    condition, example = whole.embed("a cat"), alone.example()
    assert {name: rows.shape[-1] for name, rows in example.items()} == {
        name: rows.shape[-1] for name, rows in condition.items()
    }
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 100.0])
    with torch.no_grad():
        alone.predict(latents, times, example)
        assert torch.equal(alone.predict(latents, times, condition), whole.predict(latents, times, condition))
