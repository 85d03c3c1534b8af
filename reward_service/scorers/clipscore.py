"""CLIPScore of Hessel et al. (2021): how well an image fits its prompt, from 0 to 2.5."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.config.fields import Section, setting
from reward_service.contract.scorer import digest_files
from reward_service.scorers.clip_model import ClipModel, check_clip_source, clip_source, load_clip
from reward_service.scorers.model_files import ModelSource
from reward_service.scorers.options import Configured

PREFIX = "A photo depicts "
WEIGHT = 2.5


class ClipScoreOptions(Section):
    """Options of clipscore, which is defined with OpenAI's ViT-B/32, the default."""

    path: str = setting(
        "openai/clip-vit-base-patch32",
        "",
        "Folder of a transformers CLIPModel with its tokenizer and image processor, or a hub id.",
    )
    revision: str = setting("main", "", "Hub revision; ignored for a folder.")


class ClipScore(Configured[ClipScoreOptions]):
    """2.5 * max(cosine, 0) of an image and "A photo depicts " + its prompt, in 0..2.5.

    The original runs in float16 on a GPU, and prepares images by itself; here the model's own files say how.
    The default's repository has a pytorch_model.bin only, which is taken where there are no safetensors.
    """

    version = "1"
    name = "clipscore"
    model = ClipScoreOptions

    def check(self) -> None:
        """See Configured."""
        check_clip_source(self._source)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the model's weights, configuration and tokenizer."""
        return digest_files(self._source.files(), {"prefix": PREFIX, "weight": WEIGHT})

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,) in 0..2.5.

        Raises RewardError where the folder cannot be loaded as a CLIP model.
        """
        cosines = self._clip.cosines([PREFIX + prompt for prompt in prompts], images)
        return WEIGHT * cosines.double().clamp(min=0.0).cpu().numpy()

    @cached_property
    def _source(self) -> ModelSource:
        return clip_source(
            "clipscore option path", self.options.path, self.options.revision, pickled_too=True
        )

    @cached_property
    def _clip(self) -> ClipModel:
        return load_clip(self._source, self._source)
