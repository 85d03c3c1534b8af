"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, cross-attention, a KL autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from transformers import CLIPTextModel

from common.config.training import SamplingSection, TextPlace
from common.model import options
from common.model.families.base import made_up
from common.model.families.unet import UnetFamily, check_width, discrete_steps, unet_parts, unet_sizes
from common.model.guidance import Condition
from common.model.parts import Source
from common.model.text import PaddedText, TextStage, clip

TOKENS = 77


@dataclass(frozen=True)
class StableDiffusionFamily(UnetFamily):
    """Conditioned on the last hidden states of the text encoder, (P, tokens, width)."""

    PIPELINE = StableDiffusionPipeline
    PARTS: ClassVar = unet_parts({"text_encoder": clip(CLIPTextModel)}, options.UNET, options.VAE)

    @classmethod
    def check(cls, source: Source, sampling: SamplingSection) -> None:
        discrete_steps(*_scheduler(source), sampling, source.device)
        outlines = cls.PARTS.check(source)
        check_width(source, cls.PARTS.encoders)
        unet_sizes(source, sampling)
        cls.PARTS.check_weights(source, outlines)

    @classmethod
    def load(cls, source: Source, sampling: SamplingSection) -> Self:
        latent_shape, size = unet_sizes(source, sampling)
        return cls._loaded(source, _scheduler(source), _text, latent_shape=latent_shape, size=size)

    def example(self) -> Condition:
        states = made_up(1, TOKENS, self.network.config.cross_attention_dim)
        return {"encoder_hidden_states": states.to(self.device)}

    def forward(self, network: nn.Module, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        kind = next(network.parameters()).dtype
        rows = {name: value.to(kind) for name, value in condition.items()}
        output: Tensor = network(latents.to(kind), times, return_dict=False, **rows)[0]
        return output.to(latents.dtype)


def one_encoder(text: PaddedText, device: torch.device, between: TextPlace) -> TextStage:
    """Prompts by one text encoder's last hidden states."""

    def encode(prompt: str) -> Condition:
        return {"encoder_hidden_states": text(prompt, device)[0]}

    return TextStage({"text_encoder": text}, device, between, encode)


def _text(source: Source) -> TextStage:
    text = StableDiffusionFamily.PARTS.text(source)["text_encoder"]
    return one_encoder(text, source.device, source.settings.text_encoder)


def _scheduler(source: Source) -> tuple[str, dict[str, Any]]:
    """As the pipeline itself changes it on loading: clip_sample off, steps_offset 1."""
    name, config = source.scheduler()
    offset = {"steps_offset": 1} if "steps_offset" in config else {}
    return name, {**config, "clip_sample": False, **offset}
