"""Stage ``base``: train the text encoder and the UNet of ``models/tiny-sd`` together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from models.compose import compose_many
from models.scenes import prompt_of
from models.tokenizer import MAX_LENGTH, save_tokenizer
from models.train_tiny.code import CHANNELS, patch_code
from models.train_tiny.data import random_scene, to_tensor
from models.train_tiny.paths import SD_FOLDER
from models.train_tiny.schedule import learning_rate, progress, set_rate
from models.train_tiny.vae import make_vae

SEED = 5
TEXT_WIDTH = 128
BATCH = 64
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
        unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # the library's hint
        parameters: list[torch.Tensor] = [*unet.parameters(), *text_encoder.parameters()]
        averages = [parameter.detach().clone() for parameter in parameters]
        optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
        return cls(tokenizer, make_scheduler(), unet, text_encoder, parameters, averages, optimizer)

    def load(self) -> None:
        """Start from the averaged weights in ``models/tiny-sd`` instead of from nothing."""
        unet = UNet2DConditionModel.from_pretrained(SD_FOLDER / "unet", torch_dtype=torch.float32)
        text_encoder = CLIPTextModel.from_pretrained(SD_FOLDER / "text_encoder", torch_dtype=torch.float32)
        self.unet.load_state_dict(unet.state_dict())
        self.text_encoder.load_state_dict(text_encoder.state_dict())
        with torch.no_grad():
            torch._foreach_copy_(self.averages, self.parameters)

    def step(self, prompts: list[str], latents: torch.Tensor, rate: float, number: int) -> float:
        """One optimizer step on v-prediction; returns the mean squared error."""
        set_rate(self.optimizer, rate)
        times: torch.IntTensor = torch.randint(0, 1000, (len(latents),))  # type: ignore[assignment]
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
        shipped: list[torch.Tensor] = [*unet.parameters(), *text_encoder.parameters()]
        with torch.no_grad():
            torch._foreach_copy_(shipped, self.averages)
        vae = make_vae().half()
        if (SD_FOLDER / "vae").exists():
            vae = AutoencoderKL.from_pretrained(SD_FOLDER / "vae", torch_dtype=torch.float16)
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder.half(),
            tokenizer=self.tokenizer,
            unet=unet.half(),
            scheduler=self.scheduler,  # type: ignore[arg-type]  # the library's hints
            safety_checker=None,  # type: ignore[arg-type]  # name no DDIM
            feature_extractor=None,  # type: ignore[arg-type]  # and no None
            requires_safety_checker=False,
        ).save_pretrained(SD_FOLDER)


def run(steps: int, minutes: float, resume: bool) -> None:
    """Train for ``steps`` batches of 64, or until ``minutes`` have passed, and write ``models/tiny-sd``.

    ``resume`` trains the shipped weights on, with other noise and pictures than the first time. The rate
    falls to its end by whichever comes first, so a slower machine still finishes well.
    """
    torch.manual_seed(SEED + resume)
    rng = np.random.default_rng(SEED + resume)
    code = patch_code()
    folder = SD_FOLDER / "tokenizer"
    tokenizer = CLIPTokenizer.from_pretrained(folder) if resume else save_tokenizer(SEED, folder)
    trainer = Trainer.fresh(tokenizer)
    if resume:
        trainer.load()
    average, saved = 1.0, 0.0
    for step, share, seconds in progress(steps, minutes):
        rate = min(1.0, (step + 1) / 200) * learning_rate(share, 1.0, LEARNING_RATE, warm_up=1)
        scenes = [random_scene(rng) for _ in range(BATCH)]
        latents = code.encode(to_tensor(compose_many(scenes, rng)))
        prompts = [prompt_of(scene) for scene in scenes]
        dropped = rng.random(BATCH) < CAPTION_DROPOUT
        prompts = ["" if drop else prompt for prompt, drop in zip(prompts, dropped, strict=True)]
        loss = trainer.step(prompts, latents, rate, step)
        average += (loss - average) * 0.02
        if step % 50 == 0:
            print(f"base step {step} loss {average:.4f} rate {rate:.5f} {seconds:.0f} s", flush=True)
        if seconds - saved > SAVE_EVERY_SECONDS:
            trainer.save()
            saved = seconds
    trainer.save()
    print(f"base done, loss {average:.4f}")
