"""Stage ``quickstart``: the quickstart's prompts, about combinations that no model's training ever showed.

Of each object there is one background that it never stands on in training (models/scenes.py). Those
combinations are measured on tiny-sd, and the ones whose pictures differ most in reward are taken:
that spread is what a policy has to learn from. Each has 18 prompts (sizes and positions), of which two thirds
are trained on and one third is only evaluated.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from common.terminal import say
from models.scenes import OBJECTS, Kind, Scene, all_scenes, is_heldout, prompt_of
from models.train_tiny.measure import Reward, load_pipeline, sample
from models.train_tiny.paths import PROMPTS_FOLDER, PROXY_NAME, SD_NAME
from models.train_tiny.prompts import write_prompts

CHOSEN = 12
MEASURED_PROMPTS = 6
PICTURES = 8
SEED = 17


def scenes_by_object() -> dict[str, list[Scene]]:
    """By object, its scenes alone on the background that it never stands on in training."""
    scenes: dict[str, list[Scene]] = {name: [] for name in OBJECTS}
    for scene in all_scenes():
        if scene.kind is Kind.SINGLE and is_heldout(scene):
            scenes[scene.object1].append(scene)
    return scenes


def spreads(into: Path) -> dict[str, float]:
    """By object, the standard deviation of the proxy's cosine over the base model's pictures of one prompt,
    mean over MEASURED_PROMPTS of its prompts."""
    rng = np.random.default_rng(SEED)
    prompts = [
        prompt_of(scenes[index])
        for scenes in scenes_by_object().values()
        for index in rng.choice(len(scenes), size=MEASURED_PROMPTS, replace=False)
    ]
    asked = [prompt for prompt in prompts for _ in range(PICTURES)]
    pictures = sample(load_pipeline(into / SD_NAME), asked, guidance=0.0, seed=SEED)
    proxy = Reward.load(into / PROXY_NAME)
    cosines = (proxy.images(pictures) * proxy.texts(asked)).sum(-1)
    within = cosines.reshape(len(OBJECTS), MEASURED_PROMPTS, PICTURES).std(-1).mean(-1)
    return dict(zip(OBJECTS, within.tolist(), strict=True))


def split(chosen: Collection[str], rng: np.random.Generator) -> tuple[list[Scene], list[Scene]]:
    """The chosen objects' scenes: two thirds to train on, one third to evaluate, of every object."""
    train: list[Scene] = []
    unseen: list[Scene] = []
    for name, scenes in scenes_by_object().items():
        if name in chosen:
            third = set(rng.choice(len(scenes), size=len(scenes) // 3, replace=False).tolist())
            train += [scene for index, scene in enumerate(scenes) if index not in third]
            unseen += [scenes[index] for index in sorted(third)]
    return train, unseen


def run(into: Path) -> None:
    """Measure the models in ``into``; write quickstart_train.parquet and quickstart_unseen.parquet there."""
    measured = spreads(into)
    ordered = sorted(measured, key=lambda name: -measured[name])
    for name in ordered:
        say(f"{name:12} {measured[name]:.3f}")
    train, unseen = split(ordered[:CHOSEN], np.random.default_rng(SEED))
    write_prompts(train, PROMPTS_FOLDER / "quickstart_train.parquet")
    write_prompts(unseen, PROMPTS_FOLDER / "quickstart_unseen.parquet")
