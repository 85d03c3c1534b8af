"""Which prompts are sampled when: tasks as a function of epoch and weights alone."""

from __future__ import annotations

from collections.abc import Sequence

from common.config.schema import Config
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.loop.rollouts import Batch
from driver.run.prompts import PromptStream

# The noise of an evaluation does not depend on the epoch, so that pictures before and after differ by the
# policy alone.
EVALUATION_EPOCH = 0


def training_batch(
    config: Config, stream: PromptStream, epoch: int, cursor: int, stamp: PolicyStamp
) -> Batch:
    """The N tasks of one epoch: the prompts at stream positions cursor .. cursor + N - 1, B images each."""
    prompts = stream.take(cursor, config.sampling.prompts_per_epoch)
    tasks = tuple(
        PromptTask(
            prompt=prompt,
            images=config.sampling.images_per_prompt,
            noise=NoiseKey(config.run.seed, "train", epoch, index),
            stamp=stamp,
            with_reference=True,
        )
        for index, prompt in prompts
    )
    return Batch(tasks, with_gold=False)


def evaluation_batch(
    config: Config, name: str, prompts: Sequence[tuple[int, str]], stamp: PolicyStamp
) -> Batch:
    """The tasks of one prompt set's evaluation, scored by the gold rewards too."""
    section = config.evaluation
    tasks = tuple(
        PromptTask(
            prompt=prompt,
            images=section.images_per_prompt,
            noise=NoiseKey(section.seed, f"evaluation of {name} prompts", EVALUATION_EPOCH, index),
            stamp=stamp,
            with_reference=False,
        )
        for index, prompt in prompts
    )
    return Batch(tasks, with_gold=True)
