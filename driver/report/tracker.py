"""The MLflow run: configuration, metrics, pictures, plots, text and folders.

Opening fails early, with the reason. Once open, a store that does not answer never stops a training run: a
write is tried a few times, then it is counted as lost and the run goes on.
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cluster.metrics import check_metrics, metrics_markdown
from common.config.services import TrackerSection
from driver.report.tracker_registry import ModelVersion, register
from driver.report.tracker_store import OpenRun, TrackerError, call_store, open_run

if TYPE_CHECKING:
    from PIL.Image import Image

WAITS_S = (1.0, 3.0)
"""Pauses before the second and third try of a write."""
PATIENCE_S = 60.0
"""How long a store that did not answer is left alone; writes of that time are lost."""
LONGEST_PARAM = 6000
LONGEST_KEY = 250
LONGEST_NOTE = 8000
PARAMS_PER_CALL = 100
"""MLflow's limits: characters of a param, a name and a tag; params in a call."""

LOGGER = logging.getLogger(__name__)

TrackerNote = Callable[[str], None]


class RunEnd(Enum):
    """How a run ended, in MLflow's words."""

    FINISHED = "FINISHED"
    FAILED = "FAILED"
    STOPPED = "KILLED"


class Tracker:
    """One open MLflow run. Owned by one thread. Only log_metrics raises, and only for an unknown name.

    warn: told when the store stops answering and when it answers again. sleep, clock: wait and tell seconds.
    """

    def __init__(
        self,
        run: OpenRun,
        warn: TrackerNote,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._client = run.client
        self._warn = warn
        self._sleep = sleep
        self._clock = clock
        self._lost = 0
        self._answers = True
        self._left_alone_until = 0.0

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; a checkpoint keeps it."""
        return self._run.run_id

    @property
    def lost_writes(self) -> int:
        """Writes that the store did not take."""
        return self._lost

    def log_config(self, params: Mapping[str, str], yaml_text: str) -> None:
        """Every setting as a param (see flat_params) and the whole configuration as config.yaml.

        MLflow's params never change, so a setting that differs in a continued run is shown as a tag.
        """
        self.log_text("config.yaml", yaml_text)
        self._write("the configuration", lambda: self._log_params(params))

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """metrics: by name, see common.cluster.metrics; epoch: epochs finished.

        What an earlier process of the run has logged stays where an epoch that is done again gives the same
        (same_again); else it is logged again.
        Raises ValueError for a name that is not in the table.
        """
        from mlflow.entities import Metric

        check_metrics(metrics)
        if any((name, epoch) in self._run.logged for name in metrics):
            return
        now = int(time.time() * 1000)
        values = [Metric(name, float(value), now, epoch) for name, value in metrics.items()]
        self._write("the metrics", lambda: self._client.log_batch(self.run_id, metrics=values))

    def log_picture(self, name: str, picture: Image, epoch: int) -> None:
        """A picture that the run page shows with a slider over epochs; the newest one is also <name>.png.

        name: letters, digits, spaces, and "_-."; what stands before a "/" is the section of the page.
        """
        self._write(
            f"the picture {name}", lambda: self._client.log_image(self.run_id, picture, key=name, step=epoch)
        )
        self._write(
            f"the picture {name}.png", lambda: self._client.log_image(self.run_id, picture, f"{name}.png")
        )

    def log_file(self, file: Path, artifact_path: str = "") -> None:
        """A file such as a plot, in the artifact folder of that name (empty = at the top)."""
        self._write(
            f"the file {file}",
            lambda: self._client.log_artifact(self.run_id, str(file), artifact_path or None),
        )

    def log_text(self, file: str, text: str) -> None:
        """A text artifact, e.g. "config.yaml"; replaced each time."""
        self._write(file, lambda: self._client.log_text(self.run_id, text, file))

    def log_folder(self, folder: Path, artifact_path: str) -> None:
        """All files of a folder, below artifact_path."""
        self._write(
            f"the folder {folder}",
            lambda: self._client.log_artifacts(self.run_id, str(folder), artifact_path),
        )

    def set_description(self, markdown: str) -> None:
        """The text at the top of the run page."""
        cut = "\n\n(cut)"
        text = markdown if len(markdown) <= LONGEST_NOTE else markdown[: LONGEST_NOTE - len(cut)] + cut
        self._write("the description", lambda: self._client.set_tag(self.run_id, "mlflow.note.content", text))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags, which runs can be searched by."""
        self._write("the tags", lambda: self._set_tags(tags))

    def register(self, model: ModelVersion) -> tuple[str, ...]:
        """Make artifacts of this run a version of a registered model. Its address; none where that failed."""
        versions: list[str] = []
        run = self._run
        self._write(
            f"the model {model.name}", lambda: versions.append(register(run.client, run.run_id, model))
        )
        return tuple(versions)

    def finish(self, end: RunEnd) -> None:
        """Close the run; it can be opened again with its id."""
        self._write("the end of the run", lambda: self._client.set_terminated(self.run_id, end.value))

    def run_url_hint(self) -> str:
        """The command that opens the run's store in a browser; for a tracking server, the run's address."""
        if self._run.store.uri.startswith(("http://", "https://")):
            server = self._run.store.uri.rstrip("/")
            return f"{server}/#/experiments/{self._run.experiment_id}/runs/{self.run_id}"
        command = _shown_path(Path(sys.executable).with_name("mlflow"))
        return f"{command} ui --backend-store-uri {shlex.quote(self._run.store.uri)}"

    def _log_params(self, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        new = {key: value for key, value in params.items() if key not in known}
        items = [Param(key, value) for key, value in new.items()]
        for start in range(0, len(items), PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=items[start : start + PARAMS_PER_CALL])
        changed = {key: value for key, value in params.items() if known.get(key, value) != value}
        self._set_tags({f"changed/{key}": f"{known[key]} -> {value}" for key, value in changed.items()})

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key[:LONGEST_KEY], value[:LONGEST_NOTE])

    def _write(self, what: str, call: Callable[[], object]) -> None:
        if self._clock() < self._left_alone_until:
            self._lost += 1
            return
        waits = (0.0, *WAITS_S) if self._answers else (0.0,)
        reason = ""
        for wait in waits:
            self._sleep(wait)
            try:
                call_store(f"MLflow did not take {what}", call)
            except TrackerError as error:
                reason = str(error)
            else:
                self._succeeded()
                return
        self._failed(reason)

    def _succeeded(self) -> None:
        if not self._answers:
            self._warn(f"MLflow answers again; {self._lost} writes were lost so far.")
        self._answers = True

    def _failed(self, reason: str) -> None:
        self._lost += 1
        self._left_alone_until = self._clock() + PATIENCE_S
        if self._answers:
            self._warn(f"{reason}. The run goes on; what MLflow does not take is lost.")
        self._answers = False


def open_tracker(
    section: TrackerSection,
    run_name: str,
    run_folder_parent: Path,
    resume_run_id: str = "",
    warn: TrackerNote = LOGGER.warning,
    same_again: bool = True,
) -> Tracker:
    """Open a new run, or go on with `resume_run_id`. run_folder_parent holds the default store.

    same_again: whether epochs that are done again give the same, so that they need not be logged again.
    Raises TrackerError where the store cannot be opened, read or written.
    """
    run = open_run(section, run_name, run_folder_parent, resume_run_id, warn)
    run = run if same_again else replace(run, logged=frozenset())
    what = f"Cannot write artifacts of the tracking store {run.store.uri}"
    call_store(what, lambda: run.client.log_text(run.run_id, metrics_markdown(), "metrics.md"))
    return Tracker(run, warn)


def flat_params(config: Mapping[str, Any]) -> dict[str, str]:
    """A nested configuration (model_dump(mode="json")) as dotted keys and text, within MLflow's limits."""
    return {_param_name(key): text[:LONGEST_PARAM] for key, text in _leaves(config, "")}


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{name}.")
        else:
            yield name, inner if isinstance(inner, str) else json.dumps(inner)


def _param_name(key: str) -> str:
    return re.sub(r"[^\w.\-/ :]", "_", key)[:LONGEST_KEY]


def _shown_path(path: Path) -> str:
    """Relative to the working folder where it lies inside."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
