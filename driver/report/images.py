"""Picture grids: the same prompts with the same noise before and after training, and grids of samples."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from driver.report.evaluation import PromptSetEvaluation

SHOWN = 192
"""Width of a shown picture in pixels; smaller pictures are enlarged, larger ones reduced."""
MOST_COLUMNS = 4
"""So that a grid fits the width of a README or of the tracker's page, which do not shrink it."""
MOST_CAPTION_LINES = 4
MOST_SCORES = 3
GAP = 14
LABEL_WIDTH = 78

TEXT_SIZE, TITLE_SIZE, LINE_HEIGHT = 15, 20, 20

PAPER, INK, GREY = "#ffffff", "#1f2328", "#656d76"
BETTER, WORSE = "#1a7f37", "#cf222e"

TOTAL = "reward"
"""Name of the trained sum among the scores."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Line:
    """A line of text under or above a picture."""

    text: str
    colour: str = INK


Rows = Sequence[tuple[Image.Image, Sequence[Line]]]
"""Pictures of a column, each with the lines under it."""


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """matplotlib ships DejaVu, so it is there on every machine."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _fitting(text: str, width: int) -> int:
    """How many of the first characters fit in `width` pixels; at least 1."""
    font = _font(TEXT_SIZE)
    # Whole pixels, rounded up, so that what is counted as fitting fits.
    beyond = bisect_right(range(len(text) + 1), width, key=lambda count: ceil(font.getlength(text[:count])))
    return max(1, beyond - 1)


def wrap(text: str, width: int, most_lines: int = MOST_CAPTION_LINES) -> list[str]:
    """Text broken into lines of at most `width` pixels; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    current = ""
    # No more characters than pixels can be shown, however long the prompt is.
    for word in text[: width * most_lines].split():
        longer = f"{current} {word}".strip()
        if current and _fitting(longer, width) < len(longer):
            lines.append(current)
            longer = word
        while (count := _fitting(longer, width)) < len(longer):
            lines.append(longer[:count])
            longer = longer[count:]
        current = longer
    lines += [current] if current else []
    if len(lines) <= most_lines:
        return lines
    last = lines[most_lines - 1]
    while last and _fitting(f"{last}…", width) <= len(last):
        last = last[:-1]
    return [*lines[: most_lines - 1], f"{last.rstrip()}…"]


def enlarge(pixels: Pixels, width: int = SHOWN) -> Image.Image:
    """uint8 (h, w, 3) as a picture of that width and the same proportions.

    Lanczos both ways: even 64 pixels drawn three times as large look like the small picture, not like tiles.
    """
    picture = Image.fromarray(pixels)
    size = (width, max(1, round(picture.height * width / picture.width)))
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _lines_height(count: int) -> int:
    return count * LINE_HEIGHT + (6 if count else 0)


def _draw_lines(
    sheet: Image.Image, corner: tuple[int, int], lines: Sequence[Line], bold: bool = False
) -> None:
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        place = (corner[0], corner[1] + number * LINE_HEIGHT)
        draw.text(place, line.text, fill=line.colour, font=_font(TEXT_SIZE, bold))


def _row_tops(lines_above: int, rows: Rows) -> list[int]:
    """Where each picture of a column begins, and where the column ends."""
    tops = [_lines_height(lines_above)]
    for picture, lines in rows:
        tops.append(tops[-1] + picture.height + _lines_height(len(lines)) + GAP)
    return tops


def _column(above: Sequence[str], lines_above: int, rows: Rows) -> Image.Image:
    """Pictures below each other with lines under each; text above in the room of `lines_above` lines."""
    *tops, end = _row_tops(lines_above, rows)
    column = Image.new("RGB", (SHOWN, end), PAPER)
    _draw_lines(column, (0, 0), [Line(text) for text in above])
    for top, (picture, lines) in zip(tops, rows, strict=True):
        column.paste(picture, (0, top))
        _draw_lines(column, (0, top + picture.height + 4), lines)
    return column


def _sheet(columns: Sequence[Image.Image], title: str, beside: Image.Image) -> Image.Image:
    """Columns of one size in bands of equal length, at most MOST_COLUMNS; `beside` stands left of each."""
    bands = -(-len(columns) // MOST_COLUMNS)
    across = -(-len(columns) // bands)
    step, height = SHOWN + GAP, columns[0].height + GAP
    top = GAP + (_lines_height(1) + GAP if title else 0)
    sheet = Image.new("RGB", (GAP + beside.width + across * step, top + bands * height), PAPER)
    for band in range(bands):
        sheet.paste(beside, (GAP, top + band * height))
    for number, column in enumerate(columns):
        sheet.paste(column, (GAP + beside.width + number % across * step, top + number // across * height))
    if title:
        ImageDraw.Draw(sheet).text((GAP, GAP), title, fill=INK, font=_font(TITLE_SIZE, bold=True))
    return sheet


def shown_scores(evaluated: PromptSetEvaluation) -> tuple[str, ...]:
    """Scores worth writing under a picture: parts and golds, and the trained sum where no part equals it."""
    total = evaluated.scores.get(TOTAL)
    parts = [name for name in evaluated.scores if name != TOTAL]
    alone = total is not None and not any(np.array_equal(total, evaluated.scores[name]) for name in parts)
    return tuple(([TOTAL] if alone else []) + parts)[:MOST_SCORES]


def _score_lines(evaluated: PromptSetEvaluation, index: int, names: Sequence[str]) -> list[Line]:
    return [Line(f"{name} {evaluated.scores[name][index, 0]:.3g}", GREY) for name in names]


def _change_lines(
    before: PromptSetEvaluation, after: PromptSetEvaluation, index: int, names: Sequence[str]
) -> list[Line]:
    lines = []
    for name in names:
        now = after.scores[name][index, 0]
        change = now - before.scores[name][index, 0]
        colour = BETTER if change > 0 else WORSE if change < 0 else GREY
        lines.append(Line(f"{name} {now:.3g}  ({change:+.2g})", colour))
    return lines


def before_after_grid(
    before: PromptSetEvaluation, after: PromptSetEvaluation, title: str = "", scores: Sequence[str] = ()
) -> Image.Image:
    """A column a prompt: the prompt, its picture before and after training, and that picture's scores.

    title: a line on top; empty = what is shown in general. scores: names to write; empty = shown_scores.
    Raises ValueError where the two did not show the same prompts.
    """
    shown = len(before.pixels)
    if (
        before.prompts[:shown] != after.prompts[:shown]
        or before.pixels.shape != after.pixels.shape
        or not shown
    ):
        raise ValueError("before and after do not show the same prompts")
    names = tuple(scores) or shown_scores(before)
    captions = [wrap(prompt, SHOWN) for prompt in before.prompts[:shown]]
    lines_above = max(map(len, captions))
    columns = []
    for index, caption in enumerate(captions):
        rows: Rows = (
            (enlarge(before.pixels[index]), _score_lines(before, index, names)),
            (enlarge(after.pixels[index]), _change_lines(before, after, index, names)),
        )
        columns.append(_column(caption, lines_above, rows))
    beside = Image.new("RGB", (LABEL_WIDTH, columns[0].height), PAPER)
    for top, label in zip(_row_tops(lines_above, rows), ("before", "after"), strict=False):
        _draw_lines(beside, (0, top), [Line(label)], bold=True)
    return _sheet(
        columns, title or f"{before.name.capitalize()} prompts, same noise, before and after", beside
    )


def sample_grid(images: Pixels | Sequence[Pixels], captions: Sequence[str], title: str = "") -> Image.Image:
    """images: M >= 1 of uint8 (h, w, 3), each with its caption below; no captions = none.

    Raises ValueError where there are captions, but not one an image.
    """
    if len(images) == 0 or (captions and len(captions) != len(images)):
        raise ValueError(f"{len(captions)} captions for {len(images)} images")
    wrapped = [[Line(text) for text in wrap(caption, SHOWN)] for caption in captions] or [[] for _ in images]
    most = max(map(len, wrapped))
    padded = [[*lines, *[Line("")] * (most - len(lines))] for lines in wrapped]
    columns = [
        _column((), 0, ((enlarge(pixels), lines),)) for pixels, lines in zip(images, padded, strict=True)
    ]
    return _sheet(columns, title, Image.new("RGB", (0, 1), PAPER))
