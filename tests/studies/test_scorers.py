"""Spoilt rewards: by how much, and the same way each time."""

from __future__ import annotations

import numpy as np
import pytest

from studies.scorers import Disturbed, NoisyJudge, normal

PATH = "models/tiny-clip-proxy"
IMAGES = np.random.default_rng(0).integers(0, 256, size=(6, 64, 64, 3), dtype=np.uint8)
PROMPTS = ["a cat", "a cat", "a dog", "a dog", "a bee", "a bee"]


def test_normal_numbers_are_normal() -> None:
    draws = [normal(str(number).encode()) for number in range(4000)]
    assert np.mean(draws) == pytest.approx(0.0, abs=0.05)
    assert np.std(draws) == pytest.approx(1.0, abs=0.05)


def test_what_is_added_is_as_large_as_asked_and_an_offset_is_a_prompts_own() -> None:
    plain = Disturbed(path=PATH).score(PROMPTS, IMAGES)
    for size in (0.5, 1.0):
        offsets = Disturbed(path=PATH, offset=size).score(PROMPTS, IMAGES) - plain
        expected = [size * normal(b"offset", prompt.encode()) for prompt in PROMPTS]
        np.testing.assert_allclose(offsets, expected, atol=1e-12)
        noise = Disturbed(path=PATH, noise=size).score(PROMPTS, IMAGES) - plain
        assert len(set(noise.round(9))) == len(PROMPTS)
        np.testing.assert_allclose(
            noise / size, Disturbed(path=PATH, noise=1.0).score(PROMPTS, IMAGES) - plain
        )


def test_a_judge_is_right_the_oftener_the_larger_the_difference() -> None:
    rewards = Disturbed(path=PATH).score(["a cat"] * 6, IMAGES)
    pairs = np.array([(i, j) for i in range(6) for j in range(i)])
    truth = np.sign(rewards[pairs[:, 0]] - rewards[pairs[:, 1]])
    sure = NoisyJudge(path=PATH, temperature=1e-9, difference=0.5).compare_pairs("a cat", IMAGES, pairs)
    np.testing.assert_array_equal(sure, 0.5 * truth)
    guesses = [
        NoisyJudge(path=PATH, temperature=1e9, difference=1.0).compare_pairs(f"a cat{number}", IMAGES, pairs)
        for number in range(8)
    ]
    assert abs(np.mean(guesses)) < 0.3


def test_a_judge_says_the_same_of_a_pair_turned_round() -> None:
    judge = NoisyJudge(path=PATH, temperature=0.01, difference=1.0)
    pairs = np.array([(i, j) for i in range(6) for j in range(i)])
    forth = judge.compare_pairs("a cat", IMAGES, pairs)
    np.testing.assert_array_equal(forth, -judge.compare_pairs("a cat", IMAGES, pairs[:, ::-1]))
