"""The committed weights: they load with the plain libraries and do what the model card says."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPModel, CLIPProcessor

from models.compose import compose_many
from models.scenes import all_scenes, prompt_of
from models.tokenizer import MAX_LENGTH, grammar_words
from models.train_tiny.augment import pixel_values
from models.train_tiny.clip import PLANS
from models.train_tiny.code import patch_code
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.measure import Question, Reward, load_pipeline, measure, sample
from models.train_tiny.paths import GOLD_FOLDER, MODELS, PROXY_FOLDER, SD_FOLDER

MIB = 2**20
REWARDS = {"proxy": PROXY_FOLDER, "gold": GOLD_FOLDER}


@cache
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline(SD_FOLDER)


@cache
def reward(name: str) -> Reward:
    return Reward.load(REWARDS[name])


def size_of(folder: Path) -> int:
    return sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )


def test_everything_is_small() -> None:
    assert size_of(MODELS) <= 25 * MIB
    assert (MODELS / "sprites.png").stat().st_size <= 300_000


def test_pipeline_is_plain_stable_diffusion() -> None:
    pipe = pipeline()
    assert pipe.safety_checker is None
    assert pipe.feature_extractor is None
    assert isinstance(pipe.scheduler, DDIMScheduler)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.vae_scale_factor == 8
    assert pipe.unet.dtype == pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_pipeline_makes_reproducible_pictures_that_follow_the_background(guidance: float) -> None:
    prompts = [f"a big heart in the center of a {ground} background" for ground in ("black", "white")]
    first, again = (sample(pipeline(), prompts, guidance, seed=4) for _ in range(2))
    assert first.shape == (2, 64, 64, 3)
    assert (first == again).all()
    black, white = first[:, :6].reshape(2, -1).mean(1)
    assert black + 80 < white


def test_tokenizers_have_one_token_a_word_and_room_for_every_prompt() -> None:
    words = grammar_words()
    longest = max((prompt_of(scene) for scene in all_scenes()), key=lambda prompt: len(prompt.split()))
    for tokenizer in (pipeline().tokenizer, reward("proxy").processor.tokenizer):
        assert tokenizer.model_max_length == MAX_LENGTH
        assert all(len(tokenizer(word).input_ids) == 3 for word in words)
        assert len(tokenizer(longest).input_ids) <= MAX_LENGTH
        padded = tokenizer(
            ["a cat", "a zebra " * 50], padding="max_length", truncation=True, max_length=MAX_LENGTH
        ).input_ids
        assert [len(row) for row in padded] == [MAX_LENGTH] * 2


def test_autoencoder_keeps_pictures() -> None:
    vae: AutoencoderKL = pipeline().vae
    rng = np.random.default_rng(0)
    pictures = to_tensor(compose_many([random_scene(rng, heldout=True) for _ in range(16)], rng))
    with torch.no_grad():
        from_code = vae.decode(patch_code().encode(pictures)).sample
        round_trip = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
    assert (from_code - pictures).abs().mean() < 0.08
    assert (round_trip - pictures).abs().mean() < 0.15


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_are_plain_clip(name: str) -> None:
    model = CLIPModel.from_pretrained(REWARDS[name])
    processor = CLIPProcessor.from_pretrained(REWARDS[name])
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    inputs = processor(text=["a big cat", "two dogs"], images=[picture], return_tensors="pt", padding=True)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    assert model(**inputs).logits_per_image.shape == (1, 2)


@pytest.mark.parametrize("name", REWARDS)
def test_training_preprocesses_as_the_processor_does(name: str) -> None:
    rng = np.random.default_rng(1)
    pictures = compose_many([random_scene(rng) for _ in range(4)], rng)
    shipped = reward(name).processor(images=list(pictures), return_tensors="pt").pixel_values
    assert (shipped - pixel_values(to_tensor(pictures), PLANS[name])).abs().mean() < 0.05


@pytest.mark.parametrize(("name", "bound"), [("proxy", 0.72), ("gold", 0.72)])
@pytest.mark.parametrize("heldout", [False, True])
def test_rewards_rank_the_true_prompt_first_on_real_pictures(name: str, bound: float, heldout: bool) -> None:
    rng = np.random.default_rng(2)
    scenes = [random_scene(rng, heldout) for _ in range(40)]
    questions = [Question.about(reward(name), scene) for scene in scenes]
    quality = measure(reward(name), compose_many(scenes, rng), questions)
    assert quality.attributes > bound
