"""Signals: at once outside `deferred`, noted inside; the second one ends it all."""

import os
import signal

import pytest

from driver.loop.signals import StopFlag, StopRequested


def test_a_signal_raises_at_once_outside_deferred() -> None:
    with StopFlag(), pytest.raises(StopRequested):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_inside_deferred_it_is_noted_and_the_second_interrupts(number: signal.Signals) -> None:
    with StopFlag() as stop, stop.deferred():
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(StopRequested):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_earlier_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
