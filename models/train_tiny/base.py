"""Stage ``base``: train the text encoder and the UNet of ``models/tiny-sd`` together."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.compose import compose_many
from models.scenes import Scene, prompt_of
from models.tokenizer import MAX_LENGTH, save_tokenizer
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.paths import SD_FOLDER
from models.train_tiny.vae import LATENT_CHANNELS, learning_rate

SEED = 5
TEXT_WIDTH = 128
BATCH = 96
POOL = 24576
FRESH_PER_STEP = 16
LEARNING_RATE = 1.2e-3
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
SAVE_EVERY_SECONDS = 240.0


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A fresh CLIP text encoder, three layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=TEXT_WIDTH,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_unet() -> UNet2DConditionModel:
    """A fresh UNet of 3.7 million parameters over 8 x 8 x 16 latents, with cross-attention at both scales."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(80, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """DDIM over a cosine schedule with v-prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,  # unused by trailing spacing; the pipeline warns of any other value
    )


@dataclass
class LatentPool:
    """Scenes with the latents of a picture of each; a few are replaced by new ones at every step."""

    vae: AutoencoderKL
    rng: np.random.Generator
    scenes: list[Scene]
    latents: torch.Tensor

    @classmethod
    def filled(cls, vae: AutoencoderKL, rng: np.random.Generator, size: int) -> LatentPool:
        """A pool of ``size`` random training scenes."""
        pool = cls(vae, rng, [], torch.empty(0, LATENT_CHANNELS, 8, 8))
        parts = []
        for first in range(0, size, 256):
            scenes, latents = pool._draw(min(256, size - first))
            pool.scenes.extend(scenes)
            parts.append(latents)
        pool.latents = torch.cat(parts)
        return pool

    @torch.no_grad()
    def _draw(self, count: int) -> tuple[list[Scene], torch.Tensor]:
        scenes = [random_scene(self.rng) for _ in range(count)]
        latents = self.vae.encode(to_tensor(compose_many(scenes, self.rng))).latent_dist.sample()
        return scenes, latents * self.vae.config.scaling_factor

    def batch(self, count: int) -> tuple[list[Scene], torch.Tensor]:
        """``count`` scenes and their scaled latents (count, 16, 8, 8)."""
        chosen = self.rng.integers(0, len(self.scenes), count)
        return [self.scenes[i] for i in chosen], self.latents[torch.from_numpy(chosen)]

    def refresh(self, count: int) -> None:
        """Replace ``count`` random entries by new scenes."""
        scenes, latents = self._draw(count)
        for place, scene, latent in zip(
            self.rng.integers(0, len(self.scenes), count), scenes, latents, strict=True
        ):
            self.scenes[place] = scene
            self.latents[place] = latent


def tokenise(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token numbers (N, 20), padded as the pipeline pads them."""
    return tokenizer(
        prompts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    ).input_ids


class Trainer:
    """UNet and text encoder with their optimizer and moving averages."""

    def __init__(self, tokenizer: CLIPTokenizer, vae: AutoencoderKL) -> None:
        self.tokenizer = tokenizer
        self.vae = vae
        self.scheduler = make_scheduler()
        self.unet = make_unet().to(memory_format=torch.channels_last)
        self.text_encoder = make_text_encoder(tokenizer)
        self.parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01
        )

    def step(self, prompts: list[str], latents: torch.Tensor, rate: float, number: int) -> float:
        """One optimizer step on v-prediction; returns the mean squared error."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        times = torch.randint(0, 1000, (len(latents),))
        noise = torch.randn_like(latents)
        noisy = self.scheduler.add_noise(latents, noise, times).contiguous(memory_format=torch.channels_last)
        target = self.scheduler.get_velocity(latents, noise, times)
        states = self.text_encoder(tokenise(self.tokenizer, prompts)).last_hidden_state
        loss = functional.mse_loss(self.unet(noisy, times, states).sample, target)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        decay = min(EMA_DECAY, (1 + number) / (10 + number))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)
        return loss.item()

    def save(self) -> None:
        """Write the averaged weights as a float16 pipeline to ``models/tiny-sd``."""
        unet, text_encoder = make_unet(), make_text_encoder(self.tokenizer)
        shipped = [*unet.parameters(), *text_encoder.parameters()]
        with torch.no_grad():
            torch._foreach_copy_(shipped, self.averages)
        vae = AutoencoderKL.from_pretrained(SD_FOLDER / "vae", torch_dtype=torch.float16)
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder.half(),
            tokenizer=self.tokenizer,
            unet=unet.half(),
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(SD_FOLDER)


def run(steps: int, minutes: float) -> None:
    """Train for ``steps`` batches of 96, or until ``minutes`` have passed, and write ``models/tiny-sd``.

    The learning rate falls to its end by whichever comes first, so a slower machine still finishes well.
    """
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    vae = AutoencoderKL.from_pretrained(SD_FOLDER / "vae", torch_dtype=torch.float32).eval()
    vae = vae.to(memory_format=torch.channels_last)
    trainer = Trainer(save_tokenizer(SEED, SD_FOLDER / "tokenizer"), vae)
    start = saved = time.monotonic()
    pool = LatentPool.filled(vae, rng, POOL)
    print(f"base pool of {POOL} latents, {time.monotonic() - start:.0f} s", flush=True)
    average = 1.0
    for step in range(steps):
        now = time.monotonic()
        progress = max(step / steps, (now - start) / (60 * minutes))
        if progress >= 1:
            break
        rate = min(1.0, (step + 1) / 200) * learning_rate(int(progress * 10_000), 10_000, LEARNING_RATE, 1)
        scenes, latents = pool.batch(BATCH)
        prompts = [prompt_of(scene) for scene in scenes]
        dropped = rng.random(BATCH) < CAPTION_DROPOUT
        prompts = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
        loss = trainer.step(prompts, latents, rate, step)
        pool.refresh(FRESH_PER_STEP)
        average += (loss - average) * 0.02
        if step % 50 == 0:
            print(f"base step {step} loss {average:.4f} rate {rate:.5f} {now - start:.0f} s", flush=True)
        if now - saved > SAVE_EVERY_SECONDS:
            trainer.save()
            saved = time.monotonic()
    trainer.save()
    print(f"base done after {time.monotonic() - start:.0f} s, loss {average:.4f}")
