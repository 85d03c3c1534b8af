"""Stable Diffusion 3 and 3.5: two CLIP text encoders, a T5 that may be absent, joint attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import nn
from torch.nn.functional import pad
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from common.config.training import SamplingSection
from common.errors import ModelError
from common.model.families.base import PipelineParts, image_size, made_up
from common.model.families.flow import JOINT_PROJECTIONS, FlowFamily, Layout, Settings
from common.model.guidance import Condition
from common.model.options import VAE_FLOW
from common.model.parts import Source
from common.model.schedules import flow_sigmas
from common.model.text import PaddedText, clip, t5

CLIPS = ("text_encoder", "text_encoder_2")
T5 = "text_encoder_3"
TOKENS = 77
T5_TOKENS = 256


@dataclass(frozen=True)
class StableDiffusion3Family(FlowFamily):
    """Conditioned on the last but one hidden states of both CLIPs side by side, filled up with zeros to the
    width of T5's, those of T5 after them (zeros where it is absent), and on both CLIPs' pooled vectors."""

    PIPELINE = StableDiffusion3Pipeline
    PARTS: ClassVar = PipelineParts(
        denoiser="transformer",
        network=SD3Transformer2DModel,
        encoders={**dict.fromkeys(CLIPS, clip(CLIPTextModelWithProjection, pools=True)), T5: t5(T5_TOKENS)},
        optional=frozenset({T5}),
        vae_options=VAE_FLOW,
    )
    TIME_SCALE = 1000.0

    @classmethod
    def check_fit(cls, source: Source, network: Settings) -> None:
        clips = [source.text_config(CLIPTextModelWithProjection, part) for part in CLIPS]
        pooled, width = sum(one.projection_dim for one in clips), sum(one.hidden_size for one in clips)
        taken, given = network["joint_attention_dim"], width
        if T5 in cls.PARTS.present(source):
            given = source.text_config(T5EncoderModel, T5).d_model
        if pooled != network["pooled_projection_dim"] or given > taken or width > given:
            raise ModelError(
                f"{source.settings.path!r}: the transformer's pooled_projection_dim is "
                f"{network['pooled_projection_dim']}, its joint_attention_dim is {taken}; the encoders have "
                f"pooled vectors of {pooled} and hidden states of {width} (CLIP) and {given}. They are parts "
                "of different models."
            )

    @classmethod
    def lay_out(cls, source: Source, sampling: SamplingSection) -> Layout:
        network = source.config(SD3Transformer2DModel, "transformer")
        vae = source.config(AutoencoderKL, "vae")
        path, channels, patch = source.settings.path, network["in_channels"], network["patch_size"]
        if not channels == (network["out_channels"] or channels) == vae["latent_channels"]:
            raise ModelError(
                f"{path!r}: the transformer takes {channels} channels and gives {network['out_channels']}, "
                f"the VAE has {vae['latent_channels']}; they must be equal."
            )
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        where = f"{path!r}: transformer/config.json has sample_size"
        size = image_size(sampling, network["sample_size"], scale, scale * patch, where)
        height, width = (side // scale for side in size)
        if max(height, width) > network["pos_embed_max_size"] * patch:
            raise ModelError(
                f"sampling.height and width are {size[0]} and {size[1]}; this model has positions for "
                f"{network['pos_embed_max_size'] * patch * scale} pixels a side at most."
            )
        return Layout((channels, height, width), (height // patch, width // patch))

    @classmethod
    def sigmas(cls, scheduler: Settings, steps: int, tokens: int) -> list[float]:
        return flow_sigmas(scheduler, steps, tokens)

    @classmethod
    def encode(cls, source: Source, encoders: Mapping[str, PaddedText]) -> Callable[[str], Condition]:
        width = source.config(SD3Transformer2DModel, "transformer")["joint_attention_dim"]
        zeros = source.settings.prompt_tokens or T5_TOKENS

        def encode(prompt: str) -> Condition:
            clips = [encoders[part](prompt, source.device) for part in CLIPS]
            states = torch.cat([one.hidden_states[-2] for one in clips], dim=-1)
            if T5 in encoders:
                longer = encoders[T5](prompt, source.device).last_hidden_state.to(states.dtype)
            else:
                longer = states.new_zeros(1, zeros, width)
            return {
                "encoder_hidden_states": torch.cat([pad(states, (0, width - states.shape[-1])), longer], 1),
                "pooled_projections": torch.cat([one.text_embeds for one in clips], dim=-1),
            }

        return encode

    def example(self) -> Condition:
        config = self.network.config
        states = made_up(1, TOKENS + T5_TOKENS, config.joint_attention_dim)
        pooled = made_up(1, config.pooled_projection_dim)
        return {
            "encoder_hidden_states": states.to(self.device),
            "pooled_projections": pooled.to(self.device),
        }

    @staticmethod
    def targets(network: nn.Module) -> tuple[str, ...]:
        """All projections of the joint attentions, but for the text's query in the last: its result is
        dropped."""
        found = [name for name, _ in network.named_modules() if name.endswith(JOINT_PROJECTIONS)]
        last = [name for name in found if name.endswith("attn.add_q_proj")][-1]
        return tuple(name for name in found if name != last)
