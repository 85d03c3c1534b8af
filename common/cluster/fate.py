"""A worker process ends with the node that started it, whatever it is doing then."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent, Ray's raylet, dies.

    Ray's own watch ends it too, but not while it is stopped, or while native code holds the interpreter: then
    it would keep its memory for minutes. Does nothing where the kernel is not Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It died just before.
        os.kill(os.getpid(), signal.SIGKILL)
