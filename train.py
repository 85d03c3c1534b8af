"""Finetune a text-to-image diffusion model on black-box rewards: python train.py CONFIG.yaml [key=value ...]
[--fork CHECKPOINT] [--accept-changes]

The run itself is driver/loop/training.py, which reads as Algorithm 1 of the paper.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from common.config.paths import check_paths
from common.terminal import need_docstrings, run_command, say
from driver.command_line import fail, parse_arguments
from driver.ray_environment import check_temporary_folder, prepare
from driver.report.store_check import check_store

USAGE = "python train.py CONFIG.yaml [key=value ...] [--fork CHECKPOINT] [--accept-changes]"
FLAGS = {
    "--fork": "folder or URI of a checkpoint: a new run begins with its weights, optimizer state and averages"
}
SWITCHES = {
    "--accept-changes": "go on with a run though its model, prompts or settings have changed, and record that"
}


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 finished, 130 stopped with a checkpoint, 2 an error that the text
    explains."""
    with fail():
        given = parse_arguments(arguments, USAGE, FLAGS, SWITCHES)
        config = given.config()
        need_docstrings()
        check_paths(config, os.environ, Path.cwd())
        if config.ray.address == "local":
            check_temporary_folder(os.environ)
        prepare(config.ray, os.environ)
        say(f"Starting {config.run.name} in {config.run_folder}: its libraries load.")
        check_store(config.tracker.uri)
        # Ray and torch are imported only after the configuration has been found to be sound.
        from driver.main import train
        from driver.report.console import PlainConsole

        try:
            accept_changes = "--accept-changes" in given.flags
            return train(config, PlainConsole(), given.flags.get("--fork"), accept_changes)
        except KeyboardInterrupt:
            return 130
    return 2


if __name__ == "__main__":
    run_command(main)
