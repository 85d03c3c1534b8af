"""What starts leaves the processor to what answers; what scores is never nicer than its process."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

from reward_service.engine.low_priority import NICER_BY, at_low_priority
from tests.reward_service.engines import PIXELS, in_loop, running

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have a niceness on Linux only")

MODULE = """
import os, threading
import numpy as np

def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

IMPORTED_AT = niceness()

class Judge:
    version = "1"
    digest = ""

    def __init__(self):
        self.built_at = niceness()

    def score(self, prompts, images):
        moments = [IMPORTED_AT, self.built_at, niceness()]
        return np.full(len(images), moments[{column}], np.float32)
"""
IMPORTED, BUILT, SCORED = range(3)


def niceness() -> int:
    """Of this thread."""
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A scorer of a module that nobody imported yet; its rewards are the niceness of one of its moments."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"nice_judge_{request.param}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / f"{name}.py").write_text(MODULE.format(column=request.param))
    return f"{name}:Judge"


def test_the_work_is_nicer_than_the_thread_that_waits_and_leaves_that_as_it_is() -> None:
    before = niceness()
    assert at_low_priority(niceness, "nice") == min(19, before + NICER_BY)
    assert niceness() == before


def test_the_work_is_never_nicer_than_a_niceness_can_be() -> None:
    assert at_low_priority(lambda: at_low_priority(lambda: at_low_priority(niceness, "c"), "b"), "a") == 19


def test_its_thread_has_the_name_and_its_error_arrives() -> None:
    def fail() -> None:
        raise ImportError(threading.current_thread().name)

    with pytest.raises(ImportError, match=r"^imports it$"):
        at_low_priority(fail, "imports it")


@pytest.mark.parametrize(
    ("judge", "nicer_by"), [(IMPORTED, NICER_BY), (BUILT, 0), (SCORED, 0)], indirect=["judge"]
)
def test_only_the_imports_of_a_start_are_nicer(judge: str, nicer_by: int) -> None:
    @in_loop
    async def test() -> None:
        async with running(judge) as engine:
            outcome = (await engine.score("a cat", PIXELS)).outcome
            assert outcome.rewards.tolist() == [min(19, niceness() + nicer_by)] * len(PIXELS)

    test()


@pytest.mark.parametrize("judge", [IMPORTED], indirect=True)
def test_a_process_that_answers_imports_without_yielding(judge: str) -> None:
    """There, a thread that yields would keep the interpreter's lock from the scoring thread."""

    @in_loop
    async def test() -> None:
        async with running("tests.reward_service.scorers:Redness") as engine:
            assert await engine.change({"scorer": judge}) == ""
            outcome = (await engine.score("a cat", PIXELS)).outcome
            assert outcome.rewards.tolist() == [niceness()] * len(PIXELS)

    test()
