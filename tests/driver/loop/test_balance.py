"""The estimate of idle shares against an epoch played group by group, and the shipped configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.config.load import load_config
from common.config.schema import Config
from driver.loop.balance import FULL_STEP, LORA_STEP, MOST_IDLE, Balance, advice, estimate, share_gpus

CONFIGS = Path(__file__).parents[3] / "configs"
OBJECTIVE_CONFIGS = tuple(f"sd15_{kind}" for kind in ("ddpo", "grpo", "dpok", "rebel", "rwr", "raft", "nft"))
GPU_CONFIGS = ("sd15_lora", "sdxl_lora", "cluster_sd15", "paper_small", "paper_large", *OBJECTIVE_CONFIGS)


def shipped(name: str, *changes: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml", list(changes))


def balance_of(config: Config) -> Balance:
    return estimate(config, with_reference=True)


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
    assert share_gpus(config) or max(found.actors_idle, found.learner_idle) < MOST_IDLE


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
