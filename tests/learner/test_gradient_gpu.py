"""The gradient loop on a GPU: it waits for nothing, and gives the CPU's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.model.loading import load_policy
from common.model.weights import digest_tensors
from common.trajectory import PolicyStamp
from learner.gradient import Wave
from tests.learner.support import make_engine, perturb, sample_double
from tests.tiny_config import make_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def test_the_loop_waits_for_nothing_and_gives_the_cpus_numbers(tiny_pipeline: Path, tmp_path: Path) -> None:
    """What still waits, outside the loop and once a wave: log-probs on their way to the host."""
    settings = {"sampling.guidance_scale": 3.0}
    on_cpu, steps = load_policy(make_config(tiny_pipeline, tmp_path, settings))
    perturb(on_cpu, 0.05)
    stamp = PolicyStamp(0, "", "run")
    groups = [
        sample_double(on_cpu, on_cpu, steps, stamp, prompt, seed=seed, dtype=torch.float32)
        for seed, prompt in enumerate(("a cat", "the sea"))
    ]
    gpu_settings = {**settings, "model.device": "cuda"}
    on_gpu, gpu_steps = load_policy(make_config(tiny_pipeline, tmp_path, gpu_settings))
    on_gpu.load({name: value.detach() for name, value in on_cpu.trainable.parameters().items()})
    wave = Wave.of(groups, torch.device("cuda"))
    engine = make_engine(on_gpu, gpu_steps, 4)
    sums = torch.randn(wave.size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    everything = torch.arange(wave.size)
    engine.accumulate(wave, sums, everything)  # the first pass makes tables and chooses kernels
    for value in on_gpu.trainable.parameters().values():
        value.grad = None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        values = engine.backward(engine._batches(wave, sums, everything))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    cpu_wave = Wave.of(groups, torch.device("cpu"))
    expected = make_engine(on_cpu, steps, 4).accumulate(cpu_wave, sums, everything)
    torch.testing.assert_close(torch.cat(values)[: wave.size].cpu(), expected, rtol=1e-4, atol=1e-5)
    for name, value in on_cpu.trainable.parameters().items():
        gradient = on_gpu.trainable.parameters()[name].grad
        assert gradient is not None
        torch.testing.assert_close(gradient.cpu(), value.grad, rtol=1e-2, atol=1e-3)


def test_digests_of_tensors_on_two_devices_are_those_of_the_host() -> None:
    here = {name: torch.arange(float(size)) for name, size in (("a", 5000), ("b", 7), ("c", 3000))}
    spread = {name: value if name == "b" else value.cuda() for name, value in here.items()}
    assert digest_tensors(spread) == digest_tensors(here)


def test_a_step_that_nothing_is_learned_from_has_no_norm(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy, steps = load_policy(make_config(tiny_pipeline, tmp_path, {"model.device": "cuda"}))
    group = sample_double(policy, policy, steps, PolicyStamp(0, "", "run"), "a cat", dtype=torch.float32)
    wave = Wave.of([group], torch.device("cuda"))
    first = steps.stochastic_steps[0]
    chosen = torch.nonzero(wave.items[2].cpu() != first)[:, 0]
    parameters = list(policy.trainable.parameters().values())
    _, norms = make_engine(policy, steps, 4).accumulate_by_step(
        wave, torch.ones(wave.size, dtype=torch.float64), chosen, parameters
    )
    assert norms[0] == 0
    assert (norms[1:] > 0).all()
