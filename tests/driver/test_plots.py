"""Plots: what they draw, read back from the figures, and that they can be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from driver.plots import (
    Measured,
    gradient_per_step,
    measured,
    save_figure,
    step_norms,
    time_per_role,
    training_curve,
)

EPOCHS = [
    (0, {"eval/unseen/gold": 0.3, "eval/unseen_ci95/gold": 0.02}),
    (
        1,
        {
            "time/epoch_s": 9.0,
            "time/actors_busy_s": 5.0,
            "time/reward_busy_s": 1.0,
            "time/learner_busy_s": 2.0,
        },
    ),
    (
        2,
        {"time/epoch_s": 8.0, "time/actors_busy_s": 4.0, "time/learner_busy_s": 2.5, "eval/unseen/gold": 0.4},
    ),
]


def test_evaluations_are_found_among_metrics() -> None:
    assert measured(EPOCHS, "unseen", "gold") == [Measured(0, 0.3, 0.02), Measured(2, 0.4, 0.0)]
    assert measured(EPOCHS, "seen", "gold") == []


def test_training_curve_draws_both_scores_and_the_band() -> None:
    figure = training_curve([(1, 0.5), (2, 0.6)], [Measured(0, 0.3, 0.02), Measured(2, 0.4, 0.03)], "gold")
    left, right = figure.axes
    assert left.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.6]]
    assert right.lines[0].get_xydata().tolist() == [[0, 0.3], [2, 0.4]]
    band = right.collections[0].get_paths()[0].vertices
    assert {(0.0, 0.28), (0.0, 0.32), (2.0, 0.37), (2.0, 0.43)} <= {
        tuple(np.round(corner, 9)) for corner in band
    }
    assert "gold" in right.get_ylabel()


def test_gradient_bars_stand_at_their_steps() -> None:
    metrics = {
        "optimizer/gradient_norm": 1.0,
        "optimizer/gradient_norm_step_0": 0.1,
        "optimizer/gradient_norm_step_11": 0.4,
    }
    assert step_norms(metrics) == {0: 0.1, 11: 0.4}
    (axes,) = gradient_per_step(step_norms(metrics), 7).axes
    assert [(bar.get_center()[0], bar.get_height()) for bar in axes.patches] == [
        (pytest.approx(0), 0.1),
        (pytest.approx(11), 0.4),
    ]
    assert "epoch 7" in axes.get_title(loc="left")


def test_time_is_stacked_by_role_under_the_wall_time() -> None:
    (axes,) = time_per_role(EPOCHS[1:]).axes
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches]
    assert tops == pytest.approx([5.0, 4.0, 6.0, 4.0, 8.0, 6.5])
    assert axes.lines[0].get_ydata().tolist() == [9.0, 8.0]


@pytest.mark.parametrize(
    "figure",
    [
        training_curve([], [], "gold"),
        training_curve([(1, 0.5)], [], "gold"),
        gradient_per_step({}, 0),
        time_per_role([]),
    ],
)
def test_plots_of_little_or_nothing_can_be_written(figure, tmp_path: Path) -> None:
    save_figure(figure, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width == 960
