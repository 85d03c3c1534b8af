"""Sample and evaluate in this process, without a cluster: the pretrained model, or one of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from rich.progress import Progress
from transformers.utils import logging as transformers_logging

from actors.sampler import sample_group
from common.config.load import config_from_yaml_text, load_config
from common.config.schema import Config
from common.errors import CheckpointError, ConfigError, DamagedError
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.steps import Steps
from common.model.weights import digest_tensors
from common.terminal import visible
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.loop.tasks import PromptSets, evaluation_tasks
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.run.checkpoints import CONFIG_FILE, read_checkpoint
from learner.state import HEADER_FILE, read_header
from reward_service.client.local import LocalRewards

WEIGHTS = (HEADER_FILE, "trainable.safetensors", "ema.safetensors")
PRETRAINED = PolicyStamp(version=0, digest="", run_id="pretrained")


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy with the weights that `stamp` names, its steps, and the epochs that it was trained for."""

    policy: Policy
    steps: Steps
    stamp: PolicyStamp
    epoch: int = 0

    def images(self, prompt: str, images: int, noise: NoiseKey) -> NDArray[np.uint8]:
        """uint8 (B, height, width, 3), the same bits as an actor's for the same noise key and number."""
        task = PromptTask(prompt, images, noise, self.stamp, with_reference=False)
        return sample_group(task, self.policy, None, self.steps)[1]


@dataclass(frozen=True)
class Chosen:
    """What the command line chose. checkpoint: None for the pretrained model."""

    config: Config
    checkpoint: str | None

    def load(self) -> LoadedPolicy:
        """The checkpoint's policy, or the pretrained one."""
        if self.checkpoint is None:
            return load_pretrained(self.config)
        return load_checkpoint(self.config, self.checkpoint)


def choose(flags: Mapping[str, str], overrides: Sequence[str]) -> Chosen:
    """From --checkpoint PLACE (its own configuration unless --config is given too) or --config FILE alone.

    Raises ConfigError where neither is given, CheckpointError where the place is no checkpoint.
    """
    checkpoint = flags.get("--checkpoint")
    if "--config" in flags:
        return Chosen(load_config(Path(flags["--config"]), overrides), checkpoint)
    if checkpoint is not None:
        return Chosen(checkpoint_config(checkpoint, overrides), checkpoint)
    raise ConfigError("Name a policy: --checkpoint PLACE, or --config FILE for the pretrained model.")


def checkpoint_config(place: str, overrides: Sequence[str]) -> Config:
    """The configuration that a checkpoint was trained with, with overrides. Raises CheckpointError,
    ConfigError."""
    try:
        checkpoint = read_checkpoint(place, lambda file: file == CONFIG_FILE)
    except DamagedError as error:
        raise CheckpointError(f"{error} Checkpoints lie in RUN_FOLDER/checkpoints/epoch_…") from error
    return config_from_yaml_text(checkpoint.config_yaml, f"the configuration of {place}", overrides)


def load_pretrained(config: Config) -> LoadedPolicy:
    """The model as it was before training."""
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    policy, steps = load_policy(config)
    stamp = replace(PRETRAINED, digest=digest_tensors(policy.trainable.parameters()))
    return LoadedPolicy(policy, steps, stamp)


def load_checkpoint(config: Config, place: str | Path) -> LoadedPolicy:
    """The policy of a checkpoint; its moving average where it has one. Raises CheckpointError,
    WeightsError."""
    checkpoint = read_checkpoint(place, lambda file: file in WEIGHTS)
    loaded = load_pretrained(config)
    averages = safetensors.torch.load(checkpoint.files["ema.safetensors"])
    tensors = averages or safetensors.torch.load(checkpoint.files["trainable.safetensors"])
    loaded.policy.load(tensors)
    stamp = PolicyStamp(
        version=read_header(checkpoint.files).version,
        digest=digest_tensors(loaded.policy.trainable.parameters()),
        run_id=checkpoint.state.run_id,
    )
    return replace(loaded, stamp=stamp, epoch=checkpoint.state.epoch)


def measure(
    config: Config, loaded: LoadedPolicy, rewards: LocalRewards, prompt_sets: PromptSets, progress: Progress
) -> Evaluation:
    """Sample and score every prompt set, with the noise that training's own evaluations have. Raises
    RewardError."""
    sets = []
    title = "Pretrained" if loaded.stamp.run_id == PRETRAINED.run_id else "Checkpoint"
    for name, prompts in prompt_sets.items():
        tasks = evaluation_tasks(config, name, prompts, loaded.stamp)
        images = [
            loaded.images(task.prompt, task.images, task.noise)
            for task in progress.track(tasks, description=visible(f"{title}, {name} prompts"))
        ]
        scores = [
            rewards.score_group(task.prompt, group, with_gold=True)
            for task, group in zip(tasks, images, strict=True)
        ]
        sets.append(
            PromptSetEvaluation.of(
                name,
                [task.prompt for task in tasks],
                scores,
                [group[0] for group in images[: config.evaluation.grid_prompts]],
                {reward: entry.weight for reward, entry in config.rewards.items()},
            )
        )
    return Evaluation(epoch=loaded.epoch, stamp=loaded.stamp, sets=tuple(sets))
