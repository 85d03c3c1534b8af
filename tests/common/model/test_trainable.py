"""LoRA on frozen weights of another type, one switch for a whole reference pass, compiled blocks."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from actors.sampler import sample_group
from common.errors import ModelError
from common.model.loading import load_policy
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from tests.tiny_config import make_config
from tests.tiny_pipeline import make_tiny_xl_pipeline

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


EVERYWHERE = ["to_q", "to_out.0", "ff.net.0.proj", "proj_in", "proj_out", "conv1", "conv2", "time_emb_proj"]


@pytest.mark.parametrize("xl", [False, True])
def test_plain_diffusers_reads_all_of_an_adapter_on_any_modules(
    tiny_pipeline: Path, tmp_path: Path, xl: bool
) -> None:
    folder = make_tiny_xl_pipeline(tmp_path / "xl") if xl else tiny_pipeline
    policy = {"kind": "lora", "rank": 2, "alpha": 6, "target_modules": [*EVERYWHERE, "conv_in"]}
    trained, _ = load_policy(make_config(folder, tmp_path, {"policy": policy}), network_only=True)
    with torch.no_grad():
        for value in trained.trainable.parameters().values():
            value.normal_(std=0.1)
    trained.trainable.check_saved()
    trained.trainable.save(tmp_path / "saved")
    pipeline: Any = DiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(tmp_path / "saved")
    condition = trained.example()
    added = {name: rows for name, rows in condition.items() if name != "encoder_hidden_states"}
    latents, times = torch.randn(1, 4, 8, 8), torch.tensor([9.0])
    with torch.no_grad():
        plain = pipeline.unet(latents, times, condition["encoder_hidden_states"], added_cond_kwargs=added)[0]
        own = trained.predict(latents, times, condition)
        torch.testing.assert_close(own, plain, rtol=1e-3, atol=1e-4)
        with trained.reference().active() as untrained:
            assert not torch.allclose(untrained.predict(latents, times, condition), own, rtol=1e-2, atol=1e-2)


def test_an_adapter_that_diffusers_reads_in_part_is_refused(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, _ = load_policy(make_config(tiny_pipeline, tmp_path), network_only=True)
    whole = policy.family.save_adapter
    monkeypatch.setattr(
        type(policy.family),
        "save_adapter",
        lambda _, folder, layers, metadata: whole(folder, dict(list(layers.items())[:-2]), metadata),
    )
    count = len(policy.trainable.parameters())
    with pytest.raises(ModelError, match=f"{count - 2} of the {count}"):
        policy.trainable.check_saved()


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
