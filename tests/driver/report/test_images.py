"""Image grids: what stands where, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from driver.report.evaluation import PromptSetEvaluation
from driver.report.images import (
    Pixels,
    before_after_grid,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def filled(colour: tuple[int, int, int], count: int, side: int = 16) -> Pixels:
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (count, side, side, 3)).copy()


def evaluation(pixels: Pixels, gold: list[float], **more: list[float]) -> PromptSetEvaluation:
    scores = {name: np.array(values)[:, None] for name, values in {"gold": gold, **more}.items()}
    prompts = tuple(f"prompt {index} for $5 or $6_" for index in range(len(gold)))
    return PromptSetEvaluation("unseen", prompts, scores, pixels)


def where(grid: object, colour: tuple[int, ...]) -> np.ndarray:
    return np.abs(np.asarray(grid).astype(int) - colour).max(axis=2) < 40


@pytest.mark.parametrize("side", [16, 512])
def test_before_stands_above_after_in_every_column(side: int) -> None:
    before = evaluation(filled(RED, 3, side), [0.1, 0.2, 0.3, 0.4])
    after = evaluation(filled(BLUE, 3, side), [0.2, 0.1, 0.3, 0.4])
    grid = before_after_grid(before, after)
    red, blue = where(grid, RED), where(grid, BLUE)
    assert red.sum() == pytest.approx(blue.sum(), rel=0.01)
    assert np.flatnonzero(red.any(axis=1)).max() < np.flatnonzero(blue.any(axis=1)).min()
    assert (red.any(axis=0) == blue.any(axis=0)).mean() > 0.99


def test_only_prompts_that_both_show_stand_in_the_grid() -> None:
    before = evaluation(filled(RED, 2), [0.1, 0.2])
    other = PromptSetEvaluation("unseen", ("another", before.prompts[0]), before.scores, filled(BLUE, 2))
    grid = before_after_grid(before, other)
    assert where(grid, RED).any(axis=0).sum() == pytest.approx(where(grid, BLUE).any(axis=0).sum(), rel=0.01)
    for prompts, pixels in ((("another", "one"), filled(BLUE, 2)), (before.prompts, filled(BLUE, 2, 8))):
        with pytest.raises(ValueError, match="same prompts"):
            before_after_grid(before, PromptSetEvaluation("unseen", prompts, before.scores, pixels))


def test_a_gain_is_shown_of_one_version_only() -> None:
    """Green and red are gains and losses."""
    before, after = evaluation(filled(RED, 1), [0.1]), evaluation(filled(RED, 1), [0.9])
    swapped = replace(after, versions={"gold": ("version 2",)})
    green = [where(before_after_grid(before, one), (0x1A, 0x7F, 0x37)).any() for one in (after, swapped)]
    assert green == [True, False]
