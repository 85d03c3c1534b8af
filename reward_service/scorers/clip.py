"""Text-image alignment by a CLIP model: the cosine of the image's and the prompt's embedding."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.config.fields import Section, setting
from reward_service.contract.scorer import digest_files
from reward_service.scorers.clip_model import ClipModel, check_clip_source, clip_source, load_clip
from reward_service.scorers.model_files import ModelSource
from reward_service.scorers.options import Configured

_PATH = (
    "Folder of a transformers CLIPModel with its tokenizer and image processor, or a hub id such as "
    "openai/clip-vit-large-patch14. Weights from safetensors files only."
)


class ClipOptions(Section):
    """Options of clip."""

    path: str = setting(..., "", _PATH)
    revision: str = setting("main", "", "Hub revision; ignored for a folder.")
    prompt_prefix: str = setting("", "", 'Put before every prompt, e.g. "a photo of ".')


class ClipScorer(Configured[ClipOptions]):
    """Cosine of an image and its prompt, prepared by the model's own files and cut at its text length."""

    version = "1"
    name = "clip"
    model = ClipOptions

    def check(self) -> None:
        """See Configured."""
        check_clip_source(self._source)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the folder's weights, configuration and tokenizer, and the prompt prefix."""
        return digest_files(self._source.files(), {"prompt_prefix": self.options.prompt_prefix})

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,), cosines.

        Raises RewardError where the folder cannot be loaded as a CLIP model.
        """
        texts = [self.options.prompt_prefix + prompt for prompt in prompts]
        return self._clip.cosines(texts, images).double().cpu().numpy()

    @cached_property
    def _source(self) -> ModelSource:
        return clip_source("clip option path", self.options.path, self.options.revision)

    @cached_property
    def _clip(self) -> ClipModel:
        return load_clip(self._source, self._source)
