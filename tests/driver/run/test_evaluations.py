"""Evaluations survive the disk; damage is found."""

from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError
from common.trajectory import PolicyStamp
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.run.evaluations import evaluation_file, load_evaluations, save_evaluation


def make_evaluation(epoch: int, seed: int = 0) -> Evaluation:
    random = np.random.default_rng(seed + epoch)
    sets = tuple(
        PromptSetEvaluation(
            name=name,
            prompts=("a cat, “quoted”", "b"),
            scores={"reward": random.normal(size=(2, 3)), "gold": random.normal(size=(2, 3))},
            pixels=random.integers(0, 255, (1, 8, 8, 3), dtype=np.uint8),
            versions={"gold": ("version 1 (abc)", "version 2")},
        )
        for name in ("seen", "unseen")
    )
    return Evaluation(epoch, PolicyStamp(epoch * 2, "ab" * 32, "run"), sets)


def test_round_trip_in_order_of_epochs(tmp_path: Path) -> None:
    for epoch in (10, 0, 5):
        save_evaluation(tmp_path, make_evaluation(epoch))
    loaded = load_evaluations(tmp_path)
    assert [evaluation.epoch for evaluation in loaded] == [0, 5, 10]
    for evaluation in loaded:
        expected = make_evaluation(evaluation.epoch)
        assert evaluation.stamp == expected.stamp
        for own, other in zip(evaluation.sets, expected.sets, strict=True):
            assert own.versions == other.versions
            assert (own.name, own.prompts) == (other.name, other.prompts)
            np.testing.assert_array_equal(own.pixels, other.pixels)
            assert own.scores.keys() == other.scores.keys()
            for name in own.scores:
                np.testing.assert_array_equal(own.scores[name], other.scores[name])


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    save_evaluation(tmp_path, make_evaluation(3))
    path = evaluation_file(tmp_path, 3)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"epoch_000003\.npz is damaged"):
        load_evaluations(tmp_path)
