"""From the configuration to a learner."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import WeightsError
from common.model.loading import load_policy
from common.trajectory import PolicyStamp
from learner.build import build_learner, build_old_policy
from learner.objectives.prdp import Prdp
from learner.objectives.registry import build_objective
from learner.parallel import Single
from tests.learner.support import sample_double, scored
from tests.tiny_config import make_config


def _objective(pipeline: Path, folder: Path, elements: int = 256, **settings: Any) -> Prdp:
    config = make_config(pipeline, folder, {f"objective.{key}": value for key, value in settings.items()})
    objective = build_objective(config.objective, elements)
    assert isinstance(objective, Prdp)
    return objective


def test_open_points_of_the_paper_are_settings(tiny_pipeline: Path, tmp_path: Path) -> None:
    usual = _objective(tiny_pipeline, tmp_path, kl_weight=0.3, clip_range=0.2)
    assert (usual.kl_weight, usual.clip_range, usual.latent_scale) == (0.3, 0.2, 1.0)
    assert float(usual.step_reduction(torch.ones(1, 4))) == 1.0
    differences = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert usual.counted(differences).tolist() == [[False, True], [True, False]]
    other = _objective(
        tiny_pipeline,
        tmp_path,
        clip=False,
        latent_reduction="sum",
        step_reduction="sum",
        pair_weighting="all",
    )
    assert (other.clip_range, other.latent_scale) == (math.inf, 256.0)
    assert float(other.step_reduction(torch.ones(1, 4))) == 4.0
    assert other.counted(differences).all()


@pytest.mark.parametrize(("staleness", "updates"), [(0, 1), (0, 5), (1, 1), (2, 4)])
def test_online_remembers_every_version_that_tasks_in_flight_can_name_and_no_older_one(
    tiny_pipeline: Path, tmp_path: Path, staleness: int, updates: int
) -> None:
    settings = {"data.max_staleness": staleness, "objective.updates_per_epoch": updates}
    old_policy = build_old_policy(make_config(tiny_pipeline, tmp_path, settings))
    # One an epoch, whatever the number of updates.
    stamps = [PolicyStamp(updates * epoch, "", "run") for epoch in range(staleness + 2)]
    for stamp in stamps:
        old_policy.published(stamp)
    for stamp in stamps[1:]:
        old_policy.check(stamp)
    with pytest.raises(WeightsError, match="did not publish"):
        old_policy.check(stamps[0])


def test_the_optimizer_section_reaches_adamw(tiny_pipeline: Path, tmp_path: Path) -> None:
    numbers = {"learning_rate": 0.3, "beta1": 0.7, "beta2": 0.8, "epsilon": 1e-3, "weight_decay": 0.2}
    config = make_config(tiny_pipeline, tmp_path, {"optimizer": numbers})
    (group,) = build_learner(config, "run", Single()).optimizer.param_groups
    assert [group[key] for key in ("lr", "betas", "eps", "weight_decay")] == [0.3, (0.7, 0.8), 1e-3, 0.2]


def test_gradient_checkpointing_changes_memory_and_not_the_update(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    digests, kept = [], []
    for checkpointing in (False, True):
        config = make_config(tiny_pipeline, tmp_path, {"learner.gradient_checkpointing": checkpointing})
        learner = build_learner(config, "run", Single())
        # A learner has no text encoder: its twin, an actor's, samples.
        policy, steps = load_policy(config)
        group = sample_double(
            policy, policy.reference(), steps, learner.publish().stamp, "a cat", dtype=torch.float32
        )
        saved = [0]

        def count(tensor: torch.Tensor, total: list[int] = saved) -> torch.Tensor:
            total[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            learner.accumulate([scored(group, [0.1, 0.3, 0.2])])
        assert learner.finish_update().applied
        digests.append(learner.publish().stamp.digest)
        kept.append(saved[0])
    assert digests[0] == digests[1]
    assert kept[1] < 0.7 * kept[0]
