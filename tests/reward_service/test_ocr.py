"""Text accuracy on real images of text, and its arithmetic against a recursive edit distance."""

from __future__ import annotations

import importlib.util
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from common.errors import RewardError
from reward_service.scorers.ocr import OcrAccuracy, accuracy, edit_distance, wanted_text

WORDS = st.text("aB c1", max_size=7)


def sign(text: str, size: int = 192, font: int = 30, dark: bool = False) -> NDArray[np.uint8]:
    paper, ink = ((20, 20, 60), (250, 240, 200)) if dark else ((250, 240, 200), (20, 20, 60))
    image = Image.new("RGB", (size, size), paper)
    ImageDraw.Draw(image).multiline_text(
        (size / 2, size / 2), text, ink, ImageFont.load_default(font), anchor="mm", align="center"
    )
    return np.array(image)


@pytest.fixture(scope="module")
def scorer() -> OcrAccuracy:
    return OcrAccuracy()


def test_rendered_text_is_read(scorer: OcrAccuracy) -> None:
    assert scorer.read(sign("Hello World")) == "Hello World"
    assert scorer.read(sign("OPEN\nDAILY", dark=True)) == "OPENDAILY"
    assert scorer.read(np.full((64, 64, 3), 255, np.uint8)) == ""


def test_right_text_scores_one_and_wrong_text_less(scorer: OcrAccuracy) -> None:
    read = [sign(text) for text in ("FRESH FISH", "OUR\nFRESH FISH\nTODAY", "FRESH DISH", "Closed")]
    scores = scorer.score(['a sign that says "Fresh Fish"'] * 5, np.stack([*read, np.zeros_like(read[0])]))
    assert scores[:3].tolist() == pytest.approx([1.0, 1.0, 1.0 - 1.0 / 9.0])
    assert scores[3] < 0.5
    assert scores[4] == 0.0


def test_each_image_has_its_own_prompt_and_the_same_number_alone(scorer: OcrAccuracy) -> None:
    images = np.stack([sign("CAT"), sign("DOG"), sign("DOG")])
    prompts = ['the word "cat"', "the word “cat”", 'a "dog" on the wall']
    together = scorer.score(prompts, images)
    alone = [scorer.score([prompt], image[None])[0] for prompt, image in zip(prompts, images, strict=True)]
    assert together.tolist() == alone == [1.0, 0.0, 1.0]


def test_confidence_that_is_too_low_is_not_read() -> None:
    shaky = sign("Hello", 64, 9)
    assert OcrAccuracy().read(shaky)
    assert OcrAccuracy(min_confidence=0.999999).read(shaky) == ""


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "OPEN"', "OPEN"),
        ("a sign that says “Ouvert”, in rain", "Ouvert"),
        ('"one" and "two"', "one"),
        ('empty "" and "full"', "full"),
        ("it's the dog's \"bone\"", "bone"),
    ],
)
def test_the_text_is_the_first_in_double_quotes(prompt: str, text: str) -> None:
    assert wanted_text(prompt) == text


@pytest.mark.parametrize("prompt", ["a dog's 'bone'", 'says "open', 'blank "  "', ""])
def test_a_prompt_without_quotes_fails_its_group(prompt: str, scorer: OcrAccuracy) -> None:
    with pytest.raises(RewardError, match="double quotes"):
        scorer.score([prompt], sign("open")[None])


def test_a_prompt_without_quotes_can_be_the_text() -> None:
    assert OcrAccuracy(unquoted="whole").score(["open"], sign("OPEN")[None]).tolist() == [1.0]
    with pytest.raises(RewardError, match="blank"):
        wanted_text(" ", "whole")


@given(WORDS, WORDS)
def test_edit_distance_is_that_of_its_definition(first: str, second: str) -> None:
    @cache
    def slow(left: str, right: str) -> int:
        if not left or not right:
            return len(left) + len(right)
        if left[0] == right[0]:
            return slow(left[1:], right[1:])
        return 1 + min(slow(left[1:], right), slow(left, right[1:]), slow(left[1:], right[1:]))

    assert edit_distance(first, second) == slow(first, second)


@given(WORDS.filter(str.strip), WORDS)
def test_accuracy_is_a_share_that_case_and_spaces_do_not_change(wanted: str, found: str) -> None:
    number = accuracy(wanted, found)
    assert 0.0 <= number <= 1.0
    assert number == accuracy(wanted.upper().replace(" ", ""), f" {found.lower()} ")
    assert accuracy(wanted, found + wanted) == 1.0


def test_digest_follows_the_options_and_not_the_threads() -> None:
    assert OcrAccuracy().digest == OcrAccuracy(threads=2).digest
    changed = OcrAccuracy(unquoted="whole").digest, OcrAccuracy(min_confidence=0.5).digest
    assert len({OcrAccuracy().digest, *changed}) == 3


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    OcrAccuracy.check_options()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RewardError, match=r"pip install 'prdp-on-ray\[ocr\]'"):
        OcrAccuracy.check_options()
