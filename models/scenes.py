"""Grammar of the toy pictures: a ``Scene`` is what a prompt says, and the two determine each other.

Three kinds of scene exist. *single*: one object of a size at one of nine positions; *count*: two to
four equal objects; *pair*: two different objects, each of a size, in a spatial relation. Every scene
has a background colour. ``prompt_of`` and ``parse_prompt`` are inverse to each other.

Scenes are split by *combination*, not by prompt: see ``is_heldout``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

# Word in a prompt -> icon name in @iconify-json/fluent-emoji-flat. The order is the order in the atlas.
OBJECT_ICONS: dict[str, str] = {
    "apple": "red-apple",
    "banana": "banana",
    "strawberry": "strawberry",
    "watermelon": "watermelon",
    "pineapple": "pineapple",
    "carrot": "carrot",
    "mushroom": "mushroom",
    "hamburger": "hamburger",
    "pizza": "pizza",
    "doughnut": "doughnut",
    "cat": "cat-face",
    "dog": "dog-face",
    "pig": "pig-face",
    "frog": "frog",
    "panda": "panda",
    "penguin": "penguin",
    "owl": "owl",
    "octopus": "octopus",
    "turtle": "turtle",
    "butterfly": "butterfly",
    "ladybug": "lady-beetle",
    "crab": "crab",
    "star": "star",
    "heart": "red-heart",
    "sun": "sun",
    "moon": "crescent-moon",
    "cloud": "cloud",
    "snowflake": "snowflake",
    "flame": "fire",
    "tree": "deciduous-tree",
    "cactus": "cactus",
    "sunflower": "sunflower",
    "tulip": "tulip",
    "car": "automobile",
    "bicycle": "bicycle",
    "rocket": "rocket",
    "sailboat": "sailboat",
    "house": "house",
    "key": "key",
    "bell": "bell",
    "umbrella": "umbrella",
    "guitar": "guitar",
    "drum": "drum",
    "football": "soccer-ball",
    "balloon": "balloon",
    "gift": "wrapped-gift",
    "crown": "crown",
    "gem": "gem-stone",
}
OBJECTS: tuple[str, ...] = tuple(OBJECT_ICONS)
SIZES: tuple[str, ...] = ("small", "big")
BACKGROUNDS: tuple[str, ...] = ("white", "black", "blue", "green", "yellow", "pink", "purple", "orange")
RELATIONS: tuple[str, ...] = ("left", "right", "above", "below")
COUNTS: tuple[int, ...] = (2, 3, 4)

_COUNT_WORDS: dict[int, str] = {2: "two", 3: "three", 4: "four"}
_RELATION_WORDS: dict[str, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
_POSITION_WORDS: dict[str, str] = {
    "center": "in the center",
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "top left": "in the top left corner",
    "top right": "in the top right corner",
    "bottom left": "in the bottom left corner",
    "bottom right": "in the bottom right corner",
}
POSITIONS: tuple[str, ...] = tuple(_POSITION_WORDS)
OPPOSITE: dict[str, str] = {"left": "right", "right": "left", "above": "below", "below": "above"}
_PLURALS: dict[str, str] = {
    "strawberry": "strawberries",
    "butterfly": "butterflies",
    "octopus": "octopuses",
    "cactus": "cactuses",
}


class Kind(StrEnum):
    """The kinds of scene."""

    SINGLE = "single"
    COUNT = "count"
    PAIR = "pair"


@dataclass(frozen=True)
class Scene:
    """What one picture shows; attributes that its kind does not have are ``None`` (``count``: 1 or 2)."""

    kind: Kind
    object1: str
    background: str
    count: int
    size1: str | None = None
    position: str | None = None
    object2: str | None = None
    size2: str | None = None
    relation: str | None = None


def single(size: str, obj: str, position: str, background: str) -> Scene:
    """One object of a size at a position."""
    return Scene(Kind.SINGLE, obj, background, 1, size1=size, position=position)


def several(count: int, obj: str, background: str) -> Scene:
    """``count`` (2 to 4) equal objects."""
    return Scene(Kind.COUNT, obj, background, count)


def pair(size1: str, object1: str, relation: str, size2: str, object2: str, background: str) -> Scene:
    """Two different objects, the first standing in ``relation`` to the second."""
    return Scene(
        Kind.PAIR, object1, background, 2, size1=size1, object2=object2, size2=size2, relation=relation
    )


def plural(obj: str) -> str:
    """The plural of an object's word."""
    return _PLURALS.get(obj, obj + "s")


def _single_prompt(s: Scene) -> str:
    return f"a {s.size1} {s.object1} {_POSITION_WORDS[str(s.position)]} of a {s.background} background"


def _count_prompt(s: Scene) -> str:
    return f"{_COUNT_WORDS[s.count]} {plural(s.object1)} on a {s.background} background"


def _pair_prompt(s: Scene) -> str:
    relation = _RELATION_WORDS[str(s.relation)]
    return f"a {s.size1} {s.object1} {relation} a {s.size2} {s.object2} on a {s.background} background"


_PROMPTS: dict[Kind, Callable[[Scene], str]] = {
    Kind.SINGLE: _single_prompt,
    Kind.COUNT: _count_prompt,
    Kind.PAIR: _pair_prompt,
}


def prompt_of(scene: Scene) -> str:
    """The one prompt that describes ``scene``."""
    return _PROMPTS[scene.kind](scene)


def _one_of(words: object) -> str:
    return "(" + "|".join(re.escape(str(word)) for word in words) + ")"  # type: ignore[attr-defined]


_SIZE, _OBJECT, _BACKGROUND = _one_of(SIZES), _one_of(OBJECTS), _one_of(BACKGROUNDS)
_POSITION_OF = {words: name for name, words in _POSITION_WORDS.items()}
_RELATION_OF = {words: name for name, words in _RELATION_WORDS.items()}
_COUNT_OF = {word: number for number, word in _COUNT_WORDS.items()}
_OBJECT_OF_PLURAL = {plural(obj): obj for obj in OBJECTS}
_PATTERNS: tuple[tuple[re.Pattern[str], Callable[..., Scene]], ...] = (
    (
        re.compile(f"a {_SIZE} {_OBJECT} {_one_of(_POSITION_OF)} of a {_BACKGROUND} background"),
        lambda size, obj, words, bg: single(size, obj, _POSITION_OF[words], bg),
    ),
    (
        re.compile(f"{_one_of(_COUNT_OF)} {_one_of(_OBJECT_OF_PLURAL)} on a {_BACKGROUND} background"),
        lambda word, objs, bg: several(_COUNT_OF[word], _OBJECT_OF_PLURAL[objs], bg),
    ),
    (
        re.compile(
            f"a {_SIZE} {_OBJECT} {_one_of(_RELATION_OF)} a {_SIZE} {_OBJECT} on a {_BACKGROUND} background"
        ),
        lambda size1, one, words, size2, two, bg: pair(size1, one, _RELATION_OF[words], size2, two, bg),
    ),
)


def parse_prompt(prompt: str) -> Scene:
    """The scene that ``prompt`` describes; raises ``ValueError`` where it is not in the grammar."""
    for pattern, build in _PATTERNS:
        match = pattern.fullmatch(prompt)
        if match:
            scene = build(*match.groups())
            if scene.object1 != scene.object2:
                return scene
    raise ValueError(f"not a prompt of the scene grammar: {prompt!r}")


def all_scenes() -> Iterator[Scene]:
    """Every scene of the grammar, in one fixed order."""
    for obj in OBJECTS:
        for background in BACKGROUNDS:
            yield from (single(size, obj, pos, background) for size in SIZES for pos in POSITIONS)
            yield from (several(count, obj, background) for count in COUNTS)
            for other in OBJECTS:
                if other != obj:
                    yield from (
                        pair(size1, obj, relation, size2, other, background)
                        for relation in RELATIONS
                        for size1 in SIZES
                        for size2 in SIZES
                    )


def is_heldout_background(obj: str, background: str) -> bool:
    """Whether an object never stands on this background in training: one background of eight an object."""
    return (OBJECTS.index(obj) + BACKGROUNDS.index(background)) % 8 == 0


def is_heldout_pair(one: str, two: str) -> bool:
    """Whether two objects (in either order) never stand together in training: about one pair of seven."""
    return (OBJECTS.index(one) + OBJECTS.index(two)) % 7 == 0


def is_heldout(scene: Scene) -> bool:
    """Whether ``scene`` holds any combination that training never shows.

    Such a combination is an (object, background) pair (``is_heldout_background``) or an unordered pair
    of objects (``is_heldout_pair``). All other scenes are training scenes, so no training scene of
    whatever kind ever shows a held-out combination.
    """
    if is_heldout_background(scene.object1, scene.background):
        return True
    if scene.object2 is None:
        return False
    return is_heldout_background(scene.object2, scene.background) or is_heldout_pair(
        scene.object1, scene.object2
    )


def canonical(scene: Scene) -> Scene:
    """The same picture told from the left or from above: "b right of a" becomes "a left of b"."""
    if scene.relation in ("left", "above") or scene.kind is not Kind.PAIR:
        return scene
    return replace(
        scene,
        object1=str(scene.object2),
        object2=scene.object1,
        size1=scene.size2,
        size2=scene.size1,
        relation=OPPOSITE[str(scene.relation)],
    )
