"""What the two content types cost: bytes, and time to encode and decode a group and its reply, both ends."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import Machine
from benchmarks.report import RESULTS, Result, raw_of, verdict_of
from benchmarks.timing import Comparison, alternate
from common.trajectory import ScorerStamp
from reward_service.contract.results import NoShadow, RewardScores
from reward_service.http.limits import HttpLimits
from reward_service.http.wire import ARROW, JSON, Group, Wire

ABOUT = "Encode and decode groups of 16 pictures and their replies as JSON and as Arrow."
IMAGES = 16
SIDES = (64, 512)
TARGET = 3.0
_WIRES = {"JSON": JSON, "Arrow": ARROW}


def picture_like(side: int) -> NDArray[np.uint8]:
    """uint8 (16, side, side, 3): soft random colours with grain; a PNG packs it about as a photo."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    soft = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BICUBIC)) for one in small]
    grain = rng.normal(0.0, 3.0, (IMAGES, side, side, 3))
    pixels: NDArray[np.uint8] = np.clip(np.stack(soft) + grain, 0, 255).astype(np.uint8)
    return pixels


def part() -> RewardScores:
    """A reply of 16 rewards."""
    rewards = np.random.default_rng(1).normal(size=IMAGES)
    stamp = ScorerStamp("pickscore", "1", "0" * 64)
    return RewardScores(rewards, rewards[:, None] - rewards[None, :], 0.0, stamp)


def round_trip(wire: Wire, group: Group) -> Callable[[int], object]:
    """Client encodes, server decodes, server encodes the reply, client decodes it."""
    limits, answer = HttpLimits(), part()

    def run(_: int) -> object:
        wire.decode_group(wire.encode_group(group), limits, lambda count: None)
        return wire.decode_reply(wire.encode_reply(answer, 0.0, NoShadow()), IMAGES)

    return run


def compare(side: int, repeats: int, warm_ups: int) -> Comparison:
    """Arrow against JSON, in turns."""
    group = Group("a red apple", picture_like(side))
    sides = [round_trip(ARROW, group), round_trip(JSON, group)]
    arrow, json_ = alternate(sides, repeats, warm_ups, torch.device("cpu"))
    what = f"Arrow over JSON, groups of {IMAGES} at {side} x {side}"
    return Comparison(what=what, items=1, unit="groups", ours=arrow, bare=json_, target=TARGET)


def request_bytes(side: int) -> dict[str, int]:
    """Bytes of a request, by content type."""
    group = Group("a red apple", picture_like(side))
    return {name: len(wire.encode_group(group)) for name, wire in _WIRES.items()}


def measure(repeats: int, warm_ups: int, command: str) -> Result:
    """Measure at each picture size."""
    machine = Machine.here()
    found = {side: compare(side, repeats, warm_ups) for side in SIDES}
    figures: dict[str, str] = {}
    for side, one in found.items():
        medians = {"JSON": one.bare.wall, "Arrow": one.ours.wall}
        for name, size in request_bytes(side).items():
            seconds = statistics.median(medians[name])
            figures[f"{name} at {side} x {side}"] = f"{seconds * 1e3:.2f} ms, request of {size / 1e6:.3f} MB"
        figures[f"{one.what}, in CPU time"] = f"{one.cpu_ratio:.1f}"
    return Result(
        name="wire",
        command=command,
        settings={"images": IMAGES, "repeats": repeats, "warm-ups": warm_ups},
        machine=machine,
        verdicts=tuple(verdict_of(one) for one in found.values()),
        figures=figures,
        raw={one.what: raw_of(one) for one in found.values()},
        notes=(
            "Encoding and decoding only, in one process; no network. JSON carries PNG files in base64, Arrow "
            "raw pixels: on a slow network JSON's fewer bytes can outweigh its work.",
        ),
    )


def main(arguments: Sequence[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.wire", description=ABOUT)
    parser.add_argument("--repeats", type=int, default=15, help="timed turns (default: %(default)s)")
    parser.add_argument("--warm-ups", type=int, default=2, help="turns before them (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    command = " ".join(["python -m benchmarks.wire", *arguments])
    measure(given.repeats, given.warm_ups, command).publish(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
