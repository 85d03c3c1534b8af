"""Pipeline families: how to embed a prompt, predict and decode.

SDXL and flow models enter here, one class each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from common.errors import ModelError
from common.model.schedules import check_discrete

Condition = Mapping[str, Tensor]
"""What the network is conditioned on, by the name of its argument; each tensor has a row a prompt or item."""


class PipelineFamily(Protocol):
    """One kind of text-to-image pipeline, loaded. Holds everything but the policy's own logic."""

    @property
    def unet(self) -> nn.Module:
        """The denoising network."""
        ...

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The pipeline's scheduler configuration."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Weights and buffers of all its networks by name, live."""
        ...

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Condition of each prompt."""
        ...

    def predict(self, unet: nn.Module, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The UNet's output. latents (M, C, H, W), timesteps int64 (M,) -> (M, C, H, W)."""
        ...

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Pictures of clean latents x_0 (B, C, H, W) -> uint8 (B, height, width, 3)."""
        ...


@dataclass(frozen=True)
class StableDiffusionFamily:
    """Stable Diffusion 1.x and 2.x: one CLIP text encoder, cross-attention, a KL autoencoder."""

    pipeline: Any
    unet: nn.Module
    scheduler_config: dict[str, Any]
    latent_shape: tuple[int, int, int]
    device: torch.device

    @staticmethod
    def load(source: str, device: torch.device, **hub: str) -> StableDiffusionFamily:
        """Load a folder or hub id in float32, frozen and in evaluation mode. Raises ModelError."""
        try:
            # Older checkpoints on the hub hold a pickled safety checker that nothing here runs.
            pipeline: Any = StableDiffusionPipeline.from_pretrained(
                source, dtype=torch.float32, safety_checker=None, requires_safety_checker=False, **hub
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{source!r} does not load as a Stable Diffusion pipeline: {error}") from error
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            module.requires_grad_(False).eval().to(device)
            # Weights mapped from a file lie unaligned in memory, and CPU kernels round by alignment: copied,
            # they agree to the bit with the reference, which is a copy too.
            for value in module.parameters():
                value.data = value.data.clone()
        return StableDiffusionFamily(
            pipeline=pipeline,
            unet=pipeline.unet,
            scheduler_config=dict(pipeline.scheduler.config),
            latent_shape=_latent_shape(source, pipeline.unet.config, pipeline.vae.config),
            device=device,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Those of unet, vae and text_encoder."""
        networks = {"unet": self.unet, "vae": self.pipeline.vae, "text_encoder": self.pipeline.text_encoder}
        return {
            f"{part}.{name}": value
            for part, network in networks.items()
            for name, value in network.state_dict().items()
        }

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        """Last hidden state of the text encoder: float32 (P, tokens, width)."""
        tokenizer = self.pipeline.tokenizer
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        uses_mask = getattr(self.pipeline.text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if uses_mask else None
        states = self.pipeline.text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        return {"encoder_hidden_states": states}

    def predict(self, unet: nn.Module, latents: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The UNet's output, float32."""
        return unet(latents, timesteps, return_dict=False, **condition)[0].to(latents.dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """As diffusers' pipeline does: unscale, decode, map [-1, 1] to 0..255 and round."""
        vae = self.pipeline.vae
        images = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        unit = (images.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (unit * 255).round().to(torch.uint8).cpu().numpy()


def _latent_shape(source: str, unet: Any, vae: Any) -> tuple[int, int, int]:
    """C, H, W of the latents. Raises ModelError where UNet and VAE do not share them."""
    channels = {unet.in_channels, unet.out_channels, vae.latent_channels}
    if len(channels) != 1:
        raise ModelError(
            f"{source!r}: the UNet takes {unet.in_channels} channels and gives {unet.out_channels}, the VAE "
            f"has {vae.latent_channels}; they must be equal (inpainting and learned-variance UNets are not "
            "supported)."
        )
    size = unet.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if not isinstance(height, int) or not isinstance(width, int):
        raise ModelError(
            f"{source!r}: unet/config.json has sample_size {size!r}; it must say the latents' size."
        )
    return unet.in_channels, height, width


# By the class name in the pipeline's model_index.json.
FAMILIES: dict[str, type[StableDiffusionFamily]] = {"StableDiffusionPipeline": StableDiffusionFamily}


# Files of which each part needs at least one. Without its own, a tokenizer would silently load empty.
PARTS: dict[str, tuple[str, ...]] = {
    "unet": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "tokenizer": ("tokenizer.json", "vocab.json"),
}


def check_model_folder(source: str) -> None:
    """Raise ModelError where a local folder is no supported pipeline. Reads only its small JSON files.

    A source that is not a folder is taken for a hub id, which only loading can check; one that looks like a
    path is refused.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
            raise ModelError(
                f"model.path {source!r} is neither a folder nor a hub id of the form owner/name."
            )
        return
    index = _read_json(folder / "model_index.json", "so it is no diffusers pipeline folder")
    family = index.get("_class_name")
    if family not in FAMILIES:
        raise ModelError(f"{source!r} holds a {family}; supported are {', '.join(FAMILIES)}.")
    for part, files in PARTS.items():
        if not any((folder / part / name).is_file() for name in files):
            raise ModelError(f"{source!r} is incomplete: {part}/ holds no {' or '.join(files)}.")
    scheduler = read_scheduler_config(folder)
    # The pipeline itself switches clip_sample off when it loads (diffusers' deprecation of clip_sample in
    # latent space).
    check_discrete(str(scheduler.get("_class_name")), {**scheduler, "clip_sample": False})


def read_scheduler_config(folder: Path) -> dict[str, Any]:
    """A pipeline folder's scheduler configuration. Raises ModelError where it cannot be read."""
    return _read_json(folder / "scheduler" / "scheduler_config.json", "so its noise schedule is unknown")


def _read_json(path: Path, consequence: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing, {consequence}.") from error
    except (OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error}), {consequence}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no mapping, {consequence}.")
    return content


def load_family(
    source: str, device: torch.device, revision: str = "main", variant: str = ""
) -> PipelineFamily:
    """Load the pipeline and check that its family and scheduler are supported. Raises ModelError."""
    check_model_folder(source)
    hub = {} if Path(source).is_dir() else {"revision": revision} | ({"variant": variant} if variant else {})
    family = StableDiffusionFamily.load(source, device, **hub)
    check_discrete(type(family.pipeline.scheduler).__name__, family.scheduler_config)
    return family
