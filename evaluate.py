"""Measure a checkpoint against the pretrained model: python evaluate.py --checkpoint PLACE [--prompts FILE]
[key=value ...]"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from common.errors import ConfigError
from driver.command_line import Arguments, fail, parse_arguments

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
            raise ConfigError(f"Not understood: {' '.join(given.words)}.\nUsage: {USAGE}")
        evaluate(given)
        return 0
    return 2


def evaluate(given: Arguments) -> None:
    """Measure, print the table, write table and grid."""
    output = Path(given.flags.get("--output", "evaluation"))
    overrides = [*given.overrides, *(f"prompts.unseen={path}" for path in _given(given, "--prompts"))]
    # Ray is never imported; torch only after the arguments have been found to be sound.
    from rich.console import Console
    from rich.progress import Progress

    from driver.loop.evaluation import choose_prompts
    from driver.measuring import measure
    from driver.pretrained import choose, load_pretrained
    from driver.report.images import before_after_grid, sample_grid
    from driver.report.intervals import (
        change_markdown,
        change_table,
        compare,
        evaluation_markdown,
        evaluation_table,
    )
    from driver.run.prompts import PromptStream, open_prompts
    from reward_service.client.local import local_rewards

    chosen = choose(given.flags, overrides)
    config = chosen.config
    rewards, console = local_rewards(config.rewards, config.gold, config.reward_service), Console()
    stream = PromptStream(open_prompts(config.prompts.train), config.run.seed)
    prompt_sets = choose_prompts(config, stream, open_prompts(config.prompts.unseen))
    wanted = prompt_sets
    for path in _given(given, "--prompts"):
        wanted = {Path(path).stem: prompt_sets["unseen"]}
    output.mkdir(parents=True, exist_ok=True)
    with Progress(console=console) as progress:
        before = measure(config, load_pretrained(config), rewards, wanted, progress, "Pretrained")
        after = [
            measure(config, chosen.load(), rewards, wanted, progress, "Checkpoint")
            for _ in chosen.checkpoints
        ]
    shown = before.sets[-1]
    if after:
        changes = compare(before, after[0])
        console.print(change_table(changes, chosen.checkpoints[0]))
        (output / "table.md").write_text(change_markdown(changes))
        grid = before_after_grid(shown, after[0].sets[-1])
    else:
        console.print(evaluation_table(before, config.model.path))
        (output / "table.md").write_text(evaluation_markdown(before))
        grid = sample_grid(list(shown.pixels), list(shown.prompts[: len(shown.pixels)]))
    grid.save(output / "grid.png")
    console.print(f"Written: {output / 'table.md'}, {output / 'grid.png'}")


def _given(given: Arguments, flag: str) -> list[str]:
    return [given.flags[flag]] if flag in given.flags else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
