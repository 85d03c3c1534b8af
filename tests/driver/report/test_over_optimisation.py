"""The alarm against what it is defined by, on made-up scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from driver.report.evaluation import TOTAL
from driver.report.over_optimisation import over_optimisation
from tests.driver.report.test_intervals import evaluation

NOISE = np.random.default_rng(0).normal(0.0, 0.01, size=(4, 30, 2))


@pytest.mark.parametrize(
    ("rewards", "golds", "raised"),
    [
        ((0.1, 0.2, 0.3), (0.5, 0.6, 0.4), True),
        ((0.1, 0.2, 0.3), (0.5, 0.6, 0.6), False),
        # The reward stands still, and is above its beginning.
        ((0.1, 0.3, 0.3), (0.5, 0.6, 0.4), True),
        # Both fall together: the policy breaks, and not by the reward's mistakes.
        ((0.1, 0.3, 0.2), (0.5, 0.6, 0.4), False),
        ((0.3, 0.3, 0.3), (0.5, 0.6, 0.4), False),
        # Against the best gold score, not against the beginning or the evaluation before.
        ((0.1, 0.2, 0.3, 0.3), (0.3, 0.6, 0.5, 0.5), True),
        ((0.1,), (0.5,), False),
    ],
)
def test_it_is_raised_where_gold_falls_while_the_reward_stays_up(
    rewards: tuple[float, ...], golds: tuple[float, ...], raised: bool
) -> None:
    run = [
        evaluation({TOTAL: reward + noise, "gold": gold + noise}, epoch)
        for epoch, (reward, gold, noise) in enumerate(zip(rewards, golds, NOISE, strict=False))
    ]
    assert (over_optimisation(run, ["gold"]) is not None) is raised
    assert over_optimisation(run, []) is None


@pytest.mark.parametrize(("seen", "raised"), [((0.1, 0.2, 0.3), True), ((0.1, 0.2, 0.1), False)])
def test_a_reward_that_stays_up_on_trained_prompts_alone_raises_it_too(
    seen: tuple[float, ...], raised: bool
) -> None:
    run = []
    for epoch, (reward, trained, gold, noise) in enumerate(
        zip((0.3, 0.3, 0.2), seen, (0.5, 0.6, 0.4), NOISE, strict=False)
    ):
        unseen = evaluation({TOTAL: reward + noise, "gold": gold + noise}, epoch)
        others = evaluation({TOTAL: trained + noise, "gold": gold + noise}, epoch, ("seen",))
        run.append(replace(unseen, sets=others.sets + unseen.sets))
    assert (over_optimisation(run, ["gold"]) is not None) is raised


def test_where_judges_compare_gold_alone_decides() -> None:
    duels = np.tile([0.5, -0.5], (30, 1))
    for after, raised in ((0.4, True), (0.6, False)):
        golds = [gold + noise for gold, noise in zip((0.6, after), NOISE, strict=False)]
        run = [evaluation({TOTAL: duels, "gold": gold}, epoch) for epoch, gold in enumerate(golds)]
        assert (over_optimisation(run, ["gold"]) is not None) is raised


def test_a_change_within_the_noise_raises_none() -> None:
    before, after = ({TOTAL: noise, "gold": -noise} for noise in NOISE[:2])
    assert over_optimisation([evaluation(before), evaluation(after, 1)], ["gold"]) is None
