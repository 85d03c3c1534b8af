"""What the driver costs with 10, 100 and 1,000 actors: the real loop, actors that sleep for a GPU's time."""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.machine import Machine
from benchmarks.options import at_least_one, command_of, out_folder
from benchmarks.report import RESULTS, Result, Verdict
from benchmarks.scale_parts import Sizes
from benchmarks.scale_run import ACTORS_A_RANK, REWARD_SECONDS, ROLES, Row
from benchmarks.scale_shapes import SD15_COST, SECONDS_ON_A100
from common.errors import PrdpError
from common.terminal import complain, run_command

ABOUT = (
    "Epochs of the real driver (loop, pool, rewards by Serve, learner queue, tracker) with simulated actors, "
    "reward and learner, which sleep for a GPU's time and return real objects. First with as many groups a "
    "second from 10, 100 and 1,000 actors, and answers that come one by one, which is the hardest for a "
    "driver: only the number of actors differs. Then the first of these again with a process for each "
    "actor; then with the time that an actor is estimated to need on an A100, and objects of Stable "
    "Diffusion 1.5's size where they fit."
)
NOTES = (
    "Real: driver/loop/training.py, rollouts.py, source.py, the actors' pool, the rewards over a handle "
    "and its replica, the learner's queue, Ray's object store and control processes, MLflow. Simulated: "
    "actors, scorer and learner ranks sleep, and 500 actors (or all ranks) share one process, so there are "
    "fewer worker processes, connections and nodes than on a cluster, and no network. All of it shares this "
    "machine's cores, which a cluster's driver has for itself: CPU time of the driver carries over, epochs "
    "an hour at the highest rates are this machine's limit. Ideal: actors that are never idle, then the "
    "last groups' score and gradient.",
)
RATE, ALONE, GPU = "rate", "alone", "gpu"
TITLES = {
    RATE: "The same rate from more actors",
    ALONE: "A process for each actor",
    GPU: "The time that an A100 is estimated to need",
}
SCATTER, STEADY = 0.5, 0.05
"""By how much, as a share, an actor's time for a group differs from the mean."""
MOST_GROWTH = 1.25
MOST_OF_STORE = 0.7
ACTORS_A_HOST = 500
MOST_SECONDS_A_ROW = 900.0
THIN = Sizes(images=8, steps=50, latent=8, pixels=64, weight_bytes=12_800_000)
"""For rows whose real objects would not fit: the driver only moves references."""


@dataclass(frozen=True)
class Plan:
    """What was asked for. rate: groups a second of the first table; store_gb: object store."""

    actors: tuple[int, ...]
    rate: float
    epochs: int
    store_gb: float

    def rows(self) -> dict[str, tuple[Row, ...]]:
        """Rows by table."""
        lora_bytes = 4 * SD15_COST.lora_parameters
        real = Sizes(8, 50, SD15_COST.latent, SD15_COST.pixels, lora_bytes)
        seconds = SECONDS_ON_A100
        scattered = tuple(
            self._row(count, count / self.rate, SCATTER, max(2, 200 // count), THIN) for count in self.actors
        )
        return {
            RATE: scattered,
            ALONE: tuple(replace(row, hosts=row.actors) for row in scattered[:1]),
            GPU: tuple(self._row(count, seconds, STEADY, 2, real) for count in self.actors),
        }

    def _row(self, actors: int, seconds: float, jitter: float, turns: int, sizes: Sizes) -> Row:
        hosts = -(-actors // ACTORS_A_HOST)
        kept = actors * turns * sizes.group_bytes
        fits = kept <= MOST_OF_STORE * self.store_gb * 1e9
        return Row(actors, seconds, jitter, turns, hosts, self.epochs, sizes if fits else THIN, self.store_gb)


@dataclass(frozen=True)
class Found:
    """A row's figures over its measured epochs.

    cpu_ms: of a group, by process; others: actors, reward, learner. latency_s: from sampled to
    accumulated, sorted. memory: of the driver, bytes, without what it shares.
    """

    row: Row
    epoch_s: tuple[float, ...]
    cpu_ms: dict[str, float]
    latency_s: tuple[float, ...]
    memory: int

    @staticmethod
    def of(row: Row, answer: Mapping[str, Any]) -> Found:
        """From what the row's process printed."""
        marks = answer["marks"]
        first, last = marks[0], marks[-1]
        groups = row.groups * (len(marks) - 1)
        return Found(
            row=row,
            epoch_s=tuple(later["at"] - one["at"] for one, later in itertools.pairwise(marks)),
            cpu_ms={
                name: 1e3 * (last["cpu_s"][name] - first["cpu_s"][name]) / groups for name in last["cpu_s"]
            },
            latency_s=tuple(sorted(answer["latencies"])),
            memory=max(mark["memory"] for mark in marks),
        )

    @property
    def ideal_s(self) -> float:
        """What the simulated work alone takes: actors that are never idle, then the last groups' score and
        gradient, which a rank takes in one by one."""
        return self.row.seconds * self.row.turns + REWARD_SECONDS + ACTORS_A_RANK * self.row.learn_seconds

    def latency(self, share: float) -> float:
        """Seconds that this share of the groups needs at most."""
        return self.latency_s[min(len(self.latency_s) - 1, int(share * len(self.latency_s)))]

    def cells(self) -> list[str]:
        """A line of the table."""
        epoch = statistics.median(self.epoch_s)
        control = sum(self.cpu_ms[name] for name in ROLES)
        return [
            f"{self.row.actors:,}",
            f"{self.row.seconds:.3g} s",
            f"{self.row.groups:,}",
            f"{self.row.sizes.group_bytes / 1e6:.3g} MB",
            f"{self.row.actors / self.row.seconds:.3g}",
            f"**{self.cpu_ms['driver']:.2f} ms**",
            f"{control:.2f} ms",
            f"{self.cpu_ms['others']:.2f} ms",
            f"{self.latency(0.5):.2f} / {self.latency(0.95):.2f} s",
            f"{self.memory / 1e6:.0f} MB",
            f"{3600 / epoch:.1f}",
            f"{3600 / self.ideal_s:.1f}",
            f"{self.ideal_s / epoch:.0%}",
        ]


HEAD = (
    "actors",
    "time of a group",
    "groups an epoch",
    "a group's objects",
    "groups/s offered",
    "driver's CPU a group",
    "raylet and GCS",
    "all other processes",
    "sampled to accumulated, median / 95 %",
    "driver's memory",
    "epochs/h",
    "ideal",
    "of ideal",
)


def table(found: Sequence[Found]) -> str:
    """As Markdown."""
    lines = [HEAD, ["---"] * len(HEAD), *(one.cells() for one in found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def run_in_process(row: Row) -> Found:
    """A row in a process of its own, so that memory and CPU time are its own. Raises PrdpError."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale_run", json.dumps(asdict(row))],
        capture_output=True,
        text=True,
        timeout=MOST_SECONDS_A_ROW,
        check=False,
    )
    if done.returncode:
        raise PrdpError(f"The row {row} ended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return Found.of(row, json.loads(done.stdout.splitlines()[-1]))


def verdicts(found: Sequence[Found]) -> tuple[Verdict, ...]:
    """Whether the driver's cost grows from the fewest actors to the most."""
    small, large = found[0], found[-1]
    growth = large.cpu_ms["driver"] / small.cpu_ms["driver"]
    return (
        Verdict(
            what=f"driver's CPU a group, {large.row.actors:,} actors over {small.row.actors:,}",
            value=f"{growth:.2f}",
            allowed=f"at most {MOST_GROWTH}",
            met=growth <= MOST_GROWTH,
            detail=f"{small.cpu_ms['driver']:.2f} to {large.cpu_ms['driver']:.2f} ms",
        ),
    )


def measure(name: str, plan: Plan, command: str) -> Result:
    """Run the rows of one table."""
    machine = Machine.here()
    found = []
    for row in plan.rows()[name]:
        complain(f"{name}: {row.actors} actors")
        found.append(run_in_process(row))
    return Result(
        name=f"scale_{name}",
        command=command,
        settings={"epochs, the first not measured": plan.epochs, "object store": f"{plan.store_gb} GB"},
        machine=machine,
        verdicts=verdicts(found) if name == RATE else (),
        figures={},
        raw={
            "rows": [
                {**asdict(one), "latency_s": [one.latency(share / 20) for share in range(21)]}
                for one in found
            ]
        },
        notes=(f"## {TITLES[name]}\n\n{table(found)}\n", *NOTES),
    )


def at_least_two(text: str) -> int:
    """An argument that counts epochs. Raises argparse.ArgumentTypeError."""
    number = at_least_one(text)
    if number < 2:
        raise argparse.ArgumentTypeError("must be at least 2: the first epoch is not measured")
    return number


def table_name(text: str) -> str:
    """An argument that names a table. Raises argparse.ArgumentTypeError."""
    if text not in TITLES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(TITLES)}, got {text!r}")
    return text


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 measured, 2 an error that the text explains."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=ABOUT)
    parser.add_argument(
        "tables", nargs="*", type=table_name, help=f"which of {', '.join(TITLES)} (default: all)"
    )
    parser.add_argument(
        "--actors", type=at_least_one, nargs="+", default=[10, 100, 1000], help="rows (default: 10 100 1000)"
    )
    parser.add_argument("--rate", type=float, default=50.0, help="groups a second (default: %(default)s)")
    parser.add_argument("--epochs", type=at_least_two, default=2, help="the first is not measured")
    parser.add_argument("--store-gb", type=float, default=10.0, help="object store (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=out_folder,
        default=str(RESULTS),
        help="folder of the result files (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    command = command_of("scale", arguments)
    plan = Plan(tuple(given.actors), given.rate, given.epochs, given.store_gb)
    try:
        for name in given.tables or TITLES:
            measure(name, plan, command).publish(given.out)
    except PrdpError as error:
        complain(f"{type(error).__name__}: {error}")
        return 2
    return 0


if __name__ == "__main__":
    run_command(main)
