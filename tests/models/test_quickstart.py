"""The quickstart's prompts: combinations that the models never saw, split by prompt."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from models.scenes import OBJECTS, Kind, all_scenes, is_heldout, prompt_of
from models.train_tiny.paths import PROMPTS_FOLDER
from models.train_tiny.quickstart import CHOSEN, scenes_by_object, split


def rows(name: str) -> list[dict[str, Any]]:
    return pq.read_table(PROMPTS_FOLDER / f"quickstart_{name}.parquet").to_pylist()


def test_no_model_was_trained_on_any_of_the_shipped_prompts() -> None:
    heldout = {prompt_of(scene): is_heldout(scene) for scene in all_scenes()}
    assert all(heldout[row["prompt"]] for row in [*rows("train"), *rows("unseen")])


def test_unseen_prompts_are_a_third_of_each_objects_and_never_trained_on() -> None:
    train, unseen = rows("train"), rows("unseen")
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in unseen}
    counts = [Counter(row["object1"] for row in part) for part in (train, unseen)]
    assert [len(count) for count in counts] == [CHOSEN, CHOSEN]
    assert all(counts[0][name] == 2 * counts[1][name] for name in counts[0])


def test_every_object_has_one_background_it_was_never_seen_on() -> None:
    found = scenes_by_object()
    assert set(found) == set(OBJECTS)
    for name, scenes in found.items():
        assert {scene.object1 for scene in scenes} == {name}
        assert {scene.kind for scene in scenes} == {Kind.SINGLE}
        assert len({scene.background for scene in scenes}) == 1
        assert len(set(scenes)) == len(scenes) == 18


def test_a_split_takes_every_scene_of_the_chosen_once() -> None:
    train, unseen = split({"cat", "moon"}, np.random.default_rng(0))
    found = scenes_by_object()
    assert sorted(map(prompt_of, [*train, *unseen])) == sorted(map(prompt_of, found["cat"] + found["moon"]))
