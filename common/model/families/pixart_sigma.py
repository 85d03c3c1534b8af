"""PixArt-Sigma: a transformer that predicts noise and an unused variance; prompts by T5 with a mask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import diffusers
import safetensors.torch
import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline
from diffusers.loaders import PeftAdapterMixin
from peft import PeftModel
from torch import Tensor, nn
from transformers import T5EncoderModel

from common.config.training import SamplingSection
from common.errors import ModelError
from common.model import options
from common.model.families.base import Family, PipelineParts, image_size, made_up
from common.model.families.unet import discrete_steps
from common.model.guidance import Condition
from common.model.parts import Source
from common.model.steps import Steps
from common.model.text import TextStage, t5

TOKENS = 300
SIZE_OF_MICRO_CONDITIONS = 128
"""A network of this sample_size takes the image's size as an input, where its configuration says nothing."""


class PixArtTransformer2DModel(diffusers.PixArtTransformer2DModel, PeftAdapterMixin):
    """Under the same name, with adapters, which diffusers gives to other networks."""


@dataclass(frozen=True)
class PixArtSigmaFamily(Family):
    """Conditioned on T5's last hidden states and their mask."""

    PIPELINE = PixArtSigmaPipeline
    PARTS: ClassVar = PipelineParts(
        denoiser="transformer",
        network=PixArtTransformer2DModel,
        former_names=("Transformer2DModel",),
        encoders={"text_encoder": t5(TOKENS)},
        network_options={"use_additional_conditions": (False, None)},
        vae_options=options.VAE,
    )

    @classmethod
    def check(cls, source: Source, sampling: SamplingSection) -> None:
        discrete_steps(*source.scheduler(), sampling, source.device)
        outlines = cls.PARTS.check(source)
        network = source.config(PixArtTransformer2DModel, "transformer")
        width = source.text_config(T5EncoderModel, "text_encoder").d_model
        if network["caption_channels"] != width:
            raise ModelError(
                f"{source.settings.path!r}: the transformer's caption_channels is "
                f"{network['caption_channels']}, but T5's d_model is {width}; they are parts of different "
                "models."
            )
        if (
            network["use_additional_conditions"] is None
            and network["sample_size"] == SIZE_OF_MICRO_CONDITIONS
        ):
            raise ModelError(
                f"{source.settings.path!r}: transformer/config.json does not say use_additional_conditions, "
                "which must be false: PixArt-Sigma takes none."
            )
        _latent_shape(source, sampling)
        cls.PARTS.check_weights(source, outlines)

    @classmethod
    def load(cls, source: Source, sampling: SamplingSection) -> Self:
        shape = _latent_shape(source, sampling)
        return cls._loaded(source, source.scheduler(), _text, latent_shape=shape)

    def example(self) -> Condition:
        states = made_up(1, TOKENS, self.network.config.caption_channels).to(self.device)
        return {"encoder_hidden_states": states, "encoder_attention_mask": torch.ones_like(states[..., 0])}

    def steps(self, sampling: SamplingSection) -> Steps:
        """DDIM."""
        return discrete_steps(*self.scheduler, sampling, self.device)

    def forward(self, network: nn.Module, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """Of noise and variance, the noise."""
        kind = next(network.parameters()).dtype
        rows = {name: value.to(kind) for name, value in condition.items()}
        output: Tensor = network(latents.to(kind), timestep=times, return_dict=False, **rows)[0]
        return output[:, : latents.shape[1]].to(latents.dtype)

    def save_adapter(self, folder: Path, layers: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """As PEFT does, for PeftModel.from_pretrained(pipeline.transformer, folder): diffusers has no
        load_lora_weights for this pipeline."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(dict(metadata), indent=2, sort_keys=True))
        named = {f"base_model.model.{name}": value.detach().cpu() for name, value in layers.items()}
        safetensors.torch.save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})

    def load_adapter(self, folder: Path, network: nn.Module) -> None:
        PeftModel.from_pretrained(network, folder, torch_device="cpu")


def _text(source: Source) -> TextStage:
    encoders = PixArtSigmaFamily.PARTS.text(source)
    text = encoders["text_encoder"]

    def encode(prompt: str) -> Condition:
        # As the pipeline does where it is not asked to clean captions.
        ids, mask = text.tokenize(prompt.lower().strip(), source.device)
        states = text.encoder(ids, attention_mask=mask, return_dict=True).last_hidden_state
        return {"encoder_hidden_states": states, "encoder_attention_mask": mask.float()}

    return TextStage(encoders, source.device, source.settings.text_encoder, encode)


def _latent_shape(source: Source, sampling: SamplingSection) -> tuple[int, int, int]:
    """(C, H, W) for the size asked for. Raises ModelError where transformer and VAE do not fit."""
    network = source.config(PixArtTransformer2DModel, "transformer")
    vae = source.config(AutoencoderKL, "vae")
    channels, given = network["in_channels"], network["out_channels"] or network["in_channels"]
    if channels != vae["latent_channels"] or given not in (channels, 2 * channels):
        raise ModelError(
            f"{source.settings.path!r}: the transformer takes {channels} channels and gives {given}, the VAE "
            f"has {vae['latent_channels']}; it must take as many, and give those or twice as many."
        )
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    where = f"{source.settings.path!r}: transformer/config.json has sample_size"
    height, width = image_size(sampling, network["sample_size"], scale, scale * network["patch_size"], where)
    return channels, height // scale, width // scale
