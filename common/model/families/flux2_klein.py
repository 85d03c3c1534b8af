"""FLUX.2 klein: packed latents, three layers of Qwen 3 side by side; guidance of the base model alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor, nn
from transformers import Qwen3ForCausalLM

from common.config.training import SamplingSection
from common.errors import ModelError
from common.model.families.base import PipelineParts, image_size, made_up
from common.model.families.flow import JOINT_PROJECTIONS, FlowFamily, Layout, Settings
from common.model.families.qwen_image import unpack
from common.model.guidance import Condition
from common.model.language_models import as_message, hidden_states, qwen
from common.model.parts import Source, Unscale
from common.model.schedules import flow_sigmas
from common.model.text import PaddedText

TOKENS = 512
LAYERS = (9, 18, 27)
"""Of Qwen, whose states are put side by side."""
OWN_SIDE = 128
"""Of latents, of the images that the pipeline paints by itself."""
PATCH = 2
MOST_STEPS = 200
"""The largest number that the pipeline's formula of the shift was made with; it is a line in the number."""
TARGETS = (
    *JOINT_PROJECTIONS,
    *("attn.to_qkv_mlp_proj", "attn.to_out"),
)


@dataclass(frozen=True)
class Flux2KleinFamily(FlowFamily):
    """Conditioned on the states of three of Qwen's layers, of the prompt and of what fills it up."""

    PIPELINE = Flux2KleinPipeline
    PARTS: ClassVar = PipelineParts(
        denoiser="transformer",
        network=Flux2Transformer2DModel,
        encoders={"text_encoder": qwen(Qwen3ForCausalLM, TOKENS, chats=True)},
        vae=AutoencoderKLFlux2,
        network_options={"guidance_embeds": (False,), "patch_size": (1,)},
        vae_options={"in_channels": (3,), "out_channels": (3,), "patch_size": ([PATCH, PATCH],)},
    )
    TIME_SCALE = 1.0

    @classmethod
    def check(cls, source: Source, sampling: SamplingSection) -> None:
        if source.index().get("is_distilled") and sampling.guidance_scale != 1.0:
            raise ModelError(
                f"{source.settings.path!r} is distilled and takes no guidance: set sampling.guidance_scale, "
                f"now {sampling.guidance_scale:g}, to 1, or take the base model."
            )
        super().check(source, sampling)

    @classmethod
    def check_fit(cls, source: Source, network: Settings) -> None:
        config = source.text_config(Qwen3ForCausalLM, "text_encoder")
        width, layers = len(LAYERS) * config.hidden_size, config.num_hidden_layers
        if network["joint_attention_dim"] != width or layers < max(LAYERS):
            raise ModelError(
                f"{source.settings.path!r}: the transformer's joint_attention_dim is "
                f"{network['joint_attention_dim']}, and Qwen has {layers} layers of {config.hidden_size}; it "
                f"must be three times the latter, of {max(LAYERS)} layers at least."
            )

    @classmethod
    def lay_out(cls, source: Source, sampling: SamplingSection) -> Layout:
        network = source.config(Flux2Transformer2DModel, "transformer")
        vae = source.config(AutoencoderKLFlux2, "vae")
        channels = vae["latent_channels"] * PATCH**2
        if not channels == network["in_channels"] == (network["out_channels"] or channels):
            raise ModelError(
                f"{source.settings.path!r}: the transformer takes {network['in_channels']} channels and "
                f"gives {network['out_channels']}, the VAE has {vae['latent_channels']}; the former must be "
                f"{PATCH**2} times the latter."
            )
        scale = 2 ** (len(vae["block_out_channels"]) - 1)
        size = image_size(sampling, OWN_SIDE, scale, scale * PATCH, "the pipeline has")
        rows, columns = (side // (scale * PATCH) for side in size)
        return Layout((rows * columns, channels), (rows, columns))

    @classmethod
    def sigmas(cls, scheduler: Settings, steps: int, tokens: int) -> list[float]:
        """The shift depends on patches and steps, of which it was fitted to MOST_STEPS."""
        even = np.linspace(1.0, 1 / steps, steps).tolist()
        mu = compute_empirical_mu(tokens, min(steps, MOST_STEPS))
        return flow_sigmas(scheduler, steps, tokens, even, mu)

    @classmethod
    def unscaling(cls, layout: Layout) -> Unscale:
        """By the statistics of a batch normalisation, a channel of a patch each; then unpacked."""

        def unscale(vae: Any, latents: Tensor) -> Tensor:
            mean, variance = (value.to(latents) for value in (vae.bn.running_mean, vae.bn.running_var))
            return unpack(latents * torch.sqrt(variance + vae.config.batch_norm_eps) + mean, layout.grid)

        return unscale

    @classmethod
    def encode(cls, source: Source, encoders: Mapping[str, PaddedText]) -> Callable[[str], Condition]:
        text = encoders["text_encoder"]

        def encode(prompt: str) -> Condition:
            message = as_message(text.tokenizer, prompt, thinking=False)
            states, _ = hidden_states(text, message, source.device)
            return {"encoder_hidden_states": torch.cat([states[layer] for layer in LAYERS], dim=-1)}

        return encode

    def example(self) -> Condition:
        states = made_up(1, TOKENS, self.network.config.joint_attention_dim)
        return {"encoder_hidden_states": states.to(self.device)}

    def constants(self, condition: Condition) -> dict[str, Tensor]:
        """Coordinates of patches and words: time, row, column, place in the text."""
        words = condition["encoder_hidden_states"].shape[1]
        image, text = (torch.zeros(rows, 4, device=self.device) for rows in (self.layout.tokens, words))
        sides = (torch.arange(side, device=self.device) for side in self.layout.grid)
        image[:, 1:3] = torch.cartesian_prod(*sides)
        text[:, 3] = torch.arange(words, device=self.device)
        return {"img_ids": image, "txt_ids": text}

    @staticmethod
    def targets(network: nn.Module) -> tuple[str, ...]:
        """All projections of the attentions; the single blocks' are fused with their MLP."""
        found = {name: module for name, module in network.named_modules() if name.endswith(TARGETS)}
        return tuple(name for name, module in found.items() if isinstance(module, nn.Linear))
