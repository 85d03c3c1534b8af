"""A tracking store that is not there is found before anything is started, and soon."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from driver.report import store_check
from driver.report.store_check import check_store
from driver.report.tracker import TrackerError


@pytest.fixture(params=[200, 401])
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a server that answers everything with one status."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(request.param)

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent() -> Iterator[int]:
    """Port of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def unused() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_a_server_that_answers_anything_is_there(server: str) -> None:
    check_store(server)


def test_a_database_server_only_has_to_listen(silent: int) -> None:
    check_store(f"postgresql+psycopg2://me:secret@127.0.0.1:{silent}/mlflow")


@pytest.mark.parametrize("uri", ["http://127.0.0.1:{}", "postgresql://me:secret@127.0.0.1:{}/d"])
def test_nobody_there_is_told_without_a_secret(uri: str, unused: int) -> None:
    with pytest.raises(TrackerError, match=r"127\.0\.0\.1 does not answer.*tracker\.uri") as caught:
        check_store(uri.format(unused))
    assert "secret" not in str(caught.value)


def test_silence_has_a_limit(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_check, "ANSWER_LIMIT_S", 0.2)
    with pytest.raises(TrackerError, match="does not answer"):
        check_store(f"http://127.0.0.1:{silent}")


def test_a_database_file_must_open(tmp_path: Path) -> None:
    check_store(f"sqlite:///{tmp_path}/new/50%25/x.db")
    assert (tmp_path / "new" / "50%").is_dir()
    (tmp_path / "text.db").write_text("no database, but long enough to be told from an empty one" * 20)
    for uri in (
        f"sqlite:///{tmp_path}",
        f"sqlite:///{tmp_path}/text.db",
        f"sqlite:///{tmp_path}/text.db/x.db",
    ):
        with pytest.raises(TrackerError, match="cannot be opened"):
            check_store(uri)


@pytest.mark.parametrize("uri", ["", "mlruns", "databricks", "databricks://profile", "sqlite://", "x://h"])
def test_what_is_not_known_passes(uri: str) -> None:
    check_store(uri)
