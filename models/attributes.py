"""Scenes that differ from a given one in exactly one attribute: hard negatives, and zero-shot questions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from models.scenes import BACKGROUNDS, COUNTS, OBJECTS, POSITIONS, RELATIONS, SIZES, Kind, Scene


def _objects(scene: Scene) -> list[Scene]:
    return [replace(scene, object1=obj) for obj in OBJECTS if obj != scene.object2]


def _second_objects(scene: Scene) -> list[Scene]:
    return [replace(scene, object2=obj) for obj in OBJECTS if obj != scene.object1]


def _backgrounds(scene: Scene) -> list[Scene]:
    return [replace(scene, background=background) for background in BACKGROUNDS]


def _sizes(scene: Scene) -> list[Scene]:
    return [replace(scene, size1=size) for size in SIZES]


def _second_sizes(scene: Scene) -> list[Scene]:
    return [replace(scene, size2=size) for size in SIZES]


def _relations(scene: Scene) -> list[Scene]:
    return [replace(scene, relation=relation) for relation in RELATIONS]


def _positions(scene: Scene) -> list[Scene]:
    return [replace(scene, position=position) for position in POSITIONS]


def _counts(scene: Scene) -> list[Scene]:
    return [replace(scene, count=count) for count in COUNTS]


def _orders(scene: Scene) -> list[Scene]:
    return [scene, replace(scene, object1=str(scene.object2), object2=scene.object1)]


Alternatives = Callable[[Scene], list[Scene]]
ALTERNATIVES: dict[Kind, dict[str, Alternatives]] = {
    Kind.SINGLE: {
        "object": _objects,
        "background": _backgrounds,
        "size": _sizes,
        "position": _positions,
    },
    Kind.COUNT: {"object": _objects, "background": _backgrounds, "count": _counts},
    Kind.PAIR: {
        "object": _objects,
        "object2": _second_objects,
        "background": _backgrounds,
        "size": _sizes,
        "size2": _second_sizes,
        "relation": _relations,
        "order": _orders,
    },
}


def alternatives(scene: Scene, attribute: str) -> list[Scene]:
    """``scene`` and every scene that differs from it in ``attribute`` alone; the scene itself is among them.

    Raises ``KeyError`` where scenes of this kind have no such attribute; ``attributes_of`` lists those
    they have. ``order`` swaps the two objects of a pair and leaves sizes and places as they are.
    """
    return ALTERNATIVES[scene.kind][attribute](scene)


def attributes_of(scene: Scene) -> tuple[str, ...]:
    """The attributes that ``alternatives`` can vary for this scene."""
    return tuple(ALTERNATIVES[scene.kind])
