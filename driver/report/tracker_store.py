"""Where the MLflow run lives, and how it is opened. MLflow takes a second to import: that is done inside."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from common.config.services import TrackerSection
from common.errors import PrdpError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Answer = TypeVar("Answer")

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""MLflow's own settings, where the environment has none: no telemetry, no long waits, and no log, because
TrackerError tells what it raises in a line."""

MARKERS = ("policy/version", "time/evaluation_s")
"""A metric that every epoch has, and one that every evaluation has."""
LONGEST_CHAIN = 20
SQLITE_HEADER = b"SQLite format 3\0"
KIND_TAG = {"mlflow.experimentKind": "custom_model_development"}
"""Opens the experiment in the interface's view for training runs."""


class TrackerError(PrdpError):
    """A tracking store that cannot be opened or that refused a write."""


@dataclass(frozen=True)
class Store:
    """uri: of the tracking store; artifacts: URI of the artifact root, empty = the store's own choice."""

    uri: str
    artifacts: str


@dataclass(frozen=True)
class OpenRun:
    """A run that can be written to. logged: (metric, epoch) of MARKERS, by an earlier process of the run."""

    client: MlflowClient
    store: Store
    experiment_id: str
    run_id: str
    logged: frozenset[tuple[str, int]] = frozenset()


def call_store(what: str, call: Callable[[], Answer]) -> Answer:
    """Call into MLflow; whatever it raises becomes a TrackerError saying what was tried."""
    try:
        return call()
    except Exception as error:
        # Stores are plug-ins chosen by URI, and each raises the errors of its own client library.
        raise TrackerError(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The error's first line, and that of what caused it in the first place where it says more."""
    root = error
    for _ in range(LONGEST_CHAIN):
        root = root.__cause__ or root.__context__ or root
    lines = [(str(each).strip().splitlines() or [type(each).__name__])[0] for each in (error, root)]
    return lines[0] if lines[1] in lines[0] else f"{lines[0]} ({lines[1]})"


def locate(section: TrackerSection, runs: Path) -> Store:
    """The configured store, or an SQLite file with an artifact folder beside it in `runs`.

    Raises TrackerError where those cannot be written.
    """
    if section.uri:
        return Store(section.uri, "")
    database, artifacts = runs.resolve() / "mlflow.db", runs.resolve() / "mlflow-artifacts"
    mend = "Set run.folder to a folder that can be written, or tracker.uri to another store."
    try:
        artifacts.mkdir(parents=True, exist_ok=True)
        with database.open("ab"), database.open("rb") as file:
            header = file.read(len(SQLITE_HEADER))
    except OSError as error:
        raise TrackerError(f"The tracker's store {database} cannot be written ({error}). {mend}") from error
    if header not in (b"", SQLITE_HEADER):
        raise TrackerError(f"The tracker's store {database} is no SQLite database. Move it away. {mend}")
    return Store(f"sqlite:///{database}", artifacts.as_uri())


def open_client(store: Store) -> MlflowClient:
    """Import MLflow, quietly, and connect."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return call_store(f"Cannot open the tracking store {store.uri}", lambda: MlflowClient(store.uri))


def find_experiment(client: MlflowClient, store: Store, name: str) -> str:
    """Id of the experiment, made where there is none."""
    what = f"Cannot use the tracking store {store.uri}"
    found = call_store(what, lambda: client.get_experiment_by_name(name))
    if found is None:
        return call_store(what, lambda: client.create_experiment(name, store.artifacts or None, KIND_TAG))
    if found.lifecycle_stage != "active":
        raise TrackerError(
            f"The experiment {name!r} in {store.uri} has been deleted. Choose another tracker.experiment, or "
            f"bring it back: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)


def new_run(client: MlflowClient, experiment_id: str, run_name: str) -> Run:
    """A running run with the tags that the interface shows as its source and author."""
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": Path(sys.argv[0]).name}
    # A container may know no name for its user.
    with suppress(KeyError, OSError):
        tags["mlflow.user"] = getpass.getuser()
    return call_store(
        "Cannot make a run in the tracking store",
        lambda: client.create_run(experiment_id, tags=tags, run_name=run_name),
    )


def _logged(client: MlflowClient, run_id: str) -> frozenset[tuple[str, int]]:
    def read() -> frozenset[tuple[str, int]]:
        histories = (client.get_metric_history(run_id, name) for name in MARKERS)
        return frozenset((metric.key, metric.step) for history in histories for metric in history)

    return call_store(f"MLflow cannot go on with its run {run_id}", read)


def open_run(
    section: TrackerSection, run_name: str, runs: Path, resume_run_id: str, warn: Callable[[str], None]
) -> OpenRun:
    """Go on with `resume_run_id`, or make a new run where it is empty or no longer there.

    Raises TrackerError where the store cannot be opened or written.
    """
    store = locate(section, runs)
    client = open_client(store)
    experiment_id = find_experiment(client, store, section.experiment)
    if resume_run_id:
        what = f"MLflow cannot go on with its run {resume_run_id}"
        try:
            old = call_store(what, lambda: client.get_run(resume_run_id))
            call_store(what, lambda: client.update_run(resume_run_id, status="RUNNING"))
        except TrackerError as error:
            warn(f"{error}. A new one takes its place.")
        else:
            logged = _logged(client, resume_run_id)
            return OpenRun(client, store, old.info.experiment_id, resume_run_id, logged)
    run = new_run(client, experiment_id, run_name)
    return OpenRun(client, store, experiment_id, run.info.run_id)
