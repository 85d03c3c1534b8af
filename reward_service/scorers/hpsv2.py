"""Human Preference Score v2, 2.0 and 2.1: how much people prefer an image for a prompt."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator
from transformers import CLIPModel

from common.config.fields import Section, setting
from common.errors import RewardError
from common.model.folder import TOKENIZER_FILES
from reward_service.contract.scorer import Settings, digest_files
from reward_service.scorers.clip_model import (
    WEIGHT_FILES,
    ClipModel,
    check_clip_config,
    check_clip_folder,
    check_tokenizer_folder,
    load_clip_config,
    load_clip_weights,
    load_tokenizer,
)
from reward_service.scorers.images import Letterbox
from reward_service.scorers.model_files import ModelSource, build_model, read_tensors
from reward_service.scorers.open_clip_names import to_transformers
from reward_service.scorers.options import Configured

MODEL = "xswu/HPSv2"
BASE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CHECKPOINTS = {"2.0": "HPS_v2_compressed", "2.1": "HPS_v2.1_compressed"}
"""Release -> name of its checkpoint, as in hpsv2/utils.py of the hpsv2 package."""


class HpsV2Options(Section):
    """Options of hpsv2."""

    path: str = setting(
        MODEL,
        "",
        "Folder or hub id with the checkpoint under its published name (HPS_v2_compressed or "
        "HPS_v2.1_compressed, .pt or .safetensors, open_clip's tensor names), or else with a transformers "
        "CLIPModel (config.json and model*.safetensors).",
    )
    revision: str = setting("main", "", "Hub revision of path; ignored for a folder.")
    release: Literal["2.0", "2.1"] = setting("2.1", "", "Which checkpoint.")
    base: str = setting(
        BASE,
        "",
        "Folder or hub id of the CLIP it was tuned from: gives the tokenizer, and to a checkpoint the "
        "architecture; the same as path for a transformers folder that holds everything.",
    )
    base_revision: str = setting("main", "", "Hub revision of base; ignored for a folder.")
    antialias: bool = setting(
        True,
        "",
        "Smooth when shrinking images, as the hpsv2 package does with torchvision 0.17 and later; False: as "
        "with older versions.",
    )

    @field_validator("release", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, float) else value


def _names(release: str) -> list[str]:
    return [f"{CHECKPOINTS[release]}.{ending}" for ending in ("safetensors", "pt")]


def _checkpoints(folder: Path, release: str) -> list[Path]:
    return [folder / name for name in _names(release) if (folder / name).is_file()]


class HpsV2(Configured[HpsV2Options]):
    """Cosine of image and prompt by a CLIP tuned on human choices; comparable within one prompt only.

    The activation is exact GELU, not the QuickGELU of OpenAI's models. The original computes in mixed
    precision, and cleans prompts with ftfy and HTML unescaping, which the transformers tokenizer does not.
    """

    version = "1"
    name = "hpsv2"
    model = HpsV2Options

    def check(self) -> None:
        """See Configured."""
        self._source.check()
        self._base.check()
        if self._source.is_local:
            _check_folder(self._source.folder, self.options.release)
        if self._base.is_local:
            check_clip_config(self._base.folder)
            check_tokenizer_folder(self._base.folder)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the weights that are read, the base's files, and the options."""
        base = digest_files(self._base.files(), {})
        weights = _checkpoints(self._source.folder, self.options.release)[:1] or self._source.files()
        settings: Settings = {
            "base": base,
            "release": self.options.release,
            "antialias": self.options.antialias,
        }
        return digest_files(weights, settings)

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,), cosines.

        Raises RewardError where the model or its base cannot be loaded.
        """
        return self._clip.cosines(prompts, images).double().cpu().numpy()

    @cached_property
    def _source(self) -> ModelSource:
        files = [*_names(self.options.release), *WEIGHT_FILES]
        return ModelSource(
            "hpsv2 option path", "HPSv2 model", self.options.path, self.options.revision, files
        )

    @cached_property
    def _base(self) -> ModelSource:
        files = ["config.json", *TOKENIZER_FILES]
        return ModelSource("hpsv2 option base", "CLIP", self.options.base, self.options.base_revision, files)

    @cached_property
    def _clip(self) -> ClipModel:
        folder = self._source.folder
        _check_folder(folder, self.options.release)
        checkpoints = _checkpoints(folder, self.options.release)
        model = self._tuned(checkpoints[0]) if checkpoints else load_clip_weights(folder)
        vision: Any = model.config.vision_config
        prepare = Letterbox(int(vision.image_size), self.options.antialias)
        return ClipModel(model, load_tokenizer(self._base.folder), prepare)

    def _tuned(self, checkpoint: Path) -> CLIPModel:
        config: Any = load_clip_config(self._base.folder)
        config.text_config.hidden_act = config.vision_config.hidden_act = "gelu"
        tensors = to_transformers(read_tensors(checkpoint), checkpoint)
        return build_model(CLIPModel, config, tensors, checkpoint)


def _check_folder(folder: Path, release: str) -> None:
    if _checkpoints(folder, release):
        return
    if not (folder / "config.json").is_file():
        there = sorted(entry.name for entry in folder.iterdir())
        raise RewardError(
            f"{folder} holds neither {CHECKPOINTS[release]}.pt (or .safetensors), the checkpoint of release "
            f"{release}, nor a transformers CLIPModel; it holds {there[:10]}."
        )
    check_clip_folder(folder)
