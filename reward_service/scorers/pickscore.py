"""PickScore: how much people prefer an image for a prompt, learnt from Pick-a-Pic."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.config.fields import Section, setting
from reward_service.contract.scorer import digest_files
from reward_service.scorers.clip_model import (
    PROCESSOR_FILES,
    WEIGHT_FILES,
    ClipModel,
    check_clip_source,
    check_tokenizer_folder,
    load_clip,
)
from reward_service.scorers.model_files import ModelSource
from reward_service.scorers.options import Configured

MODEL = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


class PickScoreOptions(Section):
    """Options of pickscore. The default processor is the one that PickScore's authors use."""

    path: str = setting(MODEL, "", "Folder of a transformers CLIPModel, or a hub id. Safetensors files only.")
    revision: str = setting("main", "", "Hub revision of path; ignored for a folder.")
    processor: str = setting(
        PROCESSOR,
        "",
        "Folder or hub id with the tokenizer and preprocessor_config.json; the same as path for a folder "
        "that holds everything.",
    )
    processor_revision: str = setting("main", "", "Hub revision of processor; ignored for a folder.")
    scale: float = setting(
        1.0,
        "",
        "The score is divided by it: 1 gives the published number, 26 that of flow_grpo "
        "(flow_grpo/pickscore_scorer.py), about 0..1.",
        gt=0.0,
    )


class PickScore(Configured[PickScoreOptions]):
    """exp(logit scale) * cosine of image and prompt, divided by `scale`.

    At scale 1 a difference of 1 means odds of e that people pick the better image.
    """

    version = "1"
    name = "pickscore"
    model = PickScoreOptions

    def check(self) -> None:
        """See Configured."""
        check_clip_source(self._source)
        self._processor.check()
        if self._processor.is_local:
            check_tokenizer_folder(self._processor.folder)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the model's weights and configuration, the processor's files and the scale."""
        processor = digest_files(self._processor.files(), {})
        return digest_files(self._source.files(), {"processor": processor, "scale": self.options.scale})

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,).

        Raises RewardError where the model or its processor cannot be loaded.
        """
        cosines = self._clip.cosines(prompts, images).double().cpu().numpy()
        return cosines * (self._clip.logit_scale / self.options.scale)

    @cached_property
    def _source(self) -> ModelSource:
        path, revision = self.options.path, self.options.revision
        return ModelSource("pickscore option path", "PickScore model", path, revision, WEIGHT_FILES)

    @cached_property
    def _processor(self) -> ModelSource:
        path, revision = self.options.processor, self.options.processor_revision
        return ModelSource("pickscore option processor", "processor", path, revision, PROCESSOR_FILES)

    @cached_property
    def _clip(self) -> ClipModel:
        return load_clip(self._source, self._processor)
