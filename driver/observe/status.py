"""status.json in the run folder: what the run does now, and which processes do it, for operators."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import ray

from common.cluster.process_failures import all_actors
from common.config.schema import Config
from common.config.services import AppReward
from common.errors import RunFolderError
from common.hidden import hide
from common.records import read_record
from common.storage import put_file
from driver.observe.display import DisplayState
from driver.stop import StopRequested

STATUS_FILE = "status.json"
KINDS = {
    "ActorProcess": "actor",
    "LearnerRank": "learner rank",
    "HttpAsker": "reward asker",
    "ServeController": "Serve controller",
    "ProxyActor": "Serve proxy",
}
"""What each of our and of Serve's classes is called here."""
SHARED = ("ServeController", "ProxyActor")
"""Classes that the runs on a cluster have together."""
REPLICA = "reward replica"


@dataclass(frozen=True)
class ProcessStatus:
    """A living process of the run. node: its address; node_id: Ray's."""

    kind: str
    pid: int
    node: str
    node_id: str


@dataclass(frozen=True)
class RunStatus:
    """What status.json holds.

    pid: of the driver. epoch: finished epochs. reached: the most that were ever finished, checkpoint or not.
    phase: as displays name it, or how the run ended. since: Unix time of the phase's begin. processes: those
    that lived then. waits_for: what a run that starts waits for, in words.
    """

    run_id: str
    pid: int
    host: str
    epoch: int
    reached: int
    epochs: int
    phase: str
    since: float
    processes: tuple[ProcessStatus, ...]
    waits_for: str = ""


def living_processes(config: Config) -> tuple[ProcessStatus, ...]:
    """The run's living processes on the cluster that this process is in, from Ray's own table of actors."""
    apps = {f"{config.run.name}-{name}" for name in config.embedded}
    entries = {**config.rewards, **config.gold}.values()
    apps |= {entry.app for entry in entries if isinstance(entry, AppReward)}
    job = ray.get_runtime_context().get_job_id()
    found = []
    for actor in all_actors():
        name = actor["ActorClassName"]
        own = name in KINDS and (name in SHARED or actor["JobID"] == job)
        replica = name.startswith("ServeReplica:") and name.split(":")[1] in apps
        if actor["State"] == "ALIVE" and (own or replica):
            place = actor["Address"]
            kind = REPLICA if replica else KINDS[name]
            found.append(ProcessStatus(kind, actor["Pid"], place["IPAddress"], place["NodeID"]))
    return tuple(sorted(found, key=lambda process: (process.kind, process.pid)))


class StatusFile:
    """Keeps the file up to date. A disk that does not take it never stops the run; a folder that is gone
    does.

    reached: the most epochs that the run's earlier processes had finished; 0 for a new run.
    """

    def __init__(self, config: Config, run_id: str, reached: int = 0) -> None:
        self._config = config
        self._run_id = run_id
        self._path = config.run_folder / STATUS_FILE
        self._epoch = self._reached = reached

    def write(self, state: DisplayState) -> None:
        """A phase begins, or a start waits for something else."""
        self._epoch = state.epoch
        self._reached = max(self._reached, state.epoch)
        processes = living_processes(self._config) if ray.is_initialized() else ()
        self._put(state.phase.value, processes, state.waits_for)

    @contextmanager
    def until_the_end(self) -> Iterator[None]:
        """Inside the run goes on; then the file says how it ended."""
        how = "failed"
        try:
            yield
            how = "finished"
        except (StopRequested, KeyboardInterrupt):
            how = "stopped"
            raise
        finally:
            # Where the folder is gone, the error on its way says so.
            with suppress(RunFolderError):
                self._put(how, ())

    def _put(self, phase: str, processes: tuple[ProcessStatus, ...], waits_for: str = "") -> None:
        status = RunStatus(
            run_id=self._run_id,
            pid=os.getpid(),
            host=os.uname().nodename,
            epoch=self._epoch,
            reached=self._reached,
            epochs=self._config.run.epochs,
            phase=phase,
            since=time.time(),
            processes=processes,
            waits_for=waits_for,
        )
        with suppress(OSError):
            put_file(self._path, hide(f"{json.dumps(asdict(status), indent=1)}\n").encode())


def read_status(run_folder: Path) -> RunStatus | None:
    """The file of a run; None before its first phase. Raises RunFolderError where it cannot be read."""
    return read_record(run_folder / STATUS_FILE, RunStatus, "Delete it: the run writes another.")


def epochs_reached(run_folder: Path, run_id: str) -> int:
    """The most epochs that the run's earlier processes had finished; 0 where there were none."""
    try:
        status = read_status(run_folder)
    except RunFolderError:
        # It only says which epochs come again; it is replaced at once.
        return 0
    return status.reached if status is not None and status.run_id == run_id else 0
