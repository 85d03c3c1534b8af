"""Kill random processes of training runs at random moments, and compare what comes out, bit for bit."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.chaos_cluster import ChaosCluster, chaos_cluster
from benchmarks.chaos_kills import PHASES, Kill, Recovery, disturb, draw, epoch_times, watch
from benchmarks.chaos_run import Outcome, Running
from benchmarks.machine import Machine
from benchmarks.options import at_least_one, command_of, out_folder
from benchmarks.report import RESULTS, Result, Verdict
from common.config.load import load_config
from common.config.schema import Config
from common.errors import PrdpError, StuckError
from common.terminal import complain, run_command, say

ABOUT = (
    "Start a small training run on a Ray cluster of three nodes on this machine, kill a process of it (or a "
    "whole node) at a random moment, let it come to its end, and compare weights, optimizer state, averages, "
    "metrics and evaluations with those of an undisturbed run. As often as asked; the same command goes on "
    "where it was cut off."
)
BASE = Path(__file__).parent / "chaos.yaml"
NOTES = (
    "Recovered: from the kill to the end of the epoch that was in work. Full throughput: to the end of the "
    "first epoch that takes at most 1.5 times the undisturbed median; a dash where the run ended before.",
    "Most of a recovery is the start of the new process: it imports torch and diffusers and loads the model.",
    "Equal: every byte of the checkpoints that are kept (weights, optimizer, averages, files for diffusers), "
    "every metric of every epoch that is neither a time nor a count of faults, every score and picture of "
    "every evaluation.",
)

PART_FILE = "chaos.part.json"


class Part:
    """The runs found so far, in the folder of results, so that the same command goes on where it was cut off.

    asked: what the kills depend on; nothing is taken from a file of other ones.
    """

    def __init__(self, folder: Path, asked: Sequence[object]) -> None:
        self._path = folder / PART_FILE
        self._asked = [str(one) for one in asked]

    def read(self) -> list[Recovery]:
        """The runs that were done, in order."""
        if not self._path.exists():
            return []
        content = json.loads(self._path.read_text(encoding="utf-8"))
        return [_recovery(one) for one in content["found"]] if content["asked"] == self._asked else []

    def write(self, found: Sequence[Recovery]) -> None:
        """Keep the runs so far."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"asked": self._asked, "found": [asdict(one) for one in found]}
        self._path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def end(self) -> None:
        """All is done: the result itself has it."""
        self._path.unlink(missing_ok=True)


def _recovery(fields: dict[str, Any]) -> Recovery:
    kill, differences = Kill(**fields.pop("kill")), tuple(fields.pop("differences"))
    return Recovery(kill=kill, differences=differences, **fields)


def configuration(folder: Path, cluster: ChaosCluster, name: str, changes: Sequence[str]) -> Config:
    """The configuration of one run, on the cluster and with the reward behind its proxy."""
    own = [f"run.folder={folder}", f"run.name={name}", f"ray.address={cluster.address}"]
    return load_config(BASE, [*changes, *own, f"rewards.web.url={cluster.url}"])


def undisturbed(config: Config) -> tuple[Outcome, float]:
    """What the run leaves where nobody kills anything, and the median seconds of its epochs."""
    running = Running.start(config)
    ends = watch(running)
    if running.wait(1.0) != 0:
        raise StuckError(f"The undisturbed run failed:\n{running.shown}")
    return Outcome.of(config), statistics.median(epoch_times(ends))


def measure(
    runs: int, seed: int, changes: Sequence[str], folder: Path, part: Part
) -> tuple[list[Recovery], float]:
    """All runs that are left, one after the other, and the seconds of an undisturbed epoch."""
    found = part.read()
    with chaos_cluster() as cluster:
        cluster.mend()
        first = configuration(folder, cluster, "undisturbed", changes)
        whole, epoch_s = undisturbed(first)
        for kill in draw(seed, runs, first.run.epochs)[len(found) :]:
            number = len(found)
            cluster.mend()
            config = configuration(folder, cluster, f"run-{number + 1:02d}", changes)
            found.append(disturb(cluster, config, kill, whole, epoch_s))
            part.write(found)
            say(f"{number + 1}/{runs} {row(found[-1])}")
    return found, epoch_s


def row(recovery: Recovery) -> str:
    """A line of the table."""
    full = f"{recovery.full_s:.1f} s" if recovery.full_s else "–"
    equal = "equal" if not recovery.differences else f"DIFFERENT: {', '.join(recovery.differences[:3])}"
    return f"| {recovery.kill.kind} | {recovery.when} | {recovery.recovered_s:.1f} s | {full} | {equal} |"


def report(command: str, machine: Machine, found: Sequence[Recovery], epoch_s: float, seed: int) -> Result:
    """The table of all runs."""
    equal = sum(not one.differences for one in found)
    times = [one.recovered_s for one in found if one.finished]
    table = [
        "| killed | when | recovered after | full throughput after | result |",
        "| - | - | -: | -: | - |",
    ]
    return Result(
        name="chaos",
        command=command,
        settings={"runs": len(found), "seed": seed, "phases": ", ".join(PHASES)},
        machine=machine,
        verdicts=(
            Verdict(
                what="runs that finish with equal bits",
                value=f"{equal} of {len(found)}",
                allowed="all",
                met=equal == len(found),
                detail=f"epochs of {epoch_s:.2f} s where undisturbed",
            ),
        ),
        figures={
            "recovered after, median and longest": f"{statistics.median(times):.1f} s, {max(times):.1f} s"
            if times
            else "–",
        },
        raw={"kills": [asdict(one) for one in found], "epoch_s": epoch_s},
        notes=("\n".join([*table, *(row(one) for one in found)]), *(f"\n{note}" for note in NOTES)),
    )


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 0 all equal, 1 not all, 2 an error that the text explains."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=ABOUT)
    parser.add_argument("--runs", type=at_least_one, default=20, help="runs (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of what is killed and when (default: %(default)s)"
    )
    parser.add_argument("--out", type=out_folder, default=str(RESULTS), help="folder of the result files")
    parser.add_argument("settings", nargs="*", metavar="key=value", help=f"settings of {BASE.name} to change")
    given = parser.parse_args(arguments)
    try:
        with TemporaryDirectory() as folder:
            machine = Machine.here()
            part = Part(given.out, [given.runs, given.seed, *given.settings])
            found, epoch_s = measure(given.runs, given.seed, given.settings, Path(folder), part)
            command = command_of("chaos", arguments)
            result = report(command, machine, found, epoch_s, given.seed)
    except (PrdpError, TimeoutError) as error:
        complain(f"{type(error).__name__}: {error}")
        return 2
    result.publish(given.out)
    part.end()
    return 0 if all(verdict.met for verdict in result.verdicts) else 1


if __name__ == "__main__":
    run_command(main)
