"""Sample and evaluate in this process, without a cluster: the pretrained model, or one of its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from rich.progress import Progress
from transformers.utils import logging as transformers_logging

from actors.sampler import sample_group
from common.config.schema import Config
from common.config.training import PromptSource
from common.errors import BadNumbersError, no_picture
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.steps import Steps
from common.model.weights import digest_tensors
from common.terminal import say, visible
from common.trajectory import GroupScore, NoiseKey, PolicyStamp, PromptTask
from driver.report.evaluation import TOTAL, Evaluation, PromptSetEvaluation
from driver.run.changes import MODEL, Inputs, digest_model, input_changes
from driver.run.checkpoints import read_checkpoint
from driver.run.prompts import (
    PromptSets,
    PromptStream,
    choose_prompts,
    evaluation_tasks,
    open_prompts,
    sample_prompts,
)
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

    def images(
        self, prompt: str, images: int, noise: NoiseKey, *, deterministic: bool = False
    ) -> NDArray[np.uint8]:
        """uint8 (B, height, width, 3), the same bits as an actor's for the same noise key and number.
        deterministic: see PromptTask.

        Raises BadNumbersError where latents are not finite.
        """
        task = PromptTask(
            prompt, images, noise, self.stamp, with_reference=False, deterministic=deterministic
        )
        trajectory, pixels = sample_group(task, self.policy, None, self.steps)
        if not np.isfinite(trajectory.latents).all():
            raise BadNumbersError(no_picture(prompt))
        return pixels


def load_pretrained(config: Config) -> LoadedPolicy:
    """The model as it was before training."""
    for library in (diffusers_logging, transformers_logging):
        library.disable_progress_bar()
    policy, steps = load_policy(config)
    stamp = replace(PRETRAINED, digest=digest_tensors(policy.trainable.parameters()))
    return LoadedPolicy(policy, steps, stamp)


def load_checkpoint(config: Config, place: str | Path) -> LoadedPolicy:
    """The policy of a checkpoint; its moving average where it has one. Says so where the pretrained model is
    another than the one that it was trained on. Raises CheckpointError, WeightsError."""
    checkpoint = read_checkpoint(place, lambda file: file in WEIGHTS)
    loaded = load_pretrained(config)
    _say_if_another_model(config, place, checkpoint.state.inputs)
    averages = safetensors.torch.load(checkpoint.files["ema.safetensors"])
    tensors = averages or safetensors.torch.load(checkpoint.files["trainable.safetensors"])
    loaded.policy.load(tensors)
    stamp = PolicyStamp(
        version=read_header(checkpoint.files).version,
        digest=digest_tensors(loaded.policy.trainable.parameters()),
        run_id=checkpoint.state.run_id,
    )
    return replace(loaded, stamp=stamp, epoch=checkpoint.state.epoch)


def _say_if_another_model(config: Config, place: str | Path, inputs: Inputs) -> None:
    """inputs: of the checkpoint's run."""
    before = {name: digest for name, digest in inputs.items() if name.startswith(f"{MODEL} ")}
    if not before:
        return
    runs = config.run_folder.parent
    lines = input_changes(before, digest_model(config.model, runs if runs.is_dir() else None))
    if lines:
        say(
            f"{place} was trained on another pretrained model than {config.model.path!r}; what follows "
            "is of the two mixed:\n  " + "\n  ".join(lines)
        )


def policy_of(config: Config, checkpoint: str | None) -> LoadedPolicy:
    """The checkpoint's policy, or the pretrained one."""
    return load_pretrained(config) if checkpoint is None else load_checkpoint(config, checkpoint)


def prompt_sets(config: Config, prompts: str | None) -> PromptSets:
    """The configuration's seen and unseen prompts; or all of one prompt set, under its name."""
    if prompts is not None:
        every = open_prompts(PromptSource(path=prompts))
        return {Path(prompts).stem: sample_prompts(every, len(every), config.evaluation.seed)}
    stream = PromptStream(open_prompts(config.prompts.train), config.run.seed)
    return choose_prompts(config, stream, open_prompts(config.prompts.unseen))


@dataclass(frozen=True)
class Measured:
    """A policy's evaluation, and its images of each prompt, uint8 (I, height, width, 3), by prompt set, where
    they were to be kept."""

    evaluation: Evaluation
    images: dict[str, list[NDArray[np.uint8]]]


def measure(
    config: Config,
    loaded: LoadedPolicy,
    rewards: LocalRewards,
    sets: PromptSets,
    progress: Progress,
    keep_images: bool = False,
) -> Measured:
    """Sample and score every prompt set, with the noise that training's own evaluations have.

    Raises RewardError at the first prompt that cannot be scored, BadNumbersError where there is no picture:
    nothing is left out, so that suites of the same prompts stay comparable.
    """
    measured, kept = list[PromptSetEvaluation](), dict[str, list[NDArray[np.uint8]]]()
    title = "Pretrained" if loaded.stamp.run_id == PRETRAINED.run_id else "Checkpoint"
    for name, prompts in sets.items():
        tasks = evaluation_tasks(config, name, prompts, loaded.stamp)
        scores, shown = list[GroupScore](), list[NDArray[np.uint8]]()
        for task in progress.track(tasks, description=visible(f"{title}, {name} prompts")):
            images = loaded.images(task.prompt, task.num_images, task.noise, deterministic=task.deterministic)
            scores.append(rewards.score_group(task.prompt, images, with_gold=True))
            if len(shown) < config.evaluation.grid_prompts:
                shown.append(images[0])
            if keep_images:
                kept.setdefault(name, []).append(images)
        measured.append(
            PromptSetEvaluation.of(
                name,
                [task.prompt for task in tasks],
                scores,
                shown,
                {reward: entry.weight for reward, entry in config.rewards.items()},
            )
        )
    return Measured(Evaluation(epoch=loaded.epoch, stamp=loaded.stamp, sets=tuple(measured)), kept)


def with_preferences(
    config: Config, before: Measured, after: Measured, rewards: LocalRewards, progress: Progress
) -> Evaluation:
    """The evaluation `after`, with what each judge prefers: the images after or those before, pair by pair of
    one prompt and noise. Where all that was trained on are judges, their weighted sum, too. Raises
    RewardError.
    """
    sets = []
    for own in after.evaluation.sets:
        pairs = [
            np.stack(pictures, axis=1)
            for pictures in zip(before.images.get(own.name, ()), after.images.get(own.name, ()), strict=True)
        ]
        found = {}
        for judge in rewards.judges:
            shown = progress.track(pairs, description=visible(f"{judge}, {own.name} prompts"))
            found[judge] = np.array(
                [
                    [rewards.preference(judge, prompt, pair) for pair in of_prompt]
                    for prompt, of_prompt in zip(own.prompts, shown, strict=True)
                ]
            )
        if found.keys() >= config.rewards.keys():
            weighted = [entry.weight * found[name] for name, entry in config.rewards.items()]
            found[TOTAL] = np.sum(weighted, axis=0)
        sets.append(replace(own, preferences=found))
    return replace(after.evaluation, sets=tuple(sets))
