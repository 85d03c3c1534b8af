"""Which prompts are sampled when: tasks as a function of epoch and weights alone."""

from __future__ import annotations

from collections.abc import Sequence

from common.config.schema import Config
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.run.prompts import PromptSet, PromptStream, sample_prompts

PromptSets = dict[str, list[tuple[int, str]]]
"""Indices and prompts by the name of the set."""

# The noise of an evaluation does not depend on the epoch, so that images before and after differ by the
# policy alone.
EVALUATION_EPOCH = 0


def training_tasks(
    config: Config, stream: PromptStream, epoch: int, stamp: PolicyStamp, with_reference: bool
) -> list[PromptTask]:
    """The N tasks of one epoch, B images each: the prompts at the stream positions that `cursor` names."""
    prompts = stream.take(cursor(config, epoch), config.sampling.prompts_per_epoch)
    return [
        PromptTask(
            prompt=prompt,
            images=config.sampling.images_per_prompt,
            noise=NoiseKey(config.run.seed, "train", epoch, index),
            stamp=stamp,
            with_reference=with_reference,
        )
        for index, prompt in prompts
    ]


def cursor(config: Config, epochs: int) -> int:
    """Position in the prompt stream after so many epochs."""
    return epochs * config.sampling.prompts_per_epoch


def choose_prompts(config: Config, stream: PromptStream, unseen: PromptSet) -> PromptSets:
    """seen: the first prompts that training draws; unseen: drawn without replacement from the other set."""
    count = config.evaluation.prompts
    return {"seen": stream.take(0, count), "unseen": sample_prompts(unseen, count, config.evaluation.seed)}


def evaluation_tasks(
    config: Config, name: str, prompts: Sequence[tuple[int, str]], stamp: PolicyStamp
) -> list[PromptTask]:
    """The tasks of one prompt set's evaluation."""
    section = config.evaluation
    return [
        PromptTask(
            prompt=prompt,
            images=section.images_per_prompt,
            noise=NoiseKey(section.seed, f"evaluation of {name} prompts", EVALUATION_EPOCH, index),
            stamp=stamp,
            with_reference=False,
        )
        for index, prompt in prompts
    ]
