"""Run the cells of a study that have no results yet, one after the other, in one thread.

A cell's results are written when it is through; one that is killed is run again from its beginning by the
same command. Several processes may run one study side by side: each takes a cell that no other has.
"""

from __future__ import annotations

import argparse
import fcntl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from common.config.schema import Config
from common.errors import PrdpError
from common.terminal import complain, run_command, say
from driver import api
from driver.report.evaluation import Evaluation
from driver.report.images import before_after_grid
from driver.report.over_optimisation import over_optimisation
from driver.run.evaluations import load_evaluations
from studies.catalogue import STUDIES, Study
from studies.cell import Cell, Measurement
from studies.prompts import write_prompts
from studies.results import FOLDER, Row, add_rows, read_rows, twin_rows

LOCKS = Path("runs/studies/locks")
GRID_PROMPTS = 4


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m studies.run", description=__doc__)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="these only")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="in place of the study's own")
    parser.add_argument("--list", action="store_true", help="say what is done and what is not, run nothing")
    parser.add_argument(
        "--results", type=Path, default=FOLDER, metavar="FOLDER", help="another one, to run cells again"
    )
    options = parser.parse_args(arguments)
    study: Study = STUDIES[options.study]
    cells = options.cells or list(study.cells)
    if unknown := sorted(set(cells) - set(study.cells)):
        parser.error(f"{study.name} has no cell {unknown[0]}; it has {', '.join(study.cells)}")
    torch.set_num_threads(1)
    if not options.list:
        write_prompts()
    for seed in options.seeds or study.seeds:
        for cell in cells:
            name = f"{study.name} {cell} seed {seed}"
            if options.list:
                say(f"{'done' if is_done(study, cell, seed, options.results) else 'to do'}  {name}")
                continue
            with claimed(f"{study.name}_{cell}_{seed}") as is_ours:
                if not is_ours:
                    say(f"{name}: in work elsewhere")
                elif is_done(study, cell, seed, options.results):
                    say(f"{name}: done already")
                else:
                    try:
                        run_cell(study, cell, seed, options.results)
                    except PrdpError as error:
                        complain(f"{name}: {error}")
                        return 1
    return 0


def is_done(study: Study, cell: str, seed: int, folder: Path = FOLDER) -> bool:
    """Whether there are results of the cell as the catalogue has it now."""
    key = (cell, seed, study.digest(cell))
    return any((row.cell, row.seed, row.settings) == key for row in read_rows(study.name, folder))


@contextmanager
def claimed(name: str) -> Iterator[bool]:
    """Whether no other process has the cell of that name in work. It is this process's until the end."""
    LOCKS.mkdir(parents=True, exist_ok=True)
    with (LOCKS / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def run_cell(study: Study, cell: str, seed: int, folder: Path = FOLDER) -> None:
    """Train it, and write its results. Raises PrdpError."""
    config, settings = study.config(cell, seed), study.digest(cell)
    # Runs on Ray are there to be compared with their twins, and pictures are kept of none.
    twins = [] if study.on_ray or study.grids else twin_rows(study.name, cell, seed, settings, folder)
    if twins:
        say(f"{study.name} {cell} seed {seed}: taken from another study's run of the same settings")
        add_rows(twins, folder)
        return
    rows, evaluations = list[Row](), list[Evaluation]()
    for measured in _on_ray(config) if cell in study.on_ray else Cell.of(config).train():
        evaluations.append(measured.evaluation)
        alarm = over_optimisation(evaluations, ("gold",))
        row = Row.of(study.name, cell, seed, settings, measured, alarm)
        rows.append(row)
        say(
            f"{study.name} {cell} seed {seed} epoch {row.epoch}: unseen proxy {row.unseen_proxy:.4f}, "
            f"gold {row.unseen_gold:.4f}, {row.queries} queries, {row.passes} passes, {row.seconds:.0f} s"
        )
    if study.grids and seed == study.seeds[0]:
        _write_grid(evaluations, folder / f"{study.name}_{cell}.png")
    add_rows(rows, folder)


def _on_ray(config: Config) -> Iterator[Measurement]:
    """What the whole trainer measures. Passes and seconds are not counted."""
    api.train(config)
    for evaluation in load_evaluations(config.run_folder):
        queries = evaluation.epoch * config.trajectories_per_epoch
        yield Measurement(evaluation.epoch, queries, 0, evaluation, (), 0.0)


def _write_grid(evaluations: Sequence[Evaluation], path: Path) -> None:
    """The images of GRID_PROMPTS unseen prompts at the first and at the last evaluation."""
    before, after = (
        replace(unseen, pixels=unseen.pixels[:GRID_PROMPTS])
        for evaluation in (evaluations[0], evaluations[-1])
        for unseen in evaluation.sets
        if unseen.name == "unseen"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    before_after_grid(before, after).save(path, optimize=True)


if __name__ == "__main__":
    run_command(main)
