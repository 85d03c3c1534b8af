"""The objective that docs/architecture.md writes, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.trajectory import Float64
from learner.objectives import LogProbs, statistic_names
from learner.objectives.history import RewardHistory
from tests.scored_groups import pointwise

PAGE = Path("docs/architecture.md").read_text(encoding="utf-8")


def _slow_advantage(rewards: Float64, image: int) -> float:
    others = [float(reward) for other, reward in enumerate(rewards) if other != image]
    return float(rewards[image]) - sum(others) / len(others)


def test_the_page_s_objective_is_what_it_says() -> None:
    names: dict[str, Any] = {"__name__": __name__}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(compile(block, "docs/architecture.md", "exec", dont_inherit=True), names)
    section = names["RlooSection"](clip=False)
    assert section.is_centred
    objective = names["Rloo"].build(section, 4)
    rewards = np.array([0.1, 0.7, 0.2])
    (advantages,), _ = objective.advantages([("a cat", rewards)], RewardHistory())
    np.testing.assert_allclose(advantages, [_slow_advantage(rewards, image) for image in range(3)])
    old = torch.zeros(3, 2, dtype=torch.float64)
    now = (old + 0.01).requires_grad_(True)
    loss = objective.loss(LogProbs(now, old, None), pointwise(rewards, {}, ()), torch.tensor(advantages))
    assert tuple(loss.stats) == statistic_names(objective)
    loss.sum.backward()
    slope = -torch.tensor(advantages)[:, None] * torch.tensor(0.01, dtype=torch.float64).exp()
    torch.testing.assert_close(now.grad, slope.expand(3, 2))
