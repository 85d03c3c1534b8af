"""Each group gets its own asks, whenever they come."""

from __future__ import annotations

from actors.actor import SampleReport
from common.stopwatch import Busy
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from driver.observe.timeline_log import HistoryLog
from reward_service.client.reward_client import Ask

STAMP = PolicyStamp(0, "", "run")


def task(index: int) -> PromptTask:
    return PromptTask("a cat", 2, NoiseKey(0, "train", 0, index), STAMP, with_reference=False)


def report(index: int) -> SampleReport:
    return SampleReport(STAMP, 2, "host:1", Busy(float(index), 1.0), 10)


def ask(number: int, reward: str) -> Ask:
    return Ask(str(number), reward, 1.0, 2.0, 0.5)


def test_asks_find_their_group_even_when_they_came_before_it_was_whole() -> None:
    log = HistoryLog()
    log.add("7", task(0), report(0), True)
    (first,) = log.take([ask(7, "a"), ask(8, "a"), ask(7, "b")])
    assert (first.noise.prompt_index, first.asks) == (0, (ask(7, "a"), ask(7, "b")))
    log.add("8", task(1), report(1), True)
    log.add("9", task(2), report(2), False)
    second, third = log.take([ask(8, "b")])
    assert second.report == report(1)
    assert second.asks == (ask(8, "a"), ask(8, "b"))
    assert (third.asks, third.scored) == ((), False)
    assert log.take([]) == []
