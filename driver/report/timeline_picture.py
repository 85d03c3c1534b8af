"""A timeline as a picture: what the epoch waited for, and below it who worked when."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from driver.report.plots import ROLE_COLOURS
from driver.report.timeline_path import OTHER, advice, busy_share, critical_path, waits
from driver.report.timeline_spans import ACTORS, DRIVER, LEARNER, REWARDS, ROLES, Span, Timeline

COLOURS = {
    ACTORS: ROLE_COLOURS["actors"],
    REWARDS: ROLE_COLOURS["reward"],
    LEARNER: ROLE_COLOURS["learner"],
    DRIVER: "#8c959f",
    OTHER: "#d0d7de",
}
ONE_OF = {ACTORS: "actor", REWARDS: "reward", LEARNER: "learner"}
MOST_ROWS = 16
"""Rows of a role at most; of more processes, evenly chosen ones are shown."""

WIDTH_IN, ROW_IN, HEAD_IN = 11.0, 0.26, 1.75
DOTS_PER_INCH = 120
WRAP = 125


def shown_processes(timeline: Timeline, role: str) -> list[str]:
    """All of the role's processes, or MOST_ROWS of them, evenly chosen."""
    every = timeline.processes(role)
    if len(every) <= MOST_ROWS:
        return every
    return [every[index * len(every) // MOST_ROWS] for index in range(MOST_ROWS)]


def _rows(timeline: Timeline) -> list[tuple[str, str]]:
    """Role and process of each row below the first, from the top."""
    return [(role, process) for role in ROLES for process in shown_processes(timeline, role)]


def _label(timeline: Timeline, role: str, process: str) -> str:
    if role == DRIVER:
        return "driver"
    return f"{ONE_OF[role]} {process}  {busy_share(timeline, role, process):4.0%}"


def _bars(axes: Axes, row: int, timeline: Timeline, spans: Sequence[Span], role: str) -> None:
    """Groups at a reward overlap, so they are drawn through: the darker, the more."""
    lasting = [
        (max(span.begin_s, timeline.begin_s) - timeline.begin_s, min(span.end_s, timeline.end_s))
        for span in spans
    ]
    bars = [(begin, end - timeline.begin_s - begin) for begin, end in lasting]
    alpha = 0.3 if role == REWARDS else 0.9
    axes.broken_barh(
        bars, (row - 0.38, 0.76), color=COLOURS[role], alpha=alpha, edgecolor="white", linewidth=0.4
    )


def timeline_figure(timeline: Timeline) -> Figure:
    """The picture."""
    rows = _rows(timeline)
    figure = Figure(
        figsize=(WIDTH_IN, HEAD_IN + ROW_IN * (len(rows) + 1)), dpi=DOTS_PER_INCH, layout="constrained"
    )
    axes = figure.subplots()
    path = critical_path(timeline)
    for piece in path:
        begin = piece.begin_s - timeline.begin_s
        axes.broken_barh([(begin, piece.seconds)], (-0.45, 0.9), color=COLOURS[piece.role], linewidth=0)
    for row, (role, process) in enumerate(rows, start=1):
        spans = [span for span in timeline.of(role) if span.process == process]
        _bars(axes, row, timeline, spans, role)
    axes.axhline(0.5, color="#1f2328", linewidth=0.6)
    axes.set_yticks(range(len(rows) + 1), ["the epoch waited for", *(_label(timeline, *row) for row in rows)])
    axes.tick_params(axis="y", labelsize=7, length=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_ylim(len(rows) + 0.6, -0.6)
    axes.set_xlim(0.0, max(timeline.seconds, 1e-9))
    axes.set_xlabel("seconds since the epoch began; in %: share of it with work", fontsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.suptitle(_title(timeline), x=0.01, ha="left", fontsize=9)
    handles = [
        Patch(color=COLOURS[role], label=f"{who or role}: waited for {seconds:.3g} s")
        for (role, who), seconds in waits(path).items()
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=5, fontsize=7, frameon=False)
    return figure


def _title(timeline: Timeline) -> str:
    left_out = {
        role: len(timeline.processes(role)) for role in ROLES if len(timeline.processes(role)) > MOST_ROWS
    }
    some = "".join(f"; {MOST_ROWS} of {count} {role} shown" for role, count in left_out.items())
    return "\n".join(
        [f"Epoch {timeline.epoch}, {timeline.seconds:.3g} s{some}", *textwrap.wrap(advice(timeline), WRAP)]
    )


def draw_timeline(timeline: Timeline, file: Path) -> Path:
    """Write the picture as PNG."""
    timeline_figure(timeline).savefig(file, format="png")
    return file
