"""What a pipeline family is, and what families around a UNet share.

A family, one file each, states only what is peculiar to a kind of pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config.training import SamplingSection
from common.errors import ModelError
from common.model.guidance import Condition, Guidance, classifier_free
from common.model.parts import Source, TextStage, VaeDecoder
from common.model.schedules import check_discrete, ddim_steps
from common.model.steps import Chosen, Steps


class Family(Protocol):
    """One kind of text-to-image pipeline, loaded. Holds everything but the policy's own logic."""

    @property
    def network(self) -> nn.Module:
        """The denoising network."""
        ...

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one image, as the network takes it."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def parts(self) -> Mapping[str, nn.Module]:
        """Its loaded networks by name."""
        ...

    def guidance(self, scale: float) -> Guidance:
        """How this family is guided; 1 = not at all."""
        ...

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Each prompt's condition, a row a prompt, float32 or better. Each prompt by itself, so that its bits
        depend on no other. Raises ModelError where the text encoders were not loaded."""
        ...

    def negative(self) -> Condition:
        """One row: the condition that classifier-free guidance moves away from."""
        ...

    def example(self) -> Condition:
        """One row of made-up numbers in the shapes that the network takes, the same in every process."""
        ...

    def forward(self, network: nn.Module, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """One pass. latents (M, ...), times float32 (M,), condition M rows -> (M, ...)."""
        ...

    def steps(self, sampling: SamplingSection) -> Steps:
        """The steps of its sampler, on its device. Raises ModelError where it has no such sampler."""
        ...

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Images of clean latents x_0 (B, ...) -> uint8 (B, height, width, 3). Raises ModelError where the
        decoder was not loaded."""
        ...

    def save_adapter(self, folder: Path, layers: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Write LoRA weights as the plain pipeline's load_lora_weights reads them."""
        ...


class FolderCheck(Protocol):
    """What a family's class says of pipeline folders before anything is loaded."""

    # Files by folder, of which each folder needs at least one: without its own, a tokenizer would silently
    # load empty.
    FILES: ClassVar[Mapping[str, tuple[str, ...]]]

    @staticmethod
    def check(source: Source, sampling: SamplingSection) -> None:
        """Raise ModelError where small JSON files show that the model cannot serve these settings."""
        ...

    @staticmethod
    def outline(source: Source) -> nn.Module:
        """The denoising network without its weights. Raises ModelError."""
        ...

    @staticmethod
    def load(source: Source, sampling: SamplingSection) -> Family:
        """Load it. Raises ModelError."""
        ...


@dataclass(frozen=True)
class UnetFamily:
    """A UNet of discrete-time diffusion with a KL autoencoder.

    text, images: None where only the network was loaded. scheduler: class name and configuration. size:
    height and width of the images in pixels.
    """

    PIPELINE: ClassVar[Any]

    network: Any
    text: TextStage | None
    images: VaeDecoder | None
    scheduler: tuple[str, Mapping[str, Any]]
    latent_shape: tuple[int, ...]
    size: tuple[int, int]
    device: torch.device

    @staticmethod
    def outline(source: Source) -> nn.Module:
        """See FolderCheck."""
        network: nn.Module = source.outline(UNet2DConditionModel, "unet")
        return network

    def parts(self) -> Mapping[str, nn.Module]:
        """unet, and where they were loaded vae and the text encoders."""
        text = {} if self.text is None else {name: one.encoder for name, one in self.text.encoders.items()}
        vae = {} if self.images is None else {"vae": self.images.vae}
        return {"unet": self.network, **vae, **text}

    def guidance(self, scale: float) -> Guidance:
        """Classifier-free."""
        return classifier_free(scale)

    def embed(self, prompts: Sequence[str]) -> Condition:
        """See Family."""
        if self.text is None:
            raise ModelError("The text encoders were not loaded: only actors embed prompts.")
        return self.text.embed(prompts)

    def negative(self) -> Condition:
        """The empty prompt's."""
        return self.embed([""])

    def steps(self, sampling: SamplingSection) -> Steps:
        """DDIM."""
        return discrete_steps(*self.scheduler, sampling, self.device)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """See Family."""
        if self.images is None:
            raise ModelError("The VAE was not loaded: only actors decode images.")
        return self.images.decode(latents)

    def save_adapter(self, folder: Path, layers: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """See Family."""
        self.PIPELINE.save_lora_weights(
            folder, unet_lora_layers=dict(layers), unet_lora_adapter_metadata=dict(metadata)
        )


def discrete_steps(
    class_name: str, config: Mapping[str, Any], sampling: SamplingSection, device: torch.device
) -> Steps:
    """DDIM steps of a discrete-time scheduler. Raises ModelError where it or the sampler is another."""
    check_discrete(class_name, config)
    sampler = sampling.sampler
    if sampler.kind != "ddim":
        raise ModelError(f"sampling.sampler is {sampler.kind}, which is for flow models; take ddim.")
    chosen = Chosen(sampling.named_stochastic_steps, sampling.max_step_gain)
    return replace(ddim_steps(config, sampling.steps, sampler.eta, chosen), device=device)


def unet_sizes(
    source: Source, unet: Any, vae: Mapping[str, Any], sampling: SamplingSection
) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Latent shape (C, H, W) and size in pixels (height, width), for the size asked for.

    unet: its configuration; vae: its configuration's JSON.

    Raises ModelError where UNet and VAE do not share channels, or the size is no multiple of the VAE's.
    """
    path, channels = source.settings.path, vae["latent_channels"]
    if not unet.in_channels == unet.out_channels == channels:
        raise ModelError(
            f"{path!r}: the UNet takes {unet.in_channels} channels and gives {unet.out_channels}, the VAE "
            f"has {channels}; they must be equal (inpainting and learned-variance UNets are not supported)."
        )
    scale = 2 ** (len(vae["block_out_channels"]) - 1)
    own = unet.sample_size
    height, width = own if isinstance(own, list | tuple) else (own, own)
    if not isinstance(height, int) or not isinstance(width, int):
        raise ModelError(
            f"{path!r}: unet/config.json has sample_size {own!r}; it must say the latents' size."
        )
    pixels = {"height": sampling.height or height * scale, "width": sampling.width or width * scale}
    for name, size in pixels.items():
        if size % scale:
            raise ModelError(f"sampling.{name} is {size}; this model's must be a multiple of {scale} pixels.")
    height, width = pixels["height"], pixels["width"]
    return (channels, height // scale, width // scale), (height, width)


def made_up(*shape: int) -> Tensor:
    """Standard normal numbers, the same in every process."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))
