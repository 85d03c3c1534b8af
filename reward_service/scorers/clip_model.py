"""A CLIP model with its tokenizer and image preparation: what the CLIP-based scorers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from common.errors import RewardError
from common.model.folder import TOKENIZER_FILES
from reward_service.scorers.model_files import ModelSource, build_model, read_json, read_tensors, ready

_IMAGES_PER_PASS = 64
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", *TOKENIZER_FILES)
WEIGHT_FILES = ("config.json", "model.safetensors.index.json", "model*.safetensors")
PICKLED = "pytorch_model.bin"
CLIP_FILES = (*PROCESSOR_FILES, *WEIGHT_FILES)
"""The files of a CLIP folder that decide its scores."""

Prepare = Callable[[NDArray[np.uint8]], torch.Tensor]
"""Images uint8 (M, height, width, 3) -> what the vision tower takes, float32 (M, 3, size, size)."""


@dataclass(frozen=True)
class ClipModel:
    """A loaded model with its preprocessing. All arithmetic is float32."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    prepare: Prepare

    @property
    def logit_scale(self) -> float:
        """The learned temperature: exp of the parameter of this name."""
        return float(self.model.logit_scale.exp())

    def cosines(self, texts: list[str], images: NDArray[np.uint8]) -> torch.Tensor:
        """Cosine of each image, uint8 (M, height, width, 3), with its text, M of them -> float32 (M,).

        Each distinct text is embedded once.
        """
        row = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        with torch.inference_mode():
            embedded = self._embed_texts(list(row))
            of_image = embedded[torch.tensor([row[text] for text in texts], device=embedded.device)]
            return (self.embed_images(images) * of_image).sum(dim=-1)

    def embed_images(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 (M, height, width, 3) -> unit embeddings float32 (M, D)."""
        passes = []
        with torch.inference_mode():
            for start in range(0, len(images), _IMAGES_PER_PASS):
                pixels = self.prepare(images[start : start + _IMAGES_PER_PASS])
                output = self.model.get_image_features(pixel_values=pixels.to(self.model.device))
                passes.append(torch.nn.functional.normalize(output.pooler_output, dim=-1))
            return torch.cat(passes)

    def _embed_texts(self, texts: list[str]) -> torch.Tensor:
        # Padded to the full length (77 for the published models): no embedding depends on the others.
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=int(self.model.text_model.config.max_position_embeddings),
            return_tensors="pt",
        ).to(self.model.device)
        output = self.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return torch.nn.functional.normalize(output.pooler_output, dim=-1)


def clip_source(option: str, path: str, revision: str, pickled_too: bool = False) -> ModelSource:
    """Where a CLIPModel with tokenizer and image processor is. option: names it in errors.

    pickled_too: take pytorch_model.bin where the repository has no safetensors file.
    """
    fallback = PICKLED if pickled_too else ""
    return ModelSource(option, "CLIP model", path, revision, CLIP_FILES, fallback)


def check_clip_source(source: ModelSource) -> None:
    """Raises RewardError where the path cannot be a CLIP model, as far as can be told without fetching."""
    source.check()
    if source.is_local:
        check_clip_folder(source.folder, source.fallback)


def check_clip_config(folder: Path) -> None:
    """Raises RewardError where the folder has no configuration of a CLIPModel."""
    if not (folder / "config.json").is_file():
        raise RewardError(f"{folder} is no CLIP model: it has no config.json.")
    config = read_json(folder / "config.json")
    if "model_type" not in config:
        raise RewardError(f"{folder / 'config.json'} is no model configuration with a model_type.")
    if config["model_type"] != "clip":
        raise RewardError(
            f"{folder} holds a model of type {config['model_type']!r}; needed is type 'clip' (a CLIPModel)."
        )


def check_clip_folder(folder: Path, fallback: str = "") -> None:
    """Raises RewardError where the folder has no configuration or no weights of a CLIPModel.

    fallback: a file that will do where there are no safetensors.
    """
    check_clip_config(folder)
    if any(folder.glob("model*.safetensors")):
        return
    if not fallback:
        raise RewardError(f"{folder} has no model*.safetensors; pickle files (.bin, .pt) are not read.")
    if not (folder / fallback).is_file():
        raise RewardError(f"{folder} has neither model*.safetensors nor {fallback}.")


def check_tokenizer_folder(folder: Path) -> None:
    """Raises RewardError where the folder has no CLIP tokenizer."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise RewardError(f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json.")


def load_clip(source: ModelSource, processor: ModelSource) -> ClipModel:
    """A CLIP model with the tokenizer and image preparation of `processor`, which may be the same source.

    Raises RewardError where either cannot be read.
    """
    check_clip_folder(source.folder, source.fallback)
    model = load_clip_weights(source.folder)
    process = _load("CLIP image processor", CLIPImageProcessorPil, processor.folder)

    def prepare(images: NDArray[np.uint8]) -> torch.Tensor:
        return process(list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    return ClipModel(model, load_tokenizer(processor.folder), prepare)


def load_clip_weights(folder: Path) -> CLIPModel:
    """The CLIPModel of a folder in float32. Raises RewardError where it cannot be read or lacks a tensor."""
    if not any(folder.glob("model*.safetensors")):
        tensors = read_tensors(folder / PICKLED)
        return build_model(CLIPModel, load_clip_config(folder), tensors, folder)
    transformers_logging.disable_progress_bar()
    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    model, report = _load("CLIP model", CLIPModel, folder, **options)
    return ready(model, report, folder)


def load_clip_config(folder: Path) -> CLIPConfig:
    """The folder's configuration. Raises RewardError where it is no CLIPModel's."""
    check_clip_config(folder)
    return _load("CLIP configuration", CLIPConfig, folder)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The folder's tokenizer. Raises RewardError where there is none."""
    check_tokenizer_folder(folder)
    return _load("CLIP tokenizer", CLIPTokenizer, folder)


def _load(what: str, loader: Any, folder: Path, **options: Any) -> Any:
    try:
        return loader.from_pretrained(folder, **options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise RewardError(f"Cannot load the {what} in {folder}: {error}") from error
