"""A run in a process of its own that can be watched and killed, and what came of it, to be compared."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np

from common.cluster.metrics import exact_metrics
from common.config.load import config_to_yaml
from common.config.schema import Config
from common.places import sqlite_uri
from driver.observe.status import RunStatus, read_status
from driver.run.checkpoints import list_checkpoints, read_checkpoint
from driver.run.evaluations import load_evaluations

POLL_S = 0.003
_DIE_WITH_PARENT = 1


class Running:
    """train.py on a configuration. Dies with this process, whatever ends it; Ray's processes die with it."""

    def __init__(self, config: Config, process: subprocess.Popen[bytes], log: Path) -> None:
        self.config = config
        self.process = process
        self._log = log

    @staticmethod
    def start(config: Config) -> Running:
        """Begin or go on with the run; what it shows is added to <run folder's parent>/<name>.log."""
        folder = config.run_folder.parent
        folder.mkdir(parents=True, exist_ok=True)
        path, log = folder / f"{config.run.name}.yaml", folder / f"{config.run.name}.log"
        path.write_text(config_to_yaml(config), encoding="utf-8")
        with log.open("ab") as shown:
            process = subprocess.Popen(
                [sys.executable, "train.py", str(path)],
                stdout=shown,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return Running(config, process, log)

    @property
    def shown(self) -> str:
        """All that it and its earlier tries have shown."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait(self, limit_s: float) -> int:
        """Its exit status. Raises TimeoutError, after killing it, past limit_s seconds."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            self.end()
            raise TimeoutError(f"The run did not end in {limit_s:g} s:\n{self.shown}") from error

    def status(self) -> list[RunStatus]:
        """What status.json says, where it is of this process."""
        found = read_status(self.config.run_folder)
        return [found] if found is not None and found.pid == self.process.pid else []

    def until(self, there: Callable[[RunStatus], bool], limit_s: float) -> RunStatus:
        """The first status for which it holds. Raises TimeoutError where the run ends or hangs before."""
        end_at = time.monotonic() + limit_s
        while time.monotonic() < end_at and self.process.poll() is None:
            for status in self.status():
                if there(status):
                    return status
            time.sleep(POLL_S)
        raise TimeoutError(f"The run did not get there:\n{self.shown}")

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves that depends on its seed alone, by name."""

    values: dict[str, bytes]

    @staticmethod
    def of(config: Config) -> Outcome:
        """Files of its regular checkpoints, metrics of every epoch that are not times, and evaluations."""
        epochs, every = config.run.epochs, config.checkpoint.every_epochs
        checkpoints = [read_checkpoint(place) for place in list_checkpoints(config.run_folder)]
        # A stop saves others besides.
        regular = [own for own in checkpoints if own.state.epoch in (epochs, *range(every, epochs, every))]
        values = {
            f"checkpoint {own.state.epoch}/{name}": data
            for own in regular
            for name, data in own.files.items()
        }
        client = mlflow.MlflowClient(sqlite_uri(config.run_folder.parent.resolve() / "mlflow.db"))
        run = checkpoints[-1].state.tracker_run
        for name in exact_metrics(client.get_run(run).data.metrics):
            history = client.get_metric_history(run, name)
            values[f"metrics/{name}"] = repr(sorted((own.step, own.value) for own in history)).encode()
        for evaluation in load_evaluations(config.run_folder):
            for own in evaluation.sets:
                for name, array in {**own.scores, "pixels": own.pixels}.items():
                    values[f"evaluation {evaluation.epoch}/{own.name}/{name}"] = np.asarray(array).tobytes()
        return Outcome(values)

    def differences(self, other: Outcome) -> list[str]:
        """Names of what is not equal, bit for bit, or is there on one side only."""
        names = {*self.values, *other.values}
        return sorted(name for name in names if self.values.get(name) != other.values.get(name))


def _die_with_parent() -> None:
    """In the child: ask the kernel to kill it when its parent dies, even where that is killed itself."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
