"""Evaluate policies in this process, without Ray: what evaluate.py does."""

from __future__ import annotations

import numpy as np
from rich.progress import Progress

from common.config.schema import Config
from driver.loop.evaluation import TOTAL, PromptSets
from driver.loop.tasks import evaluation_batch
from driver.pretrained import LoadedPolicy
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from reward_service.client.local import LocalRewards


def measure(
    config: Config,
    loaded: LoadedPolicy,
    rewards: LocalRewards,
    prompt_sets: PromptSets,
    progress: Progress,
    title: str,
) -> Evaluation:
    """Sample and score every prompt set, with the noise that training's own evaluations have. Raises
    RewardError."""
    sets = []
    for name, prompts in prompt_sets.items():
        batch = evaluation_batch(config, name, prompts, loaded.stamp)
        images = [
            loaded.images(task.prompt, task.images, task.noise)
            for task in progress.track(batch.tasks, description=f"{title}, {name} prompts")
        ]
        scores = [
            _score(rewards, task.prompt, group) for task, group in zip(batch.tasks, images, strict=True)
        ]
        sets.append(
            PromptSetEvaluation(
                name=name,
                prompts=tuple(task.prompt for task in batch.tasks),
                scores={key: np.stack([score[key] for score in scores]) for key in scores[0]},
                pixels=np.stack([group[0] for group in images[: config.evaluation.grid_prompts]]),
            )
        )
    return Evaluation(epoch=loaded.stamp.version, stamp=loaded.stamp, sets=tuple(sets))


def _score(rewards: LocalRewards, prompt: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
    score = rewards.score_group(prompt, pixels, with_gold=True)
    return {TOTAL: score.rewards, **score.parts}
