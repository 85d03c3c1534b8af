"""Make the tables and plots of docs/study.md again from the results.

What stands between `<!-- NAME -->` and `<!-- end -->` in the page is replaced; the text around it stays.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.storage import replace_file
from common.terminal import complain, run_command, say
from studies.catalogue import LOWEST, STUDIES, SWEEP
from studies.results import FOLDER, Row, read_rows
from studies.statistics import (
    Interval,
    Measure,
    Run,
    at_best,
    at_end,
    gain,
    interval,
    is_unstable,
    largest_drawdown,
    paired,
    passes,
    queries,
    runs_of,
    seen_proxy,
    unseen_gold,
    unseen_proxy,
)

PAGE = Path("docs/study.md")
PLOTS = Path("docs/study")
LEGEND_LETTERS = 150
"""That fit beside each other below a figure."""
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#999999")
"""Okabe and Ito (2008), grey for yellow: told apart by the colour-blind. Markers differ as well."""
MARKERS = "osD^vPX*"
BY_PASSES = ("work", "windows", "samplers")
"""Studies whose curves are drawn over passes of the network, not over reward queries."""

Table = list[list[str]]
Runs = Mapping[int, Run]


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 1 where the page has no place for a table."""
    parser = argparse.ArgumentParser(prog="python -m studies.report", description=__doc__)
    parser.parse_args(arguments)
    results = {name: read_rows(name) for name in STUDIES}
    page, missing = filled(PAGE.read_text(encoding="utf-8"), tables(results))
    replace_file(PAGE, page.encode())
    write_plots(results)
    say(f"{PAGE} and the plots in {PLOTS} are made from {FOLDER}.")
    for name in missing:
        complain(f"{PAGE} has no <!-- {name} --> ... <!-- end -->, so that table is left out.")
    return int(bool(missing))


def tables(results: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Every table as Markdown, by its name on the page; that of a study with its plots."""
    of_study = {name: curves_table(rows, [*STUDIES[name].cells]) for name, rows in results.items()}
    special = {
        "same_bits": bits_table(results["same_bits"]),
        "sweep": sweep_table(results["sweep"]),
        "work": work_table(results["work"], [*STUDIES["work"].cells]),
    }
    return {
        **{name: markdown(table) + _pictures(name) for name, table in (of_study | special).items()},
        "alarms": markdown(alarm_table(results)),
        "costs": markdown(cost_table(results)),
    }


def _pictures(name: str) -> str:
    """The plots of a study, where it has any, and the images that its cells end with."""
    plots = [("", f"study/{figure}.png") for figure in STUDIES[name].figures if read_rows(name)]
    grids = [
        (f"`{path.stem.removeprefix(name + '_')}`:\n\n", f"../{path.as_posix()}")
        for path in sorted(FOLDER.glob(f"{name}_*.png"))
    ]
    return "".join(f"\n\n{label}![{Path(path).stem}]({path})" for label, path in plots + grids)


def filled(page: str, parts: Mapping[str, str]) -> tuple[str, list[str]]:
    """The page with every part in its place, and the names of parts that have none."""
    missing = []
    for name, text in parts.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(page):
            missing.append(name)
        page = place.sub(partial(_put, text), page)
    return page, missing


def _put(text: str, found: re.Match[str]) -> str:
    return f"{found[1]}{text}\n{found[2]}"


def markdown(table: Table) -> str:
    """The first row is the heading; what comes after the first column stands to the right."""
    if len(table) < 2:
        return "No cell of this study has been run yet."
    rules = ["---", *(["---:"] * (len(table[0]) - 1))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (table[0], rules, *table[1:]))


def shown(found: Interval | None, sign: str = "") -> str:
    """`.753 [.741, .766]`; of fewer seeds than give an interval the mean alone; - for None."""
    if found is None:
        return "-"

    def number(value: float) -> str:
        return f"{value:{sign}.4f}".replace("0.", ".", 1)

    return (
        number(found.mean)
        if math.isnan(found.low)
        else (f"{number(found.mean)} [{number(found.low)}, {number(found.high)}]")
    )


def ordered(rows: Sequence[Row], order: Sequence[str]) -> dict[str, dict[int, list[Row]]]:
    """The runs by cell and seed. order: of the cells; one that the catalogue no longer has is left out."""
    found = runs_of(rows)
    return {cell: found[cell] for cell in order if cell in found}


def over(runs: Runs, measure: Callable[[Run], float]) -> Interval:
    """A measure of each run, over seeds."""
    return interval([measure(run) for run in runs.values()])


def curves_table(rows: Sequence[Row], order: Sequence[str]) -> Table:
    """A row a cell: what it gained, and how steadily. order: of the cells; the first is what the others are
    compared with, over the seeds that both have."""
    head = [
        "cell",
        "seeds",
        "unseen proxy, gain",
        f"end less that of {order[0]}",
        "unseen gold, gain",
        "seen proxy, gain",
    ]
    head += ["proxy at best gold, gain", "unstable", "largest drawdown", "passes"]
    cells = ordered(rows, order)
    table = [head]
    for cell, runs in cells.items():
        base = cells.get(order[0], {})
        curves = [[row.unseen_proxy for row in run] for run in runs.values()]
        table.append(
            [
                cell,
                str(len(runs)),
                shown(over(runs, lambda run: gain(run, unseen_proxy)), "+"),
                ""
                if cell == order[0]
                else shown(paired(runs, base, lambda run: at_end(run, unseen_proxy)), "+"),
                shown(over(runs, lambda run: gain(run, unseen_gold)), "+"),
                shown(over(runs, lambda run: gain(run, seen_proxy)), "+"),
                shown(over(runs, lambda run: at_best(run, unseen_proxy) - run[0].unseen_proxy), "+"),
                f"{sum(map(is_unstable, curves))} of {len(runs)}",
                f"{max(map(largest_drawdown, curves)):.4f}",
                f"{np.mean([run[-1].passes for run in runs.values()]):,.0f}",
            ]
        )
    return table


def sweep_table(rows: Sequence[Row]) -> Table:
    """Gains of unseen proxy and gold by objective and learning rate."""
    cells = runs_of(rows)
    methods = dict.fromkeys(cell.rpartition("_")[0] for cell in cells)
    rates = (LOWEST, *SWEEP)
    table = [["objective", *(f"{rate:g}" for rate in rates)]]
    for method in methods:
        found = [cells.get(f"{method}_{rate:g}") for rate in rates]
        table.append([method, *("-" if runs is None else _gains(runs) for runs in found)])
    return table


def _gains(runs: Runs) -> str:
    measures = (unseen_proxy, unseen_gold)
    return " / ".join(shown(over(runs, partial(gain, measure=measure)), "+") for measure in measures)


def bits_table(rows: Sequence[Row]) -> Table:
    """Digests of the weights at each evaluation, of a cell and of the run on Ray."""
    cells = runs_of(rows)
    table = [["objective", "epoch", "a cell's weights", "the run's on Ray", "unseen proxy of both"]]
    for cell, runs in cells.items():
        other = cells.get(cell.replace("_here", "_ray"), {})
        if not cell.endswith("_here") or not other:
            continue
        for row, twin in zip(runs[0], other[0], strict=True):
            proxies = sorted({f"{one.unseen_proxy:.12f}" for one in (row, twin)})
            table.append(
                [
                    cell.removesuffix("_here"),
                    str(row.epoch),
                    row.weights[:16],
                    twin.weights[:16],
                    ", ".join(proxies),
                ]
            )
    return table


LOST = 0.005
"""A cell counts as over-optimised if, on unseen prompts, it ends so far below its best gold and with the
proxy above its beginning."""


def alarm_table(results: Mapping[str, Sequence[Row]]) -> Table:
    """How often the over-optimisation alarm was raised where it should be, and elsewhere."""
    table = [["study", "cells judged", "over-optimised", "of these, with an alarm", "others, with an alarm"]]
    for name, rows in results.items():
        runs = [run for seeds in runs_of(rows).values() for run in seeds.values()]
        if judged := [run for run in runs if run[-1].alarm is not None]:
            pairs = [(_is_over_optimised(run), any(row.alarm for row in run)) for run in judged]
            over = sum(hacked for hacked, _ in pairs)
            counts = (len(pairs), over, pairs.count((True, True)), pairs.count((False, True)))
            table.append([name, *map(str, counts)])
    return table


def _is_over_optimised(run: Sequence[Row]) -> bool:
    lost = max(map(unseen_gold, run)) - unseen_gold(run[-1])
    return lost > LOST and gain(run, unseen_proxy) > 0


def cost_table(results: Mapping[str, Sequence[Row]]) -> Table:
    """What each study took on a processor."""
    table, total = [["study", "cells run", "of", "core hours"]], 0.0
    for name, rows in results.items():
        runs = [run for seeds in runs_of(rows).values() for run in seeds.values()]
        hours = sum(run[-1].seconds for run in runs) / 3600
        study, total = STUDIES[name], total + hours
        table.append([name, str(len(runs)), str(len(study.cells) * len(study.seeds)), f"{hours:.2f}"])
    return [*table, ["all", "", "", f"{total:.2f}"]]


def work_table(rows: Sequence[Row], order: Sequence[str]) -> Table:
    """What each way of doing with less took, as shares of what the first cell took, and how far from the end
    of that one it ends with the same seed."""
    cells = ordered(rows, order)
    table = [["cell", "seeds", "passes", "queries"]]
    table[0] += [f"unseen {score}, end less that of {order[0]}" for score in ("proxy", "gold")]
    plain = cells.get(order[0], {})
    for cell, runs in cells.items():
        both = [(runs[seed][-1], plain[seed][-1]) for seed in runs if seed in plain]
        if both:
            table.append(
                [
                    cell,
                    str(len(both)),
                    *(
                        f"{np.mean([spent(end) / spent(of_plain) for end, of_plain in both]):.2f}"
                        for spent in (passes, queries)
                    ),
                    *(
                        shown(paired(runs, plain, partial(at_end, measure=measure)), "+")
                        for measure in (unseen_proxy, unseen_gold)
                    ),
                ]
            )
    return table


def write_plots(results: Mapping[str, Sequence[Row]], folder: Path = PLOTS) -> None:
    """The figures of the studies that have results: unseen proxy and gold over reward queries or passes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in results.items():
        if rows:
            for figure, cells in STUDIES[name].figures.items():
                curves_figure(name, rows, cells).savefig(folder / f"{figure}.png", dpi=110)


def curves_figure(name: str, rows: Sequence[Row], order: Sequence[str]) -> Figure:
    """Means over seeds, and every seed as a faint line. order: of the cells that it shows."""
    spent, spent_label = (
        (passes, "passes of the network") if name in BY_PASSES else (queries, "reward queries")
    )
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    figure.suptitle(f"{name}: {STUDIES[name].question}", x=0.01, ha="left", fontsize=10)
    left, right = figure.subplots(1, 2)
    for axes, measure, label in (
        (left, unseen_proxy, "proxy (trained on)"),
        (right, unseen_gold, "gold (only evaluates)"),
    ):
        _draw_curves(axes, ordered(rows, order), spent, measure)
        axes.set(xlabel=spent_label, ylabel=f"{label}, unseen prompts")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    # As many beside each other as the longest name leaves room for.
    columns = min(5, LEGEND_LETTERS // (max(map(len, order)) + 8))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return figure


def _draw_curves(axes: Axes, cells: Mapping[str, Runs], spent: Measure, measure: Measure) -> None:
    for number, (cell, runs) in enumerate(cells.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        dashes = "-" if number < len(COLOURS) else "--"
        spents = np.array([[spent(row) for row in run] for run in runs.values()])
        measures = np.array([[measure(row) for row in run] for run in runs.values()])
        axes.plot(spents.T, measures.T, color=colour, alpha=0.2, lw=0.8)
        means = spents.mean(axis=0), measures.mean(axis=0)
        axes.plot(*means, dashes, color=colour, marker=marker, label=cell)


if __name__ == "__main__":
    run_command(main)
