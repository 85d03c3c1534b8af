"""The parts of a pipeline: their configurations, loading them, decoding latents by a VAE."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.config.training import ModelSection
from common.errors import ModelError
from common.model.folder import SENTENCEPIECE, check_texts, find_weights, read_json, without_marks
from common.model.hub import fetch_texts
from common.model.scheduler_options import DISCRETE, FLOW, check_class, fill_scheduler_config
from common.model.single_file import known_config, load_part
from common.model.tensors import LANGUAGE_MODELS, LOAD_ERRORS, check_finite, check_tensors, refuse_tensors
from common.model.text import TextKind
from common.places import is_single_file

LOGGER = logging.getLogger(__name__)
WEIGHTS_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


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
    def local(self) -> bool:
        """Whether the pipeline is a folder here, neither a hub id nor a single file."""
        return Path(self.settings.path).is_dir()

    @property
    def single_file(self) -> Path | None:
        """The file that holds all weights; None of a folder or hub id."""
        return Path(self.settings.path) if is_single_file(self.settings.path) else None

    @cached_property
    def folder(self) -> Path:
        """The pipeline's folder; of a hub id, its snapshot, of which the small files are there; of a single
        file, those of the pipeline whose configurations it takes.

        Raises ModelError.
        """
        file, where, key = self.single_file, self.settings.path, "model.path"
        if file:
            where, key = self.settings.config or known_config(file), "model.config"
        return Path(where) if Path(where).is_dir() else fetch_texts(key, where, self.settings.revision)

    def index(self) -> dict[str, Any]:
        """The pipeline's model_index.json. Raises ModelError."""
        return read_json(self.folder / "model_index.json", "so it is no diffusers pipeline folder")

    @property
    def class_of_pipeline(self) -> str:
        """The pipeline's class, as model_index.json names it. Raises ModelError."""
        return str(self.index().get("_class_name"))

    def class_name(self, part: str) -> str:
        """The class that model_index.json names for a part. Raises ModelError where it names none."""
        named = self.index().get(part)
        if not isinstance(named, list) or len(named) != 2 or not all(isinstance(one, str) for one in named):
            raise ModelError(
                f"{self.folder / 'model_index.json'} has {part}: {named!r}; wanted is a library and a class."
            )
        return str(named[1])

    def settings_of(self, part: str) -> dict[str, Any]:
        """What a network's config.json says. Raises ModelError."""
        return read_json(self.folder / part / "config.json", f"so {part} cannot be loaded")

    def config(self, kind: type[Any], part: str) -> dict[str, Any]:
        """A diffusers network's configuration, its class's defaults filled in. Raises ModelError."""
        options = inspect.signature(kind).parameters.items()
        with self._naming(part):
            return {name: one.default for name, one in options} | kind.extract_init_dict(
                self.settings_of(part)
            )[0]

    def text_config(self, kind: type[Any], part: str) -> Any:
        """A text encoder's configuration, of the class that its own class has. Raises ModelError."""
        with self._naming(part):
            return kind.config_class.from_dict(self.settings_of(part))

    def scheduler(self) -> tuple[str, dict[str, Any]]:
        """Class and configuration of the pipeline's scheduler, its class's defaults filled in.

        The class is that of model_index.json, as in diffusers. Raises ModelError.
        """
        raw = read_json(
            self.folder / "scheduler" / "scheduler_config.json", "so its noise schedule is unknown"
        )
        name = self.class_name("scheduler")
        check_class(name)
        check_class(str(raw.get("_class_name", name)), DISCRETE if name in DISCRETE else FLOW)
        return name, fill_scheduler_config(name, raw)

    def tokenizer(self, kind: TextKind, part: str) -> Any:
        """A text encoder's tokenizer. Raises ModelError."""
        folder = self.folder / part
        if not any(all((folder / name).is_file() for name in names) for names in kind.files):
            wanted = " and no ".join(" with ".join(names) for names in kind.files)
            raise ModelError(f"{self.settings.path!r}: {part}/ has no {wanted}.")
        check_texts(folder)
        whole, alone = folder / "tokenizer.json", folder / SENTENCEPIECE
        if alone.is_file() and not whole.is_file() and find_spec("sentencepiece") is None:
            raise ModelError(
                f"{alone} is read by sentencepiece, which is not installed: pip install sentencepiece "
                "protobuf, or save a tokenizer.json beside it, with transformers, where it is."
            )
        if whole.is_file():
            model = read_json(whole, "so prompts cannot be read").get("model")
            if not isinstance(model, dict) or model.get("type", kind.algorithm) != kind.algorithm:
                raise ModelError(
                    f"{whole} is of another algorithm than {kind.algorithm}, so no tokenizer of a "
                    f"{kind.encoder.__name__}."
                )
        with self._naming(part), without_marks(self.folder, part) as root:
            try:
                made = kind.tokenizer.from_pretrained(root, subfolder=part)
                longest = made.model_max_length
                if isinstance(longest, str | bool):
                    raise ModelError(
                        f"{folder / 'tokenizer_config.json'}: model_max_length is {longest!r}; it must be a "
                        "number of tokens."
                    )
                made("a prompt")
            except Exception as error:
                # The tokenizers library raises the bare class for vocabularies that do not fit.
                if type(error) is not Exception:
                    raise
                files = " and ".join(path.name for path in sorted(folder.glob("*.*")))
                raise ModelError(f"{folder}: no tokenizer can be made of {files}: {error}") from error
            return made

    def outline(self, kind: type[Any], part: str) -> nn.Module:
        """A network as its configuration makes it, on the meta device: without weights. Raises ModelError."""
        settings = self.settings_of(part)
        with self._naming(part), torch.device("meta"):
            if issubclass(kind, diffusers.ModelMixin):
                made: nn.Module = kind.from_config(settings)
                return made
            return kind(self.text_config(kind, part))

    def check_weights(self, blank: nn.Module, part: str) -> None:
        """Raise ModelError where the files of a network's weights do not hold what its configuration says.

        blank: the network as its configuration makes it. Reads the files' headers alone.
        """
        weights = find_weights(self.folder, part, self.settings.variant)
        check_tensors(f"{self.settings.path!r}: {part}", blank, weights)

    def check_variant(self, parts: Sequence[str]) -> None:
        """Raise ModelError where none of a folder's networks has weights of the variant that is asked for."""
        wanted = self.settings.variant
        if wanted not in ("", *(find_weights(self.folder, part, wanted).variant for part in parts)):
            raise ModelError(
                f"model.variant is {wanted!r}, of which {self.settings.path!r} has no weights. Leave it "
                "empty for those without a variant."
            )

    def network(self, kind: type[Any], part: str, dtype: torch.dtype) -> Any:
        """A network on the device, frozen and in evaluation mode. Raises ModelError, also where a weight is
        not finite.

        The weights of a folder are those that check_weights was asked about; of a hub id, it is asked here.
        """
        if file := self.single_file:
            others = [
                name for name, value in self.index().items() if isinstance(value, list) and name != part
            ]
            with self._naming(part):
                network = load_part(file, self.class_of_pipeline, self.folder, part, others, dtype)
        else:
            with self._naming(part), self._readable(part) as places:
                network = self._read(kind, [{**place, "subfolder": part, "dtype": dtype} for place in places])
            if not self.local:
                self.check_weights(self.outline(kind, part), part)
        network.requires_grad_(False).eval().to(self.device)
        check_finite(f"{self.settings.path!r}: {part}", network)
        # Weights mapped from a file lie unaligned in memory, and CPU kernels round by alignment: copied, they
        # agree to the bit with the reference, which is a copy too.
        for value in network.parameters():
            value.data = value.data.clone()
        if self.device.type == "cuda" and self.settings.channels_last and part == "unet":
            network.to(memory_format=torch.channels_last)
        return network

    def _read(self, kind: type[Any], places: Sequence[Mapping[str, Any]]) -> Any:
        *others, last = places
        for place in others:
            try:
                return self._read_from(kind, place)
            except OSError as error:
                LOGGER.warning(
                    "%s: %s is read without the variant: %s", self.settings.path, place["subfolder"], error
                )
        return self._read_from(kind, last)

    def _read_from(self, kind: type[Any], place: Mapping[str, Any]) -> Any:
        if not issubclass(kind, LANGUAGE_MODELS):
            return kind.from_pretrained(**place)
        network, told = kind.from_pretrained(**place, output_loading_info=True)
        refuse_tensors(f"{self.settings.path!r}: {place['subfolder']}", missing=told["missing_keys"])
        return network

    @contextmanager
    def _readable(self, part: str) -> Iterator[list[dict[str, Any]]]:
        """What from_pretrained is told of where a network is: one place after the other until one has it. Of
        a hub id as of a folder, a part that has no weights of the variant has those without."""
        variant = self.settings.variant
        if not self.local:
            # The snapshot is named by its commit: the weights are to be of the same one.
            revision = {"revision": self.folder.name}
            place = {"pretrained_model_name_or_path": self.settings.path, **revision}
            yield [{**place, "variant": name} for name in dict.fromkeys((variant or None, None))]
            return
        variant = find_weights(self.folder, part, variant).variant
        with without_marks(self.folder, part) as root:
            yield [{"pretrained_model_name_or_path": root, "variant": variant or None}]

    @contextmanager
    def _naming(self, part: str) -> Iterator[None]:
        try:
            yield
        except LOAD_ERRORS as error:
            raise ModelError(f"{self.settings.path!r}: {part} does not load: {error}") from error


Unscale = Callable[[Any, Tensor], Tensor]


def unscale(vae: Any, latents: Tensor) -> Tensor:
    """By one factor and shift, and, where the configuration says them, mean and deviation by channel."""
    config = vae.config
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        mean, std = (latents.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        return latents * std / config.scaling_factor + mean
    return latents / config.scaling_factor + (config.get("shift_factor") or 0.0)


@dataclass(frozen=True)
class VaeDecoder:
    """An autoencoder's decoder.

    chunk: images a pass. unscale: the autoencoder and latents as the denoising network has them -> those that
    it decodes.
    """

    vae: Any
    chunk: int
    unscale: Unscale = unscale

    @staticmethod
    def load(
        source: Source, kind: type[Any] = diffusers.AutoencoderKL, unscale: Unscale = unscale
    ) -> VaeDecoder:
        """Where its config.json says force_upcast (half precision overflows), weights are float32."""
        dtype = torch.float32 if source.settings_of("vae").get("force_upcast") else source.dtype
        vae = source.network(kind, "vae", dtype)
        if source.settings.vae_tiling:
            vae.enable_tiling()
        return VaeDecoder(vae, source.settings.vae_chunk, unscale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> NDArray[np.uint8]:
        """As diffusers' pipelines do: unscale, decode, map [-1, 1] to 0..255 and round.

        Raises ModelError where pixels are not finite though the latents are.
        """
        images = [self._images(part) for part in latents.split(self.chunk)]
        return torch.cat(images).cpu().numpy()

    def _images(self, latents: Tensor) -> Tensor:
        images = self.vae.decode(self.unscale(self.vae, latents.to(self.vae.dtype)), return_dict=False)[0]
        # Of latents that are not finite the trajectory tells; nothing else would tell of the VAE's own doing.
        if not bool(images.isfinite().all()) and bool(latents.isfinite().all()):
            raise ModelError(
                "The VAE makes pixels that are not finite of latents that are: it overflows in "
                f"{self.vae.dtype}. Set model.dtype to float32, or take a VAE whose config.json says "
                "force_upcast."
            )
        if images.dim() == 5:
            images = images[:, :, 0]  # an autoencoder of films gives frames, here one
        unit = (images.float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return (unit * 255).round().to(torch.uint8)
