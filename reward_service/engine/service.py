"""One reward without Ray: groups of images in, rewards and differences out, with the scorer's stamp."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray

from common.errors import RewardError
from common.hidden import hide
from common.trajectory import ScorerStamp
from reward_service.contract.registry import build_scorer, scorer_path
from reward_service.contract.results import Outcome, RewardFailure
from reward_service.contract.scorer import (
    AnyScorer,
    PromptImages,
    Reward,
    as_reward,
    check_scorer,
    is_paid,
    prompts_of,
    why_narrow,
)
from reward_service.contract.settings import ServedReward

# Each names a text in quotes, which a scorer of text in images asks for.
CHECK_PROMPTS = ('a sign that says "OPEN"', 'a blue house named "Home"', 'a sign that says "OPEN"')
_CHECK_IMAGES = len(CHECK_PROMPTS)

Span = Callable[[], AbstractContextManager[object]]
"""Opened around each batch that the scorer is given."""


class RewardService:
    """Scores groups by one scorer. kind: "pointwise", "pairwise" or "pairs". stamp: on every part."""

    def __init__(self, scorer: AnyScorer, reward: Reward) -> None:
        self._scorer = scorer
        self._reward = reward

    @property
    def stamp(self) -> ScorerStamp:
        """Which reward, version and weights."""
        return self._reward.stamp

    @property
    def kind(self) -> str:
        """How the scorer is asked."""
        return self._reward.kind

    @property
    def paid(self) -> bool:
        """Whether a call of the scorer costs money: it is then never made without need."""
        return is_paid(self._scorer)

    def score_groups(self, groups: Sequence[PromptImages], span: Span = nullcontext) -> list[Outcome]:
        """Score groups, each a prompt with its images uint8 (B, height, width, 3), together.

        Where the scorer fails on them together, it is asked one by one, so only the groups that it fails on
        alone have a RewardFailure. span: opened once for all together, and once for each that is asked alone.
        """
        outcomes: dict[int, Outcome] = {
            row: failure for row, group in enumerate(groups) if (failure := _bad_images(group))
        }
        good = [row for row in range(len(groups)) if row not in outcomes]
        outcomes.update(zip(good, _isolated(self._reward, [groups[row] for row in good], span), strict=True))
        return [outcomes[row] for row in range(len(groups))]

    def check(self) -> None:
        """Load the scorer and check its contract (contract.check_scorer) on a few made-up images.

        The prompts are the scorer's own `check_prompts`, where it has some. Raises RewardError.
        """
        known = prompts_of(self._scorer, CHECK_PROMPTS)
        prompts = [known[row % len(known)] for row in range(_CHECK_IMAGES)]
        check_scorer(self._scorer, prompts, _made_up_images(_CHECK_IMAGES), self.stamp.name)
        self.probe()

    def probe(self) -> None:
        """Score two made-up images as a group is scored. Raises RewardError."""
        prompt, *_ = prompts_of(self._scorer, CHECK_PROMPTS)
        self._reward.score([(prompt, _made_up_images(2))])


def build_service(name: str, served: ServedReward) -> RewardService:
    """The service of one reward. Raises RewardError naming the reward it cannot build."""
    try:
        scorer = build_scorer(served)
        version = f"{scorer.version}+{served.version}" if served.version else scorer.version
        stamp = ScorerStamp(name, version, stamp_digest(served, scorer.digest))
        return RewardService(scorer, as_reward(stamp, scorer, served.pairs))
    except RewardError as error:
        raise RewardError(f"Reward {name!r}: {error}") from error


def build_checked(name: str, served: ServedReward) -> RewardService:
    """The same, with its weights loaded and its contract checked. Raises RewardError."""
    use_threads(served.threads)
    service = build_service(name, served)
    # It may have loaded torch.
    use_threads(served.threads)
    service.check()
    return service


def use_threads(count: int) -> None:
    """Give torch, where this process has loaded it, so many threads for calls from this thread.

    Loading torch for this alone would cost each replica of a small scorer a second and 200 MB.
    """
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def stamp_digest(served: ServedReward, scorer_digest: str) -> str:
    """SHA-256 (hex) over the scorer's path, its options, the pairs asked and its own digest."""
    content = {
        "scorer": scorer_path(served.scorer),
        "options": served.options,
        "pairs": served.pairs,
        "digest": scorer_digest,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _isolated(reward: Reward, groups: Sequence[PromptImages], span: Span) -> list[Outcome]:
    """Score together; where that fails, one by one."""
    if not groups:
        return []
    try:
        with span():
            return list(reward.score(groups))
    except RewardError as error:
        if len(groups) == 1:
            # It leaves the process that knows the options and tokens.
            return [RewardFailure(hide(str(error)))]
        return [outcome for group in groups for outcome in _isolated(reward, [group], span)]


def _bad_images(group: PromptImages) -> RewardFailure | None:
    prompt, images = group
    if images.dtype == np.uint8 and images.ndim == 4 and images.shape[3] == 3 and images.size:
        narrow = why_narrow(*images.shape[1:3])
        return RewardFailure(narrow) if narrow else None
    return RewardFailure(
        f"Images must be uint8 (B, height, width, 3), got {images.dtype} {images.shape} for {prompt!r}."
    )


def _made_up_images(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
