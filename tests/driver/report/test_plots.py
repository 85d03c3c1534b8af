"""Plots: what they draw, read back from the figures, and that they can be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.trajectory import PolicyStamp
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.report.intervals import score_intervals
from driver.report.plots import objective_figure, training_figure, write_plots

BUSY = {"time/actors_busy_s": 5.0, "time/reward_busy_s": 1.0, "time/learner_busy_s": 2.0}
FIRST = {"reward/mean": 0.5, **BUSY, "time/epoch_s": 9.0, "objective/loss": 2.0}
FIRST |= {"optimizer/gradient_norm_step_0": 0.1}
SECOND = {
    "reward/mean": 0.6,
    "time/actors_busy_s": 4.0,
    "time/learner_busy_s": 2.5,
    "time/epoch_s": 8.0,
    "optimizer/gradient_norm_step_0": 0.3,
    "optimizer/gradient_norm_step_11": 0.8,
    "objective/loss": 1.0,
    "objective/clip_share": 0.5,
}
EPOCHS = [(1, FIRST), (2, SECOND)]


def evaluation(epoch: int, gold: float) -> Evaluation:
    scores = {"gold": np.array([[gold - 0.1], [gold], [gold + 0.1]])}
    sets = tuple(
        PromptSetEvaluation(name, ("a", "b", "c"), scores, np.zeros((1, 8, 8, 3), dtype=np.uint8))
        for name in ("seen", "unseen")
    )
    return Evaluation(epoch, PolicyStamp(epoch, "d" * 64, "run"), sets)


EVALUATIONS = [evaluation(0, 0.3), evaluation(2, 0.4)]


def test_training_figure_draws_both_scores_the_band_and_swaps() -> None:
    left, right = training_figure(EPOCHS, EVALUATIONS, "gold", [(2, "clip: $1$")]).axes
    curve, mark = left.lines
    assert curve.get_xydata().tolist() == [[1, 0.5], [2, 0.6]]
    assert list(mark.get_xdata()) == [2, 2]
    assert [text.get_text() for text in left.texts] == ["clip: $1$"]
    assert right.lines[0].get_xydata() == pytest.approx(np.array([[0, 0.3], [2, 0.4]]))
    width = score_intervals(EVALUATIONS[0].sets[1])["gold"].half_width
    heights = [corner[1] for corner in right.collections[0].get_paths()[0].vertices]
    assert (min(heights), max(heights)) == pytest.approx((0.3 - width, 0.4 + width))


def test_every_statistic_of_the_objective_has_a_plot() -> None:
    figure = objective_figure(EPOCHS)
    drawn = {axes.get_title(loc="left"): axes.lines[0].get_ydata().tolist() for axes in figure.axes}
    assert drawn == {"clip_share": pytest.approx([np.nan, 0.5], nan_ok=True), "loss": [2.0, 1.0]}


@pytest.mark.parametrize("epochs", [EPOCHS, []])
@pytest.mark.parametrize("evaluations", [EVALUATIONS, []])
def test_plots_of_much_or_nothing_are_written(epochs, evaluations, tmp_path: Path) -> None:
    write_plots(tmp_path / "plots", epochs, evaluations, "gold")
    names = sorted(file.stem for file in (tmp_path / "plots").iterdir())
    assert names == ["objective", "role_times", "step_gradient_norms", "training_curve"]
