"""The board as one PNG, from the same queries, where there is no Grafana:

python -m driver.report.board_picture board.png --prometheus http://127.0.0.1:9090 --run quickstart
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.errors import PrdpError
from driver.report.board import RUN, WINDOW, Panel, Query, Row, board
from driver.report.prometheus import Series, Span, ask

COLUMNS = 3
SHOWN_SERIES = 8
"""Series of a panel that get a line; more cannot be told apart."""

POINTS = 120


def filled_in(query: Query, run: str, window: str) -> str:
    """The query as Grafana would send it. run: a regular expression; window: such as 1m."""
    return query.expr.replace(WINDOW, window).replace(RUN, run)


def legend_of(query: Query, series: Series) -> str:
    """The legend with the series' own labels."""
    return re.sub(r"{{(\w+)}}", lambda found: series.labels.get(found[1], ""), query.legend).strip()


def panel_series(address: str, panel: Panel, run: str, window: str, span: Span) -> list[tuple[str, Series]]:
    """A panel's series with their legends. Raises PrometheusError."""
    return [
        (legend_of(query, series), series)
        for query in panel.queries
        for series in ask(address, filled_in(query, run, window), span)
    ]


def _draw(axes: Axes, panel: Panel, found: Sequence[tuple[str, Series]], end_s: float) -> None:
    axes.set_title(panel.title, loc="left", fontsize=9, fontweight="bold")
    axes.set_ylabel(panel.unit, fontsize=7)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    for legend, series in found[:SHOWN_SERIES]:
        axes.plot((series.seconds - end_s) / 60.0, series.values, label=legend, linewidth=1.2)
    if panel.unit == "share":
        axes.set_ylim(-0.03, 1.03)
    more = len(found) - SHOWN_SERIES
    title = f"and {more} more" if more > 0 else ""
    if any(legend for legend, _ in found):
        axes.legend(fontsize=6, frameon=False, loc="best", title=title, title_fontsize=6)


def board_figure(rows: Sequence[Row], address: str, run: str, window: str, span: Span) -> Figure:
    """The rows' panels, one below the other. Raises PrometheusError."""
    lines = sum(-(-len(row.panels) // COLUMNS) for row in rows)
    figure = Figure(figsize=(15.0, 2.6 * lines + 0.45 * len(rows)), dpi=90, layout="constrained")
    heights = [-(-len(row.panels) // COLUMNS) + 0.17 for row in rows]
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)
    for row, part in zip(rows, parts.ravel(), strict=True):
        part.suptitle(row.title, x=0.01, ha="left", fontsize=11)
        grid = part.subplots(-(-len(row.panels) // COLUMNS), COLUMNS, squeeze=False).ravel()
        for axes in grid[len(row.panels) :]:
            axes.set_axis_off()
        for axes, panel in zip(grid, row.panels, strict=False):
            _draw(axes, panel, panel_series(address, panel, run, window, span), span.end_s)
            axes.set_xlabel("minutes", fontsize=7)
    return figure


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m driver.report.board_picture", description=__doc__)
    parser.add_argument("picture", type=Path, help="PNG to write")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="its address")
    parser.add_argument("--run", default=".*", help="run.name, or a regular expression")
    parser.add_argument("--minutes", type=float, default=30.0, help="how far back")
    parser.add_argument("--window", default="1m", help="time that a rate is taken over")
    parser.add_argument("--rows", type=int, default=len(board()), help="how many rows, from the top")
    given = parser.parse_args(arguments)
    end_s = time.time()
    seconds = 60.0 * given.minutes
    span = Span(end_s - seconds, end_s, max(1.0, seconds / POINTS))
    try:
        figure = board_figure(board()[: given.rows], given.prometheus, given.run, given.window, span)
    except PrdpError as error:
        print(error, file=sys.stderr)
        return 1
    figure.savefig(given.picture, format="png")
    print(given.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
