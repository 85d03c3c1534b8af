"""Images a second of the reward service over its scorer called directly in a loop."""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from benchmarks.machine import Machine
from benchmarks.options import at_least_one, command_of, out_folder
from benchmarks.report import RESULTS, Result, raw_of, verdict_of
from benchmarks.reward_clients import (
    noise_images,
    open_reward,
    score_by_handle,
    score_by_http,
    standalone,
)
from benchmarks.reward_cluster import ServedApp, reward_cluster
from benchmarks.reward_models import SIZED_MODELS, SizedModel
from benchmarks.timing import Comparison, Times, alternate
from common.config.services import AppReward
from common.errors import PrdpError
from common.terminal import complain, run_command
from reward_service.http.wire import JSON, SAFETENSORS, Wire
from reward_service.scorers.clip import ClipScorer

ABOUT = (
    "Images a second of one replica, asked by handle and by HTTP (safetensors, and JSON for information), "
    "over those of the same scorer called directly in a loop with the same batches and threads. Sides take "
    "turns."
)
BY_HANDLE = 0.9
BY_HTTP = 0.7
NAME = "clip"
JSON_SHARE = 8
"""JSON scores this part of the groups: it packs every image as a PNG, which takes long."""

ARGUMENTS = (
    ("batch-groups", 4, "groups of one call of the scorer"),
    ("threads", 1, "CPU threads of the scorer"),
    ("clients", 8, "groups asked for at once over HTTP"),
    ("repeats", 7, "timed turns"),
    ("warm-ups", 2, "turns before them"),
)
NOTES = (
    "By handle: one driver with the trainer's client (as many groups out as it allows), images put "
    "into the object store within the time. By HTTP: threads of one client process, encoding within the "
    "time. Direct: whole batches laid out beforehand. Client, service and all of Ray share the cores.",
)

Groups = list[tuple[str, NDArray[np.uint8]]]
Score = Callable[[Groups], None]


@dataclass(frozen=True)
class Plan:
    """What was asked for. model: its name among SIZED_MODELS."""

    model: str
    batch_groups: int
    threads: int
    clients: int
    repeats: int
    warm_ups: int

    @property
    def sized(self) -> SizedModel:
        """The model, and the groups that fit it."""
        return SIZED_MODELS[self.model]

    def settings(self, folder: Path) -> dict[str, object]:
        """Of the served reward, with the model in this folder."""
        return {
            "scorer": "clip",
            "options": {"path": str(folder)},
            "threads": self.threads,
            "max_batch_groups": self.batch_groups,
        }


@dataclass(frozen=True)
class Side:
    """One way to have groups scored.

    target: its least share of the direct side's speed; 0 = none. scorer_pid: the process that the scorer runs
    in. used_s: CPU seconds of that process in each call.
    """

    what: str
    target: float
    score: Score
    groups: Groups
    scorer_pid: int
    used_s: list[float] = field(default_factory=list)

    def call(self, _: int) -> None:
        """Score all groups."""
        before = cpu_s(self.scorer_pid)
        self.score(self.groups)
        self.used_s.append(cpu_s(self.scorer_pid) - before)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, all threads together."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def direct_side(plan: Plan, folder: Path, groups: Groups) -> Side:
    """The scorer itself in a loop, with whole batches that are laid out beforehand."""
    scorer = ClipScorer(path=str(folder))
    batches = list(batches_of(groups, plan.batch_groups))

    def score(_: Groups) -> None:
        torch.set_num_threads(plan.threads)
        for prompts, images in batches:
            scorer.score(prompts, images)

    return Side("direct", 0.0, score, groups, os.getpid())


def batches_of(groups: Groups, size: int) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """`size` groups at a time as a scorer takes them: a prompt for each image, and all images."""
    for start in range(0, len(groups), size):
        batch = groups[start : start + size]
        prompts = [prompt for prompt, images in batch for _ in images]
        yield prompts, np.concatenate([images for _, images in batch])


@contextmanager
def all_sides(plan: Plan, groups: Groups) -> Iterator[list[Side]]:
    """The direct side first, then those of the service. All of them are up at once; one works at a time."""
    fewer = groups[: max(1, len(groups) // JSON_SHARE)]
    settings = {"threads": str(plan.threads), "max_batch_groups": str(plan.batch_groups)}
    with TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = plan.sized.folder(Path(temporary))
        cluster = stack.enter_context(reward_cluster(Path(temporary)))
        server, address = stack.enter_context(standalone({"path": str(folder)}, settings))
        cluster.deploy(ServedApp(NAME, plan.settings(folder), http=True))
        cluster.wait_running()
        reward = open_reward(NAME, AppReward(app=NAME))
        (replica,) = cluster.pids(NAME)

        def http(url: str, wire: Wire) -> Score:
            return lambda groups: score_by_http(url, wire, plan.clients, groups)

        yield [
            direct_side(plan, folder, groups),
            Side("by handle", BY_HANDLE, lambda some: score_by_handle(reward, some), groups, replica),
            Side("by HTTP, server of one process", BY_HTTP, http(address, SAFETENSORS), groups, server),
            Side("by HTTP, Serve's gateway", BY_HTTP, http(cluster.url(NAME), SAFETENSORS), groups, replica),
            Side("by HTTP/JSON, server of one process", 0.0, http(address, JSON), fewer, server),
            Side("by HTTP/JSON, Serve's gateway", 0.0, http(cluster.url(NAME), JSON), fewer, replica),
        ]


def measure(plan: Plan, command: str) -> Result:
    """Let the sides take turns and compare them with the first."""
    machine = Machine.here()
    sized = plan.sized
    prompts = [f"a cat and {number} red houses" for number in range(sized.groups)]
    groups = [(prompt, noise_images(prompt, sized.images, sized.side)) for prompt in prompts]
    with all_sides(plan, groups) as sides:
        calls = [side.call for side in sides]
        times = alternate(calls, plan.repeats, plan.warm_ups, torch.device("cpu"))
    found = [
        Comparison(
            f"{side.what}, over direct", len(groups) * sized.images, "images", ours, times[0], side.target
        )
        for side, ours in zip(sides, times, strict=True)
        if side.target
    ]
    return Result(
        name="reward_throughput",
        command=command,
        settings={**asdict(plan), "groups": sized.groups, "images": sized.images, "side": sized.side},
        machine=machine,
        verdicts=tuple(verdict_of(one) for one in found),
        figures=_figures(plan, sides, times),
        raw={one.what: raw_of(one) for one in found},
        notes=(f"Scorer: {sized.about}.", *NOTES),
    )


def _figures(plan: Plan, sides: Sequence[Side], times: Sequence[Times]) -> dict[str, str]:
    """Of every side: speed, a group's wall time and its excess over direct, the scorer process's CPU time."""
    rows: dict[str, str] = {}
    bare_ms = 0.0
    for side, taken in zip(sides, times, strict=True):
        group_ms = 1e3 * statistics.median(taken.wall) / len(side.groups)
        used_ms = 1e3 * statistics.median(side.used_s[plan.warm_ups :]) / len(side.groups)
        bare_ms = bare_ms or group_ms
        rows[side.what] = (
            f"{1e3 * plan.sized.images / group_ms:.1f} images/s; a group takes {group_ms:.1f} ms, "
            f"{group_ms - bare_ms:+.1f} ms over direct; {used_ms:.1f} ms CPU of it in the scorer's process"
        )
    return rows


def main(arguments: Sequence[str]) -> int:
    """The command line. Returns the exit status: 0 all met, 1 not, 2 a text explains why not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_throughput", description=ABOUT)
    for name, default, about in ARGUMENTS:
        text = f"{about} (default: %(default)s)"
        parser.add_argument(f"--{name}", type=at_least_one, default=default, help=text)
    about = "; ".join(f"{name}: {sized.about}" for name, sized in SIZED_MODELS.items())
    parser.add_argument(
        "--model", choices=SIZED_MODELS, default="b32", help=f"{about} (default: %(default)s)"
    )
    parser.add_argument(
        "--name", default="reward_throughput", help="of the result files (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=out_folder, default=str(RESULTS), help="folder of the results (default: %(default)s)"
    )
    given = vars(parser.parse_args(arguments))
    numbers = {name.replace("-", "_"): given[name.replace("-", "_")] for name, _, _ in ARGUMENTS}
    plan = Plan(model=given["model"], **numbers)
    try:
        result = measure(plan, command_of("reward_throughput", arguments))
    except PrdpError as error:
        complain(f"{type(error).__name__}: {error}")
        return 2
    replace(result, name=given["name"]).publish(given["out"])
    return 0 if all(verdict.met for verdict in result.verdicts) else 1


if __name__ == "__main__":
    run_command(main)
