"""The committed weights: they load with the plain libraries and do what the model card says."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline

from models.compose import compose_many
from models.scenes import all_scenes, prompt_of
from models.tokenizer import MAX_LENGTH, grammar_words
from models.train_tiny.augment import pixel_values
from models.train_tiny.clip import PLANS
from models.train_tiny.code import patch_code
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.measure import (
    DDIM,
    EULER,
    Question,
    Reward,
    load_flow_pipeline,
    load_pipeline,
    measure,
    noise_ratio,
    sample,
)
from models.train_tiny.paths import FLOW_FOLDER, GOLD_FOLDER, PROXY_FOLDER, SD_FOLDER

REWARDS = {"proxy": PROXY_FOLDER, "gold": GOLD_FOLDER}


@cache
def pipeline() -> StableDiffusionPipeline:
    return load_pipeline(SD_FOLDER)


@cache
def reward(name: str) -> Reward:
    return Reward.load(REWARDS[name])


@cache
def flow_pipeline() -> StableDiffusion3Pipeline:
    return load_flow_pipeline(FLOW_FOLDER)


MODELS = {"tiny-sd": (pipeline, DDIM), "tiny-sd3": (flow_pipeline, EULER)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_pipeline_makes_reproducible_pictures_that_follow_the_background(model: str, guidance: float) -> None:
    load, options = MODELS[model]
    prompts = [f"a big heart in the center of a {ground} background" for ground in ("black", "white")]
    first, again = (sample(load(), prompts, guidance, seed=4, options=options) for _ in range(2))
    assert first.shape == (2, 64, 64, 3)
    assert (first == again).all()
    black, white = first[:, :6].reshape(2, -1).mean(1)
    assert black + 80 < white


def test_the_flow_model_is_small_and_shares_files_with_tiny_sd() -> None:
    """A file of the same content is in the repository's history once."""
    files = [path for path in FLOW_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    for part in ("tokenizer", "vae"):
        for path in (FLOW_FOLDER / part).iterdir():
            same = path.read_bytes() == (SD_FOLDER / part / path.name).read_bytes()
            assert same or path.name == "config.json"


def test_the_flow_model_hardly_minds_rows_of_zeros_in_place_of_t5() -> None:
    prompts = [f"a big {name} in the center of a blue background" for name in ("cat", "heart", "star")]
    few, many = (sample(flow_pipeline(), prompts, 0.0, 5, {"max_sequence_length": rows}) for rows in (1, 256))
    assert np.abs(few.astype(int) - many.astype(int)).mean() < 6


def test_tokenizers_have_one_token_a_word_and_room_for_every_prompt() -> None:
    words = grammar_words()
    longest = max((prompt_of(scene) for scene in all_scenes()), key=lambda prompt: len(prompt.split()))
    tokenizers = (pipeline().tokenizer, flow_pipeline().tokenizer_2, reward("proxy").processor.tokenizer)
    for tokenizer in tokenizers:
        assert tokenizer.model_max_length == MAX_LENGTH
        assert all(len(tokenizer(word).input_ids) == 3 for word in words)
        assert len(tokenizer(longest).input_ids) <= MAX_LENGTH
        padded = tokenizer(
            ["a cat", "a zebra " * 50], padding="max_length", truncation=True, max_length=MAX_LENGTH
        ).input_ids
        assert [len(row) for row in padded] == [MAX_LENGTH] * 2


@pytest.mark.slow
def test_autoencoder_keeps_pictures() -> None:
    vae: AutoencoderKL = pipeline().vae
    rng = np.random.default_rng(0)
    pictures = to_tensor(compose_many([random_scene(rng, heldout=True) for _ in range(24)], rng))
    with torch.no_grad():
        from_code = vae.decode(patch_code().encode(pictures)).sample
        round_trip = vae.decode(vae.encode(pictures).latent_dist.mode()).sample
    linear = patch_code().decode(patch_code().encode(pictures))
    assert noise_ratio(from_code, pictures) > max(27, noise_ratio(linear, pictures) + 1)
    assert noise_ratio(round_trip, pictures) > 27


@pytest.mark.parametrize("name", REWARDS)
def test_training_preprocesses_as_the_processor_does(name: str) -> None:
    rng = np.random.default_rng(1)
    pictures = compose_many([random_scene(rng) for _ in range(4)], rng)
    shipped = reward(name).processor(images=list(pictures), return_tensors="pt").pixel_values
    assert (shipped - pixel_values(to_tensor(pictures), PLANS[name])).abs().mean() < 0.05


@pytest.mark.parametrize("name", REWARDS)
@pytest.mark.parametrize(("heldout", "bound"), [(False, 0.97), (True, 0.92)])
def test_rewards_rank_the_true_prompt_first_on_real_pictures(name: str, heldout: bool, bound: float) -> None:
    rng = np.random.default_rng(2)
    scenes = [random_scene(rng, heldout) for _ in range(40)]
    questions = [Question.about(reward(name), scene) for scene in scenes]
    quality = measure(reward(name), compose_many(scenes, rng), questions)
    assert quality.attributes > bound


@pytest.mark.slow
@pytest.mark.parametrize("name", REWARDS)
def test_rewards_tell_left_from_right_and_above_from_below(name: str) -> None:
    rng = np.random.default_rng(6)
    scenes = [scene for scene in (random_scene(rng) for _ in range(80)) if scene.relation is not None]
    questions = [Question.about(reward(name), scene) for scene in scenes]
    accuracy = measure(reward(name), compose_many(scenes, rng), questions).accuracy
    assert min(accuracy["relation"], accuracy["order"]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("model", "bound"), [("tiny-sd", 0.8), ("tiny-sd3", 0.75)])
def test_base_models_follow_prompts_and_leave_room(model: str, bound: float) -> None:
    load, options = MODELS[model]
    rng = np.random.default_rng(3)
    scenes = [random_scene(rng) for _ in range(32)]
    questions = [Question.about(reward("gold"), scene) for scene in scenes]
    pictures = sample(load(), [prompt_of(scene) for scene in scenes], 0.0, seed=3, options=options)
    base = measure(reward("gold"), pictures, questions)
    real = measure(reward("gold"), compose_many(scenes, rng), questions)
    assert bound < base.attributes < real.attributes
    assert base.cosine < real.cosine
