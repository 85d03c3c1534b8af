"""Stage ``base``: train the text encoder and the UNet of ``models/tiny-sd`` together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from common.terminal import say
from models.compose import compose_many
from models.older_files import prefix_text_tensors
from models.scenes import Scene, prompt_of
from models.tokenizer import MAX_LENGTH, save_tokenizer
from models.train_tiny.code import CHANNELS, patch_code
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.facts import FactHead, pretrain_text
from models.train_tiny.paths import SD_NAME, let_everyone_read
from models.train_tiny.schedule import learning_rate, set_rate, timed
from models.train_tiny.vae import make_vae

SEED = 5
TEXT_WIDTH = 128
BATCH = 64
STEPS = 9600
LEARNING_RATE = 1.2e-3
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
SAVE_EVERY_STEPS = 500


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
    """A fresh UNet of 3.7 million parameters over 8 x 8 x 24 latents, with cross-attention at both scales."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
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


def tokenise(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
    """Token numbers (N, 20), padded as the pipeline pads them."""
    return tokenizer(
        prompts, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    ).input_ids


def random_times(count: int) -> torch.Tensor:
    """One random time step in each of ``count`` equal stretches of 0..999: uniform, and evenly so."""
    return ((torch.arange(count) + torch.rand(count)) * (1000 / count)).long()


@dataclass(frozen=True)
class Trainer:
    """UNet and text encoder with their optimizer and moving averages."""

    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    parameters: list[torch.Tensor]
    averages: list[torch.Tensor]
    optimizer: torch.optim.Optimizer

    @classmethod
    def fresh(cls, tokenizer: CLIPTokenizer) -> Trainer:
        """A trainer of untrained networks."""
        unet, text_encoder = make_unet(), make_text_encoder(tokenizer)
        unet.to(memory_format=torch.channels_last)
        parameters: list[torch.Tensor] = [*unet.parameters(), *text_encoder.parameters()]
        averages = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
        return cls(tokenizer, make_scheduler(), unet, text_encoder, parameters, averages, optimizer)

    def step(self, prompts: list[str], latents: torch.Tensor, rate: float, number: int) -> float:
        """One optimizer step on v-prediction; returns the mean squared error."""
        set_rate(self.optimizer, rate)
        times: torch.IntTensor = random_times(len(latents))  # type: ignore[assignment]
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

    def embed_prompts(self, scenes: Sequence[Scene]) -> torch.Tensor:
        """Unit embeddings (N, 128) of the scenes' prompts, read at their last token."""
        tokens = tokenise(self.tokenizer, [prompt_of(scene) for scene in scenes])
        return functional.normalize(self.text_encoder(tokens).pooler_output, dim=-1)

    def start_averages(self) -> None:
        """Let the moving averages start from the networks as they are."""
        with torch.no_grad():
            torch._foreach_copy_(self.averages, self.parameters)

    def save(self, folder: Path) -> None:
        """Write the averaged float16 weights and all but the VAE of the pipeline to ``folder``."""
        unet, text_encoder = make_unet(), make_text_encoder(self.tokenizer)
        shipped: list[torch.Tensor] = [*unet.parameters(), *text_encoder.parameters()]
        with torch.no_grad():
            torch._foreach_copy_(shipped, self.averages)
        unet.half().save_pretrained(folder / "unet")
        text_encoder.half().save_pretrained(folder / "text_encoder")
        prefix_text_tensors(folder / "text_encoder" / "model.safetensors")
        self.scheduler.save_pretrained(folder / "scheduler")
        StableDiffusionPipeline(
            vae=make_vae(),  # names the class only: stage vae writes the VAE itself
            text_encoder=text_encoder,
            tokenizer=self.tokenizer,
            unet=unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_config(folder)
        let_everyone_read(folder / "unet")
        let_everyone_read(folder / "text_encoder")


def run(steps: int, text_steps: int, into: Path) -> None:
    """Train for ``steps`` batches of 64; write all but the VAE of ``tiny-sd`` in the folder ``into``.

    The text encoder first learns alone, in ``text_steps`` batches, to tell the facts of prompts: the UNet
    then need not wait for words to get a meaning.
    """
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    code, folder = patch_code(), into / SD_NAME
    trainer = Trainer.fresh(save_tokenizer(SEED, folder / "tokenizer"))
    pretrain_text(trainer.embed_prompts, list(trainer.text_encoder.parameters()), FactHead(), rng, text_steps)
    trainer.start_averages()
    average = 1.0
    for step, seconds in timed(steps):
        rate = learning_rate(step, steps, LEARNING_RATE)
        scenes = [random_scene(rng) for _ in range(BATCH)]
        latents = code.encode(to_tensor(compose_many(scenes, rng)))
        prompts = [prompt_of(scene) for scene in scenes]
        dropped = rng.random(BATCH) < CAPTION_DROPOUT
        prompts = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
        loss = trainer.step(prompts, latents, rate, step)
        average += (loss - average) * max(0.01, 1 / (step + 1))
        if step % 50 == 0:
            say(f"base step {step} loss {average:.4f} rate {rate:.5f} {seconds:.0f} s")
        if step % SAVE_EVERY_STEPS == SAVE_EVERY_STEPS - 1 or step == steps - 1:
            trainer.save(folder)
    say(f"base done, loss {average:.4f}")
