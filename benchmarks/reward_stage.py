"""Versions of one CLIP reward that a benchmark swaps while it runs: by settings, by weights file, by code."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from benchmarks.reward_cluster import ROOT
from benchmarks.reward_windows import Expected
from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.contract.results import RewardScores
from reward_service.contract.settings import ServedReward, read_settings
from reward_service.engine.service import RewardService, build_service

MODEL = ROOT / "models" / "tiny-clip-proxy"
NAME = "swapped"
MODULE = "swapped_judge"
_WEIGHTS = "model.safetensors"
_CODE = '''"""A scorer that a benchmark rewrites."""

from reward_service.scorers.clip import ClipScorer


class Judge(ClipScorer):
    """CLIP cosines times a factor of this version of the code."""

    version = "{version}"

    def score(self, prompts, images):
        """Cosines times the factor."""
        return {factor} * super().score(prompts, images)
'''
_FACTORS = {"1": 1.0, "2": 0.5}


@dataclass(frozen=True)
class Version:
    """One state of the reward. negated: the weights file whose picture embeddings have the other sign."""

    options: dict[str, str] = field(default_factory=dict)
    label: str = ""
    negated: bool = False
    code: str = "1"


START = Version()
OPTIONS = Version(options={"prompt_prefix": "a photo of "})
WEIGHTS = Version(label="b", negated=True)
CODE = Version(code="2")
VERSIONS = (START, OPTIONS, WEIGHTS, CODE)


class Stage:
    """The files of the reward in `folder`, and each version's scorer in this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._services: dict[ScorerStamp, RewardService] = {}
        self._stamps: dict[str, ScorerStamp] = {}

    def prepare(self) -> None:
        """Write the files and build every version here. Leaves the files as the start needs them."""
        shutil.copytree(MODEL, self._folder / "model")
        for version in (*VERSIONS, START):
            self.write(version)
            sys.modules.pop(MODULE, None)
            importlib.invalidate_caches()
            service = build_service(NAME, self.served(version))
            service.check()
            self._services[service.stamp] = service
            self._stamps[str(version)] = service.stamp
        if len(self._services) != len(VERSIONS):
            raise RewardError(f"{len(VERSIONS)} versions have only {len(self._services)} stamps.")

    def write(self, version: Version) -> None:
        """Put its code and its weights file in place."""
        code = _CODE.format(version=version.code, factor=_FACTORS[version.code])
        self._replace(self._folder / f"{MODULE}.py", code.encode())
        weights = self._folder / "model" / _WEIGHTS
        tensors = load_file(MODEL / _WEIGHTS)
        sign = -1.0 if version.negated else 1.0
        name = "visual_projection.weight"
        save_file(tensors | {name: sign * tensors[name]}, weights.with_suffix(".new"))
        os.replace(weights.with_suffix(".new"), weights)

    def settings(self, version: Version) -> dict[str, Any]:
        """Its user_config."""
        options = {"path": str(self._folder / "model"), **version.options}
        return {"scorer": f"{MODULE}:Judge", "options": options, "version": version.label}

    def served(self, version: Version) -> ServedReward:
        """The same, read."""
        return read_settings(self.settings(version), "settings")

    def stamp(self, version: Version) -> ScorerStamp:
        """What its scores carry."""
        return self._stamps[str(version)]

    def expected(self, pixels: dict[str, NDArray[np.uint8]]) -> Expected:
        """What every version says about every prompt's pictures."""
        torch.set_num_threads(1)
        expected: dict[tuple[ScorerStamp, str], RewardScores] = {}
        for stamp, service in self._services.items():
            for prompt, images in pixels.items():
                (part,) = service.score_groups([(prompt, images)])
                if not isinstance(part, RewardScores):
                    raise RewardError(f"No reference score: {part.reason}")
                expected[stamp, prompt] = part
        return expected

    @staticmethod
    def _replace(file: Path, content: bytes) -> None:
        file.with_suffix(".new").write_bytes(content)
        os.replace(file.with_suffix(".new"), file)
