"""A weighted mix of scorers inside one application: where they belong together and share its processes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.config.fields import Section, setting
from common.config.yaml_text import read_yaml
from common.errors import ConfigError, RewardError
from common.trajectory import ScorerStamp
from reward_service.contract.answers import ask, numbers
from reward_service.contract.hidden import without_secrets
from reward_service.contract.registry import build_scorer, check_spec
from reward_service.contract.scorer import (
    KINDS,
    AnyScorer,
    as_reward,
    is_deterministic,
    is_paid,
    methods_of,
    prompts_of,
)
from reward_service.contract.settings import read_section

_EXAMPLE = "sharp: {scorer: jpeg_incompressibility, weight: 0.1}"


class MixPart(Section):
    """One scorer of a mix."""

    scorer: str = setting(..., "", "A shipped scorer's name, or my_package.my_module:MyScorer.", min_length=1)
    weight: float = setting(1.0, "", "Weight in the sum of raw rewards.")
    options: dict[str, str | int | float | bool] = setting({}, "", "Keyword arguments of the scorer.")
    pairs: int = setting(0, "pairs", "Pairs a group that a judge of single pairs is asked; 0 = all.", ge=0)


@dataclass(frozen=True)
class _Part:
    """A part of a mix with its scorer built."""

    name: str
    spec: MixPart
    scorer: AnyScorer


class Mix:
    """The weighted sum of the raw numbers of several scorers, each of which gives a picture a number.

    parts: YAML text, name: {scorer, weight, options}, one part a line, e.g.

        options:
          parts: |
            alignment: {scorer: clip, weight: 10, options: {path: openai/clip-vit-large-patch14}}
            small: {scorer: jpeg_compressibility, weight: 0.05}

    The tracker sees the sum alone; rewards that are to be seen singly are given to the run singly.
    """

    version = "1"

    def __init__(self, parts: str) -> None:
        self._given = parts

    @staticmethod
    def check_options(parts: str) -> None:
        """Raises RewardError where a part cannot work, or compares pictures. Loads no weights."""
        comparing = [
            name
            for name, spec in _read_parts(parts).items()
            for method in methods_of(_checked(name, spec))
            if method != "score"
        ]
        if comparing:
            raise RewardError(
                f"mix adds numbers of single pictures, and {', '.join(comparing)} compares pictures. Use "
                "mix_pairwise with the same parts, or give the rewards to the run singly."
            )

    @property
    def deterministic(self) -> bool:
        """Whether all parts are."""
        return _all_deterministic(self._parts)

    @property
    def paid(self) -> bool:
        """Whether any part is."""
        return _any_paid(self._parts)

    @property
    def check_prompts(self) -> tuple[str, ...]:
        """Those that all parts which name some have in common."""
        return _shared_prompts(self._parts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the parts: weights, options, versions and digests."""
        return _digest(self._parts)

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (M, height, width, 3) RGB; prompts: M of them -> float64 (M,), the weighted sum.

        Raises RewardError naming the part that fails.
        """
        return np.sum([self._weighted(part, prompts, images) for part in self._parts], axis=0)

    def _weighted(self, part: _Part, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        scorer: Any = part.scorer
        answer = ask(part.name, lambda: scorer.score(list(prompts), images.copy()))
        return part.spec.weight * numbers(part.name, answer, (len(prompts),), "one finite number a picture")

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        return _build_parts(self._given)


class MixPairwise:
    """The weighted sum of the differences of several scorers of any kind.

    parts: as of Mix; a judge of single pairs also takes `pairs`, its budget a group. Only differences within
    a group remain, so the rewards have mean 0 in every group.
    """

    version = "1"

    def __init__(self, parts: str) -> None:
        self._given = parts

    @staticmethod
    def check_options(parts: str) -> None:
        """Raises RewardError where a part cannot work. Loads no weights."""
        for name, spec in _read_parts(parts).items():
            _checked(name, spec)

    @property
    def deterministic(self) -> bool:
        """Whether all parts are."""
        return _all_deterministic(self._parts)

    @property
    def paid(self) -> bool:
        """Whether any part is."""
        return _any_paid(self._parts)

    @property
    def check_prompts(self) -> tuple[str, ...]:
        """Those that all parts which name some have in common."""
        return _shared_prompts(self._parts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the parts: weights, options, versions and digests."""
        return _digest(self._parts)

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """images: uint8 (B, height, width, 3) RGB -> float64 (B, B), antisymmetric: the weighted sum.

        Raises RewardError naming the part that fails.
        """
        return np.sum([self._weighted(part, prompt, images) for part in self._parts], axis=0)

    def _weighted(self, part: _Part, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        reward = as_reward(ScorerStamp(part.name, "", ""), part.scorer, part.spec.pairs)
        return part.spec.weight * reward.parts([(prompt, images.copy())])[0].differences

    @cached_property
    def _parts(self) -> tuple[_Part, ...]:
        return _build_parts(self._given)


def _read_parts(text: str) -> dict[str, MixPart]:
    """The parts by name. Raises RewardError for text that is no such mapping, or gives no weight at all."""
    shown = without_secrets(text)
    if not isinstance(text, str):
        raise RewardError(f"The option parts must be YAML text such as '{_EXAMPLE}', got {shown!r}.")
    try:
        read = read_yaml(text, "option parts")
        if not isinstance(read, dict) or not read:
            raise RewardError(f"The option parts must name scorers, such as '{_EXAMPLE}'; got {shown!r}.")
        parts = {str(name): read_section(MixPart, given, f"part {name}") for name, given in read.items()}
    except ConfigError as error:
        raise RewardError(str(error)) from error
    if not any(part.weight for part in parts.values()):
        raise RewardError("Every part of the mix has weight 0, so all pictures would be equal.")
    return parts


def _checked(name: str, spec: MixPart) -> type[AnyScorer]:
    try:
        scorer = check_spec(spec)
    except RewardError as error:
        raise RewardError(f"part {name}: {error}") from error
    (method,) = methods_of(scorer)
    if spec.pairs and KINDS[method][0] != "pairs":
        raise RewardError(f"part {name}: pairs is for judges of single pairs; {spec.scorer} is none.")
    return scorer


def _build_parts(text: str) -> tuple[_Part, ...]:
    return tuple(_Part(name, spec, build_scorer(spec)) for name, spec in _read_parts(text).items())


def _all_deterministic(parts: tuple[_Part, ...]) -> bool:
    return all(is_deterministic(part.scorer) for part in parts)


def _any_paid(parts: tuple[_Part, ...]) -> bool:
    return any(is_paid(part.scorer) for part in parts)


def _shared_prompts(parts: tuple[_Part, ...]) -> tuple[str, ...]:
    declared = [known for part in parts if (known := prompts_of(part.scorer, ()))]
    return tuple(prompt for prompt in (declared or [()])[0] if all(prompt in known for known in declared))


def _digest(parts: tuple[_Part, ...]) -> str:
    content = {
        part.name: [part.spec.model_dump(mode="json"), part.scorer.version, part.scorer.digest]
        for part in parts
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
