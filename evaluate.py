"""Measure a checkpoint against the pretrained model: python evaluate.py --checkpoint PLACE [--prompts FILE]
[key=value ...]"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError
from common.storage import replace_file
from common.terminal import need_docstrings, run_command
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
    prompts, overrides = given.flags.get("--prompts"), list(given.overrides)
    if prompts is not None:
        overrides.append(f"prompts.unseen={prompts}")
    need_docstrings()
    # Ray is never imported; torch only after the arguments have been found to be sound.
    from driver.loop.tasks import choose_prompts
    from driver.report.console import PlainConsole, plain_progress
    from driver.report.images import before_after_grid, sample_grid
    from driver.report.intervals import (
        change_markdown,
        change_table,
        compare,
        evaluation_markdown,
        evaluation_table,
    )
    from driver.report.showing import showing
    from driver.run.prompts import PromptStream, open_prompts
    from driver.standalone import choose, load_pretrained, measure
    from reward_service.client.local import local_rewards

    chosen = choose(given.flags, overrides)
    config = chosen.config
    rewards, console = local_rewards(config.rewards, config.gold, config.reward_service), PlainConsole()
    stream = PromptStream(open_prompts(config.prompts.train), config.run.seed)
    prompt_sets = choose_prompts(config, stream, open_prompts(config.prompts.unseen))
    if prompts is not None:
        prompt_sets = {Path(prompts).stem: prompt_sets["unseen"]}
    with plain_progress(console) as progress:
        # The checkpoint first: where it cannot be loaded, nothing has been measured in vain.
        after = measure(config, chosen.load(), rewards, prompt_sets, progress) if chosen.checkpoint else None
        before = measure(config, load_pretrained(config), rewards, prompt_sets, progress)
    if after is not None:
        changes = compare([before, after])
        table, markdown = change_table(changes, chosen.checkpoint or ""), change_markdown(changes)
    else:
        table, markdown = evaluation_table(before, config.model.path), evaluation_markdown(before)
    replace_file(table_file, markdown.encode())
    with showing("The picture grid", console.print):
        shown, packed = before.sets[-1], io.BytesIO()
        if after is not None:
            grid = before_after_grid(shown, after.sets[-1])
        else:
            grid = sample_grid(list(shown.pixels), list(shown.prompts[: len(shown.pixels)]))
        grid.save(packed, "PNG")
        replace_file(grid_file, packed.getvalue())
    console.print(table)
    console.print(f"Written: {table_file}, {grid_file}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
