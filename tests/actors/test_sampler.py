"""Sampling against diffusers' own loop, and log-probs against the Gaussian density written out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from actors.sampler import count_passes, sample_group
from common.model.guidance import Denoiser
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.schedules import ddim_steps
from common.model.steps import Chosen, Steps
from common.model.trainable import Reference
from common.trajectory import NoiseKey, PolicyStamp, PromptTask, TrajectoryGroup
from tests.tiny_config import make_config

KEY = NoiseKey(run_seed=0, stream="train", epoch=1, prompt_index=5)
STAMP = PolicyStamp(version=1, digest="", run_id="test")
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("tiny_pipeline", {"policy": {"kind": "lora", "rank": 2, "alpha": 2}, "sampling.guidance_scale": 3.0}),
    ("tiny_pipeline", {"policy": {"kind": "full"}}),
    (
        "tiny_pipeline_v",
        {"policy": {"kind": "lora", "rank": 2, "alpha": 2}, "sampling.sampler": {"eta": 0.5, "kind": "ddim"}},
    ),
    ("tiny_pipeline_v", {"policy": {"kind": "full"}, "sampling.guidance_scale": 3.0}),
]
every_setting = pytest.mark.parametrize(("model", "overrides"), SETTINGS)


def _task(images: int = 3, with_reference: bool = True) -> PromptTask:
    return PromptTask("a red cat", images, KEY, STAMP, with_reference)


def _load(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> tuple[Policy, Reference, Steps]:
    policy, steps = load_policy(make_config(request.getfixturevalue(model), tmp_path, overrides))
    return policy, policy.reference(), steps


def _perturb(policy: Policy, size: float) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in policy.trainable.parameters().values():
            value.add_(size * torch.randn(value.shape, generator=generator))


def _slow_log_probs(
    denoiser: Denoiser, policy: Policy, group: TrajectoryGroup, eta: float
) -> list[list[float]]:
    """log p(x_{t-1} | x_t) of each image and stochastic step, from diffusers' scheduler and the density."""
    scheduler: Any = DDIMScheduler.from_config(policy.family.scheduler[1])
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(len(group.times))
    condition = policy.embed(group.prompt)
    table = []
    for image in range(group.num_images):
        row = []
        for step in group.stochastic_steps.tolist():
            timestep = int(scheduler.timesteps[step])
            now, following = (torch.from_numpy(group.at(at)[image : image + 1]) for at in (step, step + 1))
            with torch.no_grad():
                output = denoiser.predict(now, torch.tensor([timestep]), condition).double()
            zero, one = torch.zeros_like(output), torch.ones_like(output)
            mean: Tensor = scheduler.step(output, timestep, now.double(), eta=eta, variance_noise=zero)[0]
            above: Tensor = scheduler.step(output, timestep, now.double(), eta=eta, variance_noise=one)[0]
            variance = float((above - mean).mean()) ** 2
            squares = (following.double() - mean).square() / (2 * variance)
            row.append(-float(squares.mean()) - 0.5 * math.log(2 * math.pi * variance))
        table.append(row)
    return table


@every_setting
def test_log_ratio_is_exactly_zero_at_version_0(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    """Identity 4 of the paper's notes: at epoch 0 the policy is the reference."""
    policy, reference, steps = _load(request, tmp_path, model, overrides)
    group, _ = sample_group(_task(), policy, reference, steps)
    assert np.array_equal(group.log_ratio, np.zeros((3, 3), dtype=np.float32))


@every_setting
def test_log_probs_are_those_of_the_density(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    policy, reference, steps = _load(request, tmp_path, model, overrides)
    _perturb(policy, 0.05)
    group, _ = sample_group(_task(), policy, reference, steps)
    eta = overrides.get("sampling.sampler", {"eta": 1.0})["eta"]
    own = np.array(_slow_log_probs(policy, policy, group, eta))
    other = np.array(_slow_log_probs(reference, policy, group, eta))
    assert group.log_prob.dtype == np.float64
    np.testing.assert_allclose(group.log_prob, own, rtol=0, atol=2e-6)
    assert np.abs(own - other).max() > 1e-3
    np.testing.assert_allclose(group.log_ratio, own - other, rtol=1e-4, atol=4e-6)


@pytest.mark.parametrize(
    ("model", "overrides", "num_steps"), [(*setting, 5) for setting in SETTINGS] + [(*SETTINGS[0], 2)]
)
def test_latents_are_those_of_diffusers_loop(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any], num_steps: int
) -> None:
    policy, reference, steps = _load(request, tmp_path, model, {**overrides, "sampling.steps": num_steps})
    _perturb(policy, 0.05)
    group, images = sample_group(_task(), policy, reference, steps)
    noise = torch.from_numpy(KEY.normal(3, num_steps, policy.family.latent_shape))
    scheduler: Any = DDIMScheduler.from_config(policy.family.scheduler[1])
    scheduler.set_timesteps(num_steps)
    scale, eta = (
        overrides.get("sampling.guidance_scale", 1.0),
        overrides.get("sampling.sampler", {"eta": 1.0})["eta"],
    )
    states = policy.family.embed([""] * 3 + [group.prompt] * 3)["encoder_hidden_states"]
    latents = noise[:, 0]
    for step, timestep in enumerate(scheduler.timesteps):
        assert int(timestep) == group.times[step]
        np.testing.assert_allclose(group.at(step), latents.numpy(), rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            output = policy.family.network(torch.cat([latents] * 2), timestep, states).sample
        empty, guided = output.chunk(2)
        last = step == num_steps - 1
        latents = scheduler.step(
            empty + scale * (guided - empty),
            timestep,
            latents,
            eta=0.0 if last else eta,
            variance_noise=noise[:, 0 if last else step + 1],
        ).prev_sample
    np.testing.assert_allclose(group.at(num_steps), latents.numpy(), rtol=1e-4, atol=1e-4)
    clean = torch.from_numpy(group.at(num_steps))
    assert np.array_equal(images, policy.family.decode(clean))


def _first_of(nodes: Any, image: int, position: int) -> int:
    return next(other for other in range(len(nodes)) if nodes[other, position] == nodes[image, position])


def test_a_tree_runs_each_distinct_latent_once(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """8 images: two trees, split at two steps."""
    policy, reference, steps = _load(
        request, tmp_path, "tiny_pipeline_v", {"sampling.steps": 5, "sampling.guidance_scale": 3.0}
    )
    _perturb(policy, 0.05)
    task = replace(_task(images=8), branch_at=(1, 3))
    seen: list[int] = []
    policy.family.network.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    group, images = sample_group(task, policy, reference, steps)
    widths = [2, 2, 4, 4, 8, 8]
    assert seen == [2 * width for width in widths[:5] + widths[:4]]
    assert 2 * count_passes(task, group) == sum(seen)
    assert [len(set(column)) for column in group.nodes.T.tolist()] == widths
    assert len(group.latents) == sum(widths)
    noise = torch.from_numpy(KEY.normal(8, 5, policy.family.latent_shape))
    condition = policy.embed(group.prompt)
    for step in range(5):
        first = [_first_of(group.nodes, image, step + 1) for image in range(8)]
        for image in (0, 1, 2, 7):
            latents = torch.from_numpy(group.at(step)[image : image + 1])
            with torch.no_grad():
                output = policy.predict(latents, steps.time(step, 1), condition)
            mean = steps.mean(latents, output, step)
            drawn = noise[first[image], step + 1] if step < 4 else torch.zeros(())
            expected = (mean + steps.std[step] * drawn)[0]
            np.testing.assert_allclose(group.at(step + 1)[image], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(group.at(0)[7], noise[4, 0])
    own, other = (np.array(_slow_log_probs(one, policy, group, 1.0)) for one in (policy, reference))
    np.testing.assert_allclose(group.log_prob, own, rtol=0, atol=2e-6)
    np.testing.assert_allclose(group.log_ratio, own - other, rtol=1e-4, atol=4e-6)
    assert len({image.tobytes() for image in images}) == 8


def test_a_group_says_what_it_is(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    policy, reference, steps = _load(
        request, tmp_path, "tiny_pipeline", {"sampling.steps": 6, "sampling.stochastic_steps": (1, 2, 4)}
    )
    task = _task(images=2)
    group, images = sample_group(task, policy, reference, steps)
    assert (group.prompt, group.noise, group.stamp) == (task.prompt, task.noise, task.stamp)
    assert group.latents[group.nodes].shape == (2, 7, 4, 8, 8)
    assert group.latents.dtype == np.float32
    assert group.log_prob.shape == group.log_ratio.shape == (2, 3)
    assert group.log_ratio.dtype == np.float32
    assert group.stochastic_steps.tolist() == [1, 2, 4]
    assert group.steps_fingerprint == policy.steps_fingerprint(steps)
    assert images.shape == (2, 64, 64, 3)
    assert images.dtype == np.uint8
    assert images.std() > 1


def test_without_reference_only_the_log_ratio_is_left_out(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    policy, reference, steps = _load(request, tmp_path, *SETTINGS[0])
    _perturb(policy, 0.05)
    group, _ = sample_group(_task(), policy, reference, steps)
    alone, _ = sample_group(_task(with_reference=False), policy, reference, steps)
    assert np.array_equal(alone.latents, group.latents)
    assert np.array_equal(alone.log_prob, group.log_prob)
    assert alone.log_ratio is None
    assert group.log_ratio is not None
    assert group.log_ratio.any()


def test_where_steps_are_of_no_use_x_0_comes_alone(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    policy, reference, steps = _load(request, tmp_path, *SETTINGS[0])
    whole, images = sample_group(_task(), policy, reference, steps)
    alone, same = sample_group(replace(_task(), with_steps=False), policy, reference, steps)
    assert np.array_equal(alone.latents, whole.latents[whole.clean_rows])
    assert np.array_equal(alone.latents[alone.clean_rows], alone.latents)
    assert np.array_equal(images, same)
    assert (whole.has_steps, alone.has_steps, alone.log_ratio) == (True, False, None)
    assert alone.log_prob.shape == (whole.num_images, 0) == (alone.num_images, 0)
    assert alone.latents.nbytes * (steps.num_steps + 1) == whole.latents.nbytes


@pytest.mark.parametrize("window", [{}, {"sampling.window": {"kind": "fixed", "size": 1}}])
def test_a_deterministic_task_is_ddim_with_eta_0(
    request: pytest.FixtureRequest, tmp_path: Path, window: dict[str, Any]
) -> None:
    """Whatever draws noise in training."""
    policy, _, steps = _load(request, tmp_path, "tiny_pipeline", window)
    silent = ddim_steps(policy.family.scheduler[1], steps.num_steps, 0.0, Chosen((), math.inf))
    task = _task(with_reference=False)
    group, images = sample_group(replace(task, deterministic=True), policy, None, steps)
    expected, same = sample_group(task, policy, None, silent)
    assert np.array_equal(group.latents, expected.latents)
    assert np.array_equal(images, same)
    assert group.log_prob.shape == (3, 0)
    noisy, _ = sample_group(task, policy, None, steps)
    assert np.array_equal(noisy.at(0), group.at(0))
    assert not np.array_equal(noisy.at(1), group.at(1))


def test_version_0_needs_no_reference_pass(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Identity 4 of the paper's notes: the policy is the reference."""
    policy, reference, steps = _load(request, tmp_path, *SETTINGS[0])
    task = replace(_task(), stamp=replace(STAMP, version=0))
    seen: list[int] = []
    policy.family.network.register_forward_pre_hook(lambda _module, given: seen.append(len(given[0])))
    group, _ = sample_group(task, policy, reference, steps)
    assert len(seen) == 4
    assert group.log_ratio is not None
    assert not group.log_ratio.any()


def test_the_condition_is_what_the_policy_was_told(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    for setting, rows in ((SETTINGS[0], 2), (SETTINGS[1], 1)):
        policy, reference, steps = _load(request, tmp_path, *setting)
        group, _ = sample_group(_task(), policy, reference, steps)
        (states,) = group.condition.values()
        expected = policy.family.embed(["a red cat", ""][:rows])["encoder_hidden_states"]
        assert np.array_equal(states, expected.numpy())


def test_one_stochastic_step_and_none(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    policy, reference, steps = _load(
        request, tmp_path, "tiny_pipeline", {"sampling.steps": 1, "sampling.stochastic_steps": "all"}
    )
    group, _ = sample_group(_task(), policy, reference, steps)
    assert group.latents[group.nodes].shape == (3, 2, 4, 8, 8)
    assert group.log_prob.shape == (3, 1)
    assert np.isfinite(group.log_prob).all()
    silent = Steps(
        steps.times,
        steps.sample_weight,
        steps.output_weight,
        std=(0.0,),
        stochastic_steps=(),
    )
    group, _ = sample_group(_task(), policy, reference, silent)
    assert group.log_prob.shape == group.log_ratio.shape == (3, 0)


def test_bfloat16_forward_gives_float32_latents_and_exact_zero_ratios(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    policy, reference, steps = _load(
        request, tmp_path, "tiny_pipeline", {"model.precision": "bfloat16", "sampling.guidance_scale": 2.0}
    )
    group, _ = sample_group(_task(), policy, reference, steps)
    assert group.latents.dtype == np.float32
    assert group.log_prob.dtype == np.float64
    assert not group.log_ratio.any()
    # The density of the drawn noise comes back to float32's accuracy, which bfloat16 means could not give.
    noise = KEY.normal(3, 4, policy.family.latent_shape)
    drawn = np.square(noise[:, 1:].astype(np.float64)).mean((2, 3, 4)) / 2
    normaliser = np.log(steps.std[:3]) + 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(group.log_prob, -drawn - normaliser, rtol=0, atol=1e-5)
