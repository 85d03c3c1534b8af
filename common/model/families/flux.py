"""FLUX.1 dev and schnell: packed latents with ids of their places, CLIP's pooled vector, T5's states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, T5EncoderModel

from common.config.training import SamplingSection
from common.errors import ModelError
from common.model.families.base import PipelineParts, image_size, made_up
from common.model.families.flow import JOINT_PROJECTIONS, FlowFamily, Layout, Settings
from common.model.families.qwen_image import unpack
from common.model.guidance import Condition, EmbeddedScale, Guidance, Unguided
from common.model.options import VAE_FLOW
from common.model.parts import Source, Unscale, unscale
from common.model.schedules import flow_sigmas
from common.model.text import PaddedText, clip, t5

T5_TOKENS = 512
PACKED = 2
"""A latent's pixels a side of one token."""
OWN_SIDE = 128
"""Of the latents, where no size is asked for: no part of the pipeline says it."""
TARGETS = (
    *JOINT_PROJECTIONS,
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)
"""Attention's projections in all blocks, feed-forward layers in those of two streams."""


@dataclass(frozen=True)
class FluxFamily(FlowFamily):
    """Conditioned on T5's hidden states and CLIP's pooled vector. A latent is a row of tokens, each PACKED x
    PACKED pixels of all channels."""

    PIPELINE = FluxPipeline
    PARTS: ClassVar = PipelineParts(
        denoiser="transformer",
        network=FluxTransformer2DModel,
        encoders={"text_encoder": clip(CLIPTextModel, pools=True), "text_encoder_2": t5(T5_TOKENS)},
        vae_options=VAE_FLOW,
    )
    TIME_SCALE = 1.0

    @classmethod
    def guided(cls, network: Settings, scale: float) -> Guidance:
        """The scale is an input of the network, or it knows none: it was distilled."""
        if network["guidance_embeds"]:
            return EmbeddedScale(scale)
        if scale != 1.0:
            raise ModelError(
                f"sampling.guidance_scale is {scale:g}, but this model (guidance_embeds: false, as FLUX.1 "
                "schnell) takes no guidance: set it to 1."
            )
        return Unguided()

    @classmethod
    def check_fit(cls, source: Source, network: Settings) -> None:
        pooled = source.text_config(CLIPTextModel, "text_encoder").hidden_size
        width = source.text_config(T5EncoderModel, "text_encoder_2").d_model
        taken = network["pooled_projection_dim"], network["joint_attention_dim"]
        if taken != (pooled, width):
            raise ModelError(
                f"{source.settings.path!r}: the transformer's pooled_projection_dim is {taken[0]} and its "
                f"joint_attention_dim is {taken[1]}, but the text encoders give {pooled} and {width}; they "
                "are parts of different models."
            )

    @classmethod
    def lay_out(cls, source: Source, sampling: SamplingSection) -> Layout:
        network = source.config(FluxTransformer2DModel, "transformer")
        vae = source.config(AutoencoderKL, "vae")
        taken, channels = network["in_channels"], vae["latent_channels"]
        if not taken == (network["out_channels"] or taken) == PACKED**2 * channels:
            raise ModelError(
                f"{source.settings.path!r}: the transformer takes {taken} channels and gives "
                f"{network['out_channels'] or taken}; both must be {PACKED**2} times the VAE's {channels} "
                "(models that take an image beside the latents are not supported)."
            )
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        size = image_size(sampling, OWN_SIDE, scale, PACKED * scale, "the latents' own side is")
        rows, columns = (side // scale // PACKED for side in size)
        return Layout((rows * columns, taken), (rows, columns))

    @classmethod
    def sigmas(cls, scheduler: Settings, steps: int, tokens: int) -> list[float]:
        return flow_sigmas(scheduler, steps, tokens, np.linspace(1.0, 1 / steps, steps).tolist())

    @classmethod
    def unscaling(cls, layout: Layout) -> Unscale:
        """Unpacked, then by factor and shift."""
        return lambda vae, latents: unscale(vae, unpack(latents, layout.grid))

    @classmethod
    def encode(cls, source: Source, encoders: Mapping[str, PaddedText]) -> Callable[[str], Condition]:

        def encode(prompt: str) -> Condition:
            return {
                "encoder_hidden_states": encoders["text_encoder_2"](prompt, source.device).last_hidden_state,
                "pooled_projections": encoders["text_encoder"](prompt, source.device).pooler_output,
            }

        return encode

    def example(self) -> Condition:
        config = self.network.config
        return {
            "encoder_hidden_states": made_up(1, T5_TOKENS, config.joint_attention_dim).to(self.device),
            "pooled_projections": made_up(1, config.pooled_projection_dim).to(self.device),
        }

    def constants(self, condition: Condition) -> dict[str, Tensor]:
        """Ids of the patches' places, row and column after a zero; those of the text are zeros."""
        image = torch.zeros(self.layout.tokens, 3, device=self.device)
        sides = (torch.arange(side, device=self.device) for side in self.layout.grid)
        image[:, 1:] = torch.cartesian_prod(*sides)
        text = torch.zeros(condition["encoder_hidden_states"].shape[1], 3, device=self.device)
        return {"img_ids": image, "txt_ids": text}

    @staticmethod
    def targets(network: nn.Module) -> tuple[str, ...]:
        return tuple(name for name, _ in network.named_modules() if name.endswith(TARGETS))
