"""Whole updates of the objectives without likelihoods against one autograd graph, in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from common.config.objectives import NftSection, RaftSection, RwrSection
from common.errors import ConfigError, WeightsError
from common.model.forward_process import forward_noise
from common.model.policy import Policy
from common.model.probe import Probe
from common.model.steps import Steps
from common.trajectory import ScoredGroup, TrajectoryGroup
from learner.build import build_denoising, build_learner
from learner.denoising_learner import DenoisingLearner
from learner.learner import LearnerSettings
from learner.objectives.denoising import WeightedDenoising
from learner.objectives.history import RewardHistory
from learner.objectives.registry import build_objective
from learner.old_policy import Online
from learner.optimizer import CheckedOptimizer, LearningRate
from learner.parallel import Parallel, Single
from learner.report import UpdateOutcome
from learner.state import export_snapshot, restore_snapshot
from tests.learner.support import (
    double_policy,
    make_engine,
    make_learner,
    make_optimizer,
    perturb,
    sample_double,
    scored,
    slow_update,
)
from tests.tiny_config import make_config

PROMPTS = ("a cat", "two red birds")
REWARDS = ([0.1, 0.4, 0.2], [0.3, 0.3, -0.2])
LORA = ("tiny_pipeline", {"policy": {"kind": "lora", "rank": 2, "alpha": 4}, "sampling.guidance_scale": 3.0})
FULL = ("tiny_pipeline_v", {"policy": {"kind": "full"}})
RWR = RwrSection(pairs_per_image=2)
NFT = NftSection(pairs_per_image=2, beta=0.4, reference_weight=0.3, old_decay_rate=0.1)
SETTINGS: list[Any] = [(LORA, RWR), (FULL, RwrSection(pairs_per_image=2, noise_levels="trained"))]
SETTINGS += [(LORA, NFT), (FULL, NFT), (FULL, RaftSection(pairs_per_image=3))]


def test_more_noise_levels_than_the_model_has_are_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    section = {"kind": "rwr", "noise_levels": "trained", "pairs_per_image": 1200}
    with pytest.raises(ConfigError, match="1000 noise levels"):
        build_learner(make_config(tiny_pipeline, tmp_path, {"objective": section}), "run", Single())


def make(
    policy: Policy, steps: Steps, section: Any, updates: int = 1, parallel: Parallel | None = None
) -> DenoisingLearner:
    """A learner with a micro-batch that divides nothing."""
    objective = build_objective(section, 256)
    assert isinstance(objective, WeightedDenoising)
    parallel = parallel or Single()
    engine = build_denoising(make_engine(policy, steps, 5, parallel), objective, steps.num_steps, policy)
    probe, rate = Probe.of(policy, steps), LearningRate(1e-2, 0, 0, 1.0)
    checked = CheckedOptimizer(policy, make_optimizer(policy), probe, rate, parallel)
    return DenoisingLearner(
        engine, objective, checked, Online(2), LearnerSettings("run", 1.0, 0.0, updates, 1, "")
    )


def alone(group: TrajectoryGroup) -> TrajectoryGroup:
    """Its x_0 alone."""
    images = group.num_images
    return replace(
        group,
        latents=group.latents[group.clean_rows],
        nodes=np.arange(images, dtype=np.int32)[:, None],
        stochastic_steps=np.zeros(0, np.int64),
        log_prob=np.zeros((images, 0)),
        log_ratio=None,
    )


class Slower(Single):
    """Beside a rank that makes two passes more."""

    def most(self, passes: int) -> int:
        return passes + 2


class Pair:
    """The policy of a learner, and where a test asks an equal one, away from pi_ref, for the slow way."""

    def __init__(self, request: Any, folder: Path, setting: tuple[str, dict[str, Any]]) -> None:
        overrides = {**setting[1], "sampling.steps": 3}
        self.load = partial(double_policy, request.getfixturevalue(setting[0]), folder, overrides)
        self.policy, self.reference, self.steps = self.load()

    def perturb(self) -> None:
        """After the learner is made: the reference is the policy as it was."""
        perturb(self.policy, 0.02)

    @cached_property
    def slow_pair(self) -> tuple[Policy, Any]:
        """The other policy and its reference."""
        policy, reference, _ = self.load()
        perturb(policy, 0.02)
        return policy, reference

    @cached_property
    def past(self) -> Policy:
        """One more, which takes the weights of the old policy."""
        return self.load()[0]

    @property
    def slow(self) -> Policy:
        return self.slow_pair[0]

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return make_optimizer(self.slow)

    def groups(self, learner: DenoisingLearner) -> list[ScoredGroup]:
        """With the advantages that the driver would give."""
        stamp, objective = learner.publish().stamp, learner._denoising
        scores = [(prompt, np.array(rewards)) for prompt, rewards in zip(PROMPTS, REWARDS, strict=True)]
        advantages, _ = objective.advantages(scores, RewardHistory())
        sampled = [
            sample_double(self.policy, self.reference, self.steps, stamp, prompt, 3, seed)
            for seed, prompt in enumerate(PROMPTS)
        ]
        return [
            replace(scored(alone(group), rewards), advantages=given)
            for group, rewards, given in zip(sampled, REWARDS, advantages, strict=True)
        ]

    def slow_loss(
        self, groups: list[ScoredGroup], section: Any, update: int, old: dict[str, Tensor] | None
    ) -> Tensor:
        """An image and a noise level at a time, noised by diffusers. old: weights of the old policy."""
        scheduler: Any = DDPMScheduler.from_config(self.slow.family.scheduler[1])  # type: ignore[attr-defined]
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
        total = torch.zeros((), dtype=torch.float64)
        for group in groups:
            key, clean = group.trajectory.noise, torch.from_numpy(group.trajectory.latents)
            times = self.steps.times if section.noise_levels == "sampled" else range(1000)
            drawn, noise = forward_noise(
                key, update, len(clean), section.pairs_per_image, len(times), clean.shape[1:]
            )
            condition = self.slow.embed(group.trajectory.prompt)
            rewards = group.score.rewards
            for i, pair in np.ndindex(drawn.shape):
                time = torch.tensor([int(times[drawn[i, pair]])])
                x0, e = clean[i : i + 1], torch.from_numpy(noise[i, pair]).double()[None]
                given = scheduler.add_noise(x0, e, time), time.float(), condition
                target = scheduler.get_velocity(x0, e, time) if self.predicts_v else e
                output = self.slow.predict(*given)
                if section.kind == "rwr":
                    share = math.exp(rewards[i] / 0.2) / sum(math.exp(r / 0.2) for r in rewards)
                    term = share * ((output - target) ** 2).mean()
                elif section.kind == "raft":
                    best = rewards == rewards.max()
                    term = float(best[i] / best.sum()) * ((output - target) ** 2).mean()
                else:
                    term = self.nft_term(section, group, i, given, output, target, old) / (len(clean))
                total = total + term / section.pairs_per_image
        return total / len(groups)

    @property
    def predicts_v(self) -> bool:
        """Else noise."""
        return bool(self.slow.family.scheduler[1]["prediction_type"] == "v_prediction")  # type: ignore[attr-defined]

    def nft_term(
        self, section: Any, group: ScoredGroup, i: int, given: Any, output: Tensor, target: Tensor, old: Any
    ) -> Tensor:
        """As the authors' code has it, with x_0 from diffusers' formulas for noise and v."""
        with torch.no_grad():
            self.past.load(old)
            base, before = self.slow_pair[1].predict(*given), self.past.predict(*given)
        scheduler: Any = DDPMScheduler.from_config(self.slow.family.scheduler[1])  # type: ignore[attr-defined]
        abar = scheduler.alphas_cumprod.double()[int(given[1])]
        alpha, sigma = abar.sqrt(), (1 - abar).sqrt()

        def clean_of(prediction: Tensor) -> Tensor:
            if self.predicts_v:
                return alpha * given[0] - sigma * prediction
            return (given[0] - sigma * prediction) / alpha

        x0 = clean_of(target)
        assert group.advantages is not None
        r = float(np.clip(group.advantages[i] / section.advantage_limit / 2 + 0.5, 0, 1))
        terms = []
        for prediction in (
            section.beta * output + (1 - section.beta) * before,
            (1 + section.beta) * before - section.beta * output,
        ):
            factor = (clean_of(prediction) - x0).abs().mean().detach().clamp(min=1e-5)
            terms.append(((clean_of(prediction) - x0) ** 2 / factor).mean())
        policy_loss = (r * terms[0] + (1 - r) * terms[1]) / section.beta * section.advantage_limit
        return policy_loss + section.reference_weight * ((output - base) ** 2).mean()

    def assert_equal(self) -> None:
        """The learner's weights are the slow implementation's."""
        for name, value in self.slow.trainable.parameters().items():
            torch.testing.assert_close(self.policy.trainable.parameters()[name], value, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("setting", "section"), SETTINGS)
def test_two_updates_are_the_slow_implementations(
    request: pytest.FixtureRequest, tmp_path: Path, setting: Any, section: Any
) -> None:
    pair = Pair(request, tmp_path, setting)
    learner = make(pair.policy, pair.steps, section, updates=2)
    pair.perturb()
    groups = pair.groups(learner)
    # The old policy of DiffusionNFT is the policy as the learner was made.
    old = {name: value.clone() for name, value in learner.averages.items()} or None
    learner.accumulate(groups)
    reports = [learner.finish_update(), learner.repeat_update()]
    for update, report in enumerate(reports):
        loss = pair.slow_loss(groups, section, update, old)
        norm = slow_update(loss, pair.slow.trainable.parameters(), pair.optimizer, 1.0)
        assert report.loss == pytest.approx(float(loss.detach()), rel=1e-7)
        assert report.gradient_norm == pytest.approx(norm, rel=1e-6)
        assert (report.outcome, report.groups, report.log_ratio_mean) == (UpdateOutcome.APPLIED, 2, None)
    pair.assert_equal()


@pytest.mark.parametrize(("section", "forward"), [(RWR, 12), (RaftSection(pairs_per_image=2), 6), (NFT, 36)])
def test_only_items_with_a_weight_pass(
    request: pytest.FixtureRequest, tmp_path: Path, section: Any, forward: int
) -> None:
    """2 prompts x 3 images x 2 pairs; of RAFT the best ones, 1 and 2 (tied); of NFT each for three policies.
    They are filled up to micro-batches of 5."""
    pair = Pair(request, tmp_path, ("tiny_pipeline", {"policy": {"kind": "full"}}))
    learner = make(pair.policy, pair.steps, section)
    pair.perturb()
    groups = pair.groups(learner)
    seen: list[int] = []
    for network in (pair.policy.family.network, *_networks(learner)):
        network.register_forward_pre_hook(lambda _module, given: seen.append(given[0].shape[0]))
    learner.accumulate(groups)
    policies = 3 if section.kind == "nft" else 1
    assert sum(seen) == 5 * policies * -(-(forward // policies) // 5)
    # A backward pass counts as two.
    assert learner.finish_update().passes == forward // policies * (policies + 2)


def _networks(learner: DenoisingLearner) -> list[Any]:
    """Of the reference, where it is a copy."""
    reference: Any = learner._plain.reference
    return [reference.guided.network] if reference else []


def test_the_old_policy_takes_no_pass_where_it_is_the_policy(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    section = NftSection(pairs_per_image=2, reference_weight=0.0, old_decay_rate=0.0)
    pair = Pair(request, tmp_path, LORA)
    learner = make(pair.policy, pair.steps, section)
    seen: list[int] = []
    pair.policy.family.network.register_forward_pre_hook(
        lambda _module, given: seen.append(given[0].shape[0])
    )
    for _ in range(2):
        groups = pair.groups(learner)
        seen.clear()
        learner.accumulate(groups)
        # Three micro-batches of 5 under guidance; with decay 0 the old policy is the new one again.
        assert seen == [10] * 3
        assert learner.finish_update().stats["old_deviation"] == 0
        learner.end_epoch()


def test_actors_sample_with_the_old_policy_which_follows(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pair = Pair(request, tmp_path, LORA)
    learner = make(pair.policy, pair.steps, NFT)
    start = {name: value.detach().clone() for name, value in learner.parameters.items()}
    first = learner.publish()
    for updates in (1, 2):
        learner.accumulate(pair.groups(learner))
        assert learner.finish_update().applied
        learner.end_epoch()
        decay = 0.1 * updates
        for name, value in learner.parameters.items():
            start[name] = decay * start[name] + (1 - decay) * value.detach()
    published = learner.publish()
    assert (published.stamp.version, published.stamp == learner.agree()) == (2, True)
    assert published.stamp.digest != first.stamp.digest
    for name, value in published.tensors(published.stamp).items():
        torch.testing.assert_close(value, start[name])
        assert torch.equal(value, learner.averages[name])


@pytest.mark.parametrize("section", [pytest.param(RWR, marks=pytest.mark.slow), NFT])
def test_a_restored_learner_continues_to_the_bit(
    request: pytest.FixtureRequest, tmp_path: Path, section: Any
) -> None:
    ends = []
    for stop in (False, True):
        pair = Pair(request, tmp_path, LORA)
        learner = make(pair.policy, pair.steps, section, updates=2)
        for epoch in range(2):
            if stop and epoch:
                state, weights = export_snapshot(learner), learner.publish()
                pair = Pair(request, tmp_path, LORA)
                learner = make(pair.policy, pair.steps, section, updates=2)
                restore_snapshot(learner, state, weights)
            groups = pair.groups(learner)
            learner.accumulate(groups[:1])
            learner.reset_epoch()
            for group in groups:
                learner.accumulate([group])
            learner.finish_update()
            learner.repeat_update()
            learner.end_epoch()
        ends.append([*learner.parameters.values(), *learner.averages.values()])
    assert all(torch.equal(*values) for values in zip(*ends, strict=True))


def test_waves_other_ranks_and_whole_trajectories_make_no_difference(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    gradients = []
    for cut, whole, parallel in ((True, False, Single()), (False, False, Slower()), (False, True, Single())):
        pair = Pair(request, tmp_path, FULL)
        learner = make(pair.policy, pair.steps, RWR, parallel=parallel)
        groups = pair.groups(learner)
        if whole:
            stamp = learner.publish().stamp
            groups = [
                scored(
                    sample_double(pair.policy, pair.reference, pair.steps, stamp, prompt, 3, seed), rewards
                )
                for seed, (prompt, rewards) in enumerate(zip(PROMPTS, REWARDS, strict=True))
            ]
        for wave in [[one] for one in groups] if cut else [groups, []]:
            learner.accumulate(wave)
        gradients.append(
            [value.grad.clone() for value in learner.parameters.values() if value.grad is not None]
        )
    for other in gradients[1:]:
        for one, value in zip(gradients[0], other, strict=True):
            torch.testing.assert_close(one, value, rtol=1e-9, atol=1e-12)


def test_a_bad_group_is_named_and_left_out(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pair = Pair(request, tmp_path, LORA)
    learner = make(pair.policy, pair.steps, RWR, updates=2)
    groups = pair.groups(learner)
    bad = replace(groups[0].trajectory, latents=np.full_like(groups[0].trajectory.latents, np.nan))
    worse = replace(groups[1], score=replace(groups[1].score, rewards=np.array([0.1, np.nan, 0.2])))
    for group in (replace(groups[0], trajectory=bad), worse, groups[1]):
        learner.accumulate([group])
    first, second = learner.finish_update(), learner.repeat_update()
    assert (first.outcome, second.outcome) == (UpdateOutcome.BAD_GROUP, UpdateOutcome.APPLIED)
    assert [one.prompt for one in first.bad_groups] == ["a cat", "two red birds"]
    assert "denoising losses" in first.bad_groups[0].reason
    assert "weights" in first.bad_groups[1].reason
    assert (second.groups, second.bad_groups) == (1, ())


def test_x_0_alone_is_refused_where_log_probs_are_needed(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    pair = Pair(request, tmp_path, LORA)
    learner = make_learner(pair.policy, pair.steps)
    group = sample_double(pair.policy, pair.reference, pair.steps, learner.publish().stamp, "a cat", 2)
    with pytest.raises(WeightsError, match="x_0 alone"):
        learner.accumulate([scored(alone(group), [0.1, 0.3])])
