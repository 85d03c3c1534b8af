"""A reward to which Serve's autoscaler adds a replica under load, and from which it takes it again."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.machine import Machine
from benchmarks.options import at_least_one
from benchmarks.report import RESULTS, Result, Verdict
from benchmarks.reward_clients import Clients, open_mix, pictures
from benchmarks.reward_cluster import RewardCluster, ServedApp, reward_cluster, wait_until
from benchmarks.reward_stage import MODEL
from common.config.services import AppReward
from common.errors import PrdpError
from common.trajectory import GroupScore

ABOUT = (
    "Clients ask a reward of one replica without a pause until Serve's autoscaler has added another, then "
    "stop; the time until each has happened, and the groups that were lost meanwhile."
)
NAME = "scaled"
MOST = 2
LIMIT_S = 180.0
_PROMPTS = 20
_STEADY_S = 5.0
NOTES = (
    "Grown: from the first question until the new replica runs. Shrunk: from the last answer until one "
    "replica is left. The delays are part of both.",
)


@dataclass(frozen=True)
class Plan:
    """What was asked for. upscale_s, downscale_s: how long Serve waits before it adds or takes a replica."""

    clients: int
    images: int
    side: int
    upscale_s: float
    downscale_s: float

    def autoscaling(self) -> dict[str, float]:
        """Serve's autoscaling_config."""
        return {
            "min_replicas": 1,
            "max_replicas": MOST,
            "target_ongoing_requests": 2,
            "upscale_delay_s": self.upscale_s,
            "downscale_delay_s": self.downscale_s,
        }


@dataclass(frozen=True)
class Scaled:
    """Seconds until replicas were added and taken away; groups asked and lost; retries."""

    grown_s: float
    shrunk_s: float
    groups: int
    lost: int
    retries: int


def watch(plan: Plan, cluster: RewardCluster) -> Scaled:
    """Load the application and wait for its replicas to come and go. Raises StuckError."""
    pixels = {
        prompt: pictures(prompt, plan.images, plan.side)
        for prompt in (f"a cat and {number} red houses" for number in range(_PROMPTS))
    }
    mixes = [open_mix(NAME, AppReward(app=NAME)) for _ in range(plan.clients)]
    with Clients(mixes, pixels, pause_s=0.0) as clients:
        began_at = time.monotonic()
        _wait_for(cluster, MOST)
        grown_s = time.monotonic() - began_at
        time.sleep(_STEADY_S)
        clients.check()
    ended_at = time.monotonic()
    _wait_for(cluster, 1)
    shrunk_s = time.monotonic() - ended_at
    asked = clients.asked()
    lost = sum(not isinstance(one.answer, GroupScore) for one in asked)
    return Scaled(grown_s, shrunk_s, len(asked), lost, clients.retries())


def _wait_for(cluster: RewardCluster, replicas: int) -> None:
    wait_until(
        lambda: list(cluster.states(NAME).values()) == ["RUNNING"] * replicas, f"{replicas} run", LIMIT_S
    )


def measure(plan: Plan, command: str) -> Result:
    """Deploy, load, wait, judge."""
    machine = Machine.here()
    settings = {"scorer": "clip", "options": {"path": str(MODEL)}}
    with TemporaryDirectory() as folder, reward_cluster(Path(folder)) as cluster:
        cluster.deploy(ServedApp(NAME, settings, autoscaling=plan.autoscaling()))
        cluster.wait_running()
        seen = watch(plan, cluster)
    return Result(
        name="reward_autoscale",
        command=command,
        settings=asdict(plan),
        machine=machine,
        verdicts=(
            Verdict("replicas under load", str(MOST), str(MOST), True, f"after {seen.grown_s:.1f} s"),
            Verdict("replicas without load", "1", "1", True, f"after {seen.shrunk_s:.1f} s"),
            Verdict("groups lost", str(seen.lost), "0", not seen.lost, f"of {seen.groups}"),
        ),
        figures={"sent again after a failure": str(seen.retries)},
        raw=asdict(seen),
        notes=NOTES,
    )


def main(arguments: Sequence[str]) -> int:
    """The command line. Returns the exit status: 0 all met, 1 not, 2 a text explains why not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward_autoscale", description=ABOUT)
    parser.add_argument("--clients", type=at_least_one, default=8, help="(default: %(default)s)")
    parser.add_argument("--images", type=at_least_one, default=16, help="of a group (default: %(default)s)")
    parser.add_argument("--side", type=at_least_one, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--upscale", type=float, default=3.0, help="seconds of load (default: %(default)s)")
    parser.add_argument("--downscale", type=float, default=10.0, help="of none (default: %(default)s)")
    parser.add_argument("--name", default="reward_autoscale", help="of the result files")
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    plan = Plan(given.clients, given.images, given.side, given.upscale, given.downscale)
    try:
        result = measure(plan, " ".join(["python -m benchmarks.reward_autoscale", *arguments]))
    except PrdpError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    replace(result, name=given.name).publish(given.out)
    return 0 if all(verdict.met for verdict in result.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
