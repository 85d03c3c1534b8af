"""Scored groups with random numbers, for tests, and their comparison bit for bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.trajectory import (
    GroupScore,
    NoiseKey,
    PolicyStamp,
    ScoredGroup,
    ScorerStamp,
    TrajectoryGroup,
    tree_nodes,
)


def make_group(seed: int = 0, images: int = 3, fingerprint: str = "abc", size: int = 4) -> ScoredGroup:
    generator = np.random.default_rng(seed)
    steps = 5
    trajectory = TrajectoryGroup(
        prompt=f"ein Bär, № {seed}",
        noise=NoiseKey(run_seed=2**32 - 1, stream="train", epoch=seed, prompt_index=10**12),
        stamp=PolicyStamp(version=7, digest="f" * 64, run_id="r1"),
        latents=generator.standard_normal((images * (steps + 1), 2, size, size), dtype=np.float32),
        nodes=tree_nodes(images, steps),
        times=np.arange(steps, 0, -1, dtype=np.float64) * 20,
        stochastic_steps=np.arange(steps - 1, dtype=np.int64),
        log_prob=generator.standard_normal((images, steps - 1)),
        log_ratio=generator.standard_normal((images, steps - 1), dtype=np.float32),
        condition={"states": generator.standard_normal((2, 3, 4), dtype=np.float32)},
        steps_fingerprint=fingerprint,
    )
    rewards = generator.standard_normal(images)
    stamps = (ScorerStamp("a", "1", "d" * 64), ScorerStamp("b", "2.0", ""))
    return ScoredGroup(trajectory, pointwise(rewards, {"a": rewards, "b": -rewards}, stamps))


def pointwise(
    rewards: NDArray[np.float64], parts: dict[str, NDArray[np.float64]], scorers: tuple[ScorerStamp, ...]
) -> GroupScore:
    """The score of a scorer that gives one number an image."""
    return GroupScore(rewards, rewards[:, None] - rewards[None, :], parts, scorers)


def assert_same_bits(got: ScoredGroup, wanted: ScoredGroup) -> None:
    fields = {**vars(got.trajectory), **vars(got.score), "advantages": got.advantages}
    expected = {**vars(wanted.trajectory), **vars(wanted.score), "advantages": wanted.advantages}
    for name, value in expected.items():
        found = fields[name]
        if isinstance(value, np.ndarray):
            assert (found.dtype, found.shape) == (value.dtype, value.shape), name
            assert found.tobytes() == value.tobytes(), name
        elif name in ("parts", "condition"):
            assert list(found) == list(value)
            assert all(found[part].tobytes() == value[part].tobytes() for part in value)
        else:
            assert found == value, name
