"""Sampling on a GPU: where it waits for the device, and that it computes what a CPU computes.

Inside the loops over steps (denoise, reference_log_ratios, log_probs) nothing waits. What waits, once a
group: the noise on its way to the device; of a prompt not seen lately its tokens, and text encoders that were
put away; latents, log-probs, log ratios, condition and decoded images on their way back. Once a process: the
table of the steps' numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.sampler import denoise, log_probs, reference_log_ratios, sample_group
from common.model.loading import load_policy
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from tests.tiny_config import make_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

KEY = NoiseKey(0, "train", 0, 0)
TASK = PromptTask("a red cat", 4, KEY, PolicyStamp(1, "", "run"), with_reference=True)
SETTINGS: list[dict[str, Any]] = [
    {"policy": {"kind": "lora", "rank": 2}},
    {"policy": {"kind": "full"}, "model.precision": "bfloat16"},
    {"policy": {"kind": "lora", "rank": 2}, "model.precision": "bfloat16", "model.dtype": "bfloat16"},
]


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_loops_over_steps_never_wait(
    tiny_pipeline: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    gpu = {"model.device": "cuda", "sampling.guidance_scale": 3.0, **settings}
    policy, steps = load_policy(make_config(tiny_pipeline, tmp_path, gpu))
    reference = policy.reference()
    draws = len(steps.stochastic_steps) + 1
    noise = torch.from_numpy(KEY.normal(4, draws, policy.family.latent_shape)).cuda()
    condition = policy.embed("a red cat")
    sample_group(TASK, policy, reference, steps)
    with waiting_is_an_error():
        latents, means = denoise(policy, steps, noise, condition)
        reference_log_ratios(reference, steps, latents, means, condition)
        log_probs(steps, latents, means)


def test_a_gpu_samples_what_a_cpu_samples(tiny_pipeline: Path, tmp_path: Path) -> None:
    groups = []
    for device in ("cpu", "cuda"):
        settings = {"model.device": device, "sampling.guidance_scale": 3.0}
        policy, steps = load_policy(make_config(tiny_pipeline, tmp_path, settings))
        groups.append(sample_group(TASK, policy, policy.reference(), steps))
    (on_cpu, images), (on_gpu, same_images) = groups
    assert on_cpu.steps_fingerprint == on_gpu.steps_fingerprint
    np.testing.assert_allclose(on_gpu.latents, on_cpu.latents, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(on_gpu.log_prob, on_cpu.log_prob, rtol=0, atol=1e-4)
    assert on_gpu.log_ratio is not None
    assert not on_gpu.log_ratio.any()
    assert np.abs(images.astype(int) - same_images).mean() < 1
