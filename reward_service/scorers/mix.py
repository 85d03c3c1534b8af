"""A weighted mix of scorers inside one application: where they belong together and share its processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from common.config.fields import Section, setting
from common.config.services import RewardSpec
from common.config.yaml_text import read_yaml
from common.errors import ConfigError, RewardError
from common.trajectory import ScorerStamp
from reward_service.contract.registry import build_scorer, check_spec
from reward_service.contract.reward import KINDS, Reward, ask, methods_of, numbers
from reward_service.contract.scorer import AnyScorer, is_deterministic, is_paid, prompts_of
from reward_service.contract.settings import read_section
from reward_service.scorers.options import Configured

_EXAMPLE = "sharp: {scorer: jpeg_incompressibility, weight: 0.1}"


class MixOptions(Section):
    """Options of mix and mix_pairwise."""

    parts: str = setting(..., "", f"YAML text, name: {{scorer, weight, options}}, such as '{_EXAMPLE}'.")

    @field_validator("parts")
    @classmethod
    def _readable(cls, value: str) -> str:
        try:
            parts = _read_parts(value)
        except ConfigError as error:
            raise ValueError(str(error)) from error
        if not any(part.weight for part in parts.values()):
            raise ValueError("every part has weight 0, so all images would be equal")
        return value


@dataclass(frozen=True)
class _Part:
    """A part of a mix with its scorer built."""

    name: str
    spec: RewardSpec
    scorer: AnyScorer


class _Mixed(Configured[MixOptions]):
    """What both mixes share. parts: built at first use."""

    version = "1"
    model = MixOptions

    def check(self) -> None:
        """Raises RewardError where a part cannot work. Loads no weights."""
        self._checked()

    @property
    def deterministic(self) -> bool:
        """Whether all parts are."""
        return all(is_deterministic(part.scorer) for part in self._parts)

    @property
    def paid(self) -> bool:
        """Whether any part is."""
        return any(is_paid(part.scorer) for part in self._parts)

    @property
    def check_prompts(self) -> tuple[str, ...]:
        """Those that all parts which name some have in common."""
        declared = [known for part in self._parts if (known := prompts_of(part.scorer, ()))]
        return tuple(prompt for prompt in (declared or [()])[0] if all(prompt in known for known in declared))

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the parts: weights, options, versions and digests."""
        content = {
            part.name: [part.spec.model_dump(mode="json"), part.scorer.version, part.scorer.digest]
            for part in self._parts
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _checked(self) -> Mapping[str, str]:
        """The method of each part by name. Raises RewardError naming the part that cannot work."""
        methods = {}
        for name, spec in _read_parts(self.options.parts).items():
            try:
                (methods[name],) = methods_of(check_spec(spec))
            except RewardError as error:
                raise RewardError(f"part {name}: {error}") from error
            if spec.pairs and KINDS[methods[name]][0] != "pairs":
                raise RewardError(f"part {name}: pairs is for judges of single pairs; {spec.scorer} is none.")
        return methods

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        read = _read_parts(self.options.parts)
        return tuple(_Part(name, spec, build_scorer(spec)) for name, spec in read.items())


class Mix(_Mixed):
    """The weighted sum of the raw numbers of several scorers, each of which gives an image a number.

    parts: YAML text, name: {scorer, weight, options}, one part a line, e.g.

        options:
          parts: |
            alignment: {scorer: clip, weight: 10, options: {path: openai/clip-vit-large-patch14}}
            small: {scorer: jpeg_compressibility, weight: 0.05}

    The tracker sees the sum alone; rewards that are to be seen singly are given to the run singly.
    """

    name = "mix"

    def check(self) -> None:
        """Raises RewardError where a part cannot work, or compares images. Loads no weights."""
        comparing = [name for name, method in self._checked().items() if method != "score"]
        if comparing:
            raise RewardError(
                f"mix adds numbers of single images, and {', '.join(comparing)} compares images. Use "
                "mix_pairwise with the same parts, or give the rewards to the run singly."
            )

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,), the weighted sum.

        Raises RewardError naming the part that fails.
        """
        return np.sum([self._weighted(part, prompts, images) for part in self._parts], axis=0)

    def _weighted(self, part: _Part, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        scorer: Any = part.scorer
        answer = ask(part.name, lambda: scorer.score(list(prompts), images.copy()))
        return part.spec.weight * numbers(part.name, answer, (len(prompts),), "one finite number an image")


class MixPairwise(_Mixed):
    """The weighted sum of the differences of several scorers of any kind.

    parts: as of Mix; a judge of single pairs also takes `pairs`, its budget a group. Only differences within
    a group remain, so the rewards have mean 0 in every group.
    """

    name = "mix_pairwise"

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (B, height, width, 3) RGB -> float64 (B, B), antisymmetric: the weighted sum.

        Raises RewardError naming the part that fails.
        """
        return np.sum([self._weighted(part, prompt, images) for part in self._parts], axis=0)

    def _weighted(self, part: _Part, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        reward = Reward.of(ScorerStamp(part.name, "", ""), part.scorer, part.spec.pairs)
        return part.spec.weight * reward.score([(prompt, images.copy())])[0].differences


def _read_parts(text: str) -> dict[str, RewardSpec]:
    """The parts by name. Raises ConfigError for text that is no such mapping; no secret in it."""
    read = read_yaml(text, "option parts")
    if not isinstance(read, dict) or not read:
        raise ConfigError(f"the option parts must name scorers, such as '{_EXAMPLE}'")
    return {str(name): read_section(RewardSpec, given, f"part {name}") for name, given in read.items()}
