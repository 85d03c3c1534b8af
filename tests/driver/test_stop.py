"""Signals: noted; whoever waits hears of them; the second one ends it all."""

import asyncio
import os
import signal

import pytest

from driver.stop import StopFlag, StopRequested


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_noted_and_the_second_interrupts(number: signal.Signals) -> None:
    with StopFlag() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(StopRequested):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)


def test_who_waits_in_an_event_loop_hears_of_it() -> None:
    async def wait(stop: StopFlag) -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        loop.call_later(0.01, done.set_result, 1)
        await stop.first_of(done)
        loop.call_later(0.01, os.kill, os.getpid(), signal.SIGTERM)
        asked = asyncio.ensure_future(stop.asked())
        with pytest.raises(StopRequested):
            await stop.first_of(loop.create_future())
        await asked
        await stop.asked()

    with StopFlag() as stop:
        asyncio.run(wait(stop))


def test_earlier_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopFlag():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
