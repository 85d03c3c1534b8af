"""The estimate of idle shares against what a real actor and learner count, against an epoch played group by
group, and of the shipped configurations."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.actor import Actor
from common.config.load import load_config
from common.config.schema import Config
from common.model.loading import load_policy
from common.trajectory import ScoredGroup
from driver.loop.balance import FULL_STEP, LORA_STEP, MOST_IDLE, Balance, advice, estimate, share_gpus
from driver.run.prompts import PromptStream, open_prompts, training_tasks
from learner.build import build_learner, groups_in_a_wave
from learner.objectives.history import RewardHistory
from learner.objectives.registry import build_objective
from learner.parallel import Single
from tests.scored_groups import pointwise
from tests.tiny_config import make_config

CONFIGS = Path(__file__).parents[3] / "configs"
GPU_CONFIGS = [path.stem for path in sorted(CONFIGS.glob("*.yaml")) if "quickstart" not in path.stem]


def shipped(name: str, *changes: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", list(changes))


def balance_of(config: Config) -> Balance:
    return estimate(config, build_objective(config.objective, 1).needs)


def played(config: Config) -> float:
    """An epoch of synchronous updates: actors sample groups in turn, ranks take each in when it is there."""
    sampling = config.sampling
    stochastic, images = sampling.steps, sampling.images_per_prompt
    step = {"full": FULL_STEP, "lora": LORA_STEP}[config.policy.kind] + config.learner.gradient_checkpointing
    sample = images * (sampling.steps + stochastic) / max(1, config.actors.gpus)
    learn = images * stochastic * step / max(1, config.learner.gpus)
    free = [0.0] * config.learner.workers
    for position in range(sampling.prompts_per_epoch):
        there = (position // config.actors.count + 1) * sample
        rank = position % config.learner.workers
        free[rank] = max(free[rank], there) + learn
    return max(free)


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_nobody_waits_long_in_the_shipped_configurations(name: str) -> None:
    config = shipped(name)
    found = balance_of(config)
    assert advice(config, found) is None
    # Of Qwen-Image two steps of ten are learned: with three actors and one rank an epoch would take longer.
    is_best = share_gpus(config) or name == "qwen_image_lora"
    assert is_best or max(found.actors_idle, found.learner_idle) < MOST_IDLE


@pytest.mark.parametrize(("actors", "ranks"), [(15, 1), (2, 14), (5, 10)])
def test_an_epoch_played_group_by_group_takes_about_as_long(actors: int, ranks: int) -> None:
    config = shipped("paper_large", f"actors.count={actors}", f"learner.workers={ranks}")
    assert balance_of(config).epoch == pytest.approx(played(config), rel=0.35)


def test_the_role_that_waits_is_named_with_numbers_that_mend_it() -> None:
    config = shipped("paper_large", "actors.count=15", "learner.workers=1")
    words = advice(config, balance_of(config))
    assert words is not None
    assert words.startswith("Actors")
    changes = [word for word in words.split() if word.startswith(("actors.", "learner."))]
    mended = shipped("paper_large", *changes)
    assert advice(mended, balance_of(mended)) is None
    assert mended.actors.count + mended.learner.workers == 16


WORK: dict[str, dict[str, Any]] = {
    "prdp": {},
    "updates": {"objective.updates_per_epoch": 2, "sampling.guidance_scale": 3.0},
    "ahead": {"data.max_staleness": 1},
    "two trees": {"sampling.branch_at": (1,), "objective.updates_per_epoch": 2},
    "one tree": {"sampling.branch_at": (1, 2)},
    "grpo, one tree": {"objective": {"kind": "grpo"}, "sampling.branch_at": (1, 2)},
    "grpo with a KL": {"objective": {"kind": "grpo", "kl_weight": 0.1}, "sampling.branch_at": (1, 2)},
    "extremes": {"objective": {"kind": "rebel", "extremes": 1}},
    "term_share": {"optimizer.term_share": 0.5, "objective.updates_per_epoch": 2},
    "dpok": {"objective": {"kind": "dpok", "updates_per_epoch": 2}},
    "nft": {"objective": {"kind": "nft", "pairs_per_image": 3, "updates_per_epoch": 2}},
    "nft, old replaced": {"objective": {"kind": "nft", "old_decay_rate": 0.0, "updates_per_epoch": 2}},
    "rwr": {"objective": {"kind": "rwr"}},
    "rwr, sparse": {"objective": {"kind": "rwr", "weighting": "sparse", "kept_share": 0.5}},
    "raft": {"objective": {"kind": "raft", "pairs_per_image": 3, "updates_per_epoch": 2}},
}


def counted(config: Config) -> tuple[int, int]:
    """What a real actor and a learner count of the second epoch, or of the third where actors run ahead."""
    policy, steps = load_policy(config)
    learner, actor = build_learner(config, "run", Single()), Actor.of(policy, steps)
    objective = build_objective(config.objective, 1)
    stream = PromptStream(open_prompts(config.prompts.train), 0)
    random, weights = np.random.default_rng(0), [copy.deepcopy(learner.publish())]
    for epoch in range(2 + config.data.max_staleness):
        given = weights[max(0, epoch - config.data.max_staleness)]
        needs, groups, sampled = objective.needs, list[ScoredGroup](), 0
        for task in training_tasks(config, stream, epoch, given.stamp, needs.reference, needs.steps):
            trajectory, _, report = actor.sample(task, given)
            rewards = random.normal(size=task.num_images)
            groups.append(ScoredGroup(trajectory, pointwise(rewards, {}, ())))
            sampled += report.passes
        scores = [(group.trajectory.prompt, group.score.rewards) for group in groups]
        advantages, _ = objective.advantages(scores, RewardHistory())
        groups = [replace(one, advantages=found) for one, found in zip(groups, advantages, strict=True)]
        for start in range(0, len(groups), groups_in_a_wave(config)):
            learner.accumulate(groups[start : start + groups_in_a_wave(config)])
        reports = [learner.finish_update()]
        reports += [learner.repeat_update() for _ in range(config.objective.updates_per_epoch - 1)]
        assert all(report.applied for report in reports)
        learner.end_epoch()
        weights.append(copy.deepcopy(learner.publish()))
    return sampled, sum(report.passes for report in reports)


IN_EVERY_TEST_RUN = ("updates", "two trees", "term_share", "nft")
"""The others are slow ones: each loads and trains a tiny policy."""


@pytest.mark.parametrize(
    "name",
    [name if name in IN_EVERY_TEST_RUN else pytest.param(name, marks=pytest.mark.slow) for name in WORK],
)
def test_the_work_is_what_actor_and_learner_count(tiny_pipeline: Path, tmp_path: Path, name: str) -> None:
    """A backward pass counts as two, as it costs where all weights are trained. Steps are too small for the
    clip to act."""
    changes = {"policy": {"kind": "full"}, "optimizer.learning_rate": 1e-6, **WORK[name]}
    config = make_config(tiny_pipeline, tmp_path, changes)
    found, rows = balance_of(config), 1 if config.sampling.guidance_scale == 1 else 2
    sampled, learned = counted(config)
    assert rows * found.sampling == sampled
    # What is drawn of a prompt's items is their share up to one item.
    drawn = config.sampling.prompts_per_epoch * config.objective.updates_per_epoch * 3 * rows
    within = drawn if config.optimizer.term_share < 1 else 1e-9
    assert rows * found.learning == pytest.approx(learned, abs=within, rel=0)
