"""Finetune a text-to-image diffusion model on black-box rewards: python train.py CONFIG.yaml [key=value ...]
[--fork CHECKPOINT] [--accept-changes] [--check]

The run itself is driver/loop/training.py, which reads as Algorithm 1 of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

from common.terminal import run_command, say
from driver.api import check, train
from driver.command_line import fail, parse_arguments

USAGE = "python train.py CONFIG.yaml [key=value ...] [--fork CHECKPOINT] [--accept-changes] [--check]"
STOPPED = 130
FLAGS = {
    "--fork": "folder or URI of a checkpoint: a new run begins with its weights, optimizer state and averages"
}
SWITCHES = {
    "--accept-changes": "go on with a run whose model, prompts or settings have changed; that is recorded",
    "--check": "check settings, prompts, the model's files and rewards (not --fork), and start nothing",
}


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 finished, 130 stopped with a checkpoint, 2 an error that the text
    explains."""
    with fail():
        given = parse_arguments(arguments, USAGE, FLAGS, SWITCHES)
        config = given.config()
        if "--check" in given.flags:
            check(config)
            say(f"Settings, prompts, model and rewards of {config.run.name} fit. Nothing was started.")
            return 0
        try:
            accept_changes = "--accept-changes" in given.flags
            return 0 if train(config, given.flags.get("--fork"), accept_changes) else STOPPED
        except KeyboardInterrupt:
            return STOPPED
    return 2


if __name__ == "__main__":
    run_command(main)
