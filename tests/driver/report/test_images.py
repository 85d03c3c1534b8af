"""Picture grids: what stands where, wrapped text, and pictures of any size."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driver.report.evaluation import PromptSetEvaluation
from driver.report.images import (
    BETTER,
    GREY,
    MOST_COLUMNS,
    SHOWN,
    TEXT_SIZE,
    WORSE,
    Pixels,
    _font,
    before_after_grid,
    enlarge,
    sample_grid,
    shown_scores,
    wrap,
)

RED, BLUE, PAPER = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def filled(colour: tuple[int, int, int], count: int, side: int = 16) -> Pixels:
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (count, side, side, 3)).copy()


def evaluation(pixels: Pixels, gold: list[float], **more: list[float]) -> PromptSetEvaluation:
    scores = {name: np.array(values)[:, None] for name, values in {"gold": gold, **more}.items()}
    return PromptSetEvaluation(
        "unseen", tuple(f"prompt {index}" for index in range(len(gold))), scores, pixels
    )


def colours_of(picture: object) -> set[tuple[int, ...]]:
    return {
        tuple(int(part) for part in colour)
        for colour in np.unique(np.asarray(picture).reshape(-1, 3), axis=0)
    }


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


@settings(max_examples=40)
@given(st.text(alphabet="abcij WM,-é", max_size=400), st.integers(60, 400), st.integers(1, 4))
def test_wrapped_text_fits_and_loses_nothing_silently(text: str, width: int, most_lines: int) -> None:
    lines = wrap(text, width, most_lines)
    assert len(lines) <= most_lines
    assert all(_font(TEXT_SIZE).getlength(line) <= width for line in lines)
    whole = "".join(text.split())
    shown = "".join("".join(lines).split())
    assert shown == whole or (shown.endswith("…") and whole.startswith(shown[:-1]))


def test_words_are_not_broken_where_they_fit() -> None:
    assert wrap("a small red apple on a table", 120) == ["a small red", "apple on a", "table"]


def test_a_very_long_prompt_is_cut() -> None:
    assert wrap("x" * 100_000, SHOWN)[-1].endswith("…")


@pytest.mark.parametrize("shape", [(64, 64, 3), (512, 512, 3), (SHOWN, SHOWN, 3), (96, 64, 3)])
def test_pictures_of_any_size_are_shown_alike(shape: tuple[int, int, int]) -> None:
    picture = enlarge(np.full(shape, 77, dtype=np.uint8))
    assert picture.size == (SHOWN, SHOWN * shape[0] // shape[1])
    assert colours_of(picture) == {(77, 77, 77)}


@pytest.mark.parametrize("side", [16, 512])
def test_before_stands_above_after_in_every_column(side: int) -> None:
    before = evaluation(filled(RED, 3, side), [0.1, 0.2, 0.3, 0.4])
    after = evaluation(filled(BLUE, 3, side), [0.2, 0.1, 0.3, 0.4])
    grid = np.asarray(before_after_grid(before, after))
    red, blue = (np.all(grid == colour, axis=2) for colour in (RED, BLUE))
    assert (red.sum(), blue.sum()) == (3 * SHOWN**2, 3 * SHOWN**2)
    assert np.flatnonzero(red.any(axis=1)).max() < np.flatnonzero(blue.any(axis=1)).min()
    assert np.array_equal(red.any(axis=0), blue.any(axis=0))


def test_changes_are_coloured_by_their_sign() -> None:
    before = evaluation(filled(RED, 1), [0.1])
    for after, colour in ((0.2, BETTER), (0.0, WORSE)):
        found = colours_of(before_after_grid(before, evaluation(filled(RED, 1), [after])))
        assert rgb(colour) in found
        assert rgb({BETTER: WORSE, WORSE: BETTER}[colour]) not in found
        assert rgb(GREY) in found


def test_many_prompts_make_bands_of_equal_length() -> None:
    half = evaluation(filled(RED, MOST_COLUMNS - 1), [0.1] * (MOST_COLUMNS - 1))
    many = evaluation(filled(RED, 2 * MOST_COLUMNS - 2), [0.1] * (2 * MOST_COLUMNS - 2))
    one_band, two_bands = before_after_grid(half, half), before_after_grid(many, many)
    assert one_band.width == two_bands.width
    assert two_bands.height > 1.8 * one_band.height
    assert np.all(np.asarray(two_bands) == RED, axis=2).sum() == 2 * len(many.pixels) * SHOWN**2


def test_other_prompts_are_refused() -> None:
    before = evaluation(filled(RED, 2), [0.1, 0.2])
    other = PromptSetEvaluation("unseen", ("prompt 0", "another"), before.scores, before.pixels)
    with pytest.raises(ValueError, match="same prompts"):
        before_after_grid(before, other)
    with pytest.raises(ValueError, match="same prompts"):
        before_after_grid(before, evaluation(filled(RED, 1), [0.1, 0.2]))


def test_the_trained_sum_is_shown_where_no_part_says_the_same() -> None:
    pixels = filled(RED, 2)
    assert shown_scores(evaluation(pixels, [1.0, 2.0], reward=[3.0, 4.0])) == ("reward", "gold")
    assert shown_scores(evaluation(pixels, [1.0, 2.0], reward=[3.0, 4.0], clip=[3.0, 4.0])) == (
        "gold",
        "clip",
    )
    assert len(shown_scores(evaluation(pixels, [1.0], a=[1.0], b=[2.0], c=[3.0], reward=[6.0]))) == 3


def test_sample_grid_with_and_without_captions() -> None:
    plain = sample_grid(filled(RED, 2), ())
    captioned = sample_grid(filled(RED, 2), ["one line", "two lines " * 6], "Samples")
    assert plain.width == captioned.width
    assert plain.height < captioned.height
    for grid in (plain, captioned):
        assert np.all(np.asarray(grid) == RED, axis=2).sum() == 2 * SHOWN**2
    assert colours_of(plain) == {RED, PAPER}


@pytest.mark.parametrize(("images", "captions"), [(0, ()), (2, ("one",))])
def test_sample_grid_refuses_a_wrong_count(images: int, captions: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="captions for"):
        sample_grid(filled(RED, images), captions)
