"""Who generated, scored, learned and waited in one epoch, and which pool to grow:

python -m driver.report.timeline RUN_FOLDER [--epoch N]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.errors import PrdpError, RunFolderError
from driver.observe.timeline_log import timeline_file, timeline_files
from driver.report.timeline_path import OTHER, advice, busy_share, critical_path, waits
from driver.report.timeline_picture import draw_timeline
from driver.report.timeline_spans import ACTORS, LEARNER, REWARDS, Timeline
from driver.report.timeline_trace import read_trace


def find_timeline(run_folder: Path, epoch: int) -> Path:
    """The file of an epoch (its number from 1; 0 = the last one kept). Raises RunFolderError."""
    kept = timeline_files(run_folder)
    if not kept:
        raise RunFolderError(
            f"{run_folder} keeps no timelines. Give a run's folder (runs/NAME) that has finished an epoch; "
            "display.timelines says how many it keeps."
        )
    if not epoch:
        return kept[-1]
    file = timeline_file(run_folder, epoch)
    if file not in kept:
        names = ", ".join(str(int(found.stem.removeprefix("epoch_"))) for found in kept)
        raise RunFolderError(f"{run_folder} keeps no timeline of epoch {epoch}, only of {names}.")
    return file


def role_table(timeline: Timeline) -> Table:
    """What each role did."""
    table = Table(title=f"Epoch {timeline.epoch}: {timeline.seconds:.3g} s", title_justify="left")
    table.add_column("role")
    for column in ("processes", "with work", "waited for"):
        table.add_column(column, justify="right")
    waited = waits(critical_path(timeline))
    rows = [
        (ACTORS, "", len(timeline.processes(ACTORS))),
        *((REWARDS, name, 1) for name in timeline.processes(REWARDS)),
        (LEARNER, "", len(timeline.processes(LEARNER))),
    ]
    for role, who, count in rows:
        table.add_row(
            f"reward {who}" if who else role,
            "" if who else str(count),
            f"{busy_share(timeline, role, who):.0%}",
            f"{waited.get((role, who), 0.0):.3g} s",
        )
    table.add_row("between them", "", "", f"{waited.get((OTHER, ''), 0.0):.3g} s")
    return table


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m driver.report.timeline", description=__doc__)
    parser.add_argument("run_folder", type=Path, help="such as runs/quickstart")
    parser.add_argument(
        "--epoch", type=int, default=0, help="its number, from 1; the last one kept where not given"
    )
    given = parser.parse_args(arguments)
    console = Console()
    try:
        file = find_timeline(given.run_folder, given.epoch)
        timeline = read_trace(file)
        picture = draw_timeline(timeline, file.with_suffix(".png"))
    except PrdpError as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False, soft_wrap=True)
        return 1
    console.print(role_table(timeline))
    console.print(advice(timeline), markup=False, highlight=False)
    console.print(f"Picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"Trace, for https://ui.perfetto.dev: {file}", markup=False, highlight=False, soft_wrap=True
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
