"""Memory of the processes of a reward while many pictures pass through them."""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import Machine
from benchmarks.options import at_least_one
from benchmarks.report import RESULTS, Result, Verdict
from benchmarks.reward_clients import open_mix, pictures, score_by_handle
from benchmarks.reward_cluster import ServedApp, reward_cluster
from benchmarks.reward_http import HttpClients, standalone
from benchmarks.reward_stage import MODEL
from common.config.services import AppReward
from common.errors import PrdpError
from reward_service.http.wire import ARROW
from reward_service.on_ray.gateway import GATEWAY

ABOUT = (
    "Score many pictures by handle, through Serve's gateway, and by a server of one process, and watch the "
    "resident memory of each process that they pass through."
)
MOST_GROWTH = 0.05
SAMPLES = 20
NAME = "clip"
NOTES = (
    "Resident memory without what is shared with other processes (RssAnon of /proc): the object store that "
    "all of Ray maps is not the replica's own. Growth: median of the last quarter of the samples over that "
    "of the first quarter after the warm-up.",
)
_MIB = 1 << 20

Groups = list[tuple[str, NDArray[np.uint8]]]
Score = Callable[[Groups, Callable[[], None]], None]


@dataclass(frozen=True)
class Plan:
    """What was asked for. warm_up: pictures before the first sample."""

    images: int
    warm_up: int
    group: int
    side: int
    clients: int


@dataclass(frozen=True)
class Way:
    """One way in. pids: of the processes that pictures pass through, by name."""

    name: str
    score: Score
    pids: Mapping[str, int]


@dataclass(frozen=True)
class Memory:
    """Own resident bytes of one process along the way, from the end of the warm-up on."""

    samples: tuple[int, ...]

    @property
    def growth(self) -> float:
        """Of the last quarter over the first: 0.05 is 5 %."""
        quarter = max(1, len(self.samples) // 4)
        first = statistics.median(self.samples[:quarter])
        return statistics.median(self.samples[-quarter:]) / first - 1.0


def own_bytes(pid: int) -> int:
    """Resident memory of a process that no other shares. Raises OSError where it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def watch(way: Way, plan: Plan) -> dict[str, Memory]:
    """Warm up, then score all pictures and take the memory of each process SAMPLES times, and at the end."""
    groups = [
        (prompt, pictures(prompt, plan.group, plan.side))
        for prompt in (f"a cat and {number} red houses" for number in range(32))
    ]
    way.score(repeated(groups, plan.warm_up // plan.group), lambda: None)
    total = plan.images // plan.group
    samples: dict[str, list[int]] = {name: [own_bytes(pid)] for name, pid in way.pids.items()}
    marks = {total * number // SAMPLES for number in range(1, SAMPLES + 1)}
    lock, done = threading.Lock(), 0

    def each() -> None:
        nonlocal done
        with lock:
            done += 1
            if done in marks:
                for name, pid in way.pids.items():
                    samples[name].append(own_bytes(pid))

    way.score(repeated(groups, total), each)
    return {name: Memory(tuple(taken)) for name, taken in samples.items()}


def repeated(groups: Groups, count: int) -> Groups:
    """`count` groups, over and over the same."""
    return [groups[number % len(groups)] for number in range(count)]


@contextmanager
def ways_on_ray(plan: Plan) -> Iterator[list[Way]]:
    """By handle, and through the gateway."""
    with TemporaryDirectory() as folder, reward_cluster(Path(folder)) as cluster:
        cluster.deploy(ServedApp(NAME, {"scorer": "clip", "options": {"path": str(MODEL)}}, http=True))
        cluster.wait_running()
        mix = open_mix(NAME, AppReward(app=NAME))
        (replica,) = cluster.pids(NAME)
        (gateway,) = cluster.pids(NAME, GATEWAY)
        (proxy,) = cluster.proxy_pids()
        http = HttpClients(cluster.url(NAME), ARROW, plan.clients)
        yield [
            Way("by handle", lambda groups, each: score_by_handle(mix, groups, each), {"replica": replica}),
            Way(
                "by gateway",
                http.score,
                {"replica": replica, "gateway": gateway, "Serve's proxy": proxy},
            ),
        ]


@contextmanager
def way_of_one_process(plan: Plan) -> Iterator[list[Way]]:
    """A server without Ray."""
    with standalone({"path": str(MODEL)}, {}) as (pid, address):
        http = HttpClients(address, ARROW, plan.clients)
        yield [Way("by a server of one process", http.score, {"server": pid})]


def measure(plan: Plan, command: str) -> Result:
    """Every way in its turn."""
    machine = Machine.here()
    found: dict[str, Memory] = {}
    for up in (ways_on_ray, way_of_one_process):
        with up(plan) as ways:
            for way in ways:
                print(f"{plan.images} pictures {way.name} ...", file=sys.stderr, flush=True)
                memory = watch(way, plan)
                found |= {f"{process}, {way.name}": one for process, one in memory.items()}
    return Result(
        name="reward_soak",
        command=command,
        settings=asdict(plan),
        machine=machine,
        verdicts=tuple(_verdict(what, memory) for what, memory in found.items()),
        figures={},
        raw={what: list(memory.samples) for what, memory in found.items()},
        notes=NOTES,
    )


def _verdict(what: str, memory: Memory) -> Verdict:
    first, last = memory.samples[0] / _MIB, memory.samples[-1] / _MIB
    highest = max(memory.samples) / _MIB
    return Verdict(
        what=f"growth of memory: {what}",
        value=f"{memory.growth:+.1%}",
        allowed=f"under {MOST_GROWTH:.0%}",
        met=memory.growth < MOST_GROWTH,
        detail=f"{first:.0f} MiB after the warm-up, {last:.0f} MiB at the end, {highest:.0f} MiB at most",
    )


def main(arguments: Sequence[str]) -> int:
    """The command line. Returns the exit status: 0 all met, 1 not, 2 a text explains why not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_soak", description=ABOUT)
    for name, default, about in (
        ("images", 20_000, "pictures by each way"),
        ("warm-up", 2_000, "pictures before the first sample"),
        ("group", 16, "pictures of a group"),
        ("side", 64, "height and width of a picture, in pixels"),
        ("clients", 8, "groups asked for at once over HTTP"),
    ):
        text = f"{about} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=at_least_one, default=default, help=text)
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    plan = Plan(given.images, given.warm_up, given.group, given.side, given.clients)
    try:
        result = measure(plan, " ".join(["python -m benchmarks.reward_soak", *arguments]))
    except PrdpError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    result.publish(given.out)
    return 0 if all(verdict.met for verdict in result.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
