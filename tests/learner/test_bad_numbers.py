"""A number that is not finite skips its update, names its group, and leaves no trace in what comes after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.model.policy import Policy
from common.model.steps import Steps
from common.model.trainable import Reference
from common.trajectory import PolicyStamp, ScoredGroup
from learner.learner import Learner
from learner.parallel import Single
from learner.report import UpdateOutcome
from tests.learner.support import double_policy, make_learner, sample_double, scored

Setup = tuple[Policy, Reference, Steps]


@pytest.fixture
def setup(tiny_pipeline: Path, tmp_path: Path) -> Setup:
    return double_policy(tiny_pipeline, tmp_path, {"sampling.steps": 3})


def state(learner: Learner) -> list[Tensor]:
    """Copies of all that an update may change."""
    optimizer = [value for one in learner.optimizer.state.values() for value in one.values()]
    live = [*learner.parameters.values(), *learner.averages.values(), *optimizer]
    return [value.detach().clone() for value in live]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


def group(setup: Setup, stamp: PolicyStamp, seed: int) -> ScoredGroup:
    return scored(sample_double(*setup, stamp, f"a cat {seed}", seed=seed), [0.1, 0.5, 0.3])


def spoilt(good: ScoredGroup, where: str, value: float) -> ScoredGroup:
    """The group with one number that is not finite."""
    part = good.score if where == "differences" else good.trajectory
    array = getattr(part, where).copy()
    array.reshape(-1)[1 if where == "differences" else 3] = value
    changed: Any = replace(part, **{where: array})
    return replace(good, **{"score" if where == "differences" else "trajectory": changed})


@pytest.mark.parametrize(
    ("where", "value", "position"),
    [("latents", math.nan, 0), ("log_ratio", math.inf, 1), ("differences", math.nan, 1)],
)
def test_the_group_is_named_and_the_next_update_is_as_if_it_had_never_been(
    tiny_pipeline: Path, tmp_path: Path, where: str, value: float, position: int
) -> None:
    ends = []
    for disturbed in (False, True):
        setup = double_policy(tiny_pipeline, tmp_path, {"sampling.steps": 3})
        learner = make_learner(setup[0], setup[2], ema_decay=0.5)
        stamp = learner.publish().stamp
        learner.accumulate([group(setup, stamp, 5)])
        learner.finish_update()
        stamp = learner.publish().stamp
        good = [group(setup, stamp, 0), group(setup, stamp, 1)]
        if disturbed:
            before = state(learner)
            bad = [spoilt(one, where, value) if index == position else one for index, one in enumerate(good)]
            for one in bad:
                learner.accumulate([one])
            report = learner.finish_update()
            assert (report.outcome, report.version, report.groups) == (UpdateOutcome.BAD_GROUP, 1, 1)
            (named,) = report.bad_groups
            assert (named.prompt, named.noise) == (f"a cat {position}", good[position].trajectory.noise)
            assert "not finite" in str(named)
            assert same(state(learner), before)
            learner.end_epoch()
        for one in good:
            learner.accumulate([one])
        assert learner.finish_update().outcome is UpdateOutcome.APPLIED
        ends.append(state(learner))
    assert same(*ends)


def test_two_bad_groups_are_both_named_and_good_ones_among_them_are_not(setup: Setup) -> None:
    learner = make_learner(setup[0], setup[2])
    stamp = learner.publish().stamp
    for seed in range(5):
        one = group(setup, stamp, seed)
        learner.accumulate([spoilt(one, "latents", math.nan) if seed in (1, 3) else one])
    report = learner.finish_update()
    assert [named.prompt for named in report.bad_groups] == ["a cat 1", "a cat 3"]


def test_a_policy_that_breaks_between_updates_is_noticed(setup: Setup) -> None:
    policy, _, steps = setup
    learner = make_learner(policy, steps, updates=2)
    learner.accumulate([group(setup, learner.publish().stamp, 0)])
    assert learner.finish_update().outcome is UpdateOutcome.APPLIED
    with torch.no_grad():
        next(iter(learner.parameters.values())).fill_(math.nan)
    report = learner.repeat_update()
    assert report.outcome is UpdateOutcome.BAD_GROUP
    assert report.bad_groups[0].prompt == "a cat 0"


class TwoRanks(Single):
    """This rank beside one whose sums are given: what a collective sum of two ranks leaves here."""

    def __init__(self, bad_groups: float, gradient: float) -> None:
        self._bad_groups = bad_groups
        self._gradient = gradient

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Add the other rank's."""
        for value in parameters:
            assert value.grad is not None
            value.grad.add_(self._gradient)

    def sum_(self, values: Tensor) -> None:
        """Add the other rank's totals: its third number counts bad groups."""
        values[2] += self._bad_groups


@pytest.mark.parametrize(
    ("bad_groups", "gradient", "outcome"),
    [
        (0.0, 0.0, UpdateOutcome.APPLIED),
        (1.0, 0.0, UpdateOutcome.BAD_GROUP),
        (0.0, math.inf, UpdateOutcome.BAD_GRADIENT),
        (0.0, math.nan, UpdateOutcome.BAD_GRADIENT),
    ],
)
def test_every_rank_decides_alike(
    setup: Setup, bad_groups: float, gradient: float, outcome: UpdateOutcome
) -> None:
    learner = make_learner(setup[0], setup[2], parallel=TwoRanks(bad_groups, gradient))
    before = state(learner)
    learner.accumulate([group(setup, learner.publish().stamp, 0)])
    report = learner.finish_update()
    assert (report.outcome, report.bad_groups) == (outcome, ())
    assert same(state(learner), before) == outcome.is_bad
    assert np.isfinite(report.loss)


def test_in_a_wave_the_others_stay_what_they_are(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Of K = 2 updates the first is skipped; the second is that of the good groups, in their own place."""
    ends = []
    for disturbed in (False, True):
        setup = double_policy(tiny_pipeline, tmp_path, {"sampling.steps": 3})
        learner = make_learner(setup[0], setup[2], updates=2)
        stamp = learner.publish().stamp
        groups = [group(setup, stamp, seed) for seed in range(3)]
        if disturbed:
            groups[1] = spoilt(groups[1], "latents", math.nan)
        learner.accumulate(groups if disturbed else groups[::2])
        report = learner.finish_update() if disturbed else None
        if report:
            assert (report.outcome, report.groups) == (UpdateOutcome.BAD_GROUP, 2)
            assert [named.prompt for named in report.bad_groups] == ["a cat 1"]
            report = learner.repeat_update()
            assert (report.outcome, report.groups, report.bad_groups) == (UpdateOutcome.APPLIED, 2, ())
        else:
            assert learner.finish_update().applied
        ends.append(state(learner)[: len(learner.parameters)])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
