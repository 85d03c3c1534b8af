"""A process that is stopped ends with its parent too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

CHILD = """
import time
from common.cluster.fate import end_with_parent
end_with_parent()
print("ready", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's doing")
def test_a_stopped_process_ends_with_its_parent() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline().split()[0]))
    os.kill(child.pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    assert psutil.wait_procs([child], timeout=10.0)[0]
