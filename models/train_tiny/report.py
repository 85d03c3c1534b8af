"""Stage ``report``: measure the committed weights and draw ``samples.png`` and ``samples_flow.png``."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from common.terminal import say
from models.compose import compose_many
from models.scenes import Scene, prompt_of
from models.train_tiny.code import patch_code
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.measure import (
    DDIM,
    EULER,
    Quality,
    Question,
    Reward,
    load_flow_pipeline,
    load_pipeline,
    measure,
    noise_ratio,
    sample,
)
from models.train_tiny.paths import FLOW_NAME, GOLD_NAME, PROXY_NAME, SD_NAME

SEED = 1234
GUIDANCE = 3.0
_COLUMNS, _ROWS, _CELL, _CAPTION = 6, 4, 128, 40


def _row(name: str, quality: Quality) -> str:
    return f"| {name} | {quality.cosine:.3f} | {quality.attributes:.1%} | {quality.all_right:.1%} |"


def _attribute_rows(columns: dict[str, Quality]) -> list[str]:
    names = list(dict.fromkeys(name for quality in columns.values() for name in quality.accuracy))
    rows = ["| attribute | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    return rows + [
        f"| {name} | " + " | ".join(f"{quality.accuracy[name]:.1%}" for quality in columns.values()) + " |"
        for name in names
    ]


def milliseconds(call: Callable[[], object], images: int, repeats: int = 10) -> float:
    """Processor time of ``call`` per image in milliseconds, after one warm-up, best of ``repeats``."""
    call()
    best = float("inf")
    for _ in range(repeats):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return 1000 * best / images


def _score(reward: Reward, pictures: NDArray[np.uint8]) -> None:
    reward.images(pictures)
    reward.texts(["a big cat to the left of a small dog on a blue background"] * len(pictures))


@torch.no_grad()
def measure_costs(
    pipeline: StableDiffusionPipeline, flow: StableDiffusion3Pipeline, rewards: dict[str, Reward]
) -> list[str]:
    """One line a cost: milliseconds per image on one thread at batch 8."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    latents, states, times = torch.randn(8, 24, 8, 8), torch.randn(8, 20, 128), torch.full((8,), 500)
    joint = torch.randn(8, 20, flow.transformer.config.joint_attention_dim)
    pooled = torch.randn(8, flow.transformer.config.pooled_projection_dim)
    pictures = np.zeros((8, 64, 64, 3), dtype=np.uint8)
    calls: dict[str, Callable[[], object]] = {
        "UNet forward": lambda: pipeline.unet(latents, times, states),
        "transformer forward": lambda: flow.transformer(latents, joint, pooled, times),
        "VAE decode": lambda: pipeline.vae.decode(latents),
    }
    for name, reward in rewards.items():
        calls[f"{name} pass (preprocessing, picture and prompt)"] = functools.partial(
            _score, reward, pictures
        )
    lines = [f"| {name} | {milliseconds(call, 8):.1f} |" for name, call in calls.items()]
    torch.set_num_threads(threads)
    return lines


@torch.no_grad()
def measure_autoencoder(vae: AutoencoderKL, pictures: torch.Tensor) -> list[str]:
    """One line a way through the latents: the decibels of (N, 3, 64, 64) pictures that come back."""
    latents = patch_code().encode(pictures)
    encoded = torch.cat([vae.encode(part).latent_dist.mode() for part in pictures.split(32)])
    back = {
        "code, decoded linearly": patch_code().decode(latents),
        "code, decoded by the VAE": torch.cat([vae.decode(part).sample for part in latents.split(32)]),
        "encoded and decoded by the VAE": torch.cat([vae.decode(part).sample for part in encoded.split(32)]),
    }
    return [f"| {name} | {noise_ratio(made, pictures):.1f} |" for name, made in back.items()]


def draw_samples(pictures: NDArray[np.uint8], prompts: list[str], path: Path) -> None:
    """Write a grid of ``pictures``, each above its prompt, to ``path``."""
    sheet = Image.new("RGB", (_COLUMNS * _CELL, _ROWS * (_CELL + _CAPTION)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
    for index, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        left, top = index % _COLUMNS * _CELL, index // _COLUMNS * (_CELL + _CAPTION)
        enlarged = Image.fromarray(picture).resize((_CELL - 6, _CELL - 6), Image.Resampling.LANCZOS)
        sheet.paste(enlarged, (left + 3, top + 3))
        draw.multiline_text((left + 4, top + _CELL), _wrapped(prompt), fill="black", font=font, spacing=1)
    sheet.save(path, optimize=True)


def _wrapped(text: str, width: int = 24) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _pictures(
    models: Mapping[str, tuple[StableDiffusionPipeline | StableDiffusion3Pipeline, Mapping[str, float]]],
    splits: dict[str, list[Scene]],
    rng: np.random.Generator,
) -> dict[tuple[str, str], NDArray[np.uint8]]:
    rows = {}
    for split, scenes in splits.items():
        prompts = [prompt_of(scene) for scene in scenes]
        rows["real", split] = compose_many(scenes, rng)
        for model, (pipeline, options) in models.items():
            rows[f"{model}, no guidance", split] = sample(pipeline, prompts, 0.0, SEED, options)
            guided = f"{model}, guidance {GUIDANCE:g}"
            rows[guided, split] = sample(pipeline, prompts, GUIDANCE, SEED, options)
    return rows


def run(pictures: int, into: Path) -> None:
    """Print the quality and cost tables of the weights in ``into``, in Markdown; write samples.png
    and samples_flow.png there.

    A row of the tables is measured on ``pictures`` pictures.
    """
    rng = np.random.default_rng(SEED)
    pipeline, flow = load_pipeline(into / SD_NAME), load_flow_pipeline(into / FLOW_NAME)
    rewards = {"proxy": Reward.load(into / PROXY_NAME), "gold": Reward.load(into / GOLD_NAME)}
    splits = {
        "train": [random_scene(rng) for _ in range(pictures)],
        "held-out": [random_scene(rng, heldout=True) for _ in range(pictures)],
    }
    rows = _pictures({"base": (pipeline, DDIM), "flow": (flow, EULER)}, splits, rng)
    found = {}
    for name, reward in rewards.items():
        asked = {
            split: [Question.about(reward, scene) for scene in scenes] for split, scenes in splits.items()
        }
        for row, shown in rows.items():
            found[name, row] = measure(reward, shown, asked[row[1]])
    for name in rewards:
        say(f"\n| pictures, judged by {name} | cosine | attributes right | all right |")
        say("| --- | --- | --- | --- |")
        say("\n".join(_row(" / ".join(row), found[name, row]) for row in rows))
        say("")
        say(
            "\n".join(
                _attribute_rows({" / ".join(row): found[name, row] for row in rows if row[1] == "held-out"})
            )
        )
    say("\n| pictures | proxy and gold agree on 'all right' |\n| --- | --- |")
    for row in rows:
        agreement = (found["proxy", row].right == found["gold", row].right).mean()
        say(f"| {' / '.join(row)} | {agreement:.1%} |")
    real = to_tensor(rows["real", "held-out"])
    say("\n| real / held-out pictures | peak signal-to-noise ratio in dB |\n| --- | --- |")
    say("\n".join(measure_autoencoder(pipeline.vae, real)))
    say("\n| cost on one core | processor ms an image |\n| --- | --- |")
    say("\n".join(measure_costs(pipeline, flow, rewards)))
    shown_scenes = splits["held-out"][: _COLUMNS * _ROWS // 2]
    prompts = [prompt_of(scene) for scene in shown_scenes]
    for model, file in (("base", "samples.png"), ("flow", "samples_flow.png")):
        both = [rows[f"{model}, {how}", "held-out"] for how in ("no guidance", f"guidance {GUIDANCE:g}")]
        draw_samples(np.concatenate([part[: len(prompts)] for part in both]), prompts * 2, into / file)
