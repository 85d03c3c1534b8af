"""Which variables Ray finds, and in which temporary folder it can start."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray._private.utils import validate_socket_filepath

from common.config.services import RaySection
from common.errors import ConfigError
from driver.ray_environment import LONGEST_SOCKET, SOCKET, check_temporary_folder, prepare


def test_a_cluster_of_ones_own_is_for_this_machine_alone_and_a_joined_one_is_left_as_it_is() -> None:
    local = {"RAY_gcs_server_port_wait_time_s": "5"}
    prepare(RaySection(worker_niceness=7), local)
    assert local["RAY_worker_niceness"] == "7"
    assert local["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert local["RAY_gcs_server_port_wait_time_s"] == "5"
    joined: dict[str, str] = {}
    prepare(RaySection(address="auto"), joined)
    assert joined == {"RAY_ENABLE_AUTO_CONNECT": "0"}


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_paths_of_sockets_may_be_as_long_as_linux_takes(short: Path) -> None:
    longest = f"{short}/".ljust(LONGEST_SOCKET - len(SOCKET) - 1, "x")
    check_temporary_folder({"TMPDIR": longest})
    validate_socket_filepath(f"{longest}/{SOCKET}")
    with pytest.raises(ConfigError, match=r"TMPDIR.*108 bytes.*RAY_TMPDIR=/tmp"):
        check_temporary_folder({"TMPDIR": f"{longest}x"})
    with pytest.raises(OSError, match="cannot exceed"):
        validate_socket_filepath(f"{longest}x/{SOCKET}")


def test_a_folder_that_cannot_be_written_is_named_with_its_variable(short: Path) -> None:
    (short / "file").touch()
    with pytest.raises(ConfigError, match=r"file \(RAY_TMPDIR\), which cannot be written"):
        check_temporary_folder({"RAY_TMPDIR": str(short / "file"), "TMPDIR": "/tmp"})


def test_a_full_disk_is_named(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1_000_000))
    with pytest.raises(ConfigError, match="1 MB free"):
        check_temporary_folder({"TMPDIR": str(short)})
