"""Evaluate a policy version on seen and unseen prompts, through the same actors and rewards that train."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import ObjectLostError

from common.config.schema import Config
from common.errors import StuckError
from common.trajectory import ScorerStamp
from driver.loop.published import Published
from driver.loop.rollouts import LOST_TRIES, Rollouts, ScoredReference
from driver.loop.tasks import evaluation_batch
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.run.prompts import PromptSet, PromptStream, sample_prompts

PromptSets = dict[str, list[tuple[int, str]]]

GroupScored = Callable[[int, int, Sequence[ScorerStamp]], None]
"""Told the number of finished epochs, the group's position and the versions that scored it."""

# The name of the weighted sum among an evaluation's scores.
TOTAL = "reward"


def choose_prompts(config: Config, stream: PromptStream, unseen: PromptSet) -> PromptSets:
    """seen: the first prompts that training draws; unseen: drawn without replacement from the other set."""
    count = config.evaluation.prompts
    return {"seen": stream.take(0, count), "unseen": sample_prompts(unseen, count, config.evaluation.seed)}


def evaluate(
    config: Config,
    rollouts: Rollouts,
    prompt_sets: PromptSets,
    epoch: int,
    weights: Published,
    group_scored: GroupScored,
) -> Evaluation:
    """Sample and score every prompt set with the published weights. group_scored: told of each group.

    Raises RewardError where too many groups fail.
    """
    stamp = weights.stamp
    batches = {name: evaluation_batch(config, name, prompts, stamp) for name, prompts in prompt_sets.items()}
    for batch in batches.values():
        rollouts.begin(batch, weights)
    sets = []
    position = itertools.count()
    for name, batch in batches.items():
        groups = []
        for group in rollouts.collect(batch):
            group_scored(epoch, next(position), group.score.scorers)
            groups.append(group)
        pictures = [_pictures(rollouts, group) for group in groups[: config.evaluation.grid_prompts]]
        sets.append(_measure(name, groups, pictures))
    return Evaluation(epoch=epoch, stamp=stamp, sets=tuple(sets))


def _pictures(rollouts: Rollouts, group: ScoredReference) -> NDArray[np.uint8]:
    """A group's pictures; sampled again where they were lost with the node that held them."""
    images = group.images
    for _ in range(LOST_TRIES):
        try:
            found: NDArray[np.uint8] = rollouts.fetch(images, f"the pictures of {group.task.prompt!r}")
        except ObjectLostError:
            images = rollouts.again(group).images
        else:
            return found
    raise StuckError(f"The pictures of {group.task.prompt!r} were lost with their node {LOST_TRIES} times.")


def _measure(
    name: str, groups: Sequence[ScoredReference], pictures: Sequence[NDArray[np.uint8]]
) -> PromptSetEvaluation:
    parts = {part: np.stack([group.score.parts[part] for group in groups]) for part in groups[0].score.parts}
    return PromptSetEvaluation(
        name=name,
        prompts=tuple(group.task.prompt for group in groups),
        scores={TOTAL: np.stack([group.score.rewards for group in groups]), **parts},
        pixels=np.stack([images[0] for images in pictures]),
    )
