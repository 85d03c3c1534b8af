"""Real pictures of scenes, composed from the sprite atlas: what the model learns and what 'correct' means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.scenes import Kind, Scene
from models.sprites import sprite

SIDE = 64
BACKGROUND_RGB: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (24, 24, 28),
    "blue": (64, 112, 232),
    "green": (60, 170, 76),
    "yellow": (248, 220, 84),
    "pink": (246, 160, 196),
    "purple": (134, 78, 196),
    "orange": (244, 140, 44),
}
# Side of a sprite in pixels, lowest and highest: the two sizes never overlap.
SIZE_PIXELS: dict[str, tuple[int, int]] = {"small": (18, 20), "big": (29, 32)}
COUNT_PIXELS = (21, 23)
_LOW, _MIDDLE, _HIGH = 18, 32, 46
_POSITION_CENTRES: dict[str, tuple[int, int]] = {
    "center": (_MIDDLE, _MIDDLE),
    "left": (_LOW, _MIDDLE),
    "right": (_HIGH, _MIDDLE),
    "top": (_MIDDLE, _LOW),
    "bottom": (_MIDDLE, _HIGH),
    "top left": (_LOW, _LOW),
    "top right": (_HIGH, _LOW),
    "bottom left": (_LOW, _HIGH),
    "bottom right": (_HIGH, _HIGH),
}
_NEAR, _FAR = 17, 47
_RELATION_CENTRES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "left": ((_NEAR, _MIDDLE), (_FAR, _MIDDLE)),
    "right": ((_FAR, _MIDDLE), (_NEAR, _MIDDLE)),
    "above": ((_MIDDLE, _NEAR), (_MIDDLE, _FAR)),
    "below": ((_MIDDLE, _FAR), (_MIDDLE, _NEAR)),
}
_COUNT_CENTRES: dict[int, tuple[tuple[tuple[int, int], ...], ...]] = {
    2: (((18, 32), (46, 32)), ((20, 20), (44, 44)), ((44, 20), (20, 44))),
    3: (((32, 18), (17, 46), (47, 46)), ((17, 18), (47, 18), (32, 46))),
    4: (((18, 18), (46, 18), (18, 46), (46, 46)),),
}
_JITTER = 2
_COLOUR_JITTER = 6


@dataclass(frozen=True)
class Placement:
    """One sprite on the canvas: its object, its side and its centre in pixels, and its opacity in 0..1."""

    obj: str
    side: int
    x: int
    y: int
    opacity: float = 1.0


def _jittered(centre: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    dx, dy = rng.integers(-_JITTER, _JITTER + 1, 2)
    return centre[0] + int(dx), centre[1] + int(dy)


def _place(obj: str, pixels: tuple[int, int], centre: tuple[int, int], rng: np.random.Generator) -> Placement:
    x, y = _jittered(centre, rng)
    return Placement(obj, int(rng.integers(pixels[0], pixels[1] + 1)), x, y)


def _place_single(scene: Scene, rng: np.random.Generator) -> list[Placement]:
    centre = _POSITION_CENTRES[str(scene.position)]
    return [_place(scene.object1, SIZE_PIXELS[str(scene.size1)], centre, rng)]


def _place_count(scene: Scene, rng: np.random.Generator) -> list[Placement]:
    layouts = _COUNT_CENTRES[scene.count]
    layout = layouts[int(rng.integers(len(layouts)))]
    return [_place(scene.object1, COUNT_PIXELS, centre, rng) for centre in layout]


def _place_pair(scene: Scene, rng: np.random.Generator) -> list[Placement]:
    first, second = _RELATION_CENTRES[str(scene.relation)]
    return [
        _place(scene.object1, SIZE_PIXELS[str(scene.size1)], first, rng),
        _place(str(scene.object2), SIZE_PIXELS[str(scene.size2)], second, rng),
    ]


_PLACERS: dict[Kind, Callable[[Scene, np.random.Generator], list[Placement]]] = {
    Kind.SINGLE: _place_single,
    Kind.COUNT: _place_count,
    Kind.PAIR: _place_pair,
}


def place(scene: Scene, rng: np.random.Generator) -> list[Placement]:
    """Where the scene's sprites go in one picture of it, drawn with ``rng``."""
    return _PLACERS[scene.kind](scene, rng)


def paint(placements: Sequence[Placement], background: str, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The placements on the background colour (slightly varied by ``rng``): (64, 64, 3) uint8."""
    colour = np.asarray(BACKGROUND_RGB[background]) + rng.integers(-_COLOUR_JITTER, _COLOUR_JITTER + 1, 3)
    canvas = np.empty((SIDE, SIDE, 3), dtype=np.float32)
    canvas[:] = np.clip(colour, 0, 255) / 255
    for item in placements:
        pixels = sprite(item.obj, item.side) * np.float32(item.opacity)
        left, top = item.x - item.side // 2, item.y - item.side // 2
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + item.side, SIDE), min(top + item.side, SIDE)
        pixels = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
        area = canvas[y0:y1, x0:x1]
        area *= 1 - pixels[..., 3:]
        area += pixels[..., :3]
    return (np.clip(canvas, 0, 1) * 255 + 0.5).astype(np.uint8)


def compose(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """One real picture of ``scene``: (64, 64, 3) uint8, positions, sizes and colour varied by ``rng``."""
    return paint(place(scene, rng), scene.background, rng)


def compose_many(scenes: Sequence[Scene], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Real pictures of ``scenes``: (len(scenes), 64, 64, 3) uint8."""
    return np.stack([compose(scene, rng) for scene in scenes])
