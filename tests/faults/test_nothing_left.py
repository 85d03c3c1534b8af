"""Whoever loses the driver ends, also what is stopped; and a start that fails leaves nothing."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from tests.faults.conftest import LIMIT_S, MakeFaulty, Start, at

pytestmark = [pytest.mark.faults, pytest.mark.timeout(2 * LIMIT_S)]

MARK = "PRDP_TEST_MARK"
END_LIMIT_S = 30.0


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Stands in the environment of every process that this test starts, and of theirs."""
    value = uuid.uuid4().hex
    monkeypatch.setenv(MARK, value)
    yield value
    for process in marked(value):
        process.kill()


def marked(value: str) -> list[psutil.Process]:
    """Those that live and have the mark."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def until_none_is_left(value: str) -> float:
    """Seconds until no process with the mark lives."""
    began = time.monotonic()
    while (left := marked(value)) and time.monotonic() - began < END_LIMIT_S:
        time.sleep(0.1)
    assert not left, [process.as_dict(["pid", "cmdline", "status"]) for process in left]
    return time.monotonic() - began


def open_doors(pid: int) -> int:
    """At how many ports a process waits for connections from other machines."""
    own = psutil.Process(pid).net_connections("tcp")
    doors = [one.laddr.ip for one in own if one.status == psutil.CONN_LISTEN]
    return sum(not address.startswith(("127.", "::1")) for address in doors)


def test_nothing_outlives_a_killed_driver(faulty: MakeFaulty, start: Start, mark: str) -> None:
    """Not even an actor, a rank and a replica that are stopped; and ranks listen on loopback alone."""
    running = start(faulty(learner__workers=2, evaluation__every_epochs=6))
    status = running.until(at(1, "sampling"), LIMIT_S)
    pids = {process.kind: process.pid for process in status.processes}
    assert open_doors(pids["learner rank"]) == open_doors(pids["actor"])
    for kind in ("actor", "learner rank", "reward replica"):
        os.kill(pids[kind], signal.SIGSTOP)
    assert len(marked(mark)) > len(status.processes)
    running.process.kill()
    running.process.wait()
    print(f"gone after {until_none_is_left(mark):.1f} s")


def test_a_failed_start_leaves_nothing(faulty: MakeFaulty, start: Start, mark: str) -> None:
    running = start(
        faulty(rewards={"jpeg": {"scorer": "jpeg_compressibility"}, "bad": {"scorer": f"{__name__}:Bad"}})
    )
    assert running.wait(LIMIT_S) == 2, running.shown
    print(f"gone after {until_none_is_left(mark):.1f} s")


class Bad:
    """A scorer that cannot be built."""

    version = "1"
    digest = ""

    def __init__(self) -> None:
        raise ValueError("no weights")
