"""Text-image alignment by a CLIP model: the cosine of the picture's and the prompt's embedding."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from reward_service.contract.digest import digest_files
from reward_service.scorers.clip_model import ClipModel, check_clip_source, clip_source, load_clip
from reward_service.scorers.model_files import check_texts


class ClipScorer:
    """Cosine similarity, in -1..1, between a picture and its prompt, in float32.

    path: folder of a transformers CLIPModel with its tokenizer and image processor, or a hub id such as
        openai/clip-vit-large-patch14. Weights from safetensors files only.
    revision: hub revision; ignored for a folder.
    prompt_prefix: put before every prompt, e.g. "a photo of ".

    Prompts are cut at the model's text length (77 tokens for OpenAI's and LAION's models); pictures are
    resized, cropped and normalised as the model's own preprocessor_config.json says.
    The weights are read at first use, on the GPU where this process has one.
    """

    version = "1"

    def __init__(self, path: str, revision: str = "main", prompt_prefix: str = "") -> None:
        self._source = clip_source("clip option path", path, revision)
        self._prefix = prompt_prefix

    @staticmethod
    def check_options(path: str, revision: str = "main", prompt_prefix: str = "") -> None:
        """Raises RewardError where the options cannot work, as far as can be told without reading weights."""
        check_texts("clip", {"path": path, "revision": revision, "prompt_prefix": prompt_prefix})
        check_clip_source(clip_source("clip option path", path, revision))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the folder's weights, configuration and tokenizer, and the prompt prefix."""
        return digest_files(self._source.files(), {"prompt_prefix": self._prefix})

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,), cosines.

        Raises RewardError where the folder cannot be loaded as a CLIP model.
        """
        cosines = self._clip.cosines([self._prefix + prompt for prompt in prompts], images)
        return cosines.double().cpu().numpy()

    @cached_property
    def _clip(self) -> ClipModel:
        return load_clip(self._source, self._source)
