"""Work that must not slow those that answer: a thread of its own, which yields the processor to others."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

NICER_BY = 10
"""Beside a busy thread of the usual niceness, such a thread gets about a tenth of a core."""
_NICEST = 19

Result = TypeVar("Result")


def at_low_priority(work: Callable[[], Result], name: str) -> Result:
    """Do `work` in a thread called `name` that is nicer than this one by NICER_BY; wait for its result.

    Niceness is a thread's own on Linux only; elsewhere the thread has that of its process. Threads that
    `work` starts inherit it for good: what scores must not be started by it.

    Raises what `work` raises.
    """
    done: Future[Result] = Future()
    threading.Thread(target=_do, args=[work, done], name=name, daemon=True).start()
    return done.result()


def _do(work: Callable[[], Result], done: Future[Result]) -> None:
    _be_nicer()
    try:
        done.set_result(work())
    except BaseException as error:  # noqa: BLE001 - the thread that waits raises it, whatever it is
        done.set_exception(error)


def _be_nicer() -> None:
    if sys.platform == "linux":
        # Of the calling thread, although its name says process.
        niceness = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, 0, min(_NICEST, niceness + NICER_BY))
