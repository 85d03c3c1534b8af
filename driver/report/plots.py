"""Plots of a run as matplotlib figures: training curve, gradient per denoising step, time per role.

Figures are made without pyplot, so nothing is global and no window or display is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.cluster.metrics import definition_of
from common.trajectory import Float64
from driver.report.evaluation import Evaluation
from driver.report.intervals import Interval, score_intervals

TRAIN, UNSEEN, THIRD = "#0969da", "#1a7f37", "#9a6700"
ROLE_COLOURS = {"actors": TRAIN, "reward": THIRD, "learner": UNSEEN}
PIXELS_PER_INCH = 120
STEP_NORM = definition_of("optimizer/gradient_norm_step_0")

EpochMetrics = Sequence[tuple[int, Mapping[str, float]]]
"""Epochs finished, and the metrics reported then."""

Marks = Sequence[tuple[int, str]]
"""Epochs finished, and what changed in the last of them."""


RECENT_EPOCHS = 10
"""Epochs whose mean the gradient plot shows; one epoch alone is noisy."""


def _axes(figure: Figure, title: str, horizontal: str, vertical: str) -> Axes:
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontweight="bold", fontsize=11)
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes


def training_figure(
    rewards: Sequence[tuple[int, float]],
    unseen: Sequence[tuple[int, Interval]],
    unseen_name: str,
    marks: Marks = (),
) -> Figure:
    """Mean training reward of each epoch, and a score on unseen prompts with its 95 % band.

    Both are (epochs finished, value); each has an axis of its own, because their units may differ. marks: a
    vertical line each.
    """
    figure = Figure(figsize=(7.6, 4.2), layout="constrained", dpi=PIXELS_PER_INCH)
    title = "Reward in training, and score on prompts never trained on"
    axes = _axes(figure, title, "epochs", "reward, training prompts")
    numbers, values = _columns(rewards)
    axes.plot(numbers, values, color=TRAIN, marker=".", label="reward, training prompts")
    axes.yaxis.label.set_color(TRAIN)
    right = axes.twinx()
    right.spines["top"].set_visible(False)
    right.set_ylabel(f"{unseen_name}, unseen prompts", color=UNSEEN)
    numbers, means = _columns([(epoch, interval.mean) for epoch, interval in unseen])
    _, widths = _columns([(epoch, interval.half_width) for epoch, interval in unseen])
    widths = np.where(np.isfinite(widths), widths, 0.0)
    right.fill_between(numbers, means - widths, means + widths, color=UNSEEN, alpha=0.15, linewidth=0)
    right.plot(
        numbers, means, color=UNSEEN, marker="o", label=f"{unseen_name}, unseen prompts, 95 % interval"
    )
    _mark(axes, marks)
    handles = axes.get_legend_handles_labels()[0] + right.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _mark(axes: Axes, marks: Marks) -> None:
    """A labelled vertical line for each mark."""
    for epoch, label in marks:
        axes.axvline(epoch, color="#57606a", linestyle="--", linewidth=1.0, zorder=0.5)
        axes.annotate(
            label,
            (epoch, 0.98),
            xycoords=("data", "axes fraction"),
            xytext=(3, 0),
            textcoords="offset points",
            rotation=90,
            va="top",
            fontsize=8,
            color="#57606a",
        )


def _columns(points: Sequence[tuple[int, float]]) -> tuple[Float64, Float64]:
    return np.array([epoch for epoch, _ in points], dtype=float), np.array(
        [value for _, value in points], dtype=float
    )


def step_norms(epochs: EpochMetrics) -> dict[int, float]:
    """optimizer/gradient_norm_step_<step>, mean over the given epochs, by step."""
    found: dict[int, list[float]] = {}
    for _, metrics in epochs:
        for name in metrics:
            if STEP_NORM.covers(name):
                found.setdefault(int(STEP_NORM.values_in(name)["step"]), []).append(metrics[name])
    return {step: sum(norms) / len(norms) for step, norms in sorted(found.items())}


def gradient_figure(norms: Mapping[int, float], epochs: str) -> Figure:
    """A bar for each denoising step: the L2 norm of the gradient from it; 0 = the noisiest step.

    epochs: which ones, for the title.
    """
    figure = Figure(figsize=(7.6, 3.4), layout="constrained", dpi=PIXELS_PER_INCH)
    title = f"Gradient from each denoising step, {epochs}"
    axes = _axes(figure, title, "denoising step (0 = noisiest)", "L2 norm")
    axes.bar(list(norms), list(norms.values()), color=TRAIN, width=0.8)
    return figure


def time_figure(epochs: EpochMetrics) -> Figure:
    """Seconds that each role worked, stacked, and the epoch's wall time; above it, roles worked at once."""
    figure = Figure(figsize=(7.6, 3.8), layout="constrained", dpi=PIXELS_PER_INCH)
    axes = _axes(figure, "Where the time goes", "epoch", "seconds")
    numbers = np.array([epoch for epoch, _ in epochs], dtype=float)
    bottom = np.zeros(len(numbers))
    for role, colour in ROLE_COLOURS.items():
        busy = np.array([metrics.get(f"time/{role}_busy_s", 0.0) for _, metrics in epochs])
        axes.bar(
            numbers,
            busy,
            bottom=bottom,
            color=colour,
            alpha=0.85,
            width=0.9,
            label=f"{role} busy",
            linewidth=0,
        )
        bottom += busy
    walls = [metrics.get("time/epoch_s", 0.0) for _, metrics in epochs]
    axes.step(numbers, walls, where="mid", color="#1f2328", linewidth=1.3, label="epoch, wall time")
    axes.legend(loc="upper right", ncols=4, frameon=False, fontsize=9)
    axes.set_ylim(0.0, 1.2 * max([*bottom, *walls, 1e-9]))
    return figure


def training_curve(
    path: Path,
    epochs: EpochMetrics,
    evaluations: Sequence[Evaluation],
    score: str = "reward",
    marks: Marks = (),
) -> Path:
    """Write training_figure as PNG. score: the one shown of the set "unseen"."""
    rewards = [(epoch, metrics["reward/mean"]) for epoch, metrics in epochs]
    unseen = [
        (evaluation.epoch, score_intervals(evaluated)[score])
        for evaluation in evaluations
        for evaluated in evaluation.sets
        if evaluated.name == "unseen"
    ]
    return _written(training_figure(rewards, unseen, score, marks), path)


def step_gradient_norms(path: Path, epochs: EpochMetrics) -> Path:
    """Write gradient_figure of the last epochs as PNG."""
    recent = epochs[-RECENT_EPOCHS:]
    numbers = [epoch for epoch, _ in recent]
    shown = f"mean of epochs {numbers[0]} to {numbers[-1]}" if numbers else "no epoch"
    return _written(gradient_figure(step_norms(recent), shown), path)


def role_times(path: Path, epochs: EpochMetrics) -> Path:
    """Write time_figure as PNG."""
    return _written(time_figure(epochs), path)


def _written(figure: Figure, path: Path) -> Path:
    figure.savefig(path, format="png")
    return path
