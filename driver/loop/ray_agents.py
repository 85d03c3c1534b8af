"""Ends what Ray leaves of a cluster that the driver has started for itself.

Ray's raylet and control store end with the driver, however that ends, and workers with the raylet. The
raylet's agents do not: they try for a minute to tell the control store, which is gone.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

# In a process of its own, which outlives the driver: its input ends with the driver.
_WATCH = """
import sys, psutil
agents = [psutil.Process(int(pid)) for pid in sys.argv[1:] if psutil.pid_exists(int(pid))]
sys.stdin.read()
for agent in psutil.wait_procs(agents, 2.0)[1]:
    agent.kill()
"""


@contextmanager
def agents_end_with_us() -> Iterator[None]:
    """Inside, the raylets that this process has started have children that end seconds after it."""
    raylets = [child for child in psutil.Process().children() if child.name() == "raylet"]
    agents = [str(agent.pid) for raylet in raylets for agent in raylet.children()]
    command = [sys.executable, "-c", _WATCH, *agents]
    watch = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        assert watch.stdin is not None
        watch.stdin.close()
