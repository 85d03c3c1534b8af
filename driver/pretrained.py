"""A policy without Ray: the pretrained model, or one of its checkpoints, for evaluate.py and sample.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from transformers.utils import logging as transformers_logging

from actors.sampler import sample_group
from common.config.load import config_from_yaml_text, load_config
from common.config.schema import Config
from common.errors import CheckpointError, ConfigError, DamagedError
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.steps import Steps
from common.model.weights import digest_tensors
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.run.checkpoints import CONFIG_FILE, read_checkpoint

WEIGHTS = ("trainable.safetensors", "ema.safetensors")
PRETRAINED = PolicyStamp(version=0, digest="", run_id="pretrained")


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy with the weights that `stamp` names, and its step distribution."""

    policy: Policy
    distribution: Steps
    stamp: PolicyStamp

    def images(self, prompt: str, images: int, noise: NoiseKey) -> NDArray[np.uint8]:
        """uint8 (B, height, width, 3), the same bits as an actor's for the same noise key and number."""
        task = PromptTask(prompt, images, noise, self.stamp, with_reference=False)
        return sample_group(task, self.policy, self.policy, self.distribution)[1]


@dataclass(frozen=True)
class Chosen:
    """What the command line chose: a configuration, and one checkpoint or none."""

    config: Config
    checkpoints: tuple[str, ...]

    def load(self) -> LoadedPolicy:
        """The checkpoint's policy, or the pretrained one."""
        for place in self.checkpoints:
            return load_checkpoint(self.config, place)
        return load_pretrained(self.config)


def choose(flags: Mapping[str, str], overrides: Sequence[str]) -> Chosen:
    """From --checkpoint PLACE (its own configuration unless --config is given too) or --config FILE alone.

    Raises ConfigError where neither is given, CheckpointError where the place is no checkpoint.
    """
    checkpoints = tuple(flags[name] for name in ("--checkpoint",) if name in flags)
    if "--config" in flags:
        return Chosen(load_config(Path(flags["--config"]), overrides), checkpoints)
    for place in checkpoints:
        return Chosen(checkpoint_config(place, overrides), checkpoints)
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
    policy, distribution = load_policy(config)
    stamp = replace(PRETRAINED, digest=digest_tensors(policy.trainable.parameters()))
    return LoadedPolicy(policy, distribution, stamp)


def load_checkpoint(config: Config, place: str | Path) -> LoadedPolicy:
    """The policy of a checkpoint; its moving average where it has one. Raises CheckpointError,
    WeightsError."""
    checkpoint = read_checkpoint(place, lambda file: file in WEIGHTS)
    loaded = load_pretrained(config)
    averages = safetensors.torch.load(checkpoint.files["ema.safetensors"])
    tensors = averages or safetensors.torch.load(checkpoint.files["trainable.safetensors"])
    loaded.policy.load(tensors)
    digest = digest_tensors(loaded.policy.trainable.parameters())
    stamp = PolicyStamp(version=checkpoint.state.epoch, digest=digest, run_id=checkpoint.state.run_id)
    return replace(loaded, stamp=stamp)
