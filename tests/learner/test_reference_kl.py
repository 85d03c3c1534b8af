"""A KL to the reference in the loss against autograd through torch's own closed form, in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from common.config.objectives import DdpoSection, DpokSection, GrpoSection
from common.model.trainable import Denoiser
from common.trajectory import ScoredGroup
from learner.build import build_engine
from learner.gradient import Wave
from learner.learner import Learner
from learner.objectives.history import RewardHistory
from learner.objectives.registry import build_objective
from learner.parallel import Single
from learner.subsampling import thin
from tests.learner.support import double_policy, make_learner, perturb, sample_double, slow_log_prob, whole
from tests.scored_groups import pointwise

WEIGHT = 3.0


def _means(policy: Denoiser, steps: Any, latents: Tensor, condition: Any) -> Tensor:
    """Of the stochastic steps, (B, T_s, ...)."""
    columns = []
    for step in steps.stochastic_steps:
        output = policy.predict(latents[:, step], steps.time(step, len(latents)), condition)
        columns.append(steps.mean(latents[:, step], output, step))
    return torch.stack(columns, dim=1)


class Case:
    """A policy away from its reference, two scored groups, of which the first is a tree where asked for."""

    def __init__(
        self, pipeline: Path, folder: Path, section: Any, policy: dict[str, Any], is_tree: bool
    ) -> None:
        overrides = {"policy": policy, "sampling.steps": 4}
        self.policy, self.reference, self.steps = double_policy(pipeline, folder, overrides)
        self.objective = build_objective(section, 256)
        perturb(self.policy, 0.05)
        engine = build_engine(self.policy, self.steps, Single(), 5, self.reference)
        self.learner: Learner = make_learner(
            self.policy, self.steps, objective=self.objective, engine=engine, max_norm=1e9
        )
        stamp = self.learner.publish().stamp
        draw = np.random.default_rng(0)
        groups = []
        for seed, prompt in enumerate(("a red cat", "the sea")):
            branches = (1,) if is_tree and not seed else ()
            group = sample_double(
                self.policy, self.reference, self.steps, stamp, prompt, 4, seed, branch_at=branches
            )
            groups.append((group, draw.normal(size=4)))
        scores = [(group.prompt, rewards) for group, rewards in groups]
        advantages, _ = self.objective.advantages(scores, RewardHistory())
        self.groups = [
            ScoredGroup(group, pointwise(rewards, {}, ()), found)
            for (group, rewards), found in zip(groups, advantages, strict=True)
        ]

    def slow(self) -> tuple[Tensor, list[Tensor]]:
        """The mean loss with its graph, at theta = old, and the KLs by group."""
        losses, kls = [], []
        chosen = self.steps.stochastic_steps
        std = torch.tensor([self.steps.std[at] for at in chosen], dtype=torch.float64)
        for group in self.groups:
            latents, condition = whole(group.trajectory), self.policy.embed(group.trajectory.prompt)
            now = slow_log_prob(self.policy, self.policy.family, self.steps, latents, condition)
            means = _means(self.policy, self.steps, latents, condition)
            with torch.no_grad():
                base = _means(self.reference, self.steps, latents, condition)
            scale = std.view(1, -1, 1, 1, 1)
            kl = kl_divergence(Normal(means, scale), Normal(base, scale)).flatten(2).mean(2)
            assert group.advantages is not None
            ratio = (now - now.detach()).exp()
            losses.append(-torch.tensor(group.advantages)[:, None] * ratio + WEIGHT * kl)
            kls.append(kl.detach())
        return torch.cat(losses).mean(), kls


SECTIONS = [
    DpokSection(kl_weight=WEIGHT, reward_weight=0.5),
    GrpoSection(kl_weight=WEIGHT),
    DdpoSection(kl_weight=WEIGHT),
]


@pytest.mark.parametrize(
    ("section", "policy", "is_tree"),
    [
        (SECTIONS[0], {"kind": "full"}, False),
        (SECTIONS[1], {"kind": "lora", "rank": 2, "alpha": 4}, True),
        (SECTIONS[2], {"kind": "full"}, True),
    ],
)
def test_the_gradient_is_that_of_the_closed_form(
    tiny_pipeline: Path, tmp_path: Path, section: Any, policy: dict[str, Any], is_tree: bool
) -> None:
    case = Case(tiny_pipeline, tmp_path, section, policy, is_tree)
    loss, kls = case.slow()
    expected = torch.autograd.grad(loss, list(case.learner.parameters.values()))
    for group in case.groups:
        case.learner.accumulate([group])
    gradients = [value.grad for value in case.learner.parameters.values()]
    count = sum(kl.numel() for kl in kls)
    for got, wanted in zip(gradients, expected, strict=True):
        assert got is not None
        torch.testing.assert_close(got / count, wanted, rtol=1e-8, atol=1e-12)
    report = case.learner.finish_update()
    assert report.loss == pytest.approx(float(loss.detach()), rel=1e-9)
    assert report.stats["kl"] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-9)


def test_the_reference_itself_has_a_kl_of_exactly_0(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy, reference, steps = double_policy(tiny_pipeline, tmp_path, {"policy": {"kind": "full"}})
    engine = build_engine(policy, steps, Single(), 5, reference)
    objective = build_objective(DpokSection(), 256)
    learner = make_learner(policy, steps, objective=objective, engine=engine)
    group = sample_double(policy, reference, steps, learner.publish().stamp, "the sea")
    score = pointwise(np.array([0.1, 0.2, 0.4]), {}, ())
    learner.accumulate([ScoredGroup(group, score, score.rewards)])
    assert learner.finish_update().stats["kl"] == 0.0


def test_drawn_terms_keep_the_kl_of_steps_without_any_other_coefficient(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    case = Case(tiny_pipeline, tmp_path, SECTIONS[0], {"kind": "full"}, True)
    engine = build_engine(case.policy, case.steps, Single(), 5, case.reference)
    wave = engine.with_reference(Wave.of([group.trajectory for group in case.groups], torch.device("cpu")))
    assert wave is not None
    tables = [torch.ones(4, 3, dtype=torch.float64) for _ in case.groups]
    for table in tables:
        table[:, 1] = 0.0
    sums = wave.sums(tables) + wave.kl_sums([torch.full((4, 3), 0.5, dtype=torch.float64)] * 2)
    gains = torch.tensor(case.steps.gains, dtype=torch.float64)[wave.items[2][wave.transitions[0]]]
    starts = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    drawn = [thin(wave, sums, gains, 0.4, [float(start)] * 2) for start in starts]
    torch.testing.assert_close(torch.stack(drawn).mean(0), sums, rtol=0.03, atol=0)
    assert all(int((one != 0).sum()) < int((sums != 0).sum()) for one in drawn)
