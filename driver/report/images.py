"""Image grids: the same prompts with the same noise before and after training, and grids of samples."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from driver.report.evaluation import TOTAL, PromptSetEvaluation

MOST_COLUMNS = 4
"""So that a grid fits the width of a README or of the tracker's page, which do not shrink it."""
MOST_SCORES = 3
CAPTION_WIDTH, CAPTION_LINES = 29, 4
INK, GREY, BETTER, WORSE = "#1f2328", "#656d76", "#1a7f37", "#cf222e"

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Cell:
    """An image, the text above it, and coloured lines below it."""

    pixels: Pixels
    above: str = ""
    below: tuple[tuple[str, str], ...] = ()


def grid(rows: Sequence[Sequence[Cell]], labels: Sequence[str], title: str) -> Image.Image:
    """Rows of equal length below each other, labelled, in bands of at most MOST_COLUMNS columns."""
    count = len(rows[0])
    bands = ceil(count / MOST_COLUMNS)
    columns = ceil(count / bands)
    height = 2.0 * rows[0][0].pixels.shape[0] / rows[0][0].pixels.shape[1] + 0.7
    size = (2.15 * columns + 0.3, bands * len(rows) * height + 0.3)
    figure = Figure(figsize=size, dpi=100)
    figure.set_layout_engine("constrained", h_pad=0.08)
    # The names and prompts of others are text as it is: a "$" in one begins no formula.
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", color=INK, fontsize=12, parse_math=False)
    table = figure.subplots(bands * len(rows), columns, squeeze=False)
    for axes in table.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for number, (row, label) in enumerate(zip(rows, labels, strict=True)):
        for index, cell in enumerate(row):
            axes = table[index // columns * len(rows) + number, index % columns]
            axes.imshow(cell.pixels, interpolation="lanczos")
            lines = textwrap.wrap(cell.above, CAPTION_WIDTH, max_lines=CAPTION_LINES, placeholder=" …")
            axes.set_title("\n".join(lines), loc="left", fontsize=8, color=INK, parse_math=False)
            for line, (text, colour) in enumerate(cell.below):
                axes.annotate(
                    text,
                    (0, 0),
                    xycoords="axes fraction",
                    xytext=(0, -4 - 11 * line),
                    textcoords="offset points",
                    va="top",
                    fontsize=8,
                    color=colour,
                    parse_math=False,
                )
            if index % columns == 0:
                axes.set_ylabel(label, fontsize=9, fontweight="bold", color=INK)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # A sign that the font lacks is drawn as a box; a warning would break into the display.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])


def shown_scores(evaluated: PromptSetEvaluation) -> tuple[str, ...]:
    """Scores worth writing below an image: the trained sum only where no single reward equals it."""
    names = [name for name in evaluated.scores if name != TOTAL]
    total = evaluated.scores.get(TOTAL)
    if total is not None and not any(np.array_equal(total, evaluated.scores[name]) for name in names):
        names.insert(0, TOTAL)
    return tuple(names[:MOST_SCORES])


def before_after_grid(before: PromptSetEvaluation, after: PromptSetEvaluation) -> Image.Image:
    """A column a prompt: the prompt, its image before and after training, and that image's scores. The change
    of a score is shown where the same version of the reward gave both.

    Raises ValueError where the two show no prompt in common, or images of other sizes.
    """
    both = [
        (first, last)
        for last, first in after.same_prompts(before)
        if first < len(before.pixels) and last < len(after.pixels)
    ]
    if not both or before.pixels.shape[1:] != after.pixels.shape[1:]:
        raise ValueError("before and after do not show the same prompts")
    names = shown_scores(after)

    def first(index: int, name: str) -> tuple[str, str]:
        alike = not after.why_not_like(before, name)
        return f"{name} {before.scores[name][index, 0]:.3g}" if alike else "", GREY

    def change(rows: tuple[int, int], name: str) -> tuple[str, str]:
        now = after.scores[name][rows[1], 0]
        if after.why_not_like(before, name):
            return f"{name} {now:.3g}", GREY
        gain = now - before.scores[name][rows[0], 0]
        return f"{name} {now:.3g}  ({gain:+.2g})", BETTER if gain > 0 else WORSE if gain < 0 else GREY

    firsts = [
        Cell(before.pixels[index], before.prompts[index], tuple(first(index, name) for name in names))
        for index, _ in both
    ]
    lasts = [Cell(after.pixels[rows[1]], "", tuple(change(rows, name) for name in names)) for rows in both]
    title = f"{before.name.capitalize()} prompts, same noise, before and after"
    return grid((firsts, lasts), ("before", "after"), title)


def sample_grid(images: Sequence[Pixels], prompts: Sequence[str]) -> Image.Image:
    """images: M >= 1 of uint8 (h, w, 3), each below its prompt. Raises ValueError where counts differ."""
    if not len(images) or len(images) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts for {len(images)} images")
    cells = [Cell(pixels, prompt) for pixels, prompt in zip(images, prompts, strict=True)]
    return grid((cells,), ("",), "")
