"""What a pipeline family is, and what all families share: their parts, prompts, images, saved adapters.

A family, one file each, states only what is peculiar to a kind of pipeline.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config.training import LONGEST_SIDE, SamplingSection
from common.errors import ModelError
from common.model.forward_process import NoiseLevels
from common.model.guidance import Condition, Guidance, classifier_free
from common.model.options import (
    INDEX_NAMES,
    Allowed,
    check_latent_numbers,
    check_options,
    check_types,
    option_names,
)
from common.model.parts import Source, Unscale, VaeDecoder, unscale
from common.model.schedules import ddim_noise_levels
from common.model.steps import Steps
from common.model.text import PaddedText, TextKind, TextStage, prompt_tokens

PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
"""Of an attention."""


@dataclass(frozen=True)
class PipelineParts:
    """The parts of a diffusers pipeline, and what their configurations may say.

    denoiser: the denoising network's part, of the class `network`. encoders: by part, each with a tokenizer
    of the same ending. optional: encoders that a pipeline may lack. network_options, vae_options: options
    that have to be neutral; network_remarks: those that change nothing. former_names: that model_index.json
    may give the network's class.
    """

    denoiser: str
    network: type[Any]
    encoders: Mapping[str, TextKind]
    vae: type[Any] = AutoencoderKL
    optional: frozenset[str] = frozenset()
    network_options: Allowed = field(default_factory=dict)
    network_remarks: frozenset[str] = frozenset()
    former_names: tuple[str, ...] = ()
    vae_options: Allowed = field(default_factory=dict)

    def present(self, source: Source) -> dict[str, TextKind]:
        """The text encoders that the pipeline has."""
        index = source.index()
        return {
            part: kind
            for part, kind in self.encoders.items()
            if part not in self.optional or index.get(part) not in (None, [None, None])
        }

    def networks(self, source: Source) -> dict[str, type[Any]]:
        """Class by part."""
        text = {part: kind.encoder for part, kind in self.present(source).items()}
        return {self.denoiser: self.network, "vae": self.vae, **text}

    def check(self, source: Source) -> dict[str, nn.Module]:
        """The networks without their weights, by part.

        Raises ModelError where configurations or tokenizers are not honoured, or do not fit each other.
        """
        index = source.index()
        settings = {name: value for name, value in index.items() if not isinstance(value, list)}
        check_options(source.folder / "model_index.json", settings, INDEX_NAMES, {})
        networks, wanted = self.networks(source), source.settings.prompt_tokens
        for part, network in networks.items():
            former = self.former_names if part == self.denoiser else ()
            _check_class(source, part, (network.__name__, *former))
        if wanted and all(kind.tokens is None for kind in self.encoders.values()):
            raise ModelError(
                f"model.prompt_tokens is {wanted}, but {source.settings.path!r} has CLIP text encoders "
                "alone, which have a length of their own: set it to 0."
            )
        known = option_names(self.network) | self.network_remarks
        _check_part(source, self.denoiser, known, self.network_options)
        # Not every autoencoder of diffusers takes force_upcast, which VaeDecoder honours.
        _check_part(source, "vae", option_names(self.vae) | {"force_upcast"}, self.vae_options)
        for part in (self.denoiser, "vae"):
            check_types(_config_file(source, part), source.settings_of(part), networks[part])
        check_latent_numbers(_config_file(source, "vae"), source.config(self.vae, "vae"))
        for part, kind in self.present(source).items():
            _check_class(source, tokenizer_of(part), kind.tokenizers)
            _check_part(source, part, kind.names, kind.allowed)
            where, tokenizer = (
                str(source.folder / tokenizer_of(part)),
                source.tokenizer(kind, tokenizer_of(part)),
            )
            kind.check(where, tokenizer, source.text_config(kind.encoder, part))
        return {part: source.outline(network, part) for part, network in networks.items()}

    def check_weights(self, source: Source, outlines: Mapping[str, nn.Module]) -> None:
        """Raise ModelError where a local folder's weights are not what its configurations say."""
        if source.local:
            for part, outline in outlines.items():
                source.check_weights(outline, part)
            source.check_variant(list(outlines))

    def text(self, source: Source) -> dict[str, PaddedText]:
        """The text encoders with their tokenizers. Those whose kind names no length read as many tokens as
        all of them can."""
        present = self.present(source)
        tokenizers = {part: source.tokenizer(kind, tokenizer_of(part)) for part, kind in present.items()}
        shared = [
            prompt_tokens(tokenizers[part], source.text_config(kind.encoder, part))
            for part, kind in present.items()
            if kind.tokens is None
        ]
        return {
            part: PaddedText(
                tokenizers[part],
                partial(source.network, kind.encoder, part, source.dtype),
                min(shared) if kind.tokens is None else source.settings.prompt_tokens or kind.tokens,
            )
            for part, kind in present.items()
        }


def tokenizer_of(encoder: str) -> str:
    """The part that holds a text encoder's tokenizer."""
    return encoder.replace("text_encoder", "tokenizer")


def _check_part(source: Source, part: str, known: frozenset[str], allowed: Allowed) -> None:
    check_options(_config_file(source, part), source.settings_of(part), known, allowed)


def _config_file(source: Source, part: str) -> Path:
    return source.folder / part / "config.json"


def _check_class(source: Source, part: str, allowed: Sequence[str]) -> None:
    name = source.class_name(part)
    if name not in allowed:
        raise ModelError(
            f"{source.folder / 'model_index.json'}: {part} is a {name}; supported is {' or '.join(allowed)}."
        )


@dataclass(frozen=True)
class Family(ABC):
    """One kind of text-to-image pipeline of diffusers, loaded. Holds everything but the policy's own logic.

    network: the denoising network. text, images: None where it alone was loaded. scheduler: class name and
    configuration. device: where it computes. latent_shape: of one image, as the network takes it.
    """

    PIPELINE: ClassVar[Any]
    PARTS: ClassVar[PipelineParts]

    network: Any
    text: TextStage | None
    images: VaeDecoder | None
    scheduler: tuple[str, Mapping[str, Any]]
    device: torch.device
    latent_shape: tuple[int, ...]

    @classmethod
    @abstractmethod
    def check(cls, source: Source, sampling: SamplingSection) -> None:
        """Raise ModelError where configurations and tokenizers show that the model cannot serve these
        settings, or where the weights of a local folder are not what they say. Loads no weights."""
        ...

    @classmethod
    def outline(cls, source: Source) -> nn.Module:
        """The denoising network without its weights. Raises ModelError."""
        return source.outline(cls.PARTS.network, cls.PARTS.denoiser)

    @classmethod
    @abstractmethod
    def load(cls, source: Source, sampling: SamplingSection) -> Self:
        """Load it. Raises ModelError."""
        ...

    @staticmethod
    def targets(network: nn.Module) -> tuple[str, ...]:
        """The modules of the denoising network that get an adapter where the configuration names none: whole
        names, or their ends. The projections of every attention."""
        return PROJECTIONS

    @abstractmethod
    def steps(self, sampling: SamplingSection) -> Steps:
        """The steps of its sampler, on its device. Raises ModelError where it has no such sampler."""
        ...

    @abstractmethod
    def forward(self, network: nn.Module, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """One pass. latents (M, ...), times float32 (M,), condition M rows -> (M, ...)."""
        ...

    @abstractmethod
    def example(self) -> Condition:
        """One row of made-up numbers in the shapes that the network takes, the same in every process."""
        ...

    @abstractmethod
    def load_adapter(self, folder: Path, network: nn.Module) -> None:
        """Read what save_adapter wrote into a network, as load_lora_weights does."""
        ...

    def parts(self) -> Mapping[str, nn.Module]:
        """The loaded networks by name: unet or transformer, and where they are vae and text encoders."""
        text = {} if self.text is None else {name: one.encoder for name, one in self.text.encoders.items()}
        vae = {} if self.images is None else {"vae": self.images.vae}
        return {self.PARTS.denoiser: self.network, **vae, **text}

    def guidance(self, scale: float) -> Guidance:
        """How it is guided; 1 = not at all. Classifier-free."""
        return classifier_free(scale)

    def embed(self, prompts: Sequence[str]) -> Condition:
        """Each prompt's condition, a row a prompt, float32 or better. Each prompt by itself, so that its bits
        depend on no other. Raises ModelError where the text encoders were not loaded."""
        if self.text is None:
            raise ModelError("The text encoders were not loaded: only actors embed prompts.")
        return self.text.embed(prompts)

    def negative(self) -> Condition:
        """One row: the condition that classifier-free guidance moves away from. The empty prompt's."""
        return self.embed([""])

    def noise_levels(self, steps: int | None) -> NoiseLevels:
        """Where the sampler's so many steps begin, or all that the network was trained at (None); on its
        device. Those of a discrete-time schedule."""
        return replace(ddim_noise_levels(self.scheduler[1], steps), device=self.device)

    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """Images of clean latents x_0 (B, ...) -> uint8 (B, height, width, 3). Raises ModelError where the
        decoder was not loaded."""
        if self.images is None:
            raise ModelError("The VAE was not loaded: only actors decode images.")
        return self.images.decode(latents)

    def save_adapter(self, folder: Path, layers: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
        """Write LoRA weights as the plain pipeline's load_lora_weights reads them."""
        part = self.PARTS.denoiser
        adapter = {f"{part}_lora_layers": dict(layers), f"{part}_lora_adapter_metadata": dict(metadata)}
        self.PIPELINE.save_lora_weights(folder, **adapter)

    @classmethod
    def _loaded(
        cls,
        source: Source,
        scheduler: tuple[str, Mapping[str, Any]],
        text: Callable[[Source], TextStage],
        unscaling: Unscale = unscale,
        **own: Any,
    ) -> Self:
        """With the parts that the process needs. own: its further fields."""
        whole = not source.network_only
        return cls(
            network=source.network(cls.PARTS.network, cls.PARTS.denoiser, source.network_dtype),
            text=text(source) if whole else None,
            images=VaeDecoder.load(source, cls.PARTS.vae, unscaling) if whole else None,
            scheduler=scheduler,
            device=source.device,
            **own,
        )


def image_size(sampling: SamplingSection, own: Any, scale: int, multiple: int, where: str) -> tuple[int, int]:
    """Height and width of the images in pixels: those asked for, or the model's own.

    own: latent sides that the model's configuration says, a number or two. scale: pixels of a latent's side.
    multiple: of pixels, that either has to be. where: `own` stands, in words. Raises ModelError.
    """
    sides = own if isinstance(own, list | tuple) and len(own) == 2 else (own, own)
    pixels = []
    for name, size, latent in zip(("height", "width"), (sampling.height, sampling.width), sides, strict=True):
        if not size and (not isinstance(latent, int) or latent < 1):
            raise ModelError(f"{where} {own!r}, which does not say the latents' {name}; set sampling.{name}.")
        pixels.append(size or latent * scale)
        if pixels[-1] > LONGEST_SIDE:
            raise ModelError(
                f"{where} {own!r}, that is {pixels[-1]} pixels; {LONGEST_SIDE} are served. Mend it, or set "
                f"sampling.{name}."
            )
        if pixels[-1] % multiple:
            raise ModelError(
                f"sampling.{name} is {size}; this model's must be a multiple of {multiple} pixels."
            )
    return pixels[0], pixels[1]


def made_up(*shape: int) -> Tensor:
    """Standard normal numbers, the same in every process."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))
