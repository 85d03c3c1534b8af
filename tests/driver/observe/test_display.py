"""What a person sees while a run goes on: one panel, or a few lines."""

from __future__ import annotations

import io
import logging
import re
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from common.config.services import DisplaySection
from driver.observe.display import DisplayState, Phase, open_display
from driver.observe.display_lines import LineDisplay
from driver.observe.display_live import SPARKS, LiveDisplay, panel_of, sparkline
from driver.observe.display_state import format_change, format_seconds

HALFWAY = DisplayState(
    epoch=12,
    epochs=40,
    phase=Phase.SAMPLING,
    done=96,
    total=128,
    rewards=(0.508, 0.55, 0.612),
    unseen=(0.31, 0.33),
    images_per_s=14.23,
    epoch_seconds=(5.0, 7.0),
    epoch_elapsed_s=18.0,
    dropped=1,
)


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=24)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("mode", "is_terminal", "expected"),
    [
        ("auto", True, LiveDisplay),
        ("auto", False, LineDisplay),
        ("live", False, LiveDisplay),
        ("lines", True, LineDisplay),
    ],
)
def test_the_display_suits_the_terminal(mode: str, is_terminal: bool, expected: type) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal)
    assert type(open_display(DisplaySection(mode=mode), console)) is expected


def test_seconds_left_counts_down_within_an_epoch() -> None:
    assert HALFWAY.seconds_left == pytest.approx(28 * 6.0 - 18.0)
    assert DisplayState(epoch=0, epochs=40, epoch_elapsed_s=3.0).seconds_left == 0.0
    assert DisplayState(epoch=40, epochs=40, epoch_seconds=(5.0,)).seconds_left == 0.0


def test_seconds_left_follows_recent_epochs() -> None:
    state = DisplayState(epoch=20, epochs=21, epoch_seconds=(100.0,) * 10 + (2.0,) * 10)
    assert state.seconds_left == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (151, "2:31"), (3751, "1:02:31"), (274200, "3 d 04:10")],
)
def test_format_seconds(seconds: float, expected: str) -> None:
    assert format_seconds(seconds) == expected


@pytest.mark.parametrize(
    ("history", "expected"),
    [((), ""), ((0.5,), "0.5"), ((0.508, 0.6, 0.612), "0.612 (+0.104)"), ((-20.0, -21.25), "-21.25 (-1.25)")],
)
def test_format_change(history: tuple[float, ...], expected: str) -> None:
    assert format_change(history) == expected


@settings(max_examples=40)
@given(st.lists(st.floats(-1e3, 1e3), max_size=60), st.integers(0, 30))
def test_sparkline_fits_and_keeps_the_order(values: list[float], width: int) -> None:
    drawn = sparkline(tuple(values), width)
    assert len(drawn) == min(len(values), width)
    if len(values) <= width:
        levels = [SPARKS.index(spark) for spark in drawn]
        by_value = [level for _, level in sorted(zip(values, levels, strict=True))]
        assert by_value == sorted(by_value)


def test_sparkline_spans_the_whole_height_and_a_flat_one_is_level() -> None:
    assert sparkline((0.0, 7.0, 3.0), 9) == "▁█▄"
    assert len(set(sparkline((2.0, 2.0, 2.0), 9))) == 1


@pytest.mark.parametrize("width", [80, 200])
def test_panel_fits_and_shows_everything(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    console.print(panel_of(HALFWAY, "quickstart"))
    text = text_of(console)
    assert max(map(len, text.splitlines())) <= width
    for shown in (
        "quickstart",
        "13/40",
        "2:30 left",
        "sampling",
        "96/128 images",
        "14.2 images/s",
        "0.612 (+0.104)",
    ):
        assert shown in text
    assert "0.33 (+0.02)" in text
    assert "1 group" in text


def test_panel_before_anything_is_known() -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(panel_of(DisplayState(epoch=0, epochs=40), "quickstart"))
    text = text_of(console)
    assert "starting" in text
    assert not {"left", "unseen", "dropped", "nan"} & set(re.findall(r"\w+", text))


def test_live_display_takes_in_prints_and_old_log_handlers() -> None:
    console = terminal()
    handler = logging.StreamHandler()
    logger = logging.getLogger("tests.driver.display")
    logger.propagate = False
    logger.addHandler(handler)
    before = (sys.stdout, sys.stderr, handler.stream)
    display = open_display(DisplaySection(mode="live"), console, "demo")
    display.start(40)
    try:
        logger.warning("an old handler speaks")
        print("a plain print")
        display.update(HALFWAY)
        display.note("[a note]")
    finally:
        display.close()
        logger.removeHandler(handler)
    assert (sys.stdout, sys.stderr, handler.stream) == before
    text = text_of(console)
    for line in ("an old handler speaks", "a plain print", "[a note]"):
        assert line in text.splitlines()
    assert "13/40" in text
    display.close()


def test_live_display_can_be_closed_unstarted() -> None:
    open_display(DisplaySection(mode="live"), terminal()).close()


def test_a_log_shows_life_while_nothing_is_told() -> None:
    console = Console(file=io.StringIO(), width=80)
    display = LineDisplay(console, "demo", line_seconds=0.05)
    display.start(4)
    display.update(DisplayState(epoch=0, epochs=4, phase=Phase.LEARNING, total=2, unit="updates"))
    deadline = time.monotonic() + 10.0
    while text_of(console).count("epoch 1/4 learning 0/2 updates") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    display.close()
    time.sleep(0.1)
    written = text_of(console)
    time.sleep(0.2)
    assert text_of(console) == written


def test_lines_come_at_epoch_ends_and_now_and_then() -> None:
    console, clock = Console(file=io.StringIO(), width=80), Clock()
    display = LineDisplay(console, "demo", line_seconds=15.0, clock=clock)
    display.start(40)
    running = DisplayState(epoch=11, epochs=40, phase=Phase.LEARNING, done=32, total=128)
    for clock.now in (1.0, 14.9, 15.0, 16.0, 29.9, 30.0):
        display.update(running)
    display.update(HALFWAY)
    display.update(HALFWAY)
    display.note("a note")
    display.close()
    lines = [line.split(" ", 1)[1] for line in text_of(console).splitlines()]
    assert lines == [
        "demo: 40 epochs",
        "epoch 12/40 learning 32/128 images",
        "epoch 12/40 learning 32/128 images",
        "epoch 12/40 done | reward 0.612 (+0.104) | gold on unseen prompts 0.33 (+0.02) | 14.2 images/s"
        " | 2:30 left | 1 group dropped",
        "a note",
    ]
