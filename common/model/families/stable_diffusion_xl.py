"""Stable Diffusion XL: two CLIP text encoders, their pooled vector, and ids of the image's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from common.config.training import SamplingSection
from common.errors import ModelError
from common.model import options
from common.model.families.base import made_up
from common.model.families.unet import UnetFamily, check_width, discrete_steps, unet_parts, unet_sizes
from common.model.guidance import Condition
from common.model.parts import Source
from common.model.text import TextStage, clip

TOKENS = 77
IDS = 6
"""Numbers that say an image's size: original, top left of the crop, target."""


@dataclass(frozen=True)
class StableDiffusionXLFamily(UnetFamily):
    """Conditioned on both encoders' last but one hidden states side by side, a pooled vector and size ids.

    zero_negative: whether guidance moves away from zeros instead of the empty prompt.
    """

    PIPELINE = StableDiffusionXLPipeline
    PARTS: ClassVar = unet_parts(
        {
            "text_encoder": clip(CLIPTextModel),
            "text_encoder_2": clip(CLIPTextModelWithProjection, pools=True),
        },
        options.UNET_XL,
        options.VAE_XL,
    )

    zero_negative: bool

    @classmethod
    def check(cls, source: Source, sampling: SamplingSection) -> None:
        discrete_steps(*source.scheduler(), sampling, source.device)
        outlines = cls.PARTS.check(source)
        check_width(source, cls.PARTS.encoders)
        unet_sizes(source, sampling)
        unet = source.config(UNet2DConditionModel, "unet")
        pooled = source.text_config(CLIPTextModelWithProjection, "text_encoder_2").projection_dim
        ids, taken = unet["addition_time_embed_dim"], unet["projection_class_embeddings_input_dim"]
        if not isinstance(ids, int) or pooled + IDS * ids != taken:
            raise ModelError(
                f"{source.settings.path!r}: the UNet's projection_class_embeddings_input_dim is {taken}; it "
                f"must be text_encoder_2's projection_dim, {pooled}, and {IDS} times addition_time_embed_dim "
                f"({ids})."
            )
        cls.PARTS.check_weights(source, outlines)

    @classmethod
    def load(cls, source: Source, sampling: SamplingSection) -> Self:
        latent_shape, size = unet_sizes(source, sampling)
        return cls._loaded(
            source,
            source.scheduler(),
            _text,
            latent_shape=latent_shape,
            size=size,
            zero_negative=bool(source.index().get("force_zeros_for_empty_prompt", True)),
        )

    def embed(self, prompts: Sequence[str]) -> Condition:
        return {**super().embed(prompts), "time_ids": self._time_ids(len(prompts))}

    def negative(self) -> Condition:
        """Zeros or the empty prompt's, as the pipeline's configuration says; size ids as for any prompt."""
        empty = self.embed([""])
        if not self.zero_negative:
            return empty
        zeros = {name: torch.zeros_like(rows) for name, rows in empty.items()}
        return {**zeros, "time_ids": empty["time_ids"]}

    def example(self) -> Condition:
        config = self.network.config
        # What is not the size ids' of the added vector is the pooled one.
        pooled = config.projection_class_embeddings_input_dim - IDS * config.addition_time_embed_dim
        return {
            "encoder_hidden_states": made_up(1, TOKENS, config.cross_attention_dim).to(self.device),
            "text_embeds": made_up(1, pooled).to(self.device),
            "time_ids": self._time_ids(1),
        }

    def forward(self, network: nn.Module, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        kind = next(network.parameters()).dtype
        rows = {name: value.to(kind) for name, value in condition.items()}
        states = rows.pop("encoder_hidden_states")
        output: Tensor = network(latents.to(kind), times, states, added_cond_kwargs=rows, return_dict=False)[
            0
        ]
        return output.to(latents.dtype)

    def _time_ids(self, rows: int) -> Tensor:
        """Original size, top left of the crop, target size: float32 (rows, 6)."""
        ids = torch.tensor([[*self.size, 0, 0, *self.size]], dtype=torch.float32, device=self.device)
        return ids.repeat(rows, 1)


def _text(source: Source) -> TextStage:
    encoders = StableDiffusionXLFamily.PARTS.text(source)

    def encode(prompt: str) -> Condition:
        outputs = [encoder(prompt, source.device) for encoder in encoders.values()]
        states = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return {"encoder_hidden_states": states, "text_embeds": outputs[-1].text_embeds}

    return TextStage(encoders, source.device, source.settings.text_encoder, encode)
