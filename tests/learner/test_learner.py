"""Whole updates against Algorithm 1 as one autograd graph, in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config.objectives import DdpoSection, PrdpSection
from common.model.loading import load_policy
from common.trajectory import PolicyStamp, ScoredGroup
from learner.objectives.registry import build_objective
from learner.old_policy import Offline
from tests.learner.support import (
    double_policy,
    has_weights,
    make_learner,
    make_optimizer,
    perturb,
    sample_double,
    scored,
    separated,
    slow_log_prob,
    slow_loss,
    slow_update,
    weights_of,
    whole,
)
from tests.tiny_config import make_config

BETA = 0.05
REWARDS = ([0.1, 0.4, 0.2], [0.3, 0.3, -0.2])
PROMPTS = ("a cat", "two red birds")
SETTINGS: list[tuple[str, dict[str, Any]]] = [
    (
        "tiny_pipeline",
        {
            "policy": {"kind": "lora", "rank": 2, "alpha": 4},
            "sampling.guidance_scale": 3.0,
            "sampling.steps": 3,
        },
    ),
    ("tiny_pipeline_v", {"policy": {"kind": "full"}, "sampling.steps": 3}),
]
every_setting = pytest.mark.parametrize(("model", "overrides"), SETTINGS)


class Twins:
    """Two equal policies away from their reference: one for the learner, one for the slow implementation."""

    def __init__(self, pipeline: Path, folder: Path, overrides: dict[str, Any]) -> None:
        self.policy, self.reference, self.steps = double_policy(pipeline, folder, overrides)
        self.slow, self.slow_reference, _ = double_policy(pipeline, folder, overrides)
        perturb(self.policy, 0.02)
        perturb(self.slow, 0.02)
        self.optimizer = make_optimizer(self.slow)

    def groups(self, stamp: PolicyStamp) -> list[ScoredGroup]:
        """One scored group a prompt, sampled by the learner's policy as it is."""
        return [
            scored(self.sample(stamp, prompt, seed), rewards)
            for seed, (prompt, rewards) in enumerate(zip(PROMPTS, REWARDS, strict=True))
        ]

    def sample(self, stamp: PolicyStamp, prompt: str, seed: int) -> Any:
        """A group of three images."""
        return sample_double(self.policy, self.reference, self.steps, stamp, prompt, 3, seed)

    def log_probs(self, groups: list[ScoredGroup]) -> list[Tensor]:
        """log pi of the slow policy as it is now."""
        with torch.no_grad():
            return [self._log_prob(group) for group in groups]

    def _log_prob(self, group: ScoredGroup) -> Tensor:
        latents = whole(group.trajectory)
        condition = self.slow.embed(group.trajectory.prompt)
        return slow_log_prob(self.slow, self.slow.family, self.steps, latents, condition)

    def slow_step(
        self, groups: list[ScoredGroup], old: list[Tensor], clip_range: float
    ) -> tuple[float, float]:
        """One update of the slow policy. Returns loss and gradient norm."""
        parameters = self.slow.trainable.parameters()
        loss = slow_loss(self.slow, self.slow_reference, self.steps, groups, old, BETA, clip_range)
        norm = slow_update(loss, parameters, self.optimizer, 1.0)
        return float(loss.detach()), norm

    def assert_equal(self) -> None:
        """The learner's weights are the slow implementation's."""
        for name, value in self.slow.trainable.parameters().items():
            torch.testing.assert_close(self.policy.trainable.parameters()[name], value, rtol=1e-8, atol=1e-10)


@every_setting
def test_one_update_is_algorithm_1(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    twins = Twins(request.getfixturevalue(model), tmp_path, overrides)
    learner = make_learner(twins.policy, twins.steps, beta=BETA)
    groups = twins.groups(learner.publish().stamp)
    start = weights_of(twins.policy)
    learner.accumulate(groups)
    report = learner.finish_update()
    loss, norm = twins.slow_step(groups, twins.log_probs(groups), float("inf"))
    twins.assert_equal()
    assert not has_weights(twins.policy, start)
    assert report.loss == pytest.approx(loss, rel=1e-9)
    assert report.gradient_norm == pytest.approx(norm, rel=1e-9)
    assert report.gradient_norm > 1  # so that the clip of the gradient acts
    assert (report.applied, report.version, learner.version) == (True, 1, 1)
    assert (report.groups, report.stats["tied_groups"]) == (2, 0.0)
    assert report.stats["tie_share"] == pytest.approx(1 / 6)
    assert report.log_ratio_mismatch < 1e-12
    ratios = torch.cat([torch.from_numpy(group.trajectory.log_ratio).sum(1) for group in groups])
    assert report.log_ratio_mean == pytest.approx(float(ratios.mean()), rel=1e-9)


@every_setting
def test_several_updates_with_the_clip_are_algorithm_1(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    twins = Twins(request.getfixturevalue(model), tmp_path, overrides)
    clip_range = 0.01
    learner = make_learner(twins.policy, twins.steps, beta=BETA, clip_range=clip_range, updates=3)
    groups = twins.groups(learner.publish().stamp)
    old = twins.log_probs(groups)
    learner.accumulate(groups)
    reports = [learner.finish_update(), learner.repeat_update(), learner.repeat_update()]
    expected = [twins.slow_step(groups, old, clip_range) for _ in reports]
    twins.assert_equal()
    for report, (loss, norm) in zip(reports, expected, strict=True):
        assert report.loss == pytest.approx(loss, rel=1e-8)
        assert report.gradient_norm == pytest.approx(norm, rel=1e-6)
    assert reports[0].stats["clip_share"] == 0
    assert 0 < reports[-1].stats["clip_share"] <= 1
    assert [report.version for report in reports] == [1, 2, 3]


@pytest.mark.parametrize("updates", [1, 2])
@every_setting
def test_an_only_update_takes_no_extra_forward_pass(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any], updates: int
) -> None:
    """Identity 7: each image and step passes the network once, forward and backward. With more updates, each
    takes a pass without a graph besides."""
    twins = Twins(request.getfixturevalue(model), tmp_path, overrides)
    learner = make_learner(twins.policy, twins.steps, updates=updates, step_norms_every=0)
    groups = twins.groups(learner.publish().stamp)
    seen: list[int] = []
    network = twins.policy.family.network
    network.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[0]))
    learner.accumulate(groups)
    passes = 2 if twins.policy.guided.guidance.rows > 1 else 1
    # 2 prompts x 3 images x 2 steps, cut across prompts and filled up to a multiple of 5.
    once = [5 * passes] * 3
    assert seen == once * (1 if updates == 1 else 2)
    learner.finish_update()
    seen.clear()
    if updates == 2:
        learner.repeat_update()
        assert seen[:6] == once * 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_at_no_movement_no_pair_is_clipped(tiny_pipeline: Path, tmp_path: Path, precision: str) -> None:
    """The clip holds on to log-probs of the same passes, so rounding alone never looks like movement."""
    overrides = {"sampling.steps": 3, "model.precision": precision, "sampling.guidance_scale": 3.0}
    policy, steps = load_policy(make_config(tiny_pipeline, tmp_path, overrides))
    reference = policy.reference()
    perturb(policy, 0.05)
    learner = make_learner(policy, steps, clip_range=1e-12, updates=3, rate=0.0)
    stamp = learner.publish().stamp
    groups = [
        scored(
            sample_double(policy, reference, steps, stamp, prompt, 3, seed, dtype=torch.float32),
            rewards,
        )
        for seed, (prompt, rewards) in enumerate(zip(PROMPTS, REWARDS, strict=True))
    ]
    for group in groups:
        learner.accumulate([group])
    reports = [learner.finish_update(), learner.repeat_update(), learner.repeat_update()]
    assert [report.stats["clip_share"] for report in reports] == [0.0] * 3
    assert len({report.loss for report in reports}) == 1
    assert reports[0].log_ratio_mismatch < (1e-5 if precision == "float32" else 1e-2)


@every_setting
def test_stale_trajectories_are_clipped_around_the_policy_that_sampled(
    request: pytest.FixtureRequest, tmp_path: Path, model: str, overrides: dict[str, Any]
) -> None:
    twins = Twins(request.getfixturevalue(model), tmp_path, overrides)
    clip_range = 0.01
    learner = make_learner(twins.policy, twins.steps, beta=BETA, clip_range=clip_range, updates=2)
    groups = twins.groups(learner.publish().stamp)
    old = twins.log_probs(groups)
    for policy in (twins.policy, twins.slow):
        perturb(policy, 0.02, seed=9)
    learner.publish()
    learner.accumulate(groups)
    reports = [learner.finish_update(), learner.repeat_update()]
    for report in reports:
        loss, norm = twins.slow_step(groups, old, clip_range)
        assert report.loss == pytest.approx(loss, rel=1e-8)
        assert report.gradient_norm == pytest.approx(norm, rel=1e-6)
    twins.assert_equal()
    assert reports[0].stats["clip_share"] > 0
    assert reports[0].log_ratio_mismatch == 0


DDPO = DdpoSection(clip=False)
"""Its coefficients need not cancel on what is shared."""


@pytest.mark.parametrize(("section", "visited"), [(PrdpSection(kl_weight=BETA, clip=False), 3), (DDPO, 4)])
@pytest.mark.parametrize("updates", [1, 2])
def test_a_tree_is_learned_as_its_leaves_alone_would_be(
    tiny_pipeline_v: Path, tmp_path: Path, section: Any, visited: int, updates: int
) -> None:
    """One tree of four images, split before the last two of three stochastic steps, under guidance. It has a
    latent at each of the first two and two at the third, where the images have twelve; the first step is
    shared by all, and of PRDP's coefficients nothing is left there."""
    twins = Twins(tiny_pipeline_v, tmp_path, {"sampling.steps": 4, "sampling.guidance_scale": 3.0})
    policies = twins.policy, twins.slow
    objective = build_objective(section, 1)
    learners = [
        make_learner(policy, twins.steps, objective=objective, updates=updates) for policy in policies
    ]
    stamps = [learner.publish().stamp for learner in learners]
    assert stamps[0] == stamps[1]
    tree = sample_double(twins.policy, twins.reference, twins.steps, stamps[0], "a cat", 4, branch_at=(1, 2))
    advantages = np.array([0.5, -0.2, 0.1, 0.9])
    for learner, group in zip(learners, (tree, separated(tree)), strict=True):
        learner.accumulate([replace(scored(group, [0.1, 0.4, 0.2, 0.9]), advantages=advantages)])
    for ours, theirs in zip(*(policy.trainable.parameters().values() for policy in policies), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert float((ours.grad - theirs.grad).norm()) <= 1e-10 * float(theirs.grad.norm())
    reports = [
        [learner.finish_update(), *(learner.repeat_update() for _ in range(updates - 1))]
        for learner in learners
    ]
    # Guidance passes twice; with more than one update, once without a graph besides.
    for ours, theirs in zip(*reports, strict=True):
        assert theirs.gradient_norm > 0
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-9)
        assert (ours.loss, ours.log_ratio_mean) == pytest.approx(
            (theirs.loss, theirs.log_ratio_mean), rel=1e-9
        )
        assert ours.log_ratio_mismatch < 1e-12
        assert ours.passes == 2 * (3 * visited + 4 * (updates - 1))
        assert theirs.passes == 2 * (3 * 12 + 12 * (updates - 1))
    twins.assert_equal()


def test_offline_the_clip_holds_on_to_the_policy_as_the_epoch_starts(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    twins = Twins(tiny_pipeline, tmp_path, {"sampling.steps": 3})
    clip_range = 0.01
    learner = make_learner(
        twins.policy, twins.steps, beta=BETA, clip_range=clip_range, updates=2, old_policy=Offline()
    )
    groups = twins.groups(PolicyStamp(7, "recorded", "another run"))
    for policy in (twins.policy, twins.slow):
        perturb(policy, 0.02, seed=9)
    learner.publish()
    current = twins.log_probs(groups)
    learner.accumulate(groups)
    reports = [learner.finish_update(), learner.repeat_update()]
    for report in reports:
        loss, _ = twins.slow_step(groups, current, clip_range)
        assert report.loss == pytest.approx(loss, rel=1e-8)
    twins.assert_equal()
    assert reports[0].stats["clip_share"] == 0
    assert reports[1].stats["clip_share"] > 0
