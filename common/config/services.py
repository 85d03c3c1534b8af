"""Settings of the parts: run folder, Ray, actors, learner, rewards, evaluation, tracker, checkpoints."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import field_validator, model_validator

from common.config.fields import Section, setting

LARGEST_SEED = 2**32 - 1


class RunSection(Section):
    """The run as a whole."""

    name: str = setting("prdp", "", "Name of the run: its folder under `folder` and its name in the tracker.")
    folder: str = setting("runs", "", "Parent of the run folder.", min_length=1)
    seed: int = setting(0, "", "Seed of the order of prompts and of all noise.", ge=0, le=LARGEST_SEED)
    epochs: int = setting(100, "epochs", "E: epochs in all, those of a continued run included.", ge=1)

    @field_validator("name")
    @classmethod
    def _a_folder_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
            raise ValueError(f"{value!r} cannot be a folder name; use letters, digits, '.', '_' and '-'")
        return value


class RaySection(Section):
    """The Ray cluster."""

    address: str = setting(
        "local",
        "",
        "local = start one on this machine and stop it at the end; auto = the cluster this machine is in.",
        min_length=1,
    )
    dashboard: bool = setting(True, "", "Start the dashboard (address local only).")
    object_store_gb: float = setting(1.0, "GB", "Object store size (address local only).", gt=0.07)


class PlacementSection(Section):
    """Where a pool of processes runs and what each process takes."""

    cpus: float = setting(1.0, "CPUs", "CPUs Ray reserves for each process.", ge=0.0)
    gpus: float = setting(0.0, "GPUs", "GPUs, or a share of one, for each process.", ge=0.0)
    threads: int = setting(1, "threads", "CPU threads of each process (torch and OpenMP).", ge=1)
    labels: dict[str, str] = setting({}, "", "Labels of the nodes to be placed on, e.g. {role: actor}.")

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError(f"got {value}; above 1 a process takes whole GPUs")
        return value


class ActorsSection(PlacementSection):
    """The pool that samples trajectories."""

    count: int = setting(2, "processes", "Actors in the pool.", ge=1)
    tasks_in_flight: int = setting(
        2, "tasks", "Tasks (prompts) an actor holds at once: one in work, the rest waiting.", ge=1
    )
    task_retries: int = setting(
        3, "tries", "How often a task is redone when its actor dies, before the run stops.", ge=0
    )
    restarts: int = setting(10, "restarts", "How often a dead actor is replaced, before the run stops.", ge=0)
    timeout_s: float = setting(600.0, "s", "Longest wait for any task to finish.", gt=0.0)


class LearnerSection(PlacementSection):
    """The process or processes that learn."""

    workers: int = setting(1, "processes", "Ranks; groups are split among them and gradients summed.", ge=1)
    micro_batch_size: int = setting(
        32, "image-steps", "(image, step) pairs in one forward and backward pass: bounds its memory.", ge=1
    )
    gradient_checkpointing: bool = setting(False, "", "Recompute UNet activations in the backward pass.")
    timeout_s: float = setting(1800.0, "s", "Longest wait for one learner call.", gt=0.0)


class RewardSpec(Section):
    """One reward of a weighted mix."""

    scorer: str = setting(..., "", "A shipped scorer's name, or my_package.my_module:MyScorer.", min_length=1)
    weight: float = setting(1.0, "", "Weight in the sum of raw rewards.")
    options: dict[str, str | int | float | bool] = setting(
        {}, "", "Keyword arguments of the scorer, e.g. {path: folder}."
    )


class RewardServiceSection(PlacementSection):
    """The Serve application that scores."""

    replicas: int = setting(1, "processes", "Replicas of the application.", ge=1)
    max_batch_groups: int = setting(4, "groups", "Groups scored in one call of a scorer.", ge=1)
    batch_wait_s: float = setting(0.005, "s", "Longest wait for a batch to fill.", ge=0.0)
    queue_groups: int = setting(64, "groups", "Groups sent and not yet answered, at most.", ge=1)
    timeout_s: float = setting(120.0, "s", "Longest that scorers may work on one batch of groups.", gt=0.0)
    retries: int = setting(2, "tries", "How often a failed group is scored again before it is dropped.", ge=0)
    max_dropped_share: float = setting(
        0.1, "", "The run stops where more than this share of an epoch's groups was dropped.", ge=0.0, le=1.0
    )


class EvaluationSection(Section):
    """What is measured before, during and after training, with the same prompts and noise each time."""

    prompts: int = setting(32, "prompts", "Prompts of each kind, seen and unseen.", ge=2)
    images_per_prompt: int = setting(2, "images", "Images of each prompt.", ge=1)
    every_epochs: int = setting(
        5, "epochs", "Evaluate each so many epochs; always before the first and after the last.", ge=1
    )
    grid_prompts: int = setting(6, "prompts", "Unseen prompts shown in the picture grid.", ge=1)
    seed: int = setting(1234, "", "Seed of the choice of prompts and of their noise.", ge=0, le=LARGEST_SEED)

    @model_validator(mode="after")
    def _grid_is_evaluated(self) -> EvaluationSection:
        if self.grid_prompts > self.prompts:
            raise ValueError(f"grid_prompts ({self.grid_prompts}) cannot exceed prompts ({self.prompts})")
        return self


class TrackerSection(Section):
    """MLflow."""

    uri: str = setting("", "", "Tracking URI; empty = an SQLite store and local artifacts in run.folder.")
    experiment: str = setting("prdp", "", "Experiment name.", min_length=1)
    save_checkpoint: bool = setting(True, "", "Log the final policy folder as an artifact.")


class CheckpointSection(Section):
    """What a run needs to go on."""

    every_epochs: int = setting(
        10, "epochs", "Save each so many epochs; always after the last and when stopped.", ge=1
    )
    keep: int = setting(2, "checkpoints", "Checkpoints kept besides the last.", ge=0)


class DisplaySection(Section):
    """What the terminal shows."""

    mode: Literal["auto", "live", "lines"] = setting(
        "auto", "", "live = one display; lines = a line now and then; auto = live on a terminal."
    )
    line_seconds: float = setting(15.0, "s", "Seconds between lines.", gt=0.0)
