"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, cross-attention, a KL autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from common.config.training import SamplingSection, TextPlace
from common.model import options
from common.model.families.base import made_up
from common.model.families.unet import UnetFamily, check_width, discrete_steps, unet_parts, unet_sizes
from common.model.guidance import Condition
from common.model.parts import Source, VaeDecoder
from common.model.text import PaddedText, TextStage, clip

TOKENS = 77


@dataclass(frozen=True)
class StableDiffusionFamily(UnetFamily):
    """Conditioned on the last hidden states of the text encoder, (P, tokens, width)."""

    PIPELINE = StableDiffusionPipeline
    PARTS: ClassVar = unet_parts({"text_encoder": clip(CLIPTextModel)}, options.UNET, options.VAE)

    @staticmethod
    def check(source: Source, sampling: SamplingSection) -> None:
        """See FolderCheck."""
        discrete_steps(*_scheduler(source), sampling, source.device)
        parts = StableDiffusionFamily.PARTS
        outlines = parts.check(source)
        check_width(source, parts.encoders)
        unet_sizes(source, sampling)
        parts.check_weights(source, outlines)

    @staticmethod
    def load(source: Source, sampling: SamplingSection) -> StableDiffusionFamily:
        """See FolderCheck."""
        latent_shape, size = unet_sizes(source, sampling)
        return StableDiffusionFamily(
            network=source.network(UNet2DConditionModel, "unet", source.network_dtype),
            text=None if source.network_only else _text(source),
            images=None if source.network_only else VaeDecoder.load(source),
            scheduler=_scheduler(source),
            device=source.device,
            latent_shape=latent_shape,
            size=size,
        )

    def example(self) -> Condition:
        """See Family."""
        states = made_up(1, TOKENS, self.network.config.cross_attention_dim)
        return {"encoder_hidden_states": states.to(self.device)}

    def forward(self, network: nn.Module, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Family."""
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
