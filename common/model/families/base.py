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
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config.training import SamplingSection
from common.errors import ModelError
from common.model.guidance import Condition, Guidance, classifier_free
from common.model.options import INDEX_NAMES, TEXT, TEXT_NAMES, UNET_NAMES, VAE_NAMES, Allowed, check_options
from common.model.parts import Source, VaeDecoder
from common.model.scheduler_options import check_discrete
from common.model.schedules import ddim_steps
from common.model.steps import Chosen, Steps
from common.model.text import ClipText, TextStage, check_clip, prompt_tokens


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

    def load_adapter(self, folder: Path, network: nn.Module) -> None:
        """Read such weights into a network, as load_lora_weights does."""
        ...


class FolderCheck(Protocol):
    """What a family's class says of pipeline folders before anything is loaded."""

    @staticmethod
    def check(source: Source, sampling: SamplingSection) -> None:
        """Raise ModelError where configurations and tokenizers show that the model cannot serve these
        settings, or where the weights of a local folder are not what they say. Loads no weights."""
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
        return source.outline(UNet2DConditionModel, "unet")

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

    def load_adapter(self, folder: Path, network: nn.Module) -> None:
        """See Family."""
        layers, alphas, metadata = self.PIPELINE.lora_state_dict(folder, return_lora_metadata=True)
        self.PIPELINE.load_lora_into_unet(
            layers,
            network_alphas=alphas,
            unet=network,
            adapter_name="default",
            metadata=metadata,
            low_cpu_mem_usage=True,
        )


def discrete_steps(
    class_name: str, config: Mapping[str, Any], sampling: SamplingSection, device: torch.device
) -> Steps:
    """DDIM steps of a discrete-time scheduler. Raises ModelError where it or the sampler is another."""
    check_discrete(class_name, config)
    sampler = sampling.sampler
    if sampler.kind != "ddim":
        raise ModelError(f"sampling.sampler is {sampler.kind}, which is for flow models; take ddim.")
    chosen = Chosen(sampling.named_stochastic_steps, sampling.max_step_gain, sampling.branch_at)
    return replace(ddim_steps(config, sampling.steps, sampler.eta, chosen), device=device)


@dataclass(frozen=True)
class UnetParts:
    """The parts of a pipeline around a UNet.

    encoders: class by text encoder, each with a tokenizer of the same ending. pools: the encoders whose
    pooled vector is used. unet, vae: options that have to be neutral.
    """

    encoders: Mapping[str, type[Any]]
    pools: frozenset[str]
    unet: Allowed
    vae: Allowed

    @property
    def networks(self) -> dict[str, type[Any]]:
        """Class by part."""
        return {"unet": UNet2DConditionModel, "vae": AutoencoderKL, **self.encoders}

    def check(self, source: Source, sampling: SamplingSection) -> dict[str, nn.Module]:
        """The networks without their weights, by part.

        Raises ModelError where configurations or tokenizers are not honoured, or do not fit each other.
        """
        index = source.index()
        settings = {name: value for name, value in index.items() if not isinstance(value, list)}
        check_options(source.folder / "model_index.json", settings, INDEX_NAMES, {})
        for part, kind in self.networks.items():
            _check_class(source, part, (kind.__name__,))
        for part, known, allowed in (("unet", UNET_NAMES, self.unet), ("vae", VAE_NAMES, self.vae)):
            check_options(source.folder / part / "config.json", source.settings_of(part), known, allowed)
        for part in self.encoders:
            _check_class(source, tokenizer_of(part), ("CLIPTokenizer", "CLIPTokenizerFast"))
            check_options(source.folder / part / "config.json", source.settings_of(part), TEXT_NAMES, TEXT)
            where, tokenizer = str(source.folder / tokenizer_of(part)), source.tokenizer(tokenizer_of(part))
            check_clip(where, tokenizer, source.text_config(part), part in self.pools)
        self._check_width(source)
        outlines = {part: source.outline(kind, part) for part, kind in self.networks.items()}
        unet_sizes(source, sampling)
        return outlines

    def check_weights(self, source: Source, outlines: Mapping[str, nn.Module]) -> None:
        """Raise ModelError where a local folder's weights are not what its configurations say."""
        if source.local:
            for part, outline in outlines.items():
                source.check_weights(outline, part)
            source.check_variant(list(self.networks))

    def text(self, source: Source) -> dict[str, ClipText]:
        """The text encoders with their tokenizers, all for prompts of as many tokens."""
        tokenizers = {part: source.tokenizer(tokenizer_of(part)) for part in self.encoders}
        tokens = min(prompt_tokens(one, source.text_config(part)) for part, one in tokenizers.items())
        return {
            part: ClipText(tokenizers[part], source.network(kind, part, source.dtype), tokens)
            for part, kind in self.encoders.items()
        }

    def _check_width(self, source: Source) -> None:
        taken = source.config(UNet2DConditionModel, "unet")["cross_attention_dim"]
        widths = {part: source.text_config(part).hidden_size for part in self.encoders}
        if taken != sum(widths.values()):
            given = " and ".join(f"{part} has {width}" for part, width in widths.items())
            raise ModelError(
                f"{source.settings.path!r}: the UNet's cross_attention_dim is {taken}, but {given}; they are "
                "parts of different models."
            )


def tokenizer_of(encoder: str) -> str:
    """The part that holds a text encoder's tokenizer."""
    return encoder.replace("text_encoder", "tokenizer")


def _check_class(source: Source, part: str, allowed: Sequence[str]) -> None:
    name = source.class_name(part)
    if name not in allowed:
        raise ModelError(
            f"{source.folder / 'model_index.json'}: {part} is a {name}; supported is {' or '.join(allowed)}."
        )


FIRST_SIZE = 64
"""Of Stable Diffusion 1.x's latents. Its first UNets were saved with a smaller one, as diffusers knows."""


def _is_first(unet: Mapping[str, Any]) -> bool:
    """Whether a UNet was saved before diffusers 0.9."""
    return str(unet.get("_diffusers_version", "")).startswith(tuple(f"0.{minor}." for minor in range(9)))


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
    sides = own if isinstance(own, list | tuple) and len(own) == 2 else (own, own)
    pixels = {}
    for name, size, latent in zip(("height", "width"), (sampling.height, sampling.width), sides, strict=True):
        if not size and (not isinstance(latent, int) or latent < 1):
            raise ModelError(
                f"{path!r}: unet/config.json has sample_size {own!r}, which does not say the "
                f"latents' {name}; set sampling.{name}."
            )
        pixels[name] = size or latent * scale
        if pixels[name] % scale:
            raise ModelError(f"sampling.{name} is {size}; this model's must be a multiple of {scale} pixels.")
    height, width = pixels["height"], pixels["width"]
    return (channels, height // scale, width // scale), (height, width)


def made_up(*shape: int) -> Tensor:
    """Standard normal numbers, the same in every process."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))
