"""Evaluate a policy version on seen and unseen prompts, through the same actors and rewards that train."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import ObjectLostError

from common.config.schema import Config
from common.errors import StuckError
from common.trajectory import ScorerStamp
from driver.loop.ranks import Published
from driver.loop.rollouts import IMAGE_TRIES, Group, Rollouts
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.run.prompts import PromptSets, evaluation_tasks

GroupScored = Callable[[int, int, Sequence[ScorerStamp]], None]
"""Told the number of finished epochs, the group's position and the versions that scored it."""


class Evaluator:
    """Samples and scores the prompt sets with given weights. group_scored: told of each group."""

    def __init__(
        self, config: Config, rollouts: Rollouts, prompt_sets: PromptSets, group_scored: GroupScored
    ) -> None:
        self._config = config
        self._rollouts = rollouts
        self._prompt_sets = prompt_sets
        self._group_scored = group_scored

    @property
    def images(self) -> int:
        """Of one evaluation."""
        prompts = sum(len(prompts) for prompts in self._prompt_sets.values())
        return prompts * self._config.evaluation.images_per_prompt

    async def evaluate(self, epoch: int, weights: Published) -> Evaluation:
        """The weights after `epoch` epochs. Raises RewardError where too many groups fail."""
        running = {
            name: self._rollouts.begin(
                evaluation_tasks(self._config, name, prompts, weights.stamp),
                weights.reference,
                with_gold=True,
            )
            for name, prompts in self._prompt_sets.items()
        }
        sets, position = [], itertools.count()
        for name, rollouts in running.items():
            groups = []
            async for group in self._rollouts.collect(rollouts):
                self._group_scored(epoch, next(position), group.score.scorers)
                groups.append(group)
            shown = [await self._images(group) for group in groups[: self._config.evaluation.grid_prompts]]
            sets.append(
                PromptSetEvaluation.of(
                    name,
                    [group.task.prompt for group in groups],
                    [group.score for group in groups],
                    [images[0] for images in shown],
                    {reward: entry.weight for reward, entry in self._config.rewards.items()},
                )
            )
        return Evaluation(epoch=epoch, stamp=weights.stamp, sets=tuple(sets))

    async def _images(self, group: Group) -> NDArray[np.uint8]:
        """A group's images; sampled again where they were lost with the node that held them."""
        for _ in range(IMAGE_TRIES):
            if group.images is not None:
                with suppress(ObjectLostError):
                    found: NDArray[np.uint8] = await self._rollouts.fetch(
                        group.images, f"the images of {group.task.prompt!r}"
                    )
                    return found
            group = await self._rollouts.sample_again(group)
        raise StuckError(
            f"The images of {group.task.prompt!r} were lost with their node {IMAGE_TRIES} times."
        )
