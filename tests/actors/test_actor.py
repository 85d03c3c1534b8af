"""An actor samples with exactly the weights its task names, whoever it is and whatever it did before."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.actor import Actor
from common.errors import WeightsError
from common.model.loading import load_policy
from common.model.weights import Weights
from common.trajectory import NoiseKey, PolicyStamp, PromptTask, TrajectoryGroup
from tests.tiny_config import make_config


def _actor(pipeline: Path, tmp_path: Path, num_steps: int = 4) -> Actor:
    config = make_config(pipeline, tmp_path, {"sampling.steps": num_steps, "sampling.guidance_scale": 2.0})
    policy, steps = load_policy(config)
    return Actor.of(policy, steps)


@pytest.fixture(scope="module")
def published(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Weights]:
    """Versions 0 (the pretrained policy), 1 and 2."""
    policy, _ = load_policy(make_config(tiny_pipeline, tmp_path_factory.mktemp("config")))
    generator = torch.Generator().manual_seed(0)
    versions = []
    for version in range(3):
        versions.append(copy.deepcopy(Weights.of(policy.trainable.parameters(), version, "run")))
        with torch.no_grad():
            for value in policy.trainable.parameters().values():
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
    return versions


def _task(stamp: PolicyStamp, prompt_index: int = 0, images: int = 2) -> PromptTask:
    return PromptTask("a cat", images, NoiseKey(0, "train", 0, prompt_index), stamp, with_reference=True)


def _same(first: TrajectoryGroup, second: TrajectoryGroup) -> bool:
    return all(
        np.array_equal(a, b)
        for a, b in (
            (first.latents, second.latents),
            (first.log_prob, second.log_prob),
            (first.log_ratio, second.log_ratio),
        )
    )


@pytest.mark.parametrize("steps", [2, 10])
def test_any_actor_redoes_a_task_to_the_bit(
    tiny_pipeline: Path, tmp_path: Path, published: list[Weights], steps: int
) -> None:
    busy, fresh = _actor(tiny_pipeline, tmp_path, steps), _actor(tiny_pipeline, tmp_path, steps)
    for index, weights in enumerate((published[0], published[2])):
        busy.sample(_task(weights.stamp, index + 1), weights)
    expected, images, _ = busy.sample(_task(published[1].stamp), published[1])
    again, pictures, _ = fresh.sample(_task(published[1].stamp), published[1])
    assert _same(expected, again)
    assert np.array_equal(images, pictures)


def test_versions_may_alternate(tiny_pipeline: Path, tmp_path: Path, published: list[Weights]) -> None:
    actor = _actor(tiny_pipeline, tmp_path)
    groups = {
        version: actor.sample(_task(published[version].stamp), published[version])[0] for version in range(3)
    }
    assert len({groups[version].log_prob.tobytes() for version in range(3)}) == 3
    for version in (1, 0, 2, 0, 1, 1):
        again, _, report = actor.sample(_task(published[version].stamp), published[version])
        assert _same(again, groups[version])
        assert again.stamp == report.stamp == published[version].stamp
    assert not groups[0].log_ratio.any()
    assert groups[1].log_ratio.any()


def test_a_report_counts_images_bytes_and_seconds(
    tiny_pipeline: Path, tmp_path: Path, published: list[Weights]
) -> None:
    group, images, report = _actor(tiny_pipeline, tmp_path).sample(
        _task(published[0].stamp, images=3), published[0]
    )
    assert report.num_images == 3
    assert report.nbytes == group.nbytes + images.nbytes
    states = group.condition["encoder_hidden_states"].nbytes
    assert group.nbytes == 4 * 3 * 5 * (256 + 1) + 3 * 3 * (8 + 4) + states
    assert report.busy_s > 0


def test_weights_of_another_version_are_refused(
    tiny_pipeline: Path, tmp_path: Path, published: list[Weights]
) -> None:
    actor = _actor(tiny_pipeline, tmp_path)
    expected, _, _ = actor.sample(_task(published[1].stamp), published[1])
    with pytest.raises(WeightsError, match=r"Asked to sample with version 2 .* holds version 0"):
        actor.sample(_task(published[2].stamp), published[0])
    assert _same(actor.sample(_task(published[1].stamp), published[1])[0], expected)


def test_a_stamp_with_another_digest_is_refused(
    tiny_pipeline: Path, tmp_path: Path, published: list[Weights]
) -> None:
    forged = replace(published[1], stamp=replace(published[1].stamp, digest="0" * 64))
    with pytest.raises(WeightsError, match="has been altered"):
        _actor(tiny_pipeline, tmp_path).sample(_task(forged.stamp), forged)


def test_a_policy_that_does_not_hold_what_was_loaded_is_refused(
    tiny_pipeline: Path, tmp_path: Path, published: list[Weights]
) -> None:
    """Weights that bind to nothing, or to something else, must not look healthy."""
    policy, steps = load_policy(make_config(tiny_pipeline, tmp_path))

    class Deaf(type(policy)):  # type: ignore[misc]
        def load(self, tensors: object) -> None:
            """Takes nothing over."""

    deaf = Deaf(policy.family, policy.trainable, policy.guided)
    actor = Actor.of(deaf, steps)
    with pytest.raises(WeightsError, match=r"After loading version 1 .* weights have digest"):
        actor.sample(_task(published[1].stamp), published[1])


def test_a_failed_load_is_not_taken_for_a_success(
    tiny_pipeline: Path, tmp_path: Path, published: list[Weights]
) -> None:
    """After a weights that was refused half way the earlier version is loaded again, not assumed."""
    actor = _actor(tiny_pipeline, tmp_path)
    expected, _, _ = actor.sample(_task(published[1].stamp), published[1])
    tensors = published[2].tensors(published[2].stamp)
    last = list(load_policy(make_config(tiny_pipeline, tmp_path))[0].trainable.parameters())[-1]
    torn = Weights.of({**tensors, last: tensors[last].T}, 5, "run")
    for _ in range(2):
        with pytest.raises(WeightsError, match=f"Weight {last} is"):
            actor.sample(_task(torn.stamp), torn)
    assert _same(actor.sample(_task(published[1].stamp), published[1])[0], expected)


def test_weights_that_act_on_nothing_are_refused(
    tiny_pipeline: Path, tmp_path: Path, published: list[Weights]
) -> None:
    """Every digest is right, but the adapter is off: the actor would sample with the pretrained policy."""
    policy, steps = load_policy(make_config(tiny_pipeline, tmp_path))
    actor = Actor.of(policy, steps)
    actor.sample(_task(published[0].stamp), published[0])
    unet: Any = policy.guided.network
    unet.disable_adapters()
    with pytest.raises(WeightsError, match=r"An actor loaded version 1 .* act on nothing"):
        actor.sample(_task(published[1].stamp), published[1])


@pytest.mark.parametrize("change", ["truncated", "bit flipped", "swapped"])
def test_a_tampered_weights_object_is_refused_before_anything_is_sampled(
    tiny_pipeline: Path, tmp_path: Path, published: list[Weights], change: str
) -> None:
    arrays = copy.deepcopy(published[1].arrays)
    name = sorted(arrays)[-1]
    flipped = arrays[name].copy()
    flipped.view(np.uint8)[-1, -5] ^= 16
    tampered = {
        "truncated": {**arrays, name: arrays[name][:-1]},
        "bit flipped": {**arrays, name: flipped},
        "swapped": published[2].arrays,
    }[change]
    actor = _actor(tiny_pipeline, tmp_path)
    expected, _, _ = actor.sample(_task(published[0].stamp), published[0])
    for _ in range(2):
        with pytest.raises(WeightsError, match=f"version 1 .* altered|Weight {name}"):
            actor.sample(_task(published[1].stamp), replace(published[1], arrays=tampered))
    assert _same(actor.sample(_task(published[0].stamp), published[0])[0], expected)
