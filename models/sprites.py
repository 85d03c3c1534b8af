"""The sprite atlas: every object of the grammar as a small RGBA picture in one PNG."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.scenes import OBJECTS

ATLAS_PATH = Path(__file__).parent / "sprites.png"
CELL = 40
COLUMNS = 8


def atlas_size() -> tuple[int, int]:
    """Width and height of the atlas in pixels."""
    rows = -(-len(OBJECTS) // COLUMNS)
    return COLUMNS * CELL, rows * CELL


def cell_box(index: int) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the object's cell in the atlas, in pixels."""
    left, top = index % COLUMNS * CELL, index // COLUMNS * CELL
    return left, top, left + CELL, top + CELL


@functools.cache
def _cells() -> tuple[Image.Image, ...]:
    with Image.open(ATLAS_PATH) as atlas:
        rgba = atlas.convert("RGBA")
    if rgba.size != atlas_size():
        raise ValueError(f"{ATLAS_PATH} is {rgba.size}, but the grammar's objects need {atlas_size()}")
    return tuple(rgba.crop(cell_box(index)) for index in range(len(OBJECTS)))


@functools.cache
def sprite(obj: str, side: int) -> NDArray[np.float32]:
    """The object at ``side`` x ``side`` pixels: (side, side, 4) float32, premultiplied RGBA in 0..1.

    Raises ``ValueError`` where the object is not in the grammar or the atlas does not fit it.
    """
    cell = _cells()[OBJECTS.index(obj)]
    # Resizing premultiplied colours keeps transparent pixels from bleeding into the edge.
    small = np.asarray(cell.convert("RGBa").resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
    return small / np.float32(255)
