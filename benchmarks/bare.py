"""The bare sides: what a person would write with diffusers and torch alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from torch import Tensor


def plain_pipeline(family: Any) -> Any:
    """diffusers' own pipeline of a loaded Stable Diffusion family's parts."""
    text = family.text.encoders["text_encoder"]
    name, config = family.scheduler
    return StableDiffusionPipeline(
        vae=family.images.vae,
        text_encoder=text.encoder,
        tokenizer=text.tokenizer,
        unet=family.network,
        scheduler=getattr(diffusers, name).from_config(dict(config)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@dataclass(frozen=True)
class BareSampler:
    """A Stable Diffusion loop: text encoder, UNet, DDIM with eta 1, autoencoder, pictures as uint8.

    autocast: bfloat16 passes of the UNet, as model.precision has it.
    """

    pipeline: Any
    scheduler: Any
    batch: int
    steps: int
    guidance_scale: float
    device: torch.device
    autocast: bool

    @torch.no_grad()
    def images(self, prompt: str, seed: int) -> NDArray[np.uint8]:
        """uint8 (batch, height, width, 3)."""
        pipeline, guided = self.pipeline, self.guidance_scale != 1.0
        condition = self._embed(["", prompt] if guided else [prompt]).repeat_interleave(self.batch, 0)
        generator = torch.Generator().manual_seed(seed)
        config = pipeline.unet.config
        shape = (self.batch, config.in_channels, config.sample_size, config.sample_size)
        latents = torch.randn(shape, generator=generator).to(self.device)
        self.scheduler.set_timesteps(self.steps, device=self.device)
        for timestep in self.scheduler.timesteps:
            given = torch.cat([latents, latents]) if guided else latents
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                output = pipeline.unet(given, timestep, encoder_hidden_states=condition).sample
            output = output.float()
            if guided:
                empty, conditional = output.chunk(2)
                output = empty + self.guidance_scale * (conditional - empty)
            noise = torch.randn(shape, generator=generator).to(self.device)
            latents = self.scheduler.step(
                output, timestep, latents, eta=1.0, variance_noise=noise
            ).prev_sample
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        unit = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
        return (unit * 255).round().astype(np.uint8)

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        states: Tensor = self.pipeline.text_encoder(tokens.input_ids.to(self.device))[0]
        return states


@dataclass(frozen=True)
class BareGradient:
    """Forward and backward of mean square outputs: the least that a gradient over these items can cost.

    latents (M, C, H, W), timesteps (M,), condition (1, tokens, width); micro_batch items a pass.
    """

    unet: Any
    latents: Tensor
    timesteps: Tensor
    condition: Tensor
    micro_batch: int
    autocast: bool

    def accumulate(self) -> None:
        """Add the gradient to the parameters' .grad."""
        for latents, timesteps in zip(
            self.latents.split(self.micro_batch), self.timesteps.split(self.micro_batch), strict=True
        ):
            condition = self.condition.expand(len(latents), -1, -1)
            with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=self.autocast):
                output = self.unet(latents, timesteps, encoder_hidden_states=condition).sample
            output.float().square().mean().backward()
