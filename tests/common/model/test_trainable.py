"""LoRA on frozen weights of another type, one switch for a whole reference pass, compiled blocks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.sampler import sample_group
from common.model.loading import load_policy
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from tests.tiny_config import make_config

TASK = PromptTask("a cat", 2, NoiseKey(0, "train", 0, 0), PolicyStamp(1, "", "run"), with_reference=True)


def test_adapters_stay_float32_on_bfloat16_weights(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy, steps = load_policy(make_config(tiny_pipeline, tmp_path, {"model.dtype": "bfloat16"}))
    trained = policy.trainable.parameters()
    assert {value.dtype for value in trained.values()} == {torch.float32}
    network: Any = policy.guided.network
    frozen = {value.dtype for name, value in network.named_parameters() if name not in trained}
    assert frozen == {torch.bfloat16}
    group, images = sample_group(TASK, policy, policy.reference(), steps)
    assert (group.latents.dtype, group.log_prob.dtype) == (np.float32, np.float64)
    assert group.log_ratio is not None
    assert not group.log_ratio.any()
    assert images.std() > 1
    latents, times = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 100.0])
    policy.predict(latents, times, policy.embed("a cat")).square().mean().backward()
    assert any(bool((value.grad != 0).any()) for value in trained.values() if value.grad is not None)


def test_a_fully_trained_network_is_float32(tiny_pipeline: Path, tmp_path: Path) -> None:
    settings = {"model.dtype": "bfloat16", "policy": {"kind": "full"}}
    policy, _ = load_policy(make_config(tiny_pipeline, tmp_path, settings))
    assert {value.dtype for value in policy.trainable.parameters().values()} == {torch.float32}
    assert next(policy.family.parts()["text_encoder"].parameters()).dtype == torch.bfloat16


def test_a_reference_pass_switches_the_adapter_once(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, steps = load_policy(make_config(tiny_pipeline, tmp_path))
    network: Any = policy.guided.network
    switches: list[str] = []
    for name in ("disable_adapters", "enable_adapters"):
        switch = getattr(network, name)
        monkeypatch.setattr(network, name, lambda name=name, do=switch: (switches.append(name), do()))
    sample_group(TASK, policy, policy.reference(), steps)
    assert switches == ["disable_adapters", "enable_adapters"]


def test_the_adapter_is_on_again_after_a_failure(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy, _ = load_policy(make_config(tiny_pipeline, tmp_path))
    with torch.no_grad():
        for value in policy.trainable.parameters().values():
            value.add_(0.5)
    batch = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 100.0]), policy.embed("a cat")
    with torch.no_grad():
        before = policy.predict(*batch)
        with suppress(KeyError), policy.reference().active() as denoiser:
            assert not torch.equal(denoiser.predict(*batch), before)
            raise KeyError
        assert torch.equal(policy.predict(*batch), before)


@pytest.mark.slow
def test_compiled_blocks_predict_the_same(tiny_pipeline: Path, tmp_path: Path) -> None:
    plain, compiled = (
        load_policy(make_config(tiny_pipeline, tmp_path, {"model.compile": value}))[0]
        for value in (False, True)
    )
    batch = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 100.0]), plain.embed("a cat")
    with torch.no_grad():
        torch.testing.assert_close(compiled.predict(*batch), plain.predict(*batch), rtol=1e-4, atol=1e-4)
        with compiled.reference().active() as denoiser:
            torch.testing.assert_close(denoiser.predict(*batch), plain.predict(*batch), rtol=1e-4, atol=1e-4)
