"""The grammar, its split and the prompt files."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.attributes import alternatives, attributes_of
from models.compose import compose, compose_many
from models.scenes import (
    BACKGROUNDS,
    OBJECTS,
    Kind,
    Scene,
    all_scenes,
    canonical,
    is_heldout,
    is_heldout_background,
    is_heldout_pair,
    parse_prompt,
    prompt_of,
)
from models.train_tiny.data import random_scene
from models.train_tiny.paths import PROMPTS_FOLDER

SCENES = list(all_scenes())
scenes = st.integers(0, len(SCENES) - 1).map(SCENES.__getitem__)


def read(split: str) -> list[dict[str, object]]:
    return pq.read_table(PROMPTS_FOLDER / f"{split}.parquet").to_pylist()


@pytest.fixture(scope="module")
def train() -> list[dict[str, object]]:
    return read("train")


@pytest.fixture(scope="module")
def heldout() -> list[dict[str, object]]:
    return read("heldout")


@settings(max_examples=300, deadline=None)
@given(scenes)
def test_prompts_and_scenes_determine_each_other(scene: Scene) -> None:
    assert parse_prompt(prompt_of(scene)) == scene


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a big apple",
        "a big apple above a big apple on a blue background",
        "three apple on a blue background",
        "a big apple to the left of a small cat on a beige background",
    ],
)
def test_prompts_outside_the_grammar_are_refused(prompt: str) -> None:
    with pytest.raises(ValueError, match="grammar"):
        parse_prompt(prompt)


@settings(max_examples=100, deadline=None)
@given(scenes)
def test_canonical_is_idempotent_and_keeps_the_split(scene: Scene) -> None:
    assert canonical(canonical(scene)) == canonical(scene)
    assert is_heldout(canonical(scene)) == is_heldout(scene)


@settings(max_examples=100, deadline=None)
@given(scenes)
def test_alternatives_differ_in_one_attribute_and_show_another_picture(scene: Scene) -> None:
    for attribute in attributes_of(scene):
        options = alternatives(scene, attribute)
        assert options.count(scene) == 1
        assert len({canonical(option) for option in options}) == len(options)


def test_prompt_files_hold_every_prompt_once(train: list[dict], heldout: list[dict]) -> None:
    prompts = [row["prompt"] for row in train + heldout]
    assert len(train) >= 100_000
    assert len(set(prompts)) == len(prompts) == len(SCENES)


def test_prompt_files_agree_with_the_parsed_prompts(train: list[dict], heldout: list[dict]) -> None:
    for row in train[::97] + heldout[::97]:
        scene = parse_prompt(row["prompt"])
        assert {field.name: getattr(scene, field.name) for field in fields(Scene)} == {
            name: value for name, value in row.items() if name != "prompt"
        }


def combinations(rows: list[dict]) -> tuple[set[tuple[str, str]], set[frozenset[str]]]:
    grounds = {(row[name], row["background"]) for row in rows for name in ("object1", "object2") if row[name]}
    return grounds, {frozenset((row["object1"], row["object2"])) for row in rows if row["object2"]}


def test_training_shows_no_heldout_combination(train: list[dict], heldout: list[dict]) -> None:
    grounds, pairs = combinations(train)
    unseen_grounds = {(o, b) for o in OBJECTS for b in BACKGROUNDS if is_heldout_background(o, b)}
    unseen_pairs = {frozenset((a, b)) for a in OBJECTS for b in OBJECTS if a != b and is_heldout_pair(a, b)}
    assert grounds.isdisjoint(unseen_grounds)
    assert pairs.isdisjoint(unseen_pairs)
    for row in heldout[::31]:
        row_grounds, row_pairs = combinations([row])
        assert row_grounds & unseen_grounds or row_pairs & unseen_pairs


def test_every_word_is_trained_on(train: list[dict]) -> None:
    assert {row["object1"] for row in train} == set(OBJECTS) == {row["object2"] for row in train} - {None}
    assert {row["background"] for row in train} == set(BACKGROUNDS)
    assert {row["kind"] for row in train} == set(Kind)


def test_pictures_are_reproducible_and_follow_the_scene() -> None:
    scene = parse_prompt("a big apple to the left of a small cloud on a green background")
    first, again = (compose(scene, np.random.default_rng(3)) for _ in range(2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert (first == again).all()
    red, green = first[..., 0].astype(int), first[..., 1].astype(int)
    columns = np.nonzero(red > green + 120)[1]
    assert columns.size > 50
    assert columns.max() < 36


@pytest.mark.parametrize("heldout", [False, True])
def test_random_scenes_keep_to_their_split(heldout: bool) -> None:
    rng = np.random.default_rng(0)
    drawn = [random_scene(rng, heldout) for _ in range(60)]
    assert all(is_heldout(scene) == heldout for scene in drawn)
    assert {scene.kind for scene in drawn} == set(Kind)
    assert compose_many(drawn, rng).shape == (60, 64, 64, 3)
