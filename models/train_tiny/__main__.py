"""``python -m models.train_tiny STAGE``: re-make the embedded model, its rewards and prompts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.train_tiny import base, emoji, prompts, report, rewards, vae


@dataclass(frozen=True)
class Stage:
    """A stage of the recipe: what it does, in a line, and the call that does it."""

    help: str
    run: Callable[[argparse.Namespace], None]


# In the order in which 'all' runs them.
STAGES: dict[str, Stage] = {
    "emoji": Stage("rasterise the emoji of the npm package into sprites.png", lambda _: emoji.run()),
    "prompts": Stage("write every prompt with its attributes to prompts/", lambda _: prompts.run()),
    "vae": Stage("train the autoencoder", lambda a: vae.run(a.vae_steps, a.vae_minutes)),
    "proxy": Stage("train the reward to finetune on", lambda _: rewards.run("proxy")),
    "gold": Stage("train the reward that only evaluates", lambda _: rewards.run("gold")),
    "base": Stage(
        "train the text encoder and the UNet", lambda a: base.run(a.base_steps, a.base_minutes, a.resume)
    ),
    "report": Stage("measure the committed weights, draw samples.png", lambda a: report.run(a.pictures)),
}


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments; their defaults are the settings of the committed weights."""
    stages = "\n".join(f"  {name:8} {stage.help}" for name, stage in STAGES.items())
    parser = argparse.ArgumentParser(
        prog="python -m models.train_tiny",
        description=__doc__,
        epilog=f"stages, in this order:\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "stages", nargs="+", choices=[*STAGES, "all"], metavar="STAGE", help="stages, or 'all'"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    for stage, steps, minutes, batch in (("vae", 6000, 15.0, 8), ("base", 20000, 34.0, 64)):
        parser.add_argument(
            f"--{stage}-steps", type=int, default=steps, help=f"batches of {batch} pictures (default {steps})"
        )
        parser.add_argument(
            f"--{stage}-minutes", type=float, default=minutes, help=f"its time at most (default {minutes:g})"
        )
    parser.add_argument(
        "--resume", action="store_true", help="let the base stage train the shipped weights on"
    )
    parser.add_argument(
        "--pictures", type=int, default=200, help="pictures a row of the report (default 200)"
    )
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Run the named stages one after another, in the recipe's order."""
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    for name, stage in STAGES.items():
        if name in options.stages or "all" in options.stages:
            stage.run(options)


if __name__ == "__main__":
    main()
