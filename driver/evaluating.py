"""Evaluate a policy version on seen and unseen prompts, through the same actors and rewards that train."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import ray

from common.config.schema import Config
from common.evaluation import Evaluation, PromptSetEvaluation
from common.prompts import PromptSet, PromptStream, sample_prompts
from common.trajectory import PolicyStamp, ScorerStamp
from driver.rollouts import Rollouts, ScoredReference
from driver.tasks import evaluation_batch

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
    stamp: PolicyStamp,
    weights: ray.ObjectRef,
    group_scored: GroupScored,
) -> Evaluation:
    """Sample and score every prompt set with the stamped weights. group_scored: told of each group.

    Raises RewardError where too many groups fail.
    """
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
        sets.append(_measure(name, groups, config.evaluation.grid_prompts))
    return Evaluation(epoch=epoch, stamp=stamp, sets=tuple(sets))


def _measure(name: str, groups: Sequence[ScoredReference], shown: int) -> PromptSetEvaluation:
    parts = {part: np.stack([group.score.parts[part] for group in groups]) for part in groups[0].score.parts}
    pictures = [ray.get(group.images).pixels[0] for group in groups[:shown]]
    return PromptSetEvaluation(
        name=name,
        prompts=tuple(group.task.prompt for group in groups),
        scores={TOTAL: np.stack([group.score.rewards for group in groups]), **parts},
        pixels=np.stack(pictures),
    )
