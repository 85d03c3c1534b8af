"""Measure a checkpoint against the pretrained model or another checkpoint: python evaluate.py
--checkpoint PLACE [--against PLACE] [--prompts FILE | --suite NAME|FILE] [key=value ...]"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import ConfigError
from common.storage import replace_file
from common.terminal import run_command
from driver import api
from driver.command_line import Arguments, check_writable, fail, parse_arguments, writable_folder

USAGE = (
    "python evaluate.py --checkpoint PLACE [--against PLACE] [--prompts FILE] [--output FOLDER] "
    "[key=value ...]\n"
    "       python evaluate.py --checkpoint PLACE --suite NAME|FILE [--guidances 1,3,5] [--output FOLDER] "
    "[key=value ...]"
)
FLAGS = {
    "--checkpoint": "folder or URI of a checkpoint, RUN_FOLDER/checkpoints/epoch_…, compared with the "
    "pretrained model",
    "--against": "another checkpoint of the same model, compared with in place of the pretrained model",
    "--config": "configuration file, instead of the checkpoint's own; without --checkpoint: the "
    "pretrained model alone",
    "--prompts": "prompt set to evaluate, instead of the configuration's seen and unseen prompts",
    "--suite": "prompt suite to evaluate beside the configuration's seen and unseen prompts: the file that "
    "its repository publishes, or geneval, drawbench, partiprompts, pickapic, hpdv2 for the one in suites/",
    "--suite-prompts": "how many of the suite's prompts are drawn (all)",
    "--guidances": "guidances that the pretrained model is tried at for its best, such as 1,3,5 (its own "
    "alone); with --suite",
    "--output": "folder for the table and the picture grid (evaluation)",
}
SWITCHES = {
    "--suite-alone": "leave out the seen and unseen prompts, for a reward that knows only the suite's",
}


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 2 an error that the text explains."""
    with fail():
        given = parse_arguments(arguments, USAGE, FLAGS, SWITCHES)
        if given.words:
            raise ConfigError(
                f"Not understood: {' '.join(given.words)}.{given.not_understood(given.words)}\nUsage: {USAGE}"
            )
        (evaluate_suite if "--suite" in given.flags else evaluate)(given)
        return 0
    return 2


def evaluate(given: Arguments) -> None:
    """Measure, write table and grid, show the table."""
    if only := [flag for flag in ("--suite-prompts", "--suite-alone", "--guidances") if flag in given.flags]:
        raise ConfigError(f"{' and '.join(only)}: belongs to --suite NAME|FILE, which is not given.")
    flags = given.flags
    checkpoint, against = flags.get("--checkpoint"), flags.get("--against")
    config = api.load(flags.get("--config"), checkpoint, given.overrides)
    table_file, grid_file = output_files(given, "table.md", "grid.png")
    evaluations = api.evaluate(checkpoint, config, flags.get("--prompts"), against)
    # Imported here, so that --help and mistakes answer at once.
    from driver.report.console import PlainConsole
    from driver.report.images import before_after_grid, sample_grid
    from driver.report.intervals import (
        change_markdown,
        change_table,
        compare,
        evaluation_markdown,
        evaluation_table,
    )
    from driver.report.showing import showing

    console = PlainConsole()
    if checkpoint is not None:
        # Whatever epochs the other checkpoint has, it is what was asked for: no remark on a late beginning.
        changes = [replace(change, since=0) for change in compare(evaluations)]
        title = checkpoint if against is None else f"{checkpoint} against {against}"
        table, markdown = change_table(changes, title), change_markdown(changes)
    else:
        table = evaluation_table(evaluations[0], config.model.path)
        markdown = evaluation_markdown(evaluations[0])
    replace_file(table_file, markdown.encode())
    with showing("The picture grid", console.print):
        shown, packed = evaluations[0].sets[-1], io.BytesIO()
        if checkpoint is not None:
            grid = before_after_grid(shown, evaluations[-1].sets[-1])
        else:
            grid = sample_grid(list(shown.pixels), list(shown.prompts[: len(shown.pixels)]))
        grid.save(packed, "PNG")
        replace_file(grid_file, packed.getvalue())
    console.print(table)
    console.print(f"Written: {table_file}, {grid_file}", soft_wrap=True)


def evaluate_suite(given: Arguments) -> None:
    """Measure on a suite, write report, results and each prompt's scores, show the comparisons."""
    checkpoint = given.flags.get("--checkpoint")
    if checkpoint is None or {"--prompts", "--against"} & given.flags.keys():
        raise ConfigError(
            "--suite compares a checkpoint with its pretrained model: give --checkpoint PLACE, and neither "
            "--prompts nor --against."
        )
    count = given.whole_number("--suite-prompts", 0, 1) if "--suite-prompts" in given.flags else None
    config = api.load(given.flags.get("--config"), checkpoint, given.overrides)
    files = output_files(given, "suite.md", "suite.json", "suite_prompts.jsonl")
    found = api.evaluate_suite(
        given.flags["--suite"], checkpoint, config, guidances(given), count, "--suite-alone" in given.flags
    )
    # Imported here, so that --help and mistakes answer at once.
    from driver.report.console import PlainConsole
    from driver.report.intervals import change_table

    texts = (found.markdown(), json.dumps(found.result(), indent=1) + "\n", found.prompt_lines())
    for file, text in zip(files, texts, strict=True):
        replace_file(file, text.encode())
    console = PlainConsole()
    for title, base in found.baselines().items():
        console.print(change_table(found.changes(base), f"{title}, checkpoint at {found.guidance:g}"))
    console.print(f"Written: {', '.join(map(str, files))}", soft_wrap=True)


def output_files(given: Arguments, *names: str) -> list[Path]:
    """The files of these names in --output, which is made. Raises ConfigError where one cannot be written."""
    output = writable_folder("--output", Path(given.flags.get("--output", "evaluation")))
    files = [output / name for name in names]
    for file in files:
        check_writable("--output", file)
    return files


def guidances(given: Arguments) -> list[float]:
    """Those of --guidances. Raises ConfigError where one is no number of at least 1."""
    text = given.flags.get("--guidances", "")
    try:
        values = [float(one) for one in text.split(",") if one.strip()]
    except ValueError:
        values = [0.0]
    if not all(1.0 <= value < float("inf") for value in values):
        raise ConfigError(f"--guidances must be numbers of at least 1, such as 1,3,5; got {text!r}.")
    return values


if __name__ == "__main__":
    run_command(main)
