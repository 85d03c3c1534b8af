"""PickScore: how much people prefer a picture for a prompt, learnt from Pick-a-Pic."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from reward_service.contract.digest import digest_files
from reward_service.scorers.clip_model import (
    PROCESSOR_FILES,
    WEIGHT_FILES,
    ClipModel,
    check_clip_source,
    check_tokenizer_folder,
    load_clip,
)
from reward_service.scorers.model_files import ModelSource, check_texts

MODEL = "yuvalkirstain/PickScore_v1"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def _sources(
    path: str, revision: str, processor: str, processor_revision: str
) -> tuple[ModelSource, ModelSource]:
    return (
        ModelSource("pickscore option path", "PickScore model", path, revision, WEIGHT_FILES),
        ModelSource(
            "pickscore option processor", "processor", processor, processor_revision, PROCESSOR_FILES
        ),
    )


class PickScore:
    """exp(logit scale) * cosine of picture and prompt, divided by `scale`: about 16..26 as published.

    All arithmetic is float32. The published logit scale is about 100; a difference of 1 means odds of e that
    people pick the better picture.
    path: folder of a transformers CLIPModel, or a hub id. Weights from safetensors files only.
    revision: hub revision of path; ignored for a folder.
    processor: folder or hub id with the tokenizer and preprocessor_config.json; the default is the one that
        PickScore's authors use. For a folder that holds everything give the same as path.
    processor_revision: hub revision of processor; ignored for a folder.
    scale: the score is divided by it. 1 gives the published number; 26 gives that of flow_grpo
        (flow_grpo/pickscore_scorer.py), about 0..1.

    Preparation, as in README.md of github.com/yuvalkirstain/PickScore: shorter side to 224 (bicubic), centre
    crop 224, OpenAI's mean and deviation, 77 tokens, by the processor's files.
    The weights are read at first use, on the GPU where this process has one.
    """

    version = "1"

    def __init__(
        self,
        path: str = MODEL,
        revision: str = "main",
        processor: str = PROCESSOR,
        processor_revision: str = "main",
        scale: float = 1.0,
    ) -> None:
        self._source, self._processor = _sources(path, revision, processor, processor_revision)
        self._scale = scale

    @staticmethod
    def check_options(
        path: str = MODEL,
        revision: str = "main",
        processor: str = PROCESSOR,
        processor_revision: str = "main",
        scale: float = 1.0,
    ) -> None:
        """Raises RewardError where the options cannot work, as far as can be told without reading weights."""
        check_texts("pickscore", {"path": path, "revision": revision})
        check_texts("pickscore", {"processor": processor, "processor_revision": processor_revision})
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0.0 < scale < math.inf:
            raise RewardError(f"pickscore option scale must be a positive number, got {scale!r}.")
        source, prepare = _sources(path, revision, processor, processor_revision)
        check_clip_source(source)
        prepare.check()
        if prepare.is_local:
            check_tokenizer_folder(prepare.folder)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the model's weights and configuration, the processor's files and the scale."""
        processor = digest_files(self._processor.files(), {})
        return digest_files(self._source.files(), {"processor": processor, "scale": float(self._scale)})

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,).

        Raises RewardError where the model or its processor cannot be loaded.
        """
        cosines = self._clip.cosines(prompts, images).double().cpu().numpy()
        return cosines * (self._clip.logit_scale / self._scale)

    @cached_property
    def _clip(self) -> ClipModel:
        return load_clip(self._source, self._processor)
