"""Whether a tracking store can be reached, before anything is started for a run. Imports no MLflow."""

from __future__ import annotations

import socket
import sqlite3
import ssl
import threading
from collections.abc import Callable
from contextlib import closing
from queue import Empty, SimpleQueue
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

from common.places import local_file
from driver.report.tracker import TrackerError

ANSWER_LIMIT_S = 8.0
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Where servers listen by default, by the first part of a URI's scheme."""
NO_SERVER = (502, 503, 504)
"""Statuses with which a proxy says that nobody stands behind it."""


def check_store(uri: str) -> None:
    """Raise TrackerError where a database cannot be opened, or a server does not answer in ANSWER_LIMIT_S.

    uri: tracker.uri; what is no database, has no host or is not known passes.
    """
    try:
        parts = urlsplit(uri)
        kind, host, port = parts.scheme.split("+")[0], parts.hostname, parts.port
    except ValueError as error:
        raise TrackerError(f"tracker.uri is no URI: {error}.") from error
    if kind == "sqlite":
        _open_database(uri)
    elif host and kind in ("http", "https"):
        _within_limit(host, lambda: _ask(uri))
    elif host and (port or kind in PORTS):
        _within_limit(host, lambda: _connect(host, port or PORTS[kind]))


def _open_database(uri: str) -> None:
    file = local_file(uri)
    if file is None or str(file) in (".", ":memory:"):
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(file, timeout=ANSWER_LIMIT_S)) as database:
            database.execute("PRAGMA schema_version")
    except (OSError, sqlite3.Error) as error:
        raise TrackerError(f"The database {file} of tracker.uri cannot be opened: {error}.") from error


def _within_limit(host: str, reach: Callable[[], None]) -> None:
    """In a thread that nobody waits for at the end: looking up a name has no limit of its own."""
    answers: SimpleQueue[Exception | None] = SimpleQueue()

    def work() -> None:
        try:
            reach()
            answers.put(None)
        except (OSError, ValueError) as error:
            answers.put(error)

    threading.Thread(target=work, name="looks for the tracking server", daemon=True).start()
    try:
        error = answers.get(timeout=ANSWER_LIMIT_S)
    except Empty:
        error = TimeoutError(f"no answer in {ANSWER_LIMIT_S:g} s")
    if error is not None:
        raise TrackerError(
            f"The tracking server at {host} does not answer: {error}. Start it, mend tracker.uri, or leave "
            "that empty to keep the run's record in run.folder."
        ) from error


def _ask(uri: str) -> None:
    """Whatever it answers, it is there; what it wants of a client MLflow knows."""
    try:
        urlopen(uri, timeout=ANSWER_LIMIT_S).close()
    except HTTPError as error:
        if error.code in NO_SERVER:
            raise
    except URLError as error:
        if not isinstance(error.reason, ssl.SSLError):
            raise


def _connect(host: str, port: int) -> None:
    socket.create_connection((host, port), timeout=ANSWER_LIMIT_S).close()
