"""What the learner refuses, skips and reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import WeightsError
from common.model.policy import Policy
from common.model.steps import Steps
from common.model.trainable import Reference
from common.trajectory import ScoredGroup
from learner.learner import Learner
from tests.learner.support import (
    double_policy,
    has_weights,
    make_learner,
    perturb,
    sample_double,
    scored,
    weights_of,
)

Setup = tuple[Policy, Reference, Steps]


def _update(learner: Learner, groups: list[ScoredGroup]) -> Any:
    for group in groups:
        learner.accumulate([group])
    return learner.finish_update()


@pytest.fixture
def setup(tiny_pipeline: Path, tmp_path: Path) -> Setup:
    """A LoRA policy with its reference, for what does not depend on the kind of policy."""
    return double_policy(tiny_pipeline, tmp_path, {"sampling.steps": 3})


def test_the_mismatch_shows_an_actor_with_other_weights(setup: Setup) -> None:
    policy, reference, steps = setup
    learner = make_learner(policy, steps)
    stamp = learner.publish().stamp
    honest = sample_double(policy, reference, steps, stamp, "a cat")
    weights = weights_of(policy)
    perturb(policy, 0.05)
    liar = sample_double(policy, reference, steps, stamp, "a cat")
    policy.load(weights)
    learner.accumulate([scored(honest, [0.1, 0.2, 0.3])])
    assert learner.finish_update().log_ratio_mismatch < 1e-12
    policy.load(weights)
    for group in (honest, liar):
        learner.accumulate([scored(group, [0.1, 0.2, 0.3])])
    assert learner.finish_update().log_ratio_mismatch > 1e-3


def test_later_updates_measure_movement_in_the_learners_own_numerics(setup: Setup) -> None:
    """An actor that rounds otherwise must not look like a policy that has moved."""
    policy, reference, steps = setup
    perturb(policy, 0.05)
    learner = make_learner(policy, steps, clip_range=1e-4, updates=2)
    group = sample_double(policy, reference, steps, learner.publish().stamp, "a cat")
    rounding = 1e-3 * torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    otherwise = replace(group, log_prob=group.log_prob + rounding.numpy())
    weights = weights_of(policy)
    first = _update(learner, [scored(otherwise, [0.1, 0.5, 0.3])])
    assert first.log_ratio_mismatch == pytest.approx(float(rounding.abs().max()))
    policy.load(weights)
    second = learner.repeat_update()
    assert second.stats["clip_share"] == 0
    assert second.loss == pytest.approx(first.loss, rel=1e-9)
    assert second.log_ratio_mean == pytest.approx(first.log_ratio_mean, rel=1e-9)


def test_step_norms_are_of_the_first_groups_own_gradient(setup: Setup) -> None:
    policy, reference, steps = setup
    learner = make_learner(policy, steps, updates=2, max_norm=1e9)
    stamp = learner.publish().stamp
    group = sample_double(policy, reference, steps, stamp, "a cat")
    learner.accumulate([scored(group, [0.1, 0.5, 0.3])])
    alone = learner.finish_update()
    assert set(alone.step_gradient_norms) == {0, 1}
    # The norm of a sum lies between the largest part less the others and the sum of all.
    largest, others = max(alone.step_gradient_norms.values()), min(alone.step_gradient_norms.values())
    assert largest - others <= alone.gradient_norm <= largest + others
    assert learner.repeat_update().step_gradient_norms == {}


@pytest.mark.parametrize("change", [{"version": 5}, {"digest": "0" * 64}, {"run_id": "another run"}])
def test_foreign_stamps_are_refused(setup: Setup, change: dict[str, Any]) -> None:
    policy, reference, steps = setup
    learner = make_learner(policy, steps)
    stamp = replace(learner.publish().stamp, **change)
    group = sample_double(policy, reference, steps, stamp, "a cat")
    with pytest.raises(WeightsError, match="did not publish"):
        learner.accumulate([scored(group, [0.1, 0.2, 0.3])])
    assert learner.finish_update().applied is False


def test_another_step_distribution_is_refused(setup: Setup) -> None:
    policy, reference, steps = setup
    learner = make_learner(policy, steps)
    group = sample_double(policy, reference, steps, learner.publish().stamp, "a cat")
    other = replace(group, steps_fingerprint=steps.fingerprint("another guidance"))
    with pytest.raises(WeightsError, match="another step distribution"):
        learner.accumulate([scored(other, [0.1, 0.2, 0.3])])


def test_an_update_without_an_untied_pair_is_skipped(setup: Setup) -> None:
    policy, reference, steps = setup
    learner = make_learner(policy, steps, ema_decay=0.5)
    stamp = learner.publish().stamp
    group = sample_double(policy, reference, steps, stamp, "a cat")
    before = weights_of(policy)
    tied = scored(group, [0.2, 0.2, 0.2])
    for groups in ([], [tied], [tied, tied]):
        report = _update(learner, groups)
        assert (report.applied, report.version, report.loss) == (False, 0, 0.0)
        assert (report.stats["tied_groups"], report.groups) == (float(bool(groups)), len(groups))
        assert report.stats["tie_share"] == (1.0 if groups else 0.0)
        assert has_weights(policy, before)
    # One tied group beside an untied one takes nothing from it.
    alone = _update(learner, [scored(group, [0.1, 0.5, 0.3])])
    after = weights_of(policy)
    policy.load(before)
    fresh = make_learner(policy, steps)
    fresh.publish()
    beside = _update(fresh, [tied, scored(group, [0.1, 0.5, 0.3])])
    assert (alone.applied, beside.applied, beside.stats["tied_groups"]) == (True, True, 0.5)
    assert beside.loss == pytest.approx(alone.loss)
    for name, value in policy.trainable.parameters().items():
        torch.testing.assert_close(value, after[name], rtol=1e-9, atol=1e-12)


def test_moving_averages_follow_the_weights(setup: Setup) -> None:
    policy, reference, steps = setup
    learner = make_learner(policy, steps, ema_decay=0.75)
    expected = weights_of(policy)
    for _ in range(2):
        group = sample_double(policy, reference, steps, learner.publish().stamp, "a cat")
        _update(learner, [scored(group, [0.1, 0.5, 0.3])])
        for name, value in policy.trainable.parameters().items():
            expected[name] = 0.75 * expected[name] + 0.25 * value.detach()
    for name, average in learner.averages.items():
        torch.testing.assert_close(average, expected[name], rtol=1e-12, atol=1e-14)
    assert not make_learner(policy, steps).averages
