"""What families around a UNet of discrete-time diffusion share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from common.config.training import AutoSampler, DdimSampler, SamplingSection
from common.errors import ModelError
from common.model.families.base import Family, PipelineParts, image_size
from common.model.options import AVERAGING, Allowed
from common.model.parts import Source
from common.model.scheduler_options import check_discrete
from common.model.schedules import ddim_steps
from common.model.steps import Chosen, Steps
from common.model.text import TextKind
from common.model.windows import windowed

FIRST_SIZE = 64
"""Of Stable Diffusion 1.x's latents. Its first UNets were saved with a smaller one, as diffusers knows."""


@dataclass(frozen=True)
class UnetFamily(Family):
    """A UNet of discrete-time diffusion with a KL autoencoder. size: of the images, height and width."""

    size: tuple[int, int]

    def steps(self, sampling: SamplingSection) -> Steps:
        """DDIM."""
        return discrete_steps(*self.scheduler, sampling, self.device)

    def load_adapter(self, folder: Path, network: nn.Module) -> None:
        layers, alphas, metadata = self.PIPELINE.lora_state_dict(folder, return_lora_metadata=True)
        self.PIPELINE.load_lora_into_unet(
            layers,
            network_alphas=alphas,
            unet=network,
            adapter_name="default",
            metadata=metadata,
            low_cpu_mem_usage=True,
        )


def unet_parts(encoders: Mapping[str, TextKind], unet: Allowed, vae: Allowed) -> PipelineParts:
    """The parts around a UNet. unet, vae: options that have to be neutral."""
    return PipelineParts(
        denoiser="unet",
        network=UNet2DConditionModel,
        encoders=encoders,
        network_options=unet,
        network_remarks=AVERAGING,
        vae_options=vae,
    )


def discrete_steps(
    class_name: str, config: Mapping[str, Any], sampling: SamplingSection, device: torch.device
) -> Steps:
    """DDIM steps of a discrete-time scheduler. Raises ModelError where it or the sampler is another."""
    check_discrete(class_name, config)
    sampler = DdimSampler() if isinstance(sampling.sampler, AutoSampler) else sampling.sampler
    if not isinstance(sampler, DdimSampler):
        raise ModelError(f"sampling.sampler is {sampler.kind}, which is for flow models; take auto or ddim.")
    chosen = Chosen(sampling.named_stochastic_steps, sampling.max_step_gain, sampling.branch_at)
    steps = ddim_steps(config, sampling.steps, sampler.eta, chosen, sampler.flat)
    return replace(windowed(steps, sampling.window), device=device)


def check_width(source: Source, encoders: Mapping[str, TextKind]) -> None:
    """Raise ModelError where the UNet does not take the encoders' hidden states side by side."""
    taken = source.config(UNet2DConditionModel, "unet")["cross_attention_dim"]
    widths = {part: source.text_config(kind.encoder, part).hidden_size for part, kind in encoders.items()}
    if taken != sum(widths.values()):
        given = " and ".join(f"{part} has {width}" for part, width in widths.items())
        raise ModelError(
            f"{source.settings.path!r}: the UNet's cross_attention_dim is {taken}, but {given}; they are "
            "parts of different models."
        )


def unet_sizes(source: Source, sampling: SamplingSection) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Latent shape (C, H, W) and size in pixels (height, width), for the size asked for.

    Raises ModelError where UNet and VAE do not share channels, or the size is no multiple of the VAE's.
    """
    path = source.settings.path
    unet, vae = source.config(UNet2DConditionModel, "unet"), source.config(AutoencoderKL, "vae")
    taken, given, channels = unet["in_channels"], unet["out_channels"], vae["latent_channels"]
    if not taken == given == channels:
        raise ModelError(
            f"{path!r}: the UNet takes {taken} channels and gives {given}, the VAE has {channels}; they must "
            "be equal (inpainting and learned-variance UNets are not supported)."
        )
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    own = unet["sample_size"]
    if isinstance(own, int) and own < FIRST_SIZE and _is_first(source.settings_of("unet")):
        own = FIRST_SIZE
    where = f"{path!r}: unet/config.json has sample_size"
    height, width = image_size(sampling, own, scale, scale, where)
    return (channels, height // scale, width // scale), (height, width)


def _is_first(unet: Mapping[str, Any]) -> bool:
    """Whether a UNet was saved before diffusers 0.9."""
    return str(unet.get("_diffusers_version", "")).startswith(tuple(f"0.{minor}." for minor in range(9)))
