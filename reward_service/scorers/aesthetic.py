"""LAION's aesthetic predictor: how beautiful people find an image, whatever the prompt."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.config.fields import Section, setting
from reward_service.contract.scorer import digest_files
from reward_service.scorers.clip_model import ClipModel, check_clip_source, clip_source, load_clip
from reward_service.scorers.linear_head import LinearHead, linear_head
from reward_service.scorers.model_files import FileSource, ModelSource, read_tensors
from reward_service.scorers.options import Configured

MODEL = "openai/clip-vit-large-patch14"
HEAD = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth"


class AestheticOptions(Section):
    """Options of aesthetic."""

    path: str = setting(
        MODEL,
        "",
        "Folder of a transformers CLIPModel with its image processor, or a hub id. Safetensors only.",
    )
    revision: str = setting("main", "", "Hub revision of path; ignored for a folder.")
    head: str = setting(HEAD, "", "File of the linear layers, or owner/repository/file on the hub.")
    head_revision: str = setting("main", "", "Hub revision of head; ignored for a file.")


class AestheticScorer(Configured[AestheticOptions]):
    """A rating of the image alone: its unit embedding by CLIP, through linear layers without activations.

    The original runs CLIP in float16 on a GPU.
    """

    version = "1"
    name = "aesthetic"
    model = AestheticOptions

    def check(self) -> None:
        """See Configured."""
        check_clip_source(self._source)
        self._head_source.check()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over CLIP's weights and configuration and the head."""
        return digest_files([*self._source.files(), self._head_source.file], {})

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB -> float64 (M,). Prompts do not matter.

        Raises RewardError where CLIP or the head cannot be loaded.
        """
        with torch.inference_mode():
            return self._head(self._clip.embed_images(images)).double().cpu().numpy()

    @cached_property
    def _source(self) -> ModelSource:
        return clip_source("aesthetic option path", self.options.path, self.options.revision)

    @cached_property
    def _head_source(self) -> FileSource:
        return FileSource("aesthetic option head", self.options.head, self.options.head_revision)

    @cached_property
    def _clip(self) -> ClipModel:
        return load_clip(self._source, self._source)

    @cached_property
    def _head(self) -> LinearHead:
        file = self._head_source.file
        config: Any = self._clip.model.config
        return linear_head(read_tensors(file), int(config.projection_dim), str(file))
