"""The parts of a pipeline: loading them, embedding prompts by CLIP, decoding latents by a VAE."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from common.config.training import ModelSection
from common.errors import ModelError
from common.model.guidance import Condition

# What diffusers, transformers and safetensors raise for files that are missing, damaged or do not fit.
LOAD_ERRORS = (OSError, ValueError, KeyError, RuntimeError, SafetensorError)
WEIGHTS_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
EMBEDDED_PROMPTS = 256
log = logging.getLogger(__name__)


def read_json(path: Path, consequence: str) -> dict[str, Any]:
    """A JSON mapping. Raises ModelError, which says what follows from its absence."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise ModelError(f"{path} is missing, {consequence}.") from error
    except (OSError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read ({error}), {consequence}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no mapping, {consequence}.")
    return content


@dataclass(frozen=True)
class Source:
    """Where a pipeline's parts come from, and what they become.

    network_only: neither text encoders nor VAE. trains_all: every weight of the network is trained, so it has
    to be float32.
    """

    settings: ModelSection
    device: torch.device
    network_only: bool = False
    trains_all: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights of networks that are not trained."""
        return WEIGHTS_DTYPES[self.settings.dtype]

    @property
    def network_dtype(self) -> torch.dtype:
        """Of the denoising network's weights."""
        return torch.float32 if self.trains_all else self.dtype

    @property
    def hub(self) -> dict[str, str]:
        """What from_pretrained is told of the hub; nothing for a folder."""
        if Path(self.settings.path).is_dir():
            return {}
        variant = {"variant": self.settings.variant} if self.settings.variant else {}
        return {"revision": self.settings.revision} | variant

    def index(self) -> dict[str, Any]:
        """The pipeline's model_index.json. Raises ModelError."""
        folder = Path(self.settings.path)
        if folder.is_dir():
            return read_json(folder / "model_index.json", "so it is no diffusers pipeline folder")
        hub = {name: value for name, value in self.hub.items() if name == "revision"}
        with self._naming("model_index.json"):
            found: dict[str, Any] = diffusers.DiffusionPipeline.load_config(self.settings.path, **hub)
        return found

    def config(self, part: type[Any], folder: str) -> dict[str, Any]:
        """A diffusers part's configuration. Raises ModelError."""
        hub = {name: value for name, value in self.hub.items() if name == "revision"}
        with self._naming(folder):
            found: dict[str, Any] = part.load_config(self.settings.path, subfolder=folder, **hub)
        return found

    def outline(self, part: type[Any], folder: str) -> Any:
        """A network as its configuration says, without weights: on the meta device. Raises ModelError."""
        config = self.config(part, folder)
        with self._naming(folder), torch.device("meta"):
            return part.from_config(config)

    def scheduler(self) -> tuple[str, dict[str, Any]]:
        """Class and configuration of the pipeline's scheduler, its class's defaults filled in."""
        raw = self.config(diffusers.DDIMScheduler, "scheduler")
        return str(raw.get("_class_name")), fill_scheduler_config(raw)

    def tokenizer(self, part: type[Any], folder: str) -> Any:
        """A tokenizer. Raises ModelError."""
        hub = {name: value for name, value in self.hub.items() if name == "revision"}
        with self._naming(folder):
            return part.from_pretrained(self.settings.path, subfolder=folder, **hub)

    def network(self, part: type[Any], folder: str, dtype: torch.dtype) -> Any:
        """A network on the device, frozen and in evaluation mode. Raises ModelError."""
        with self._naming(folder):
            network, info = part.from_pretrained(
                self.settings.path, subfolder=folder, dtype=dtype, output_loading_info=True, **self.hub
            )
        missing = sorted(info["missing_keys"])
        if missing:
            raise ModelError(
                f"{self.settings.path!r}: the weights in {folder}/ lack {missing[:3]}, {len(missing)} in all."
            )
        network.requires_grad_(False).eval().to(self.device)
        # Weights mapped from a file lie unaligned in memory, and CPU kernels round by alignment: copied, they
        # agree to the bit with the reference, which is a copy too.
        for value in network.parameters():
            value.data = value.data.clone()
        if self.device.type == "cuda" and self.settings.channels_last and folder == "unet":
            network.to(memory_format=torch.channels_last)
        return network

    @contextmanager
    def _naming(self, folder: str) -> Iterator[None]:
        try:
            yield
        except LOAD_ERRORS as error:
            raise ModelError(f"{self.settings.path!r}: {folder} does not load: {error}") from error


def fill_scheduler_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A scheduler's configuration with the defaults of its class: they differ between classes."""
    kind = getattr(diffusers, str(raw.get("_class_name")), None)
    return dict(kind.from_config(dict(raw)).config) if kind is not None else dict(raw)


class ClipText:
    """A CLIP text encoder with its tokenizer. Counts the prompts that do not fit, and says it once."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.cut_prompts = 0

    def __call__(self, prompt: str, device: torch.device) -> Any:
        """The encoder's output for one prompt, hidden states included."""
        limit = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
        )
        length = len(self.tokenizer(prompt).input_ids)
        if length > limit:
            if not self.cut_prompts:
                log.warning(
                    "A prompt has %d tokens; the text encoder reads the first %d: %r", length, limit, prompt
                )
            self.cut_prompts += 1
        # Stable Diffusion 2.x's encoder has no such setting, others say so themselves.
        masked = getattr(self.encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(device) if masked else None
        return self.encoder(tokens.input_ids.to(device), attention_mask=mask, output_hidden_states=True)


@dataclass
class TextStage:
    """A family's text encoders: conditions by prompt, remembered, on the device; encoders offloaded between.

    encode: one prompt -> one row, while the encoders are on the device.
    """

    encoders: Mapping[str, ClipText]
    device: torch.device
    offload: bool
    encode: Callable[[str], Condition]
    _known: OrderedDict[str, Condition] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._move(self._home)

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Condition:
        """See Family."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if missing:
            self._move(self.device)
            for prompt in missing:
                rows = self.encode(prompt)
                self._known[prompt] = {name: _at_least_float32(value) for name, value in rows.items()}
            self._move(self._home)
        found = [self._known[prompt] for prompt in prompts]
        for prompt in prompts:
            self._known.move_to_end(prompt)
        while len(self._known) > EMBEDDED_PROMPTS:
            self._known.popitem(last=False)
        return {name: torch.cat([rows[name] for rows in found]) for name in found[0]}

    @property
    def _home(self) -> torch.device:
        return torch.device("cpu") if self.offload else self.device

    def _move(self, device: torch.device) -> None:
        for text in self.encoders.values():
            if self.offload:
                text.encoder.to(device)


def _at_least_float32(value: Tensor) -> Tensor:
    return value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value


@dataclass(frozen=True)
class VaeDecoder:
    """A KL autoencoder's decoder. chunk: images a pass."""

    vae: Any
    chunk: int

    @staticmethod
    def load(source: Source, config: Mapping[str, Any]) -> VaeDecoder:
        """config: its JSON; where it says force_upcast (half precision overflows), weights are float32."""
        dtype = torch.float32 if config.get("force_upcast") else source.dtype
        vae = source.network(diffusers.AutoencoderKL, "vae", dtype)
        if source.settings.vae_tiling:
            vae.enable_tiling()
        return VaeDecoder(vae, source.settings.vae_chunk)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """As diffusers' pipelines do: unscale, decode, map [-1, 1] to 0..255 and round."""
        images = [self._images(part) for part in latents.split(self.chunk)]
        return torch.cat(images).cpu().numpy()

    def _images(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        scaled = latents.to(self.vae.dtype) / config.scaling_factor
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            mean, std = (scaled.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
            scaled = latents.to(self.vae.dtype) * std / config.scaling_factor + mean
        images = self.vae.decode(scaled, return_dict=False)[0]
        unit = (images.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (unit * 255).round().to(torch.uint8)
