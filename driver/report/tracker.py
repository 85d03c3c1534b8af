"""The MLflow run: configuration, metrics, images, plots, text, folders, and the final policy as a model.

Opening fails early, with the reason. Once open, a store that does not answer never stops or holds up a run:
one thread writes in the order of the calls, and what the store does not take is counted as lost. (MLflow's
own asynchronous logging keeps no order between two values of a tag, and does not cover files.) MLflow takes a
second to import, so that is done inside.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from common.cluster.metrics import check_metrics, metrics_markdown
from common.config.services import TrackerSection
from common.errors import PrdpError
from common.hidden import hide
from common.places import sqlite_uri
from common.terminal import beside_python

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

Answer = TypeVar("Answer")
Warn = Callable[[str], None]
LOGGER = logging.getLogger(__name__)

LEFT_ALONE_S = 60.0
"""How long a store that did not answer is left alone; writes of that time are lost."""
FLUSH_LIMIT_S = 600.0
MOST_WAITING = 1000
"""Writes that wait for a store that is slower than the run; what comes while there are so many is lost."""
LONGEST_PARAM, LONGEST_KEY, LONGEST_NOTE, LONGEST_MODEL_TAG = 6000, 250, 8000, 100_000
PARAMS_PER_CALL = 100
"""MLflow's limits: characters of a param, a name, a run's and a model's tag; params in a call."""

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""MLflow's own settings, where the environment has none: no telemetry, no long waits, and no log, because
TrackerError tells what it raises in a line."""
LOCAL_INTERFACE = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens."""
MARKERS = ("policy/version", "time/evaluation_s")
"""A metric that every epoch has, and one that every evaluation has."""
END_TAG = "ended"
KIND_TAG = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment in the interface's view for training runs, in versions that look at it."""
TRAINING_VIEW = "workflowType=machine_learning"
"""Does the same in an address: MLflow 3.17 looks at nothing else, and opens its view for GenAI otherwise."""
NO_CURVES = "eval/width95/"
"""Metrics that would have charts of their own: the page's table and plots show them where they belong."""


class TrackerError(PrdpError):
    """A tracking store that cannot be opened or that refused a write."""


class RunEnd(Enum):
    """How a run ended: the run's tag END_TAG, and the status that MLflow has for it."""

    FINISHED = "finished", "FINISHED"
    STOPPED = "stopped, with a checkpoint of the last finished epoch", "FINISHED"
    CUT_OFF = "ended at once, without a checkpoint", "KILLED"
    FAILED = "failed", "FAILED"


@dataclass(frozen=True)
class OpenRun:
    """A run that can be written to. logged: (metric, epoch) of MARKERS, by an earlier process of the run."""

    client: MlflowClient
    store_uri: str
    experiment_id: str
    run_id: str
    logged: frozenset[tuple[str, int]] = frozenset()

    @property
    def page(self) -> str:
        """Its address in the interface, from the interface's own on."""
        return f"#/experiments/{self.experiment_id}/runs/{self.run_id}?{TRAINING_VIEW}"


class Tracker:
    """One open MLflow run. Only log_metrics raises, and only for a name that is not in the table of metrics.

    warn: called when the store stops answering and when it answers again. clock: seconds, monotonic.
    charts: metrics that are logged a second time, under the names given here: the page sorts its charts by
    name.
    """

    def __init__(
        self,
        run: OpenRun,
        warn: Warn,
        clock: Callable[[], float] = time.monotonic,
        charts: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._run = run
        self._client = run.client
        self._warn = warn
        self._clock = clock
        self._charts = charts
        self._answers = True
        self._left_alone_until = 0.0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writes to MLflow")
        self._waiting: set[Future[Any]] = set()
        self.lost_writes = 0
        """Writes that the store did not take."""

    @property
    def run_id(self) -> str:
        """MLflow's id of the run; a checkpoint keeps it."""
        return self._run.run_id

    def log_config(self, params: Mapping[str, str], yaml_text: str) -> None:
        """Every setting as a param (see flat_params) and the whole configuration as config.yaml.

        MLflow's params never change: of a continued run they are the first values, and config.yaml has the
        newest.
        """

        def write() -> None:
            from mlflow.entities import Param

            known = self._client.get_run(self.run_id).data.params
            new = [Param(key, value) for key, value in params.items() if key not in known]
            for start in range(0, len(new), PARAMS_PER_CALL):
                self._client.log_batch(self.run_id, params=new[start : start + PARAMS_PER_CALL])

        self.log_text("config.yaml", yaml_text)
        self._later("the configuration", write)

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        """metrics: by name, see common.cluster.metrics; epoch: epochs finished.

        What an earlier process of the run has logged is not logged again where it comes again the same
        (open_tracker's same_again). Raises ValueError for a name that is not in the table.
        """
        from mlflow.entities import Metric

        check_metrics(metrics)
        if any((name, epoch) in self._run.logged for name in metrics):
            return
        now = int(time.time() * 1000)
        curves = {name: value for name, value in metrics.items() if not name.startswith(NO_CURVES)}
        curves |= {self._charts[name]: value for name, value in metrics.items() if name in self._charts}
        values = [Metric(name, float(value), now, epoch) for name, value in curves.items()]
        self._later("the metrics", lambda: self._client.log_batch(self.run_id, metrics=values))

    def log_image(self, name: str, image: Image, epoch: int) -> None:
        """An image that the run page shows with a slider over epochs; the newest one is also <name>.png.

        name: letters, digits, spaces, and "_-."; what stands before a "/" is the section of the page.
        """

        def write() -> None:
            self._client.log_image(self.run_id, image, key=name, step=epoch)
            self._client.log_image(self.run_id, image, f"{name}.png")

        self._later(f"the image {name}", write)

    def log_text(self, file: str, text: str) -> None:
        """A text artifact, e.g. "config.yaml"; replaced each time."""
        self._later(file, lambda: self._client.log_text(self.run_id, hide(text), file))

    def log_folder(self, folder: Path, artifact_path: str) -> None:
        """All files of a folder, below artifact_path. Waits until they are written, so it may go then."""
        what = f"the folder {folder}"
        self._later(what, lambda: self._client.log_artifacts(self.run_id, str(folder), artifact_path))
        self.flush()

    def set_description(self, markdown: str) -> None:
        """The text at the top of the run page."""
        cut = "\n\n(cut)"
        text = markdown if len(markdown) <= LONGEST_NOTE else markdown[: LONGEST_NOTE - len(cut)] + cut
        self.set_tags({"mlflow.note.content": text})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags, which runs can be searched by."""

        def write() -> None:
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key[:LONGEST_KEY], hide(value)[:LONGEST_NOTE])

        self._later("the tags", write)

    def register(self, name: str, folder: str, description: str, tags: Mapping[str, str]) -> str | None:
        """Make a folder of the run's artifacts a version of a registered model, made where it is new.

        Waits. Returns the version's address, models:/NAME/NUMBER; None where that failed.
        """

        def write() -> str:
            from mlflow.exceptions import MlflowException
            from mlflow.protos.databricks_pb2 import RESOURCE_ALREADY_EXISTS, ErrorCode

            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != ErrorCode.Name(RESOURCE_ALREADY_EXISTS):
                    raise
            source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{folder}"
            short = {key: hide(value)[:LONGEST_MODEL_TAG] for key, value in tags.items()}
            made = self._client.create_model_version(
                name, source, self.run_id, tags=short, description=hide(description), await_creation_for=0
            )
            return f"models:/{name}/{made.version}"

        return self._wait(self._later(f"the model {name}", write))

    def flush(self) -> None:
        """Wait until everything so far is written, or lost."""
        self._wait(self._writer.submit(lambda: None))

    def finish(self, end: RunEnd) -> None:
        """Write what is left and close the run; it can be opened again with its id."""
        words, status = end.value
        self.set_tags({END_TAG: words})
        self._later("the end", lambda: self._client.set_terminated(self.run_id, status))
        self.flush()
        self.lost_writes += sum(write.cancel() for write in list(self._waiting))
        self._writer.shutdown(wait=False)

    def run_url_hint(self) -> str:
        """The command that serves the run's store, and its page then; of a tracking server the page alone."""
        uri = self._run.store_uri
        if uri.startswith(("http://", "https://")):
            return f"{uri.rstrip('/')}/{self._run.page}"
        served = shlex.join([beside_python("mlflow"), "ui", "--backend-store-uri", uri])
        return f"{served}\n  {LOCAL_INTERFACE}/{self._run.page}"

    def _later(self, what: str, call: Callable[[], Answer]) -> Future[Answer | None]:
        if len(self._waiting) >= MOST_WAITING:
            self.lost_writes += 1
            refused: Future[Answer | None] = Future()
            refused.set_result(None)
            return refused
        write = self._writer.submit(self._write, what, call)
        self._waiting.add(write)
        write.add_done_callback(self._waiting.discard)
        return write

    def _wait(self, write: Future[Answer | None]) -> Answer | None:
        """Its value, once it and all before it are done; None where the store takes too long."""
        try:
            return write.result(FLUSH_LIMIT_S)
        except TimeoutError:
            self._warn(f"MLflow took longer than {FLUSH_LIMIT_S:.0f} s; what is left is not waited for.")
            return None

    def _write(self, what: str, call: Callable[[], Answer]) -> Answer | None:
        if self._clock() < self._left_alone_until:
            self.lost_writes += 1
            return None
        try:
            answer = call_store(f"MLflow did not take {what}", call)
        except TrackerError as error:
            self.lost_writes += 1
            self._left_alone_until = self._clock() + LEFT_ALONE_S
            if self._answers:
                self._warn(f"{error}. The run goes on; what MLflow does not take is lost.")
            self._answers = False
            return None
        if not self._answers:
            self._warn(f"MLflow answers again; {self.lost_writes} writes were lost so far.")
        self._answers = True
        return answer


def open_tracker(
    section: TrackerSection,
    run_name: str,
    runs: Path,
    resume_run_id: str = "",
    warn: Warn = LOGGER.warning,
    same_again: bool = True,
    charts: Mapping[str, str] = MappingProxyType({}),
) -> Tracker:
    """Go on with `resume_run_id`, or open a new run where it is empty or no longer there.

    runs: folder of the default store. same_again: whether epochs that are done again give the same, so that
    they need not be logged again. charts: see Tracker. Raises TrackerError where the store
    cannot be opened, read or written.
    """
    uri = _store(section, runs)
    artifacts = None if section.uri else runs.resolve() / "mlflow-artifacts"
    markers = MARKERS if same_again else ()

    def begin() -> OpenRun:
        from mlflow import MlflowClient
        from mlflow.tracking.context.registry import resolve_tags

        if artifacts:
            artifacts.mkdir(parents=True, exist_ok=True)
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(section.experiment)
        place = artifacts.as_uri() if artifacts else None
        experiment = (
            found.experiment_id if found else client.create_experiment(section.experiment, place, KIND_TAG)
        )
        for key, value in KIND_TAG.items():
            if found and key not in found.tags:
                client.set_experiment_tag(experiment, key, value)
        run = _resumed(client, uri, resume_run_id, markers, warn) if resume_run_id else None
        if run is None:
            # The repository's address may hold a token.
            tags = {key: hide(str(value)) for key, value in resolve_tags().items()}
            made = client.create_run(experiment, tags=tags, run_name=run_name)
            run = OpenRun(client, uri, experiment, made.info.run_id)
        client.log_text(run.run_id, metrics_markdown(), "metrics.md")
        return run

    return Tracker(call_store(f"Cannot use the tracking store {uri}", begin), warn, charts=charts)


def read_history(section: TrackerSection, runs: Path, run_id: str) -> list[dict[str, float | None]]:
    """A row for each epoch, oldest first: "epoch", and every metric of the run, None where it was not logged.

    Raises TrackerError where the store cannot be read.
    """
    uri = _store(section, runs)

    def read() -> list[tuple[int, str, float]]:
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        names = client.get_run(run_id).data.metrics
        logged = [value for name in names for value in client.get_metric_history(run_id, name)]
        return [(value.step, value.key, value.value) for value in logged]

    found = call_store(f"Cannot read the run {run_id} of the tracking store {uri}", read)
    empty = dict.fromkeys(name for _, name, _ in found)
    rows: dict[int, dict[str, float | None]] = {
        epoch: {"epoch": epoch, **empty} for epoch in sorted({epoch for epoch, _, _ in found})
    }
    for epoch, name, value in found:
        rows[epoch][name] = value
    return list(rows.values())


def _store(section: TrackerSection, runs: Path) -> str:
    """The store's URI. MLflow is made quiet before it is imported."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    return section.uri or sqlite_uri(runs.resolve() / "mlflow.db")


def _resumed(
    client: MlflowClient, uri: str, run_id: str, markers: Sequence[str], warn: Warn
) -> OpenRun | None:
    def resume() -> OpenRun:
        found = client.get_run(run_id)
        experiment = found.info.experiment_id
        client.update_run(run_id, status="RUNNING")
        if END_TAG in found.data.tags:
            client.delete_tag(run_id, END_TAG)
        histories = [client.get_metric_history(run_id, name) for name in markers]
        logged = frozenset((metric.key, metric.step) for history in histories for metric in history)
        return OpenRun(client, uri, experiment, run_id, logged)

    try:
        return call_store(f"MLflow cannot go on with its run {run_id}", resume)
    except TrackerError as error:
        warn(f"{error}. A new one takes its place.")
        return None


def call_store(what: str, call: Callable[[], Answer]) -> Answer:
    """Call into MLflow; whatever it raises becomes a TrackerError saying what was tried."""
    try:
        return call()
    except Exception as error:
        # Stores are plug-ins chosen by URI, and each raises the errors of its own client library.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrackerError(hide(f"{what}: {reason}")) from error


def flat_params(config: Mapping[str, Any]) -> dict[str, str]:
    """A nested configuration (model_dump(mode="json")) as dotted keys and text, within MLflow's limits."""
    return {
        re.sub(r"[^\w.\-/ :]", "_", key)[:LONGEST_KEY]: text[:LONGEST_PARAM]
        for key, text in _leaves(config, "")
    }


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            yield from _leaves(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", inner if isinstance(inner, str) else json.dumps(inner)
