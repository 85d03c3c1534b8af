"""Measure a checkpoint against the pretrained model: python evaluate.py --checkpoint PLACE [--prompts FILE]
[key=value ...]"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError
from common.storage import replace_file
from common.terminal import run_command
from driver import api
from driver.command_line import Arguments, check_writable, fail, parse_arguments, writable_folder

USAGE = "python evaluate.py --checkpoint PLACE [--prompts FILE] [--output FOLDER] [key=value ...]"
FLAGS = {
    "--checkpoint": "folder or URI of a checkpoint, RUN_FOLDER/checkpoints/epoch_…, compared with the "
    "pretrained model",
    "--config": "configuration file, instead of the checkpoint's own; without --checkpoint: the "
    "pretrained model alone",
    "--prompts": "prompt set to evaluate, instead of the configuration's seen and unseen prompts",
    "--output": "folder for the table and the picture grid (evaluation)",
}


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 done, 2 an error that the text explains."""
    with fail():
        given = parse_arguments(arguments, USAGE, FLAGS)
        if given.words:
            raise ConfigError(
                f"Not understood: {' '.join(given.words)}.{given.not_understood(given.words)}\nUsage: {USAGE}"
            )
        evaluate(given)
        return 0
    return 2


def evaluate(given: Arguments) -> None:
    """Measure, write table and grid, show the table."""
    output = writable_folder("--output", Path(given.flags.get("--output", "evaluation")))
    table_file, grid_file = output / "table.md", output / "grid.png"
    for file in (table_file, grid_file):
        check_writable("--output", file)
    flags = given.flags
    checkpoint = flags.get("--checkpoint")
    config = api.load(flags.get("--config"), checkpoint, given.overrides)
    evaluations = api.evaluate(checkpoint, config, flags.get("--prompts"))
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
        changes = compare(evaluations)
        table, markdown = change_table(changes, checkpoint), change_markdown(changes)
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


if __name__ == "__main__":
    run_command(main)
