"""A run's own Ray is for this machine alone, and gives way to other programs as far as the setting says."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import json, os
from common.config.services import RaySection
from driver.ray_environment import prepare

section = RaySection(worker_niceness=3, dashboard=True, object_store_gb=0.1)
prepare(section, os.environ)
import psutil, ray
from driver.loop.cluster import start_local

start_local(section)
niceness = ray.get(ray.remote(lambda: os.nice(0)).remote())
own = psutil.Process()
listening = {
    connection.laddr.ip.removeprefix("::ffff:")
    for process in [own, *own.children(recursive=True)]
    for connection in process.net_connections()
    if connection.status == psutil.CONN_LISTEN
}
ray.shutdown()
print(json.dumps([niceness, sorted(listening)]))
"""


def test_it_listens_on_loopback_alone_and_is_as_nice_as_asked_for() -> None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [3, ["127.0.0.1"]]
