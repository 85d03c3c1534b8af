"""``python -m models.train_tiny STAGE``: re-make the embedded model, its rewards and prompts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from common.terminal import run_command
from driver.command_line import fail, writable_folder
from models.train_tiny import base, emoji, facts, flow, prompts, quickstart, report, rewards, vae
from models.train_tiny.clip import PLANS
from models.train_tiny.paths import MODELS


@dataclass(frozen=True)
class Stage:
    """A stage of the recipe: what it does, in a line, and the call that does it."""

    help: str
    run: Callable[[argparse.Namespace], None]


def _proxy(options: argparse.Namespace) -> None:
    rewards.run("proxy", options.proxy_steps, options.text_steps, options.into)


def _gold(options: argparse.Namespace) -> None:
    rewards.run("gold", options.gold_steps, options.text_steps, options.into)


def _base(options: argparse.Namespace) -> None:
    base.run(options.base_steps, options.text_steps, options.into)


def _flow(options: argparse.Namespace) -> None:
    flow.run(options.flow_steps, options.text_steps, options.into)


# In the order in which 'all' runs them. The rewards need the autoencoder, flow also the text encoder of
# base; vae and base need no other stage.
STAGES: dict[str, Stage] = {
    "emoji": Stage("rasterise the emoji of the npm package into sprites.png", lambda _: emoji.run()),
    "prompts": Stage("write every prompt with its attributes to prompts/", lambda _: prompts.run()),
    "vae": Stage("train the autoencoder", lambda a: vae.run(a.vae_steps, a.into)),
    "proxy": Stage("train the reward to finetune on", _proxy),
    "gold": Stage("train the reward that only evaluates", _gold),
    "base": Stage("train the text encoder and the UNet", _base),
    "flow": Stage("train the transformer of the flow model", _flow),
    "quickstart": Stage(
        "write the quickstart's prompts to prompts/quickstart_*", lambda a: quickstart.run(a.into)
    ),
    "report": Stage("measure the weights, draw samples.png", lambda a: report.run(a.pictures, a.into)),
}
# Stage -> default steps and batch.
STEPS: dict[str, tuple[int, int]] = {
    "text": (facts.TEXT_STEPS, facts.TEXT_BATCH),
    "vae": (vae.STEPS, vae.BATCH),
    "proxy": (PLANS["proxy"].steps, rewards.BATCH),
    "gold": (PLANS["gold"].steps, rewards.BATCH),
    "base": (base.STEPS, base.BATCH),
    "flow": (flow.STEPS, flow.BATCH),
}


def make_parser() -> argparse.ArgumentParser:
    """The command's arguments; their defaults are the settings of the committed weights."""
    stages = "\n".join(f"  {name:8} {stage.help}" for name, stage in STAGES.items())
    parser = argparse.ArgumentParser(
        prog="python -m models.train_tiny",
        description="Re-make the embedded model, its rewards and prompts.",
        epilog=f"stages, in this order:\n{stages}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "stages", nargs="+", choices=[*STAGES, "all"], metavar="STAGE", help="stages, or 'all'"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    for stage, (steps, batch) in STEPS.items():
        parser.add_argument(
            f"--{stage}-steps", type=int, default=steps, help=f"batches of {batch} (default {steps})"
        )
    parser.add_argument(
        "--into",
        type=Path,
        default=MODELS,
        help="folder for trained weights and samples.png (default: models/)",
    )
    parser.add_argument(
        "--pictures", type=int, default=120, help="pictures a row of the report (default 120)"
    )
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the named stages one after another, in the recipe's order. Returns the exit status, 2 for an error
    that the text explains."""
    options = make_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    with fail():
        writable_folder("--into", options.into)
        for name, stage in STAGES.items():
            if name in options.stages or "all" in options.stages:
                stage.run(options)
        return 0
    return 2


if __name__ == "__main__":
    run_command(main)
