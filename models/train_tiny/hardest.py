"""Stage ``hardest``: the prompts of the quickstart, about the objects that the base model draws worst."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from models.scenes import OBJECTS, Kind, Scene, all_scenes, is_heldout, prompt_of
from models.train_tiny.data import random_scene
from models.train_tiny.measure import Reward, load_pipeline, sample
from models.train_tiny.paths import PROMPTS_FOLDER, PROXY_NAME, SD_NAME
from models.train_tiny.prompts import write_prompts

CHOSEN = 12
SCENES = 16
SEED = 17


def objects_of(scene: Scene) -> tuple[str, ...]:
    """The objects that a scene shows."""
    return (scene.object1,) if scene.object2 is None else (scene.object1, scene.object2)


def draw_scenes(rng: np.random.Generator) -> dict[str, list[Scene]]:
    """SCENES training scenes of each object, of all kinds."""
    scenes: dict[str, list[Scene]] = {name: [] for name in OBJECTS}
    while any(len(found) < SCENES for found in scenes.values()):
        scene = random_scene(rng)
        for name in objects_of(scene):
            if len(scenes[name]) < SCENES:
                scenes[name].append(scene)
    return scenes


def mean_scores(into: Path) -> dict[str, float]:
    """By object, the proxy's mean cosine over the base model's pictures of training scenes that show it."""
    scenes = draw_scenes(np.random.default_rng(SEED))
    prompts = [prompt_of(scene) for found in scenes.values() for scene in found]
    pictures = sample(load_pipeline(into / SD_NAME), prompts, guidance=0.0, seed=SEED)
    proxy = Reward.load(into / PROXY_NAME)
    cosines = (proxy.images(pictures) * proxy.texts(prompts)).sum(-1).reshape(len(OBJECTS), SCENES)
    return dict(zip(OBJECTS, cosines.mean(1).tolist(), strict=True))


def select(scenes: Iterable[Scene], chosen: frozenset[str], rng: np.random.Generator) -> list[Scene]:
    """All scenes of one object among the chosen, and as many with two of them, drawn without replacement."""
    about = [scene for scene in scenes if chosen.issuperset(objects_of(scene))]
    pairs = [scene for scene in about if scene.kind is Kind.PAIR]
    others = [scene for scene in about if scene.kind is not Kind.PAIR]
    drawn = rng.choice(len(pairs), size=min(len(pairs), len(others)), replace=False)
    return others + [pairs[index] for index in sorted(drawn)]


def run(into: Path) -> None:
    """Measure the models in ``into``; write ``hard_train.parquet`` and ``hard_heldout.parquet``."""
    scores = mean_scores(into)
    ordered = sorted(scores, key=lambda name: scores[name])
    for name in ordered:
        print(f"{name:12} {scores[name]:.3f}")
    chosen = frozenset(ordered[:CHOSEN])
    for name, heldout in (("hard_train", False), ("hard_heldout", True)):
        split = [scene for scene in all_scenes() if is_heldout(scene) is heldout]
        write_prompts(select(split, chosen, np.random.default_rng(SEED)), PROMPTS_FOLDER / f"{name}.parquet")
