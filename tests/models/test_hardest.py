"""The quickstart's prompts: about a dozen objects, each on its side of the split."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from models.scenes import Kind, Scene, all_scenes, is_heldout, prompt_of
from models.train_tiny.hardest import CHOSEN, draw_scenes, objects_of, select
from models.train_tiny.paths import PROMPTS_FOLDER


@pytest.fixture(scope="module")
def split() -> dict[str, bool]:
    """By prompt, whether it is held out."""
    return {prompt_of(scene): is_heldout(scene) for scene in all_scenes()}


@pytest.mark.parametrize(("name", "heldout"), [("hard_train", False), ("hard_heldout", True)])
def test_the_shipped_prompts_keep_to_the_split_and_to_the_objects(
    split: dict[str, bool], name: str, heldout: bool
) -> None:
    table = pq.read_table(PROMPTS_FOLDER / f"{name}.parquet").to_pylist()
    assert len({row["prompt"] for row in table}) == len(table) > 400
    assert {split[row["prompt"]] for row in table} == {heldout}
    objects = {row["object1"] for row in table} | {row["object2"] for row in table} - {None}
    assert len(objects) == CHOSEN
    assert sum(row["kind"] == Kind.PAIR.value for row in table) * 2 == len(table)


def test_both_files_are_about_the_same_objects() -> None:
    files = [pq.read_table(PROMPTS_FOLDER / f"hard_{name}.parquet") for name in ("train", "heldout")]
    first, second = ({row["object1"] for row in file.to_pylist()} for file in files)
    assert first == second


def test_selected_scenes_show_chosen_objects_alone() -> None:
    chosen = frozenset({"cat", "dog", "moon"})
    scenes: list[Scene] = select(all_scenes(), chosen, np.random.default_rng(0))
    assert all(chosen.issuperset(objects_of(scene)) for scene in scenes)
    assert len(set(scenes)) == len(scenes)
    singles = [scene for scene in scenes if scene.kind is not Kind.PAIR]
    assert len(singles) * 2 == len(scenes)


def test_every_object_is_measured_on_training_scenes_of_its_own() -> None:
    for name, scenes in draw_scenes(np.random.default_rng(1)).items():
        assert all(name in objects_of(scene) and not is_heldout(scene) for scene in scenes)
