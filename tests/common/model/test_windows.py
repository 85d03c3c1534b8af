"""Windows of stochastic steps, through sampler and learner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.sampler import sample_group
from common.config.training import (
    FixedWindow,
    MovingWindow,
    RandomWindow,
    SamplingSection,
    WholeWindow,
    WindowSection,
)
from common.errors import ModelError, WeightsError
from common.model.loading import load_policy
from common.model.schedules import flow_sigmas, flow_steps
from common.model.steps import Chosen, Steps
from common.model.windows import windowed
from common.trajectory import NoiseKey, PromptTask
from learner.build import build_learner
from learner.parallel import Single
from tests.learner.support import scored
from tests.tiny_config import make_config

STEPS = flow_steps(flow_sigmas({"shift": 3.0}, 10, 1024), 1000.0, "cps", 0.8, Chosen(None, 2.5))
ELIGIBLE = tuple(range(8))
"""The last but one step has a tiny next sigma, the last has no noise."""


def _during(section: WindowSection, epochs: int, seed: int = 0) -> list[tuple[int, ...]]:
    steps = windowed(STEPS, section)
    return [steps.during(seed, epoch).stochastic_steps for epoch in range(epochs)]


def test_a_window_takes_its_steps_of_those_that_may_draw_noise() -> None:
    assert STEPS.stochastic_steps == ELIGIBLE
    assert _during(WholeWindow(), 2) == [ELIGIBLE] * 2
    assert _during(FixedWindow(size=3, first=2), 2) == [(2, 3, 4)] * 2
    assert _during(MovingWindow(size=6, every_epochs=2), 8) == [
        *[ELIGIBLE[0:6]] * 2,
        *[ELIGIBLE[1:7]] * 2,
        *[ELIGIBLE[2:8]] * 2,
        *[ELIGIBLE[0:6]] * 2,
    ]
    drawn = _during(RandomWindow(size=2, among=5), 100)
    assert set(drawn) == {(first, first + 1) for first in range(4)}
    assert drawn == _during(RandomWindow(size=2, among=5), 100)
    assert drawn != _during(RandomWindow(size=2, among=5), 100, seed=1)


def test_steps_outside_the_window_are_those_of_the_ode_and_those_inside_the_samplers() -> None:
    ode = flow_steps(flow_sigmas({"shift": 3.0}, 10, 1024), 1000.0, "cps", 0.8, Chosen((), 1.0))
    inside = windowed(STEPS, FixedWindow(size=2, first=3)).during(0, 0)
    for at in range(10):
        source = STEPS if at in (3, 4) else ode
        for name in ("times", "sample_weight", "output_weight", "std"):
            assert getattr(inside, name)[at] == getattr(source, name)[at]


def test_fingerprints_tell_windows_apart() -> None:
    sections = [WholeWindow(), FixedWindow(), FixedWindow(first=1), RandomWindow(), RandomWindow(among=4)]
    assert len({windowed(STEPS, section).fingerprint("") for section in sections}) == len(sections)


@pytest.mark.parametrize("section", [FixedWindow(size=3, first=6), RandomWindow(size=5, among=4)])
def test_windows_that_do_not_fit_are_refused(section: WindowSection) -> None:
    with pytest.raises(ModelError, match=r"sampling\.window") as caught:
        windowed(STEPS, section)
    assert ("a larger among" in str(caught.value)) == isinstance(section, RandomWindow)


def test_branches_need_a_whole_window() -> None:
    with pytest.raises(ValueError, match="branch_at"):
        SamplingSection(steps=4, branch_at=(1,), window=FixedWindow())


def test_groups_of_an_epoch_share_the_window_and_the_learner_knows_it(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    window = {"kind": "moving", "size": 2, "every_epochs": 1}
    given: dict[str, Any] = {"sampling.steps": 5, "sampling.window": window}
    # Of the sampler's batches, so that the bits are the same.
    config = make_config(
        tiny_pipeline, tmp_path, {**given, "learner.step_norms_every": 1, "learner.micro_batch_size": 3}
    )
    policy, steps = load_policy(config)
    learner = build_learner(config, "run", Single())
    stamp = learner.publish().stamp

    def sample(epoch: int, index: int) -> Any:
        task = PromptTask("a cat", 3, NoiseKey(0, "train", epoch, index), stamp, with_reference=True)
        return sample_group(task, policy, policy.reference(), steps)[0]

    groups = [sample(1, index) for index in range(2)]
    assert [group.stochastic_steps.tolist() for group in groups] == [[1, 2]] * 2
    assert sample(0, 0).stochastic_steps.tolist() == [0, 1]
    learner.accumulate([scored(group, [0.1, 0.5, -0.2]) for group in groups])
    report = learner.finish_update()
    assert report.applied
    assert report.log_ratio_mismatch == 0.0
    assert {step for step, norm in report.step_gradient_norms.items() if norm} == {1, 2}
    learner.end_epoch()
    with pytest.raises(WeightsError, match="epoch 0"):
        learner.accumulate([scored(replace(groups[0], noise=NoiseKey(0, "train", 0, 0)), [0.1, 0.5, -0.2])])


def test_a_tiny_next_sigma_is_in_no_window() -> None:
    for kind, level in (("cps", 0.8), ("precise", 1.5)):
        steps: Steps = flow_steps(
            flow_sigmas({"shift": 3.0}, 10, 1024), 1000.0, kind, level, Chosen(None, 2.5)
        )
        for epoch in range(20):
            during = windowed(steps, RandomWindow(size=3)).during(0, epoch)
            assert max(during.gains) <= 2.5
            assert not {8, 9} & set(during.stochastic_steps)
