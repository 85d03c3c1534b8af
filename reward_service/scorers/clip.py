"""Text-image alignment by a CLIP model: the cosine of the picture's and the prompt's embedding."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from common.errors import RewardError
from reward_service.digest import digest_files

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_IMAGES_PER_PASS = 64
_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "model*.safetensors",
    "model.safetensors.index.json",
)
"""The files of a CLIP folder that decide its scores. Weights in pickle formats are never read."""


class ClipScorer:
    """Cosine similarity, in -1..1, between a picture and its prompt, in float32.

    path: folder of a transformers CLIPModel with its tokenizer and image processor, or a hub id such as
        openai/clip-vit-large-patch14.
    revision: hub revision; ignored for a folder.
    prompt_prefix: put before every prompt, e.g. "a photo of ".

    The weights are read at first use, on the GPU where this process has one.
    """

    version = "1"

    def __init__(self, path: str, revision: str = "main", prompt_prefix: str = "") -> None:
        self._path = path
        self._revision = revision
        self._prefix = prompt_prefix

    @staticmethod
    def check_options(path: str, revision: str = "main", prompt_prefix: str = "") -> None:
        """Raises RewardError where the options cannot work, as far as can be told without reading weights."""
        for name, value in (("path", path), ("revision", revision), ("prompt_prefix", prompt_prefix)):
            if not isinstance(value, str):
                raise RewardError(f"clip option {name} must be text, got {value!r}.")
        folder = Path(path)
        if folder.is_dir():
            _check_folder(folder)
        elif not _HUB_ID.fullmatch(path):
            raise RewardError(
                f"clip option path is {path!r}, which is neither a folder nor a hub id such as "
                "openai/clip-vit-large-patch14."
            )
        elif folder.parent.is_dir():
            there = sorted(entry.name for entry in folder.parent.iterdir() if entry.is_dir())
            raise RewardError(f"clip option path: no folder {path!r}; {folder.parent}/ holds {there}.")

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the folder's weights, configuration and tokenizer, and the prompt prefix."""
        files = [file for pattern in _FILES for file in self._folder.glob(pattern)]
        return digest_files(files, {"prompt_prefix": self._prefix})

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,), cosines.

        Raises RewardError where the folder cannot be loaded as a CLIP model.
        """
        row = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        with torch.inference_mode():
            texts = self._clip.embed_texts([self._prefix + prompt for prompt in row])
            of_image = texts[torch.tensor([row[prompt] for prompt in prompts], device=texts.device)]
            cosines = (self._clip.embed_images(images) * of_image).sum(dim=-1)
        return cosines.double().cpu().numpy()

    @cached_property
    def _folder(self) -> Path:
        if Path(self._path).is_dir():
            _check_folder(Path(self._path))
            return Path(self._path)
        try:
            fetched = huggingface_hub.snapshot_download(
                self._path, revision=self._revision, allow_patterns=list(_FILES)
            )
        except (OSError, ValueError) as error:
            raise RewardError(
                f"Cannot get CLIP model {self._path!r} (revision {self._revision!r}) from the hub: {error}. "
                "Give a local folder, or check the name, the revision and the network."
            ) from error
        _check_folder(Path(fetched))
        return Path(fetched)

    @cached_property
    def _clip(self) -> _Clip:
        return _load(self._folder)


@dataclass(frozen=True)
class _Clip:
    """A loaded model with its preprocessing."""

    model: CLIPModel
    tokenizer: CLIPTokenizer
    processor: CLIPImageProcessorPil
    text_length: int

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """Unit embeddings float32 (len(texts), D).

        Padded to the full length, so that each embedding is independent of the others.
        """
        tokens = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.text_length,
            return_tensors="pt",
        ).to(self.model.device)
        output = self.model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return torch.nn.functional.normalize(output.pooler_output, dim=-1)

    def embed_images(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """uint8 (M, height, width, 3) -> unit embeddings float32 (M, D)."""
        passes = []
        for start in range(0, len(images), _IMAGES_PER_PASS):
            pixels = self.processor(
                images=list(images[start : start + _IMAGES_PER_PASS]),
                return_tensors="pt",
                input_data_format="channels_last",
            )["pixel_values"]
            output = self.model.get_image_features(pixel_values=pixels.to(self.model.device))
            passes.append(torch.nn.functional.normalize(output.pooler_output, dim=-1))
        return torch.cat(passes)


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise RewardError(f"{folder} is no CLIP model: it has no config.json.")
    try:
        kind = json.loads(config.read_text(encoding="utf-8"))["model_type"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise RewardError(f"{config} is no model configuration with a model_type: {error!r}.") from error
    if kind != "clip":
        raise RewardError(f"{folder} holds a model of type {kind!r}; needed is type 'clip' (a CLIPModel).")
    if not any(folder.glob("model*.safetensors")):
        raise RewardError(f"{folder} has no model*.safetensors; pickle files (.bin, .pt) are not read.")


def _load(folder: Path) -> _Clip:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    transformers_logging.disable_progress_bar()
    try:
        loaded: Any = CLIPModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        processor = CLIPImageProcessorPil.from_pretrained(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise RewardError(f"Cannot load the CLIP model in {folder}: {error}") from error
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise RewardError(
            f"The weights in {folder} lack {len(missing)} tensors of a CLIPModel, e.g. {missing[:3]}."
        )
    length = int(model.text_model.config.max_position_embeddings)
    return _Clip(model.eval().requires_grad_(False).to(device), tokenizer, processor, length)
