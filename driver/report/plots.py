"""Plots of a run: training curve, objective, gradient per denoising step, time per role.

Figures are made without pyplot, so nothing is global and no window or display is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from driver.report.evaluation import Evaluation
from driver.report.intervals import score_intervals

BLUE, GREEN, BROWN, GREY = "#0969da", "#1a7f37", "#9a6700", "#57606a"
ROLE_COLOURS = {"actors": BLUE, "reward": BROWN, "learner": GREEN}
STEP_NORM = "optimizer/gradient_norm_step_"
OBJECTIVE = "objective/"
RECENT_EPOCHS = 10
"""Epochs whose mean the gradient plot shows; one epoch alone is noisy."""

Epochs = Sequence[tuple[int, Mapping[str, float]]]
"""Epochs finished, and the metrics reported then."""


def write_plots(
    folder: Path,
    epochs: Epochs,
    evaluations: Sequence[Evaluation],
    score: str,
    marks: Sequence[tuple[int, str]] = (),
) -> None:
    """Write every plot as PNG. score: drawn of unseen prompts; marks: epochs and what changed then."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {
        "training_curve": training_figure(epochs, evaluations, score, marks),
        "objective": objective_figure(epochs),
        "step_gradient_norms": gradient_figure(epochs),
        "role_times": time_figure(epochs),
    }
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=120)


def training_figure(
    epochs: Epochs, evaluations: Sequence[Evaluation], score: str, marks: Sequence[tuple[int, str]] = ()
) -> Figure:
    """Mean training reward of each epoch, and a score on unseen prompts with its 95 % band.

    Each has an axis of its own, because their units may differ. marks: a vertical line each.
    """
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axes = figure.subplots()
    title = "Reward in training, and score on prompts never trained on"
    _dress(axes, title, "epochs", "reward, training prompts")
    axes.yaxis.label.set_color(BLUE)
    axes.plot([epoch for epoch, _ in epochs], _values(epochs, "reward/mean"), color=BLUE, marker=".")
    found = [
        (evaluation.epoch, score_intervals(prompts)[score])
        for evaluation in evaluations
        for prompts in evaluation.sets
        if prompts.name == "unseen" and score in prompts.scores
    ]
    numbers = [epoch for epoch, _ in found]
    means = np.array([interval.mean for _, interval in found])
    widths = np.nan_to_num([interval.half_width for _, interval in found], posinf=0.0)
    right = axes.twinx()
    right.spines["top"].set_visible(False)
    right.set_ylabel(f"{score}, unseen prompts, 95 % interval", color=GREEN, parse_math=False)
    right.fill_between(numbers, means - widths, means + widths, color=GREEN, alpha=0.15, linewidth=0)
    right.plot(numbers, means, color=GREEN, marker="o")
    for epoch, label in marks:
        axes.axvline(epoch, color=GREY, linestyle="--", linewidth=1.0, zorder=0.5)
        place = axes.get_xaxis_transform()
        text = axes.text(epoch, 0.98, label, transform=place, parse_math=False, rotation=90, va="top")
        text.set(fontsize=8, color=GREY)
    return figure


def objective_figure(epochs: Epochs) -> Figure:
    """A small plot for each statistic that the objective reports."""
    names = sorted({name for _, metrics in epochs for name in metrics if name.startswith(OBJECTIVE)})
    rows = max(1, -(-len(names) // 2))
    figure = Figure(figsize=(7.6, 2.2 * rows), layout="constrained")
    for axes, name in zip(figure.subplots(rows, 2, squeeze=False).flat, names, strict=False):
        _dress(axes, name.removeprefix(OBJECTIVE), "epochs", "")
        axes.plot([epoch for epoch, _ in epochs], _values(epochs, name), color=BLUE, marker=".")
    for axes in figure.axes[len(names) :]:
        axes.set_axis_off()
    return figure


def gradient_figure(epochs: Epochs) -> Figure:
    """A bar for each denoising step, 0 = the noisiest: the L2 norm of the gradient from it.

    Mean over those of the last RECENT_EPOCHS that measured it.
    """
    recent = epochs[-RECENT_EPOCHS:]
    names = {name for _, metrics in recent for name in metrics if name.startswith(STEP_NORM)}
    norms = {int(name.removeprefix(STEP_NORM)): float(np.nanmean(_values(recent, name))) for name in names}
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    axes = figure.subplots()
    shown = f"mean of epochs {recent[0][0]} to {recent[-1][0]}" if recent else "no epoch"
    _dress(axes, f"Gradient from each denoising step, {shown}", "denoising step (0 = noisiest)", "L2 norm")
    axes.bar(sorted(norms), [norms[step] for step in sorted(norms)], color=BLUE)
    return figure


def time_figure(epochs: Epochs) -> Figure:
    """Seconds that each role worked, stacked, and the epoch's wall time; above it, roles worked at once."""
    figure = Figure(figsize=(7.6, 3.8), layout="constrained")
    axes = figure.subplots()
    _dress(axes, "Where the time goes", "epoch", "seconds")
    numbers = [epoch for epoch, _ in epochs]
    bottom = np.zeros(len(epochs))
    for role, colour in ROLE_COLOURS.items():
        busy = np.nan_to_num(_values(epochs, f"time/{role}_busy_s"))
        axes.bar(numbers, busy, bottom=bottom, color=colour, alpha=0.85, width=0.9, label=f"{role} busy")
        bottom += busy
    walls = _values(epochs, "time/epoch_s")
    axes.step(numbers, walls, where="mid", color="#1f2328", linewidth=1.3, label="epoch, wall time")
    axes.legend(loc="upper right", ncols=4, frameon=False, fontsize=9)
    return figure


def _values(epochs: Epochs, name: str) -> np.ndarray:
    """float64, one an epoch; NaN where an epoch did not measure it."""
    return np.array([metrics.get(name, np.nan) for _, metrics in epochs], dtype=np.float64)


def _dress(axes: Axes, title: str, horizontal: str, vertical: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.set(xlabel=horizontal, ylabel=vertical)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
