"""What Ray finds on this machine: the variables that it reads when it is imported, and a temporary folder.

Imports nothing heavy.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from common.config.services import RaySection
from common.errors import ConfigError

JOINED = {
    # A thread that Serve leaves behind must not join another cluster of this machine after the run's own.
    "RAY_ENABLE_AUTO_CONNECT": "0",
}
LOCAL = {
    # Without "clusters" a node is 127.0.0.1, and everything of Ray's listens on loopback alone.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Seconds. On a machine with much else to do all of these come late: Ray's own limits are 20 to 60.
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
    "RAY_worker_register_timeout_seconds": "120",
}


SOCKET = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
"""The longest path of a socket below Ray's temporary folder."""
LONGEST_SOCKET = 107
"""Bytes that Linux takes."""
LEAST_FREE = 200_000_000
"""Bytes; the logs of a run take some of them."""


def prepare(section: RaySection, environ: MutableMapping[str, str]) -> None:
    """Set what the run's Ray needs, but for what the environment says already."""
    niceness = {"RAY_worker_niceness": str(section.worker_niceness)}
    wanted = JOINED | (LOCAL | niceness if section.address == "local" else {})
    for name, value in wanted.items():
        environ.setdefault(name, value)


def check_temporary_folder(environ: Mapping[str, str]) -> None:
    """Raise ConfigError where Ray could not keep its sockets and logs in the temporary folder."""
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in environ), "")
    folder = Path(environ.get(variable, "/tmp")).absolute()
    what = f"Ray's temporary folder is {folder}{f' ({variable})' if variable else ''}"
    mend = "Set RAY_TMPDIR to another folder of this machine"
    length = len(os.fsencode(folder / SOCKET))
    if length > LONGEST_SOCKET:
        raise ConfigError(
            f"{what}, and the paths of sockets in it would have {length} bytes, of which Linux takes "
            f"{LONGEST_SOCKET}. {mend} with a shorter path: RAY_TMPDIR=/tmp"
        )
    try:
        (folder / "ray").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / "ray") as file:
            file.write(b"x" * 4096)
        free = shutil.disk_usage(folder / "ray").free
    except OSError as error:
        raise ConfigError(f"{what}, which cannot be written: {error}. {mend}.") from error
    if free < LEAST_FREE:
        few, least = (f"{size / 1e6:.0f} MB" for size in (free, LEAST_FREE))
        raise ConfigError(f"{what}, with {few} free; a run takes {least}. {mend}.")
