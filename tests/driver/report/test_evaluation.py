"""Which versions of the rewards gave a score."""

from __future__ import annotations

import numpy as np

from common.trajectory import GroupScore, ScorerStamp
from driver.report.evaluation import PromptSetEvaluation, score_versions
from tests.scored_groups import pointwise


def scored(clip: str, jpeg: str = "1") -> GroupScore:
    rewards = np.zeros(2)
    stamps = (ScorerStamp("clip", clip, "a" * 64), ScorerStamp("jpeg", jpeg, ""))
    return pointwise(rewards, {"clip": rewards, "jpeg": rewards}, stamps)


def test_the_sum_is_of_another_version_where_a_trained_reward_or_a_weight_is() -> None:
    """clip is trained on, jpeg is not."""
    one = score_versions([scored("1"), scored("1")], {"clip": 0.5})
    assert (len(one["reward"]), one["jpeg"]) == (1, ("version 1",))
    assert "a" * 12 in one["clip"][0]
    assert score_versions([scored("1", "2")], {"clip": 0.5})["reward"] == one["reward"]
    assert score_versions([scored("1")], {"clip": 1.0})["reward"] != one["reward"]
    assert score_versions([scored("2")], {"clip": 0.5})["reward"] != one["reward"]
    mixed = score_versions([scored("1"), scored("2"), scored("1")], {"clip": 0.5})
    assert (len(mixed["reward"]), len(mixed["clip"]), len(mixed["jpeg"])) == (2, 2, 1)


def test_prompts_are_paired_by_their_place_among_equal_ones() -> None:
    def of(*prompts: str) -> PromptSetEvaluation:
        return PromptSetEvaluation("unseen", prompts, {}, np.zeros((1, 2, 2, 3), dtype=np.uint8))

    assert of("a", "b", "a").same_prompts(of("a", "a", "c")) == [(0, 0), (2, 1)]
