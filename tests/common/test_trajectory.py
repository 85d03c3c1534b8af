"""Noise is a function of its key alone, and which rows of a group's latents its images share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from common.trajectory import NoiseKey, tree_nodes, tree_widths

SHAPE = (4, 8, 8)
KEY = NoiseKey(run_seed=3, stream="train", epoch=2, prompt_index=17)
keys = st.builds(
    NoiseKey,
    st.integers(0, 2**40),
    st.sampled_from(["train", "evaluation"]),
    st.integers(0, 10**6),
    st.integers(0, 10**9),
)


@settings(max_examples=20, deadline=None)
@given(keys, st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_more_images_or_draws_leave_the_first_ones_as_they_are(
    key: NoiseKey, images: int, draws: int, more: int
) -> None:
    few = key.normal(images, draws, SHAPE)
    assert few.shape == (images, draws, *SHAPE)
    assert few.dtype == np.float32
    many = key.normal(images + more, draws + more, SHAPE)
    assert np.array_equal(many[:images, :draws], few)


def test_global_random_state_has_no_say() -> None:
    first = KEY.normal(2, 3, SHAPE)
    np.random.seed(1)
    np.random.standard_normal(5)
    assert np.array_equal(KEY.normal(2, 3, SHAPE), first)


def test_the_bits_are_fixed() -> None:
    """A change of these numbers would make every recorded run impossible to repeat."""
    expected = np.array(
        [-0.9871559739112854, 0.19133852422237396, -2.5169122219085693, 0.2110270857810974], dtype=np.float32
    )
    np.testing.assert_array_equal(KEY.normal(2, 1, (1, 1, 2)).ravel(), expected)


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, run_seed=4),
        replace(KEY, stream="evaluation"),
        replace(KEY, epoch=3),
        replace(KEY, prompt_index=18),
        # The same digits, cut elsewhere.
        replace(KEY, epoch=21, prompt_index=7),
    ],
)
def test_every_field_of_the_key_matters(other: NoiseKey) -> None:
    first, second = KEY.normal(2, 2, SHAPE), other.normal(2, 2, SHAPE)
    correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
    assert not np.any(first == second)
    assert abs(correlation) < 0.1


def test_images_and_draws_are_independent() -> None:
    noise = KEY.normal(12, 3, SHAPE).reshape(36, -1)
    correlations = np.asarray(np.corrcoef(noise))[~np.eye(36, dtype=bool)]
    assert np.abs(correlations).max() < 5 / np.sqrt(noise.shape[1])


def test_it_is_standard_normal() -> None:
    noise = np.sort(KEY.normal(16, 8, SHAPE).ravel().astype(np.float64))
    count = noise.size
    assert abs(noise.mean()) < 4 / np.sqrt(count)
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / count)
    # Kolmogorov-Smirnov against the normal distribution: 1.95 / sqrt(n) is exceeded once in a thousand.
    above = np.arange(1, count + 1) / count - ndtr(noise)
    below = ndtr(noise) - np.arange(count) / count
    assert max(above.max(), below.max()) < 1.95 / np.sqrt(count)


@given(
    st.integers(1, 3),
    st.integers(1, 6).flatmap(lambda t: st.tuples(st.just(t), st.lists(st.integers(0, t - 1), max_size=3))),
)
def test_images_part_where_the_tree_branches_and_never_meet_again(
    roots: int, tree: tuple[int, list[int]]
) -> None:
    steps, branch_at = tree
    images = roots * 2 ** len(branch_at)
    nodes = tree_nodes(images, steps, branch_at)
    assert nodes.shape == (images, steps + 1)
    assert sorted({int(row) for row in nodes.reshape(-1)}) == list(
        range(sum(tree_widths(images, steps, branch_at)))
    )
    families = [
        list(range(first, first + 2 ** len(branch_at))) for first in range(0, images, 2 ** len(branch_at))
    ]
    for position in range(steps + 1):
        by_row: dict[int, list[int]] = {}
        for image in range(images):
            by_row.setdefault(int(nodes[image, position]), []).append(image)
        assert list(by_row.values()) == families
        for _ in range(branch_at.count(position)):
            families = [half for one in families for half in (one[: len(one) // 2], one[len(one) // 2 :])]
