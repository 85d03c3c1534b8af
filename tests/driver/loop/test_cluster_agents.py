"""What a raylet has started ends with the driver, also where that is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

# A process of the raylet's name, with a child that outlives it.
DRIVER = """
import subprocess, sys, time
import psutil
from driver.loop.cluster import agents_end_with_us
raylet = subprocess.Popen([sys.argv[1], "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
agent = raylet.stdout.readline()
with agents_end_with_us():
    print(agent, flush=True)
    time.sleep(60)
"""


def test_agents_of_a_killed_driver_end(tmp_path: Path) -> None:
    (tmp_path / "raylet").symlink_to("/bin/sh")
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "raylet")]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    agent = psutil.Process(int(driver.stdout.readline()))
    family = psutil.Process(driver.pid).children(recursive=True)
    assert agent in family
    driver.kill()
    driver.wait()
    assert psutil.wait_procs([agent], timeout=20.0)[0]
    for left in family:
        if left.is_running():
            left.kill()
