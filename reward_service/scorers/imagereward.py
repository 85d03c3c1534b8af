"""ImageReward: how much people like an image for a prompt, by BLIP with a linear head."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertTokenizer

from common.config.fields import Section, setting
from common.errors import RewardError
from reward_service.contract.scorer import digest_files
from reward_service.scorers.blip_model import BlipReward, build_blip
from reward_service.scorers.images import CentreCrop
from reward_service.scorers.model_files import ModelSource, read_json, read_tensors
from reward_service.scorers.options import Configured

MODEL = "zai-org/ImageReward"
TOKENIZER = "google-bert/bert-base-uncased"
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
TOKENS = 35
_IMAGES_PER_PASS = 32
_WEIGHTS = ("ImageReward.safetensors", "ImageReward.pt")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


class ImageRewardOptions(Section):
    """Options of imagereward."""

    path: str = setting(
        MODEL,
        "",
        "Folder or hub id with ImageReward.pt (or .safetensors with the same tensors) and med_config.json.",
    )
    revision: str = setting("main", "", "Hub revision of path; ignored for a folder.")
    tokenizer: str = setting(TOKENIZER, "", "Folder or hub id of BERT's uncased tokenizer.")
    tokenizer_revision: str = setting("main", "", "Hub revision of tokenizer; ignored for a folder.")


class ImageReward(Configured[ImageRewardOptions]):
    """(head - MEAN) / DEVIATION, where the head (five linear layers) reads the first token of BLIP's text
    tower after it has looked at the image.

    The authors publish no configuration of the image tower: its side and depth are read off the tensors.
    """

    version = "1"
    name = "imagereward"
    model = ImageRewardOptions

    def check(self) -> None:
        """See Configured."""
        self._source.check()
        self._words.check()
        if self._source.is_local:
            _weights(self._source.folder)
        if self._words.is_local:
            _check_tokenizer(self._words.folder)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the weights that are read, the text tower's settings and the tokenizer."""
        folder = self._source.folder
        tokenizer = digest_files(self._words.files(), {})
        return digest_files([_weights(folder), folder / "med_config.json"], {"tokenizer": tokenizer})

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,).

        Raises RewardError where the model or the tokenizer cannot be loaded.
        """
        tokens = self._tokenizer(
            prompts, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        prepare = CentreCrop(self._blip.image_size)
        passes = []
        with torch.inference_mode():
            for start in range(0, len(images), _IMAGES_PER_PASS):
                rows = slice(start, start + _IMAGES_PER_PASS)
                ids, mask = tokens["input_ids"][rows], tokens["attention_mask"][rows]
                passes.append(self._blip(prepare(images[rows]), ids, mask))
            return (torch.cat(passes).double().cpu().numpy() - MEAN) / DEVIATION

    @cached_property
    def _source(self) -> ModelSource:
        path, revision, files = self.options.path, self.options.revision, [*_WEIGHTS, "med_config.json"]
        return ModelSource("imagereward option path", "ImageReward model", path, revision, files)

    @cached_property
    def _words(self) -> ModelSource:
        path, revision = self.options.tokenizer, self.options.tokenizer_revision
        return ModelSource("imagereward option tokenizer", "tokenizer", path, revision, _TOKENIZER_FILES)

    @cached_property
    def _blip(self) -> BlipReward:
        file = _weights(self._source.folder)
        return build_blip(read_tensors(file), read_json(file.parent / "med_config.json"), file)

    @cached_property
    def _tokenizer(self) -> BertTokenizer:
        folder = self._words.folder
        _check_tokenizer(folder)
        try:
            tokenizer = BertTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise RewardError(f"Cannot load BERT's tokenizer in {folder}: {error}") from error
        known = int(self._blip.text.config.vocab_size)
        if len(tokenizer) > known:
            raise RewardError(
                f"The tokenizer in {folder} has {len(tokenizer)} tokens, ImageReward's text tower {known}."
            )
        return tokenizer


def _weights(folder: Path) -> Path:
    found = [folder / name for name in _WEIGHTS if (folder / name).is_file()]
    if not found or not (folder / "med_config.json").is_file():
        there = sorted(entry.name for entry in folder.iterdir())
        raise RewardError(
            f"{folder} is no ImageReward model: needed are ImageReward.pt (or ImageReward.safetensors) and "
            f"med_config.json; it holds {there[:10]}."
        )
    return found[0]


def _check_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise RewardError(f"{folder} has no BERT tokenizer: neither tokenizer.json nor vocab.txt.")
