"""Plots: what they draw, read back from the figures, and that they can be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.trajectory import PolicyStamp
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.report.intervals import Interval
from driver.report.plots import (
    gradient_figure,
    role_times,
    step_gradient_norms,
    step_norms,
    time_figure,
    training_curve,
    training_figure,
)

EPOCHS = [
    (
        1,
        {
            "reward/mean": 0.5,
            "time/epoch_s": 9.0,
            "time/actors_busy_s": 5.0,
            "time/reward_busy_s": 1.0,
            "time/learner_busy_s": 2.0,
            "optimizer/gradient_norm": 1.0,
            "optimizer/gradient_norm_step_0": 0.1,
            "optimizer/gradient_norm_step_11": 0.4,
        },
    ),
    (
        2,
        {
            "reward/mean": 0.6,
            "time/epoch_s": 8.0,
            "time/actors_busy_s": 4.0,
            "time/learner_busy_s": 2.5,
            "optimizer/gradient_norm_step_0": 0.3,
            "optimizer/gradient_norm_step_11": 0.8,
        },
    ),
]


def evaluation(epoch: int, gold: float) -> Evaluation:
    scores = {"reward": np.ones((3, 1)), "gold": np.array([[gold - 0.1], [gold], [gold + 0.1]])}
    sets = tuple(
        PromptSetEvaluation(name, ("a", "b", "c"), scores, np.zeros((1, 8, 8, 3), dtype=np.uint8))
        for name in ("seen", "unseen")
    )
    return Evaluation(epoch, PolicyStamp(epoch, "d" * 64, "run"), sets)


def test_training_figure_draws_both_scores_and_the_band() -> None:
    unseen = [(0, Interval(0.3, 0.02)), (2, Interval(0.4, 0.03))]
    left, right = training_figure([(1, 0.5), (2, 0.6)], unseen, "gold").axes
    assert left.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.6]]
    assert right.lines[0].get_xydata().tolist() == [[0, 0.3], [2, 0.4]]
    band = right.collections[0].get_paths()[0].vertices
    corners = {tuple(float(part) for part in np.round(corner, 9)) for corner in band}
    assert {(0.0, 0.28), (0.0, 0.32), (2.0, 0.37), (2.0, 0.43)} <= corners
    assert "gold" in right.get_ylabel()


def test_a_swap_is_a_labelled_line_at_its_epoch() -> None:
    unseen = [(0, Interval(0.3, 0.1)), (3, Interval(0.4, 0.1))]
    left, _ = training_figure([(1, 0.5), (2, 0.6), (3, 0.7)], unseen, "gold", [(2, "clip: 1+b")]).axes
    (curve, mark) = left.lines
    assert list(curve.get_xdata()) == [1.0, 2.0, 3.0]
    assert list(mark.get_xdata()) == [2, 2]
    assert [text.get_text() for text in left.texts] == ["clip: 1+b"]


def test_gradient_bars_stand_at_their_steps() -> None:
    norms = step_norms(EPOCHS)
    assert norms == {0: pytest.approx(0.2), 11: pytest.approx(0.6)}
    (axes,) = gradient_figure(norms, "epoch 7").axes
    centres = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    assert centres == pytest.approx([0.0, 11.0])
    assert [bar.get_height() for bar in axes.patches] == list(norms.values())
    assert "epoch 7" in axes.get_title(loc="left")


def test_time_is_stacked_by_role_under_the_wall_time() -> None:
    (axes,) = time_figure(EPOCHS).axes
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert tops == pytest.approx([5.0, 4.0, 6.0, 4.0, 8.0, 6.5])
    assert axes.lines[0].get_ydata().tolist() == [9.0, 8.0]


@pytest.mark.parametrize("epochs", [EPOCHS, EPOCHS[:1], []])
@pytest.mark.parametrize("evaluations", [[evaluation(0, 0.3), evaluation(2, 0.4)], []])
def test_plots_of_much_or_nothing_are_written(epochs, evaluations, tmp_path: Path) -> None:
    files = [
        training_curve(tmp_path / "a.png", epochs, evaluations, "gold"),
        step_gradient_norms(tmp_path / "b.png", epochs),
        role_times(tmp_path / "c.png", epochs),
    ]
    assert files == [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "c.png"]
    for file in files:
        with Image.open(file) as picture:
            assert picture.width == 912
