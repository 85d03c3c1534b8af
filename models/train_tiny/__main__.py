"""``python -m models.train_tiny STAGE``: re-make the embedded model, its rewards and prompts."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch

from models.train_tiny import base, emoji, prompts, refine, report, rewards, vae


@dataclass(frozen=True)
class Stage:
    """A stage of the recipe: what it does, in a line, and the call that does it."""

    help: str
    run: Callable[[argparse.Namespace], None]


# In the order in which 'all' runs them.
STAGES: dict[str, Stage] = {
    "emoji": Stage("rasterise the emoji of the npm package into sprites.png", lambda _: emoji.run()),
    "prompts": Stage("write every prompt with its attributes to prompts/", lambda _: prompts.run()),
    "vae": Stage("train the autoencoder", lambda a: vae.run(a.vae_steps)),
    "refine": Stage(
        "train the autoencoder's decoder on, the encoder fixed", lambda a: refine.run(a.refine_steps)
    ),
    "proxy": Stage("train the reward to finetune on", lambda a: rewards.run("proxy", a.proxy_steps)),
    "gold": Stage("train the reward that only evaluates", lambda a: rewards.run("gold", a.gold_steps)),
    "base": Stage("train the text encoder and the UNet", lambda a: base.run(a.base_steps, a.base_minutes)),
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
    parser.add_argument("--vae-steps", type=int, default=4200, help="batches of 8 pictures (default 4200)")
    parser.add_argument("--refine-steps", type=int, default=3000, help="batches of 8 pictures (default 3000)")
    parser.add_argument(
        "--proxy-steps", type=int, default=1700, help="batches of 108 pictures (default 1700)"
    )
    parser.add_argument("--gold-steps", type=int, default=1500, help="batches of 108 pictures (default 1500)")
    parser.add_argument(
        "--base-steps", type=int, default=12000, help="batches of 96 pictures (default 12000)"
    )
    parser.add_argument(
        "--base-minutes", type=float, default=40.0, help="end the base stage by this time (default 40)"
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
