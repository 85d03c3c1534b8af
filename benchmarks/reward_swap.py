"""A reward that is changed, swapped, rolled back and killed while clients keep asking it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.machine import Machine, spare_core_seconds
from benchmarks.options import at_least_one
from benchmarks.report import RESULTS, Result, Verdict
from benchmarks.reward_clients import Clients, open_mix, pictures
from benchmarks.reward_cluster import RewardCluster, ServedApp, reward_cluster, wait_until
from benchmarks.reward_stage import CODE, NAME, OPTIONS, START, WEIGHTS, Stage, Version
from benchmarks.reward_windows import TOLERANCE, Seen, Window, all_new, seen_in, told_apart
from common.config.services import AppReward, UrlReward
from common.errors import PrdpError
from common.trajectory import ScorerStamp

ABOUT = (
    "Clients keep scoring groups, by handle or over HTTP, while the reward's settings, weights file and code "
    "are changed by a Serve file, rolled back, and a replica is killed. Every score is compared with that of "
    "its version."
)
LONGEST_STALL_S = 0.5
PROMPTS = 20
BYSTANDER = "bystander"
_SETTLE_S = 2.0
_LOOK_S = 1.0
NOTES = (
    "A wait is from the asking for a group to its score, by the trainer's own channel (retries included). "
    "Nothing changed: the same load without a change. Spare capacity: fewer scorers at work on average than "
    "there are replicas, and cores to spare (idle, or at work of lower priority) for the processes that "
    "start: surge (max_surge_percent 100) starts new replicas before old ones end.",
)


@dataclass(frozen=True)
class Plan:
    """What was asked for. http: clients ask Serve's gateway, and not the replicas by handle."""

    clients: int
    replicas: int
    images: int
    side: int
    pause_s: float
    steady_s: float
    http: bool


@dataclass(frozen=True)
class Show:
    """A cluster with the reward and its clients, while it runs."""

    cluster: RewardCluster
    stage: Stage
    clients: Clients
    plan: Plan

    def watch(self, name: str, change: Change, old: Version) -> tuple[Window, Version]:
        """Make a change and wait until every client sees its version only. Returns that version, too."""
        begin_at, busy_s, spare_s = time.monotonic(), self.clients.busy_s(), spare_core_seconds()
        version, done = change(self)
        # Seldom, because each look keeps Serve's controller busy, which tells routers of replicas.
        wait_until(lambda: self._well() and done(), f"Serve is done: {name}", poll_s=_LOOK_S)
        done_at, new = time.monotonic(), self.stage.stamp(version)
        wait_until(lambda: self._well() and self._sees_only(new), f"all answers are of {new}: {name}")
        end_at, busy_s, spare_s = (
            time.monotonic(),
            self.clients.busy_s() - busy_s,
            spare_core_seconds() - spare_s,
        )
        return Window(name, begin_at, done_at, end_at, busy_s, spare_s, new, self.stage.stamp(old)), version

    def _sees_only(self, new: ScorerStamp) -> bool:
        since = time.monotonic() - _SETTLE_S
        return all_new(self.clients.asked(), new, since, self.plan.clients)

    def _well(self) -> bool:
        self.clients.check()
        return True


Change = Callable[[Show], tuple[Version, Callable[[], bool]]]
"""Changes something; returns the version that answers afterwards, and what says that Serve is done."""


def _nothing(show: Show) -> tuple[Version, Callable[[], bool]]:
    end_at = time.monotonic() + show.plan.steady_s
    return START, lambda: time.monotonic() > end_at


def _settings(version: Version) -> Change:
    def change(show: Show) -> tuple[Version, Callable[[], bool]]:
        show.stage.write(version)
        app = replace(show.cluster.app(NAME), settings=show.stage.settings(version))
        show.cluster.deploy(app)
        return version, lambda: True

    return change


def _code(version: Version) -> Change:
    def change(show: Show) -> tuple[Version, Callable[[], bool]]:
        old = show.cluster.pids(NAME)
        show.stage.write(version)
        show.cluster.deploy(replace(show.cluster.app(NAME), code_version=version.code))
        return version, lambda: _replaced(show, old)

    return change


def _kill(show: Show) -> tuple[Version, Callable[[], bool]]:
    victim = min(show.cluster.pids(NAME))
    os.kill(victim, signal.SIGKILL)
    return START, lambda: _replaced(show, frozenset([victim]))


def _replaced(show: Show, old: frozenset[int]) -> bool:
    states = show.cluster.states(NAME)
    return not old & states.keys() and list(states.values()) == ["RUNNING"] * show.plan.replicas


CHANGES: Mapping[str, Change] = {
    "nothing changed": _nothing,
    "options changed": _settings(OPTIONS),
    "weights file changed": _settings(WEIGHTS),
    "options and weights rolled back": _settings(START),
    "code swapped": _code(CODE),
    "code rolled back": _code(START),
    "replica killed": _kill,
}


def measure(plan: Plan, command: str) -> Result:
    """Deploy, load, change, judge."""
    machine = Machine.here()
    pixels = {
        prompt: pictures(prompt, plan.images, plan.side)
        for prompt in (f"a cat and {number} red houses" for number in range(PROMPTS))
    }
    with tempfile.TemporaryDirectory() as folder, reward_cluster(Path(folder)) as cluster:
        stage = Stage(Path(folder))
        stage.prepare()
        cluster.deploy(
            ServedApp(NAME, stage.settings(START), plan.replicas, http=plan.http),
            ServedApp(BYSTANDER, {"scorer": "jpeg_compressibility"}),
        )
        cluster.wait_running()
        bystander = cluster.all_pids(BYSTANDER)
        entry = UrlReward(url=cluster.url(NAME)) if plan.http else AppReward(app=NAME)
        mixes = [open_mix(NAME, entry) for _ in range(plan.clients)]
        with Clients(mixes, pixels, plan.pause_s) as clients:
            windows = _watch_all(Show(cluster, stage, clients, plan))
        left_alone = cluster.all_pids(BYSTANDER) == bystander
        expected = stage.expected(pixels)
    seen = {window.name: seen_in(window, clients.asked(), expected) for window in windows}
    apart = told_apart(expected)
    return Result(
        name="reward_swap",
        command=command,
        settings=asdict(plan),
        machine=machine,
        verdicts=_verdicts(seen, left_alone, apart),
        figures=_figures(seen, len(clients.asked()), clients.retries()),
        raw={name: asdict(one) for name, one in seen.items()},
        notes=NOTES,
    )


def _watch_all(show: Show) -> list[Window]:
    _, version = show.watch("start", _nothing, START)
    windows = []
    for name, change in CHANGES.items():
        window, version = show.watch(name, change, version)
        windows.append(window)
        print(f"{name}: {window.end_at - window.begin_at:.1f} s", file=sys.stderr, flush=True)
    return windows


def _verdicts(seen: Mapping[str, Seen], left_alone: bool, apart: float) -> tuple[Verdict, ...]:
    groups = sum(one.groups for one in seen.values())
    lost = {name: one.lost for name, one in seen.items() if one.lost}
    mixed = {name: one.mixed for name, one in seen.items() if one.mixed}
    return (
        Verdict("groups lost", str(sum(lost.values())), "0", not lost, f"of {groups}; {lost or 'no change'}"),
        Verdict(
            "groups of mixed version",
            str(sum(mixed.values())),
            "0",
            not mixed and apart > 10 * TOLERANCE,
            f"rewards and differences of each group are those of the version it names, within {TOLERANCE:g}; "
            f"any two versions differ by {apart:.2g} at least in some picture of each group",
        ),
        Verdict(
            "processes of the other application",
            "the same" if left_alone else "others",
            "the same",
            left_alone,
            "their numbers, before and after",
        ),
        *(
            Verdict(
                f"longest wait of a client: {name}",
                f"{one.stall_s:.2f} s",
                f"at most {LONGEST_STALL_S:g} s",
                one.stall_s <= LONGEST_STALL_S,
                f"{one.groups} groups, median {one.median_s:.3f} s",
            )
            for name, one in seen.items()
        ),
    )


def _figures(seen: Mapping[str, Seen], groups: int, retries: int) -> dict[str, str]:
    rows = {
        f"{name}: until all answers are of the new version": f"{one.settled_s:.1f} s; processes in place "
        f"after {one.done_s:.1f} s; on average {one.at_work:.2f} scorers at work, "
        f"{one.spare_cores:.2f} cores to spare"
        for name, one in seen.items()
    }
    return {**rows, "groups in all": str(groups), "sent again after a failure": str(retries)}


def main(arguments: Sequence[str]) -> int:
    """The command line. Returns the exit status: 0 all met, 1 not, 2 a text explains why not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_swap", description=ABOUT)
    parser.add_argument("--clients", type=at_least_one, default=8, help="(default: %(default)s)")
    parser.add_argument("--replicas", type=at_least_one, default=2, help="(default: %(default)s)")
    parser.add_argument("--images", type=at_least_one, default=4, help="of a group (default: %(default)s)")
    parser.add_argument("--side", type=at_least_one, default=64, help="pixels (default: %(default)s)")
    parser.add_argument(
        "--pause",
        type=float,
        default=0.2,
        help="seconds of a client between answer and question; 0: no spare capacity (default: %(default)s)",
    )
    parser.add_argument(
        "--steady", type=float, default=10.0, help="seconds without a change first (default: %(default)s)"
    )
    parser.add_argument("--http", action="store_true", help="ask the gateway (default: ask by handle)")
    parser.add_argument("--name", default="reward_swap", help="of the result files (default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    plan = Plan(
        given.clients, given.replicas, given.images, given.side, given.pause, given.steady, given.http
    )
    try:
        result = measure(plan, " ".join(["python -m benchmarks.reward_swap", *arguments]))
    except PrdpError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    replace(result, name=given.name).publish(given.out)
    return 0 if all(verdict.met for verdict in result.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
