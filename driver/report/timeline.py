"""Who worked when in one epoch: python -m driver.report.timeline RUN_FOLDER [--epoch N]

Times are by the clock of the machine that worked, so machines should keep theirs together (NTP).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from common.errors import PrdpError, RunFolderError
from common.storage import put_file
from common.terminal import complain, run_command
from driver.report.console import PlainConsole

ABOUT = "Who sampled, scored and learned when in one epoch, and which pool to grow."
ACTORS, REWARDS, LEARNER, DRIVER = "actors", "rewards", "learner", "driver"
ROLES = (ACTORS, REWARDS, LEARNER, DRIVER)
FOLDER = "timeline"
MICRO = 1e6
PACE = 0.5
"""A role that worked for less of an epoch does not set its pace."""


@dataclass(frozen=True)
class Span:
    """A piece of work. process: host:pid, or a reward's name. begin_s, end_s: seconds since 1970.

    A reward's span lasts from sending a group to its answer: it may wait there, and spans overlap.
    group: position of its prompt in the run's stream; None where it is about no one group.
    busy_s: seconds of work in it.
    """

    role: str
    process: str
    what: str
    begin_s: float
    end_s: float
    group: int | None
    busy_s: float


@dataclass(frozen=True)
class Timeline:
    """One epoch. epoch: its number, from 1."""

    epoch: int
    begin_s: float
    end_s: float
    spans: tuple[Span, ...]

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.end_s - self.begin_s

    def of(self, role: str) -> list[Span]:
        """A role's spans, by when they began."""
        return sorted((span for span in self.spans if span.role == role), key=lambda span: span.begin_s)

    def processes(self, role: str) -> list[str]:
        """The role's processes (or the rewards) that worked, by name."""
        return sorted({span.process for span in self.spans if span.role == role})

    def busy_share(self, role: str, process: str | None = None) -> float:
        """Share of the epoch in which the role's processes, or that one, worked; mean over processes.

        At most 1 for a process: a reward of several replicas that all work counts as one that does. Of a span
        that reaches beyond the epoch the part inside counts.
        """
        processes = self.processes(role) if process is None else [process]
        if not processes or self.seconds <= 0:
            return 0.0
        busy = dict.fromkeys(processes, 0.0)
        for span in self.of(role):
            if span.process in busy and span.end_s > span.begin_s:
                inside = min(span.end_s, self.end_s) - max(span.begin_s, self.begin_s)
                busy[span.process] += span.busy_s * max(0.0, inside) / (span.end_s - span.begin_s)
        return sum(min(1.0, seconds / self.seconds) for seconds in busy.values()) / len(processes)

    def advice(self) -> str:
        """Which pool sets the pace, by the shares of the epoch that roles worked, and what speeds it up."""
        pools: list[tuple[str, str | None]] = [(ACTORS, None), (LEARNER, None)]
        pools += [(REWARDS, reward) for reward in self.processes(REWARDS)]
        role, process = max(pools, key=lambda pool: self.busy_share(*pool))
        share = self.busy_share(role, process)
        if share < PACE:
            told = f"No pool sets the pace: none worked more than {share:.0%} of the epoch."
            if not self.of(ACTORS):
                return told
            return (
                f"{told} More prompts an epoch (sampling.prompts_per_epoch) or data.max_staleness=1 fill the "
                "gaps, not processes."
            )
        who = f"The reward {process!r}" if process else f"The {role}"
        return f"{who} worked {share:.0%} of the epoch, more than any other: {self._remedy(role)}"

    def _remedy(self, role: str) -> str:
        if role == REWARDS:
            return "grow it (reward_service.replicas, or its own deployment), or give its scorer a GPU."
        if role == LEARNER:
            idle = 1.0 - self.busy_share(ACTORS)
            grow = "grow it (learner.workers, or a larger learner.micro_batch_size)."
            if not self.of(ACTORS):
                return grow
            return f"{grow} The actors idled {idle:.0%}: data.max_staleness=1 lets them sample meanwhile."
        prompts = len({span.group for span in self.of(ACTORS)} - {None})
        if prompts <= len(self.processes(ACTORS)):
            return "each prompt has one of its own already, so more would idle: use faster ones."
        return "grow them (actors.count)."


def timeline_file(run_folder: Path, epoch: int) -> Path:
    """Where the timeline of an epoch (its number from 1) is."""
    return run_folder / FOLDER / f"epoch_{epoch:06d}.json"


def timeline_files(run_folder: Path) -> list[Path]:
    """All that are kept, oldest epoch first."""
    return sorted((run_folder / FOLDER).glob("epoch_*.json"))


def write_timeline(file: Path, timeline: Timeline) -> None:
    """Write it whole or not at all, as the JSON of Chrome's Trace Event Format, which Perfetto opens.

    Times are microseconds since the epoch's begin. Each role is a process of the trace, and each of its
    processes one thread, or more where its spans overlap.
    """
    facts = {
        "epoch": timeline.epoch,
        "begin_s": timeline.begin_s,
        "end_s": timeline.end_s,
        "advice": timeline.advice(),
    }
    put_file(file, json.dumps({"otherData": facts, "traceEvents": list(_events(timeline))}).encode())


def _events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for pid, role in enumerate(ROLES):
        yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": role}}
        lanes = [
            (process, lane)
            for process in timeline.processes(role)
            for lane in _lanes([span for span in timeline.of(role) if span.process == process])
        ]
        for tid, (process, lane) in enumerate(lanes):
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": process}}
            for span in lane:
                yield {
                    "ph": "X",
                    "cat": span.role,
                    "name": span.what,
                    "pid": pid,
                    "tid": tid,
                    "ts": (span.begin_s - timeline.begin_s) * MICRO,
                    "dur": (span.end_s - span.begin_s) * MICRO,
                    "args": {"process": span.process, "group": span.group, "busy_s": span.busy_s},
                }


def _lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans, by when they began, dealt out so that none overlaps another of its lane."""
    lanes: list[list[Span]] = []
    for span in spans:
        free = next((lane for lane in lanes if lane[-1].end_s <= span.begin_s), None)
        if free is None:
            lanes.append([span])
        else:
            free.append(span)
    return lanes


def read_timeline(file: Path) -> Timeline:
    """The timeline of a file that write_timeline has written. Raises RunFolderError where it is none."""
    try:
        found = json.loads(file.read_text())
        epoch, begin_s, end_s = (found["otherData"][name] for name in ("epoch", "begin_s", "end_s"))
        spans = []
        for event in found["traceEvents"]:
            if event["ph"] == "X":
                start_s = begin_s + event["ts"] / MICRO
                stop_s, args = start_s + event["dur"] / MICRO, event["args"]
                what = event["cat"], args["process"], event["name"]
                spans.append(Span(*what, start_s, stop_s, args["group"], args["busy_s"]))
        return Timeline(epoch, begin_s, end_s, tuple(spans))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{file} is no timeline of a run ({error!r}).") from error


def find_timeline(run_folder: Path, epoch: int | None = None) -> Path:
    """The file of an epoch (its number from 1), or of the last one kept. Raises RunFolderError."""
    kept = {int(file.stem.removeprefix("epoch_")): file for file in timeline_files(run_folder)}
    if not kept:
        raise RunFolderError(
            f"{run_folder} keeps no timelines. Give a run's folder (runs/NAME) that has finished an epoch; "
            "display.timelines says how many it keeps."
        )
    number = max(kept) if epoch is None else epoch
    if number not in kept:
        raise RunFolderError(
            f"{run_folder} keeps no timeline of epoch {epoch}, only of {', '.join(map(str, kept))}."
        )
    return kept[number]


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m driver.report.timeline", description=ABOUT)
    parser.add_argument("run_folder", type=Path, help="such as runs/quickstart")
    parser.add_argument("--epoch", type=int, help="its number, from 1; the last one kept where not given")
    given = parser.parse_args(arguments)
    console = PlainConsole(soft_wrap=True)
    try:
        file = find_timeline(given.run_folder, given.epoch)
        timeline = read_timeline(file)
    except PrdpError as error:
        complain(str(error))
        return 1
    table = Table(title=f"Epoch {timeline.epoch}: {timeline.seconds:.3g} s", title_justify="left")
    for column in ("role", "processes", "worked"):
        table.add_column(column)
    for role in (ACTORS, LEARNER):
        table.add_row(role, str(len(timeline.processes(role))), f"{timeline.busy_share(role):.0%}")
    for reward in timeline.processes(REWARDS):
        table.add_row(f"reward {reward}", "", f"{timeline.busy_share(REWARDS, reward):.0%}")
    console.print(table)
    console.print(timeline.advice())
    console.print(f"Trace, for https://ui.perfetto.dev: {file}")
    return 0


if __name__ == "__main__":
    run_command(main)
