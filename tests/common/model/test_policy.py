"""The policy: guidance, its reference, loading, and saving as plain diffusers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from actors.sampler import denoise
from common.errors import ModelError, WeightsError
from common.model.families.base import PROJECTIONS
from common.model.loading import check_model, load_policy
from common.model.policy import Policy
from common.model.schedules import ddim_steps
from common.model.steps import Chosen
from tests.tiny_config import make_config

KINDS = {"lora": {"kind": "lora", "rank": 2, "alpha": 6}, "full": {"kind": "full"}}
both_kinds = pytest.mark.parametrize("kind", sorted(KINDS))
every_pair = pytest.mark.parametrize(
    ("kind", "model", "scale"),
    [
        ("lora", "tiny_pipeline", 4.0),
        ("lora", "tiny_pipeline_v", 1.0),
        ("full", "tiny_pipeline", 1.0),
        ("full", "tiny_pipeline_v", 4.0),
    ],
)
"""Each value of one with each of the others."""


def _policy(pipeline: Path, tmp_path: Path, kind: str, **overrides: Any) -> Policy:
    given = {key.replace("__", "."): value for key, value in overrides.items()}
    return load_policy(make_config(pipeline, tmp_path, {"policy": KINDS[kind], **given}))[0]


def _batch(items: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(items, 4, 8, 8, generator=generator)
    return latents, torch.randint(0, 1000, (items,), generator=generator)


def _update(policy: Policy, steps: int = 3) -> None:
    """A few real AdamW steps that move the prediction visibly."""
    optimizer = torch.optim.AdamW(policy.trainable.parameters().values(), lr=0.02)
    latents, timesteps = _batch()
    for _ in range(steps):
        policy.predict(latents, timesteps, policy.embed("a cat")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("kind", "scale"), [("lora", 1.5), ("full", 7.0)])
def test_guidance_moves_away_from_the_empty_prompt(
    tiny_pipeline: Path, tmp_path: Path, kind: str, scale: float
) -> None:
    policy = _policy(tiny_pipeline, tmp_path, kind, sampling__guidance_scale=scale)
    latents, timesteps = _batch()
    states = policy.family.embed(["a cat", ""])["encoder_hidden_states"]
    with torch.no_grad():
        result = policy.predict(latents, timesteps, policy.embed("a cat"))
        for item in range(3):
            one = slice(item, item + 1)
            guided = policy.family.network(latents[one], timesteps[one], states[:1]).sample
            empty = policy.family.network(latents[one], timesteps[one], states[1:]).sample
            expected = empty + scale * (guided - empty)
            torch.testing.assert_close(result[one], expected, rtol=1e-4, atol=1e-5)
            assert not torch.allclose(result[one], guided, atol=1e-3)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, [3]), (3.0, [6])])
def test_guidance_one_takes_one_unet_pass(
    tiny_pipeline: Path, tmp_path: Path, scale: float, rows: list[int]
) -> None:
    policy = _policy(tiny_pipeline, tmp_path, "full", sampling__guidance_scale=scale)
    seen: list[int] = []
    policy.family.network.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[0]))
    policy.predict(*_batch(), policy.embed("a cat"))
    assert seen == rows


@every_pair
def test_the_policy_starts_as_the_reference_which_training_leaves_alone(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, model: str, scale: float
) -> None:
    policy = _policy(request.getfixturevalue(model), tmp_path, kind, sampling__guidance_scale=scale)
    reference = policy.reference()
    latents, timesteps = _batch()
    condition = policy.embed("a cat")
    with torch.no_grad():
        before = reference.predict(latents, timesteps, condition)
        assert torch.equal(policy.predict(latents, timesteps, condition), before)
    _update(policy)
    with torch.no_grad():
        assert torch.equal(reference.predict(latents, timesteps, condition), before)
        assert float((policy.predict(latents, timesteps, condition) - before).abs().max()) > 1e-2


def test_the_reference_of_lora_leaves_the_adapter_on(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy = _policy(tiny_pipeline, tmp_path, "lora")
    reference = policy.reference()
    _update(policy)
    latents, timesteps = _batch()
    condition = policy.embed("a cat")
    trained = policy.predict(latents, timesteps, condition)
    reference.predict(latents, timesteps, condition)
    assert torch.equal(policy.predict(latents, timesteps, condition), trained)


def test_what_is_trained(tiny_pipeline: Path, tmp_path: Path) -> None:
    lora = _policy(tiny_pipeline, tmp_path, "lora")
    wanted = {name for name, value in lora.family.network.named_parameters() if value.requires_grad}
    assert set(lora.trainable.parameters()) == wanted
    # Two matrices for each of four projections of two attentions in each of four transformer blocks.
    assert len(wanted) == 2 * 4 * 2 * 4
    full = _policy(tiny_pipeline, tmp_path, "full")
    assert set(full.trainable.parameters()) == {name for name, _ in full.family.network.named_parameters()}
    assert all(value.requires_grad for value in full.trainable.parameters().values())


def test_new_adapters_are_equal_in_every_process(tiny_pipeline: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = _policy(tiny_pipeline, tmp_path, "lora").trainable.parameters()
    state = torch.get_rng_state()
    torch.manual_seed(6)
    second = _policy(tiny_pipeline, tmp_path, "lora").trainable.parameters()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


@both_kinds
def test_load_takes_another_policys_weights(tiny_pipeline: Path, tmp_path: Path, kind: str) -> None:
    trained, fresh = (_policy(tiny_pipeline, tmp_path, kind) for _ in range(2))
    _update(trained)
    fresh.load({name: value.detach() for name, value in trained.trainable.parameters().items()})
    batch = _batch()
    condition = trained.embed("a cat")
    assert torch.equal(fresh.predict(*batch, condition), trained.predict(*batch, condition))


@both_kinds
def test_load_refuses_what_does_not_fit(tiny_pipeline: Path, tmp_path: Path, kind: str) -> None:
    policy = _policy(tiny_pipeline, tmp_path, kind)
    own = {name: value.detach().clone() for name, value in policy.trainable.parameters().items()}
    name = sorted(own)[0]
    without = {key: value for key, value in own.items() if key != name}
    with pytest.raises(WeightsError, match=rf"missing \['{name}'\], not in the policy \[\]"):
        policy.load(without)
    with pytest.raises(WeightsError, match=r"missing \[\], not in the policy \['zz'\]"):
        policy.load({**own, "zz": own[name]})
    with pytest.raises(WeightsError, match=f"Weight {name} is"):
        policy.load({**own, name: own[name].unsqueeze(0)})
    with pytest.raises(WeightsError, match=r"torch\.float64 .*the policy's torch\.float32"):
        policy.load({**own, name: own[name].double()})


@pytest.mark.parametrize("targets", [("nowhere",), ("to_q", "o_k")])
def test_a_target_that_binds_nothing_is_refused(
    tiny_pipeline: Path, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    with pytest.raises(ModelError, match=f"names '{targets[-1]}', which no module"):
        load_policy(make_config(tiny_pipeline, tmp_path, {"policy.target_modules": targets}))


@pytest.mark.parametrize(("target", "kind"), [("attn1", "Attention"), ("norm1", "LayerNorm")])
def test_a_target_that_takes_no_adapter_is_refused(
    tiny_pipeline: Path, tmp_path: Path, target: str, kind: str
) -> None:
    with pytest.raises(ModelError, match=f"'{target}'.*{kind}.*to_q"):
        check_model(make_config(tiny_pipeline, tmp_path, {"policy.target_modules": ["to_q", target]}))


def test_bfloat16_forward_keeps_latents_and_results_in_float32(tiny_pipeline: Path, tmp_path: Path) -> None:
    exact = _policy(tiny_pipeline, tmp_path, "full", sampling__guidance_scale=3.0)
    rounded = _policy(
        tiny_pipeline, tmp_path, "full", sampling__guidance_scale=3.0, model__precision="bfloat16"
    )
    batch = _batch()
    with torch.no_grad():
        first, second = (policy.predict(*batch, policy.embed("a cat")) for policy in (exact, rounded))
    assert second.dtype == torch.float32
    assert 1e-4 < float((first - second).abs().max()) < 0.2


def _with_plain_diffusers(kind: str, pipeline: Path, trained: Path) -> Any:
    pipe: Any = StableDiffusionPipeline.from_pretrained(pipeline)
    if kind == "lora":
        pipe.load_lora_weights(trained)
    else:
        pipe.unet = UNet2DConditionModel.from_pretrained(trained)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@every_pair
def test_plain_diffusers_loads_what_is_saved_and_paints_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, model: str, scale: float
) -> None:
    pipeline: Path = request.getfixturevalue(model)
    policy = _policy(pipeline, tmp_path, kind, sampling__guidance_scale=scale)
    steps = ddim_steps(policy.family.scheduler[1], 7, 1.0, Chosen((), 1.0))
    noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    untrained = denoise(policy, steps, noise, policy.embed("a red cat"))[0][-1]
    _update(policy)
    latents = denoise(policy, steps, noise, policy.embed("a red cat"))[0][-1]
    policy.trainable.save(tmp_path / "trained")
    pipe = _with_plain_diffusers(kind, pipeline, tmp_path / "trained")

    def paint(output_type: str) -> Any:
        return pipe(
            ["a red cat"] * 2,
            latents=noise[:, 0],
            num_inference_steps=7,
            guidance_scale=scale,
            eta=0.0,
            output_type=output_type,
        ).images

    theirs = paint("latent")
    moved = float((latents - untrained).abs().mean())
    assert moved > 1e-2
    assert float((latents - theirs).abs().max()) < 1e-4 * max(1.0, float(theirs.abs().max()))
    pixels = np.stack([np.asarray(image) for image in paint("pil")]).astype(int)
    assert np.abs(policy.family.decode(latents).astype(int) - pixels).max() <= 1


def test_saved_adapters_are_equal_byte_for_byte(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy, _ = load_policy(make_config(tiny_pipeline, tmp_path))
    files = set()
    for number in range(6):
        policy.trainable.save(tmp_path / str(number))
        files.add((tmp_path / str(number) / "pytorch_lora_weights.safetensors").read_bytes())
    (data,) = files
    # A set's order differs between processes.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    adapter = json.loads(header["__metadata__"]["lora_adapter_metadata"])
    assert adapter["unet.target_modules"] == sorted(PROJECTIONS)
