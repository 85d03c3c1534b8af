"""Z-Image: captions of their own length, read by Qwen 3; time runs upwards, and the output is -v."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from diffusers import AutoencoderKL, ZImagePipeline, ZImageTransformer2DModel
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import Qwen3Model

from common.config.training import SamplingSection
from common.errors import ModelError
from common.model.families.base import PipelineParts, image_size, made_up
from common.model.families.flow import FlowFamily, Layout, Settings
from common.model.guidance import Condition
from common.model.language_models import as_message, hidden_states, qwen
from common.model.options import VAE_FLOW
from common.model.parts import Source
from common.model.schedules import flow_sigmas
from common.model.text import PaddedText

TOKENS = 512
OWN_SIDE = 128
"""Of latents, of the images that the pipeline paints by itself."""
PATCH = 2


@dataclass(frozen=True)
class ZImageFamily(FlowFamily):
    """Conditioned on the last but one hidden states of the caption, filled up with zeros, and its length.

    Guidance is classifier-free: the pipeline's guidance_scale is one less than the scale here, and 0 is none.
    """

    PIPELINE = ZImagePipeline
    PARTS: ClassVar = PipelineParts(
        denoiser="transformer",
        network=ZImageTransformer2DModel,
        encoders={"text_encoder": qwen(Qwen3Model, TOKENS, chats=True)},
        network_options={
            "siglip_feat_dim": (None,),
            "all_patch_size": ([PATCH],),
            "all_f_patch_size": ([1],),
        },
        vae_options=VAE_FLOW,
    )
    TIME_SCALE = 1.0

    @classmethod
    def check_fit(cls, source: Source, network: Settings) -> None:
        width = source.text_config(Qwen3Model, "text_encoder").hidden_size
        if network["cap_feat_dim"] != width:
            raise ModelError(
                f"{source.settings.path!r}: the transformer's cap_feat_dim is {network['cap_feat_dim']}, but "
                f"Qwen's hidden_size is {width}; they are parts of different models."
            )

    @classmethod
    def lay_out(cls, source: Source, sampling: SamplingSection) -> Layout:
        channels = source.config(ZImageTransformer2DModel, "transformer")["in_channels"]
        vae = source.config(AutoencoderKL, "vae")
        if channels != vae["latent_channels"]:
            raise ModelError(
                f"{source.settings.path!r}: the transformer takes {channels} channels, the VAE has "
                f"{vae['latent_channels']}; they must be equal."
            )
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        size = image_size(sampling, OWN_SIDE, scale, scale * PATCH, "the pipeline has")
        height, width = (side // scale for side in size)
        return Layout((channels, height, width), (height // PATCH, width // PATCH))

    @classmethod
    def sigmas(cls, scheduler: Settings, steps: int, tokens: int) -> list[float]:
        return flow_sigmas(scheduler, steps, tokens, torch.linspace(1.0, 1 / steps, steps).tolist())

    @classmethod
    def encode(cls, source: Source, encoders: Mapping[str, PaddedText]) -> Callable[[str], Condition]:
        text = encoders["text_encoder"]

        def encode(prompt: str) -> Condition:
            message = as_message(text.tokenizer, prompt, thinking=True)
            states, mask = hidden_states(text, message, source.device)
            caption = states[-2][0, mask[0].bool()]
            return {
                "cap_feats": pad(caption, (0, 0, 0, text.tokens - len(caption)))[None],
                "cap_tokens": mask.sum(1),
            }

        return encode

    def example(self) -> Condition:
        states = made_up(1, TOKENS, self.network.config.cap_feat_dim).to(self.device)
        return {"cap_feats": states, "cap_tokens": torch.tensor([TOKENS], device=self.device)}

    def forward(self, network: nn.Module, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """Waits for the device once, for the captions' lengths."""
        kind = next(network.parameters()).dtype
        lengths = condition["cap_tokens"].tolist()
        captions = [
            states[:length] for states, length in zip(condition["cap_feats"].to(kind), lengths, strict=True)
        ]
        frames = list(latents.to(kind).unsqueeze(2))
        output = network(frames, 1 - times, captions, return_dict=False)[0]
        return -torch.stack(output).squeeze(2).to(latents.dtype)
