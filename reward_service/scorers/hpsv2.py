"""Human Preference Score v2, 2.0 and 2.1: how much people prefer a picture for a prompt."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import CLIPModel

from common.errors import RewardError
from reward_service.contract.digest import Settings, digest_files
from reward_service.scorers.clip_model import (
    TOKENIZER_FILES,
    WEIGHT_FILES,
    ClipModel,
    check_clip_config,
    check_clip_folder,
    check_tokenizer_folder,
    load_clip_config,
    load_clip_weights,
    load_tokenizer,
)
from reward_service.scorers.model_files import ModelSource, build_model, check_texts, read_tensors
from reward_service.scorers.open_clip_names import to_transformers
from reward_service.scorers.pictures import Letterbox

MODEL = "xswu/HPSv2"
BASE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
CHECKPOINTS = {"2.0": "HPS_v2_compressed", "2.1": "HPS_v2.1_compressed"}
"""Release -> name of its checkpoint, as in hpsv2/utils.py of the hpsv2 package."""


def _sources(
    path: str, revision: str, release: str, base: str, base_revision: str
) -> tuple[ModelSource, ModelSource]:
    names = [f"{CHECKPOINTS[release]}.{ending}" for ending in ("safetensors", "pt")]
    files = [*names, *WEIGHT_FILES]
    return (
        ModelSource("hpsv2 option path", "HPSv2 model", path, revision, files),
        ModelSource("hpsv2 option base", "CLIP", base, base_revision, ["config.json", *TOKENIZER_FILES]),
    )


def _checkpoints(folder: Path, release: str) -> list[Path]:
    names = [f"{CHECKPOINTS[release]}.{ending}" for ending in ("safetensors", "pt")]
    return [folder / name for name in names if (folder / name).is_file()]


class HpsV2:
    """Cosine of picture and prompt by CLIP ViT-H/14 tuned on human choices: -1..1, mostly 0.2..0.35.

    All arithmetic is float32. The authors' tables give it times 100. Only pictures of the same prompt are
    comparable.
    path: folder or hub id with the checkpoint under its published name (HPS_v2_compressed or
        HPS_v2.1_compressed, .pt or .safetensors, open_clip's tensor names), or else with a transformers
        CLIPModel (config.json and model*.safetensors). The authors publish .pt files only: they are read by
        torch.load(weights_only=True), which reads tensors alone. They hold float16 numbers.
    revision: hub revision of path; ignored for a folder.
    release: "2.1" or "2.0": which checkpoint.
    base: folder or hub id of the CLIP it was tuned from: gives the tokenizer, and to a checkpoint the
        architecture. For a transformers folder that holds everything give the same as path.
    base_revision: hub revision of base; ignored for a folder.
    antialias: smooth when shrinking pictures, as the hpsv2 package does with torchvision 0.17 and later
        (False: as with older versions).

    Preparation, as in hpsv2/img_score.py, src/open_clip/factory.py (light_augmentation) and transform.py of
    the hpsv2 package 1.2.0: longer side to 224 (bicubic, on float tensors), black bars to a square, OpenAI's
    mean and deviation; 77 tokens. The activation is exact GELU, not QuickGELU. The original computes in mixed
    precision, and cleans prompts with ftfy and HTML unescaping, which the transformers tokenizer does not.
    The weights are read at first use, on the GPU where this process has one.
    """

    version = "1"

    def __init__(
        self,
        path: str = MODEL,
        revision: str = "main",
        release: str | float = "2.1",
        base: str = BASE,
        base_revision: str = "main",
        antialias: bool = True,
    ) -> None:
        self._release = str(release)
        self._source, self._base = _sources(path, revision, self._release, base, base_revision)
        self._antialias = antialias

    @staticmethod
    def check_options(
        path: str = MODEL,
        revision: str = "main",
        release: str | float = "2.1",
        base: str = BASE,
        base_revision: str = "main",
        antialias: bool = True,
    ) -> None:
        """Raises RewardError where the options cannot work, as far as can be told without reading weights."""
        check_texts(
            "hpsv2", {"path": path, "revision": revision, "base": base, "base_revision": base_revision}
        )
        if str(release) not in CHECKPOINTS:
            raise RewardError(f"hpsv2 option release must be one of {sorted(CHECKPOINTS)}, got {release!r}.")
        if not isinstance(antialias, bool):
            raise RewardError(f"hpsv2 option antialias must be true or false, got {antialias!r}.")
        source, clip = _sources(path, revision, str(release), base, base_revision)
        source.check()
        clip.check()
        if source.is_local:
            _check_folder(source.folder, str(release))
        if clip.is_local:
            check_clip_config(clip.folder)
            check_tokenizer_folder(clip.folder)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the weights that are read, the base's files, and the options."""
        base = digest_files(self._base.files(), {})
        weights = _checkpoints(self._source.folder, self._release)[:1] or self._source.files()
        settings: Settings = {"base": base, "release": self._release, "antialias": self._antialias}
        return digest_files(weights, settings)

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,), cosines.

        Raises RewardError where the model or its base cannot be loaded.
        """
        return self._clip.cosines(prompts, images).double().cpu().numpy()

    @cached_property
    def _clip(self) -> ClipModel:
        folder = self._source.folder
        _check_folder(folder, self._release)
        checkpoints = _checkpoints(folder, self._release)
        model = self._tuned(checkpoints[0]) if checkpoints else load_clip_weights(folder)
        vision: Any = model.config.vision_config
        prepare = Letterbox(int(vision.image_size), self._antialias)
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
