"""Plots of a run as matplotlib figures: training curve, gradient per denoising step, time per role.

Figures are made without pyplot, so nothing is global and no window or display is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.metrics import definition_of

TRAIN, UNSEEN, THIRD = "#0969da", "#1a7f37", "#9a6700"
ROLE_COLOURS = {"actors": TRAIN, "reward": THIRD, "learner": UNSEEN}
PIXELS_PER_INCH = 120

EpochMetrics = Sequence[tuple[int, Mapping[str, float]]]
"""Epochs finished, and the metrics reported then."""


@dataclass(frozen=True)
class Measured:
    """A score measured after so many epochs. half_width: of its 95 % interval, 0 where it is not known."""

    epoch: int
    mean: float
    half_width: float


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


def measured(epochs: EpochMetrics, set_name: str, score: str) -> list[Measured]:
    """The evaluations among reported metrics, of one prompt set and score."""
    mean, half_width = f"eval/{set_name}/{score}", f"eval/{set_name}_ci95/{score}"
    return [
        Measured(epoch, found[mean], found.get(half_width, 0.0)) for epoch, found in epochs if mean in found
    ]


def training_curve(
    rewards: Sequence[tuple[int, float]], unseen: Sequence[Measured], unseen_name: str
) -> Figure:
    """Mean training reward of each epoch, and a score on unseen prompts with its 95 % band.

    rewards: (epochs finished, mean reward).
    """
    figure = Figure(figsize=(8.0, 4.2), layout="constrained", dpi=PIXELS_PER_INCH)
    axes = _axes(figure, "Reward in training, score on prompts never trained on", "epochs", "training reward")
    axes.plot(*_columns(rewards), color=TRAIN, marker=".", label="reward, training prompts")
    axes.yaxis.label.set_color(TRAIN)
    right = axes.twinx()
    right.spines["top"].set_visible(False)
    right.set_ylabel(f"{unseen_name}, unseen prompts", color=UNSEEN)
    epochs = np.array([point.epoch for point in unseen], dtype=float)
    means = np.array([point.mean for point in unseen], dtype=float)
    widths = np.array([point.half_width for point in unseen], dtype=float)
    right.fill_between(epochs, means - widths, means + widths, color=UNSEEN, alpha=0.15, linewidth=0)
    right.plot(epochs, means, color=UNSEEN, marker="o", label=f"{unseen_name}, unseen prompts, 95 % interval")
    handles = axes.get_legend_handles_labels()[0] + right.get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [epoch for epoch, _ in points], [value for _, value in points]


def gradient_per_step(norms: Mapping[int, float], epoch: int) -> Figure:
    """A bar for each denoising step: the L2 norm of the gradient from it; 0 = the noisiest step."""
    figure = Figure(figsize=(8.0, 3.4), layout="constrained", dpi=PIXELS_PER_INCH)
    title = f"Gradient from each denoising step, epoch {epoch}"
    axes = _axes(figure, title, "denoising step (0 = noisiest)", "L2 norm")
    axes.bar(list(norms), list(norms.values()), color=TRAIN, width=0.8)
    return figure


def step_norms(metrics: Mapping[str, float]) -> dict[int, float]:
    """optimizer/gradient_norm_step_<step> of an epoch's metrics, by step."""
    prefix = "optimizer/gradient_norm_step_"
    return {
        int(name.removeprefix(prefix)): value for name, value in metrics.items() if name.startswith(prefix)
    }


def time_per_role(epochs: EpochMetrics) -> Figure:
    """Seconds that each role worked, stacked, and the epoch's wall time; above it, roles worked at once."""
    figure = Figure(figsize=(8.0, 3.8), layout="constrained", dpi=PIXELS_PER_INCH)
    axes = _axes(figure, "Where the time goes", "epoch", "seconds")
    numbers = np.array([epoch for epoch, _ in epochs], dtype=float)
    bottom = np.zeros(len(numbers))
    for role, colour in ROLE_COLOURS.items():
        name = f"time/{role}_busy_s"
        definition_of(name)
        busy = np.array([metrics.get(name, 0.0) for _, metrics in epochs])
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


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.savefig(path, format="png")
