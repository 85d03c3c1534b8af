"""A configuration for tests: the tiny pipeline, a reward without a model, a few prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.schema import Config

TRAIN_PROMPTS = ("a cat", "a dog on a mat", "two red birds", "the sea", "a blue door", "an old tree")
UNSEEN_PROMPTS = ("a fish", "three green cups", "a house", "the moon")

WHOLE: dict[str, Any] = {
    "run.epochs": 6,
    "sampling.prompts_per_epoch": 3,
    "objective.updates_per_epoch": 2,
    "optimizer.ema_decay": 0.5,
    "checkpoint": {"every_epochs": 2, "keep": 100},
    "evaluation.every_epochs": 2,
    "data.record": True,
}
"""Settings of the run that many tests look at and that disturbed runs are compared with."""


def make_config(pipeline: Path, folder: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """A small run of the pipeline folder, writing under `folder`.

    overrides: values by dotted key, e.g. {"sampling.steps": 3, "policy": {"kind": "full"}}; a section
    given whole replaces the one here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.txt").write_text("\n".join(TRAIN_PROMPTS) + "\n")
    (folder / "unseen.txt").write_text("\n".join(UNSEEN_PROMPTS) + "\n")
    tree: dict[str, Any] = {
        "model": {"path": str(pipeline), "device": "cpu"},
        "prompts": {"train": str(folder / "train.txt"), "unseen": str(folder / "unseen.txt")},
        "rewards": {"jpeg": {"scorer": "jpeg_compressibility"}},
        "policy": {"kind": "lora", "rank": 2, "alpha": 2},
        "run": {"name": "test", "folder": str(folder / "runs"), "epochs": 2},
        "sampling": {
            "prompts_per_epoch": 2,
            "images_per_prompt": 4,
            "steps": 4,
            "guidance_scale": 1.0,
            "stochastic_steps": "all_but_last",
        },
        "objective": {"kl_weight": 0.01},
        "optimizer": {"learning_rate": 1e-3},
        "actors": {"count": 1, "cpus": 0.25, "timeout_s": 60.0},
        "reward_service": {"cpus": 0.25},
        "learner": {"cpus": 0.25, "micro_batch_size": 8, "timeout_s": 60.0},
        "evaluation": {"prompts": 2, "images_per_prompt": 2, "every_epochs": 1, "grid_prompts": 2},
        "ray": {"dashboard": False, "object_store_gb": 0.1},
        "display": {"mode": "lines"},
    }
    for key, value in (overrides or {}).items():
        _put(tree, key.split("."), value)
    return Config.model_validate(tree)


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    *sections, last = path
    for name in sections:
        tree = tree.setdefault(name, {})
    tree[last] = value
