"""The watchdog: speaks up for a span that is too long, once, and only for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from reward_service.engine.health import Watchdog


class Alarm:
    """Remembers what it was told, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[str, float]] = []
        self.rang = threading.Event()

    def __call__(self, reason: str) -> None:
        self.told.append((reason, time.monotonic()))
        self.rang.set()


@pytest.fixture
def alarm() -> Alarm:
    return Alarm()


@pytest.fixture
def watchdog(alarm: Alarm) -> Iterator[Watchdog]:
    """One that keeps the time."""
    made = Watchdog("a test", alarm)
    made.start()
    yield made
    made.close()


def test_a_span_that_is_too_long_is_told_once_while_it_lasts(watchdog: Watchdog, alarm: Alarm) -> None:
    started = time.monotonic()
    with watchdog.span(0.05, "too long"):
        assert alarm.rang.wait(10.0)
        time.sleep(0.1)
    ((reason, at),) = alarm.told
    assert reason == "too long"
    assert at - started >= 0.05


def test_a_shorter_span_after_a_longer_one_is_told_in_time(watchdog: Watchdog, alarm: Alarm) -> None:
    with watchdog.span(3600.0, "long"):
        time.sleep(0.02)
    with watchdog.span(0.05, "short"):
        assert alarm.rang.wait(10.0)
    assert [reason for reason, _ in alarm.told] == ["short"]


def test_each_span_has_its_own_time(watchdog: Watchdog, alarm: Alarm) -> None:
    end_at = time.monotonic() + 0.6
    while time.monotonic() < end_at:
        with watchdog.span(0.3, "no span was that long"):
            time.sleep(0.01)
    time.sleep(0.4)  # idle for longer than any limit
    assert not alarm.told
    with watchdog.span(0.05, "the last"):
        assert alarm.rang.wait(10.0)


def test_a_limit_beyond_what_a_clock_can_hold_is_taken(watchdog: Watchdog, alarm: Alarm) -> None:
    with watchdog.span(1e300, "never"):
        time.sleep(0.02)
    with watchdog.span(0.01, "soon"):
        assert alarm.rang.wait(10.0)
    assert [reason for reason, _ in alarm.told] == ["soon"]


def test_a_span_ends_with_its_error(watchdog: Watchdog, alarm: Alarm) -> None:
    with pytest.raises(KeyError), watchdog.span(0.1, "raised"):
        raise KeyError("no")
    time.sleep(0.2)
    assert not alarm.told
