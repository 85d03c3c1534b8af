"""What autograd keeps for the backward pass grows with neither T nor B: counted, one storage at a time."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.config.schema import Config
from common.model.loading import load_policy
from common.trajectory import NoiseKey, ScoredGroup, TrajectoryGroup, tree_nodes
from learner.build import build_learner
from learner.parallel import Single
from tests.scored_groups import pointwise
from tests.tiny_config import make_config


class ActivationMeter:
    """Counts the bytes that autograd keeps for the backward pass, each storage once, without parameters."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self._ignored = {value.untyped_storage().data_ptr() for value in parameters}
        self._uses: dict[int, int] = {}
        self._now = 0
        self.peak = 0

    def hooks(self) -> Any:
        """A context in which it counts."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def _pack(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        storage = tensor.untyped_storage()
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._ignored or not size:
            return kept
        self._now += size if address not in self._uses else 0
        self._uses[address] = self._uses.get(address, 0) + 1
        self.peak = max(self.peak, self._now)
        weakref.finalize(kept, self._release, address, size)
        return kept

    def _release(self, address: int, size: int) -> None:
        self._uses[address] -= 1
        if not self._uses[address]:
            del self._uses[address]
            self._now -= size


class _Kept:
    """A saved tensor that can be watched."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def learned(config: Config) -> int:
    """Bytes that autograd keeps at most while an update of two groups with random contents is learned."""
    policy, steps = load_policy(config)
    images, count = config.sampling.images_per_prompt, config.sampling.steps
    stochastic = np.array(steps.stochastic_steps, dtype=np.int64)
    learner = build_learner(config, "run", Single())
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((images * (count + 1), *policy.family.latent_shape), dtype=np.float32)
    trajectory = TrajectoryGroup(
        prompt="a prompt",
        noise=NoiseKey(0, "train", 0, 0),
        stamp=learner.publish().stamp,
        latents=latents,
        nodes=tree_nodes(images, count),
        times=np.arange(count)[::-1].astype(np.float64),
        stochastic_steps=stochastic,
        log_prob=np.zeros((images, len(stochastic))),
        log_ratio=np.zeros((images, len(stochastic)), dtype=np.float32),
        condition={name: rows.cpu().numpy() for name, rows in policy.embed("a prompt").items()},
        steps_fingerprint=policy.steps_fingerprint(steps),
    )
    group = ScoredGroup(trajectory, pointwise(generator.standard_normal(images), {}, ()))
    meter = ActivationMeter(list(learner.parameters.values()))
    with meter.hooks():
        for _ in range(2):
            learner.accumulate([group])
        assert learner.finish_update().applied
    return meter.peak


def test_activations_do_not_grow_with_steps_or_images(tiny_pipeline: Path, tmp_path: Path) -> None:
    peaks = [
        learned(
            make_config(
                tiny_pipeline,
                tmp_path,
                {"sampling.steps": steps, "sampling.images_per_prompt": images, "policy": {"kind": "full"}},
            )
        )
        for steps, images in ((5, 4), (9, 4), (5, 8))
    ]
    assert peaks[0] > 100_000
    # Each item of a wave has a coefficient of 8 bytes; nothing else may grow.
    assert max(peaks) - min(peaks) <= 8 * 2 * 9 * 8
