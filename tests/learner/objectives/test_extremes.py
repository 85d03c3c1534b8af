"""Learning from the best and the worst images: which they are, and that the loss is theirs alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.objectives import DdpoSection, PrdpSection, RebelSection
from learner.objectives import LogProbs, statistic_names
from learner.objectives.extremes import Extremes, best_and_worst
from learner.objectives.history import RewardHistory
from learner.objectives.registry import build_objective
from tests.scored_groups import pointwise


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 4).map(float), min_size=1, max_size=9), st.integers(1, 5))
def test_no_image_left_out_is_better_or_worse_than_the_chosen(rewards: list[float], count: int) -> None:
    chosen = best_and_worst(np.array(rewards), count).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(len(rewards), 2 * count)
    ranked = sorted(range(len(rewards)), key=lambda image: (rewards[image], image))
    assert set(chosen) == {*ranked[:count], *ranked[-count:]}


@pytest.mark.parametrize(
    "section",
    [
        PrdpSection(extremes=2, clip_range=0.05),
        RebelSection(extremes=2),
        DdpoSection(extremes=2, baseline="group"),
    ],
)
def test_the_loss_is_that_of_a_group_of_these_images_and_the_others_have_no_gradient(section: Any) -> None:
    now, old, ref = 0.1 * torch.randn(
        3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    rewards, kept = np.array([0.3, 0.9, 0.4, 0.1, 0.4, 0.8]), [0, 1, 3, 5]
    part = {"a": 2 * rewards}
    objective = build_objective(section, 16)
    plain = build_objective(section.model_copy(update={"extremes": 0}), 16)
    assert isinstance(objective, Extremes)
    assert (objective.needs, statistic_names(objective)) == (plain.needs, statistic_names(plain))
    scores = [("a cat", rewards)]
    (advantages,), _ = objective.advantages(scores, RewardHistory())
    np.testing.assert_equal(advantages, plain.advantages(scores, RewardHistory())[0][0])
    given_ = None if advantages is None else torch.tensor(advantages)
    leaf, small = now.clone().requires_grad_(True), now[kept].clone().requires_grad_(True)
    loss = objective.loss(LogProbs(leaf, old, ref), pointwise(rewards, part, ()), given_)
    expected = plain.loss(
        LogProbs(small, old[kept], ref[kept]),
        pointwise(rewards[kept], {"a": 2 * rewards[kept]}, ()),
        None if given_ is None else given_[kept],
    )
    assert torch.equal(loss.sum, expected.sum)
    assert (loss.weight, loss.stats) == (expected.weight, expected.stats)
    (gradient,) = torch.autograd.grad(loss.sum, leaf)
    (wanted,) = torch.autograd.grad(expected.sum, small)
    assert torch.equal(gradient[kept], wanted)
    assert not gradient[[2, 4]].any()
