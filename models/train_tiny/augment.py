"""Pictures a diffusion model might make: soft, noisy, shifted, ghostly, or through the autoencoder."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from numpy.typing import NDArray
from torch.nn import functional

from models.compose import compose, paint, place
from models.scenes import OBJECTS, Scene
from models.train_tiny.clip import MEAN, STD, RewardPlan
from models.train_tiny.code import patch_code


def _blur(pictures: torch.Tensor, sigma: float) -> torch.Tensor:
    offsets = torch.arange(-2, 3, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * max(sigma, 1e-3) ** 2))
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1, 1)
    padded = functional.pad(pictures, (2, 2, 2, 2), mode="replicate")
    return functional.conv2d(functional.conv2d(padded, kernel, groups=3), kernel.transpose(2, 3), groups=3)


def _shift(pictures: torch.Tensor, limit: int, rng: np.random.Generator) -> torch.Tensor:
    side = pictures.shape[-1]
    padded = functional.pad(pictures, (limit,) * 4, mode="replicate")
    dx, dy = rng.integers(0, 2 * limit + 1, 2)
    return padded[..., dy : dy + side, dx : dx + side]


def augment(pictures: torch.Tensor, plan: RewardPlan, rng: np.random.Generator) -> torch.Tensor:
    """Spoil (N, 3, 64, 64) pictures in -1..1 at random; an eighth of the batch shares each spoiling."""
    chunks = []
    for chunk in pictures.chunk(8):
        if rng.random() < 0.5:
            chunk = _blur(chunk, float(rng.uniform(0.2, plan.blur)))
        chunk = _shift(chunk, plan.shift, rng)
        if rng.random() < 0.6:
            chunk = chunk + torch.randn_like(chunk) * (2 * plan.noise * float(rng.random()))
        gain = 1 + plan.contrast * float(rng.uniform(-1, 1))
        chunks.append((chunk * gain + 0.5 * plan.contrast * float(rng.uniform(-1, 1))).clamp(-1, 1))
    return torch.cat(chunks)


@torch.no_grad()
def through_vae(pictures: torch.Tensor, vae: AutoencoderKL, share: float, noise: float) -> torch.Tensor:
    """The pictures, a random ``share`` of them encoded, slightly disturbed and decoded again."""
    chosen = torch.nonzero(torch.rand(len(pictures)) < share).flatten()
    if len(chosen) == 0:
        return pictures
    latents = patch_code().encode(pictures[chosen])
    latents = latents + torch.randn_like(latents) * torch.rand(len(chosen), 1, 1, 1) * noise
    output = pictures.clone()
    output[chosen] = vae.decode(latents).sample.clamp(-1, 1)
    return output


def ghost(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture that shows ``scene`` badly: a sprite faint, two in one place, or two pictures mixed."""
    placements = place(scene, rng)
    weak = int(rng.integers(len(placements)))
    style = rng.random()
    if style < 0.35:
        placements[weak] = replace(placements[weak], opacity=float(rng.uniform(0.0, 0.45)))
        return paint(placements, scene.background, rng)
    if style < 0.75:
        other = OBJECTS[int(rng.integers(len(OBJECTS)))]
        opacity = float(rng.uniform(0.4, 0.7))
        placements[weak] = replace(placements[weak], opacity=1 - 0.5 * opacity)
        placements.append(replace(placements[weak], obj=other, opacity=opacity))
        return paint(placements, scene.background, rng)
    other_scene = replace(scene, object1=OBJECTS[int(rng.integers(len(OBJECTS)))])
    first, second = compose(scene, rng).astype(np.float32), compose(other_scene, rng)
    return ((first + second) / 2).astype(np.uint8)


def pixel_values(pictures: torch.Tensor, plan: RewardPlan) -> torch.Tensor:
    """(N, 3, 64, 64) in -1..1 -> what the plan's CLIPImageProcessor makes of the same pictures."""
    if plan.image_size != pictures.shape[-1]:
        pictures = functional.interpolate(
            pictures, (plan.image_size, plan.image_size), mode="bicubic", antialias=True
        )
    return ((pictures + 1) / 2 - MEAN) / STD
