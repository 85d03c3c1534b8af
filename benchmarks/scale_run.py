"""One row of benchmarks.scale: a run of the real driver with simulated actors, reward and learner."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from actors.pool import ActorPool
from benchmarks.scale_parts import RUN_ID, ActorHost, LearnerHost, Share, Sizes
from common.cluster.instruments import Instruments, shown
from common.cluster.process_failures import DeathCounter
from common.config.schema import Config
from common.terminal import complain
from driver.loop.cluster import ray_cluster
from driver.loop.services import Services, await_learner
from driver.main import Inputs, Session, run_epochs, tracked
from driver.observe.display import DisplayState
from driver.observe.gauges import RayGauges
from driver.observe.observer import Observer, Outlets
from driver.observe.status import StatusFile
from driver.observe.timeline_log import TimelineLog
from driver.run.checkpoint_manager import CheckpointManager
from driver.run.folder import find_beginning
from driver.run.prompts import open_prompts
from driver.run.reward_versions import VersionLog
from driver.stalls import StallReporter
from driver.stop import StopFlag
from learner.ranks import LearnerRanks
from reward_service.client.start import start_rewards

PROMPTS = 997
ACTORS_A_RANK = 16
REWARD_BATCH = 16
REWARD_SECONDS = 0.1
SCORER = "benchmarks.scale_parts:SleepingScorer"
ROLES = ("raylet", "gcs_server")


@dataclass(frozen=True)
class Row:
    """What is simulated. seconds: an actor's for a group; jitter: by how much, as a share, a task may differ;
    turns: groups an actor does in an epoch.

    hosts: processes that the actors share; epochs: all but the first are measured.
    """

    actors: int
    seconds: float
    jitter: float
    turns: int
    hosts: int
    epochs: int
    sizes: Sizes
    store_gb: float

    @property
    def groups(self) -> int:
        """N: groups an epoch."""
        return self.actors * self.turns

    @property
    def ranks(self) -> int:
        """Learner ranks: each takes in the groups of ACTORS_A_RANK actors, in 0.7 of the time they need."""
        return -(-self.actors // ACTORS_A_RANK)

    @property
    def learn_seconds(self) -> float:
        """A rank's for a group."""
        return 0.7 * self.seconds / ACTORS_A_RANK


@dataclass(frozen=True)
class Mark:
    """The state at the end of an epoch: wall clock, CPU seconds by process, own memory in bytes."""

    at: float
    cpu_s: dict[str, float]
    memory: int


class EpochMarks:
    """A display that marks the end of each epoch."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self._epoch = 0

    def start(self, total_epochs: int) -> None:
        """See driver.observe.display.Display."""

    def update(self, state: DisplayState) -> None:
        """Mark where an epoch has ended."""
        if state.epoch != self._epoch:
            self._epoch = state.epoch
            self.marks.append(mark())

    def note(self, text: str) -> None:
        """Show it."""
        complain(text)

    def close(self) -> None:
        """Nothing to give back."""


def mark() -> Mark:
    """Now."""
    own = psutil.Process()
    cpu = {"driver": time.process_time(), **dict.fromkeys((*ROLES, "others"), 0.0)}
    for process in own.children(recursive=True):
        try:
            name, times = process.name(), process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        cpu[name if name in ROLES else "others"] += times.user + times.system
    anonymous = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")
    )
    return Mark(time.perf_counter(), cpu, int(anonymous.split()[1]) * 1024)


def make_config(row: Row, folder: Path) -> Config:
    """The configuration of a row."""
    for name in ("train", "unseen"):
        lines = (f"{name} prompt number {number} of a thing" for number in range(PROMPTS))
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    tree: dict[str, Any] = {
        "model": {"path": str(folder), "device": "cpu"},
        "prompts": {"train": str(folder / "train.txt"), "unseen": str(folder / "unseen.txt")},
        "rewards": {
            "sleep": {
                "scorer": SCORER,
                "options": {"seconds": REWARD_SECONDS},
            }
        },
        "run": {"name": "scale", "folder": str(folder / "runs"), "epochs": row.epochs},
        "sampling": {
            "prompts_per_epoch": row.groups,
            "images_per_prompt": row.sizes.images,
            "steps": row.sizes.steps,
        },
        "actors": {"count": row.actors, "minimum": row.actors, "cpus": 0.0},
        "learner": {"workers": row.ranks, "cpus": 0.0},
        "reward_service": {"cpus": 0.0, "max_batch_groups": REWARD_BATCH, "batch_wait_s": 0.02},
        "evaluation": {"prompts": 2, "images_per_prompt": 1, "every_epochs": 10**6, "grid_prompts": 1},
        "checkpoint": {"every_epochs": 10**6},
        "ray": {"dashboard": False, "object_store_gb": row.store_gb},
        "tracker": {"save_checkpoint": False},
    }
    return Config.model_validate(tree)


async def run_simulated(session: Session, row: Row, stalls: StallReporter, keeper: CheckpointManager) -> Any:
    """Start the hosts, and the reward as the driver starts it; train all epochs. Gives the latencies."""
    config = session.config
    calls = 2 * config.actors.tasks_in_flight * row.actors + 100
    host = ray.remote(ActorHost).options(num_cpus=0, max_concurrency=calls)
    hosts = [host.remote(row.sizes, row.seconds, row.jitter) for _ in range(row.hosts)]
    learner: Any = (
        ray.remote(LearnerHost)
        .options(num_cpus=0, max_concurrency=4 * row.groups + 100)
        .remote(row.sizes, row.learn_seconds)
    )
    shares = (Share(hosts[number % row.hosts], ActorHost, number) for number in itertools.count())
    pool = ActorPool(config, lambda _: next(shares))
    ranks = LearnerRanks(config, RUN_ID, [Share(learner, LearnerHost, rank) for rank in range(row.ranks)])
    limit_s = config.ray.start_limit_s
    rewards = start_rewards(
        config.rewards, {}, config.reward_service, "scale", str(os.getpid()), limit_s, stop_serve=False
    )
    deaths = DeathCounter("The learner", "learner.restarts", config.learner.restarts)
    await asyncio.gather(pool.start(limit_s), await_learner(ranks, deaths, stalls, limit_s))
    instruments = Instruments({"run": config.run.name})
    await run_epochs(session, Services(pool, ranks, rewards, deaths), stalls, keeper, instruments)
    return await learner.take_latencies.remote()


def run_row(row: Row) -> dict[str, Any]:
    """Run all epochs, and say what was measured."""
    with tempfile.TemporaryDirectory() as name:
        config = make_config(row, Path(name))
        train, unseen = open_prompts(config.prompts.train), open_prompts(config.prompts.unseen)
        config.run_folder.mkdir(parents=True)
        beginning = find_beginning(config)
        display = EpochMarks()
        instruments = Instruments({"run": config.run.name})
        with (
            tracked(config, beginning) as tracker,
            ray_cluster(config),
            shown(instruments),
            StopFlag() as stop,
        ):
            timelines = TimelineLog(config.run_folder, config.display.timelines)
            status = StatusFile(config, beginning.run_id)
            outlets = Outlets(display, tracker, RayGauges.start(instruments), status, timelines)
            observer = Observer(config, outlets, 0, (), VersionLog())
            session = Session(config, Inputs(train, unseen, None), beginning, observer, stop, reached=0)
            with CheckpointManager(config, None, [], observer.note) as keeper:
                stalls = StallReporter(observer.note)
                latencies = asyncio.run(run_simulated(session, row, stalls, keeper))
    return {
        "row": asdict(row),
        "marks": [asdict(one) for one in display.marks],
        "latencies": latencies[row.groups :],
    }


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(run_row(Row(**{**given, "sizes": Sizes(**given["sizes"])}))))
