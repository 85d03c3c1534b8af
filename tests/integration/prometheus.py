"""A real Prometheus that watches whatever Ray this process starts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import ray
from ray.exceptions import RayError

CONFIG = """
global: {scrape_interval: 1s}
scrape_configs:
  - job_name: ray
    file_sd_configs: [{files: ['TARGETS'], refresh_interval: 1s}]
"""
PATIENCE_S = 30.0


def ask(address: str, expr: str, begin_s: float, end_s: float) -> list[np.ndarray]:
    """The values of each series of a query, one a second. Times in seconds since 1970."""
    asked = urllib.parse.urlencode({"query": expr, "start": begin_s, "end": end_s, "step": 1.0})
    with urllib.request.urlopen(f"{address}/api/v1/query_range?{asked}", timeout=20) as answer:
        found = json.load(answer)["data"]["result"]
    return [np.array([float(value) for _, value in series["values"]]) for series in found]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(address: str) -> bool:
    with suppress(OSError):
        urllib.request.urlopen(address, timeout=2).close()
        return True
    return False


def wait_for(address: str, process: subprocess.Popen[bytes], patience_s: float = PATIENCE_S) -> None:
    """Until the address answers."""
    deadline = time.monotonic() + patience_s
    while not _answers(address):
        assert process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.2)


@contextmanager
def ended_at_last(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends the process and its children, whatever happens; it was started with a session of its own."""
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)


@contextmanager
def prometheus(folder: Path, while_ray_runs: Callable[[], None]) -> Iterator[str]:
    """Its address. while_ray_runs is called about once a second in a thread. Skips where there is none."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no prometheus here (apt-get install prometheus)")
    port, targets = free_port(), folder / "targets.json"
    (folder / "prometheus.yml").write_text(CONFIG.replace("TARGETS", str(targets)))
    arguments = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [binary, *arguments, f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(0.5):
            # Ray may start or stop at any moment.
            with suppress(RayError, RuntimeError, ConnectionError):
                if ray.is_initialized():
                    found = [f"127.0.0.1:{node['MetricsExportPort']}" for node in ray.nodes()]
                    if found and not targets.exists():
                        targets.write_text(json.dumps([{"targets": found}]))
                    while_ray_runs()

    with ended_at_last(process):
        wait_for(f"http://127.0.0.1:{port}/-/ready", process)
        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            ended.set()
            thread.join(timeout=10)
