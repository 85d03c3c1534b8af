"""What a person sees while a run goes on: bars, or a few lines."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from common.config.services import DisplaySection
from driver.observe.display import BarDisplay, DisplayState, LineDisplay, Phase, open_display
from driver.report.console import PlainConsole

HALFWAY = DisplayState(
    epoch=12,
    epochs=40,
    phase=Phase.SAMPLING,
    done=96,
    total=128,
    rewards=(0.508, 0.55, 0.612),
    unseen=(0.31, 0.33),
    images_per_s=14.23,
    epoch_seconds=(99.0, 5.0, 7.0),
    dropped=1,
    alarms=("gradient_norm",),
    kl=0.01234,
    idle=(("actors", 0.25), ("reward", 0.5)),
)
FIGURES = ("0.612 (+0.104)", "0.33 (+0.02)", "14.2 images/s", "0:02:48", "dropped: 1", "gradient_norm")


def console_of(terminal: bool) -> PlainConsole:
    return PlainConsole(file=io.StringIO(), force_terminal=terminal, width=200, height=24)


def text_of(console: PlainConsole) -> str:
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


@pytest.mark.parametrize(
    ("mode", "terminal", "expected"),
    [
        ("auto", True, BarDisplay),
        ("auto", False, LineDisplay),
        ("live", False, BarDisplay),
        ("lines", True, LineDisplay),
    ],
)
def test_the_display_suits_the_terminal(mode: str, terminal: bool, expected: type) -> None:
    assert type(open_display(DisplaySection(mode=mode), console_of(terminal))) is expected


def test_seconds_left_follow_the_recent_epochs() -> None:
    assert DisplayState(epoch=20, epochs=22, epoch_seconds=(100.0,) * 10 + (2.0,) * 10).seconds_left == 4.0
    assert DisplayState(epoch=2, epochs=22, epoch_seconds=(100.0, 2.0)).seconds_left == 40.0
    assert DisplayState(epoch=1, epochs=22, epoch_seconds=(100.0,)).seconds_left == 0.0
    assert DisplayState(epoch=0, epochs=40).seconds_left == 0.0
    assert DisplayState(epoch=40, epochs=40, epoch_seconds=(5.0,)).seconds_left == 0.0


def test_bars_show_everything_and_print_text_above_them_as_it_is() -> None:
    console = console_of(True)
    display = open_display(DisplaySection(mode="live"), console, "[demo]")
    display.start(40)
    display.update(HALFWAY)
    print("a plain print")
    display.note("[a note]")
    display.close()
    text = text_of(console)
    health = ("KL 0.0123", "actors 25%", "reward 50%", "0:00:00 elapsed")
    expected = (
        *health,
        "[demo]",
        "epoch 13/40",
        "sampling",
        "96/128 images",
        *FIGURES,
        "[a note]",
        "a plain print",
    )
    for shown in expected:
        assert shown in text
    display.close()


@pytest.mark.parametrize("terminal", [True, False])
def test_updates_are_drawn_once_a_second_and_not_at_all_without_a_terminal(terminal: bool) -> None:
    console = console_of(terminal)
    display = open_display(DisplaySection(mode="live"), console, "demo")
    display.start(40)
    assert isinstance(console.file, io.StringIO)
    for done in range(300):
        display.update(replace(HALFWAY, done=done % 128, total=0 if done % 2 else 128))
    drawn = len(console.file.getvalue())
    display.close()
    assert drawn < (5_000 if terminal else 1)
    assert "0.612" in text_of(console)


def test_lines_come_at_epoch_ends_and_now_and_then() -> None:
    console, now = console_of(False), [0.0]
    display = LineDisplay(console, "demo", line_seconds=15.0, clock=lambda: now[0])
    display.start(40)
    for now[0] in (1.0, 14.9, 15.0, 16.0, 29.9, 30.0):
        display.update(DisplayState(epoch=11, epochs=40, phase=Phase.LEARNING, done=32, total=128))
    display.update(HALFWAY)
    display.update(HALFWAY)
    display.note("[a note]")
    display.close()
    begin, *now_and_then, done, note = text_of(console).splitlines()
    assert "40 epochs" in begin
    assert ["32/128 images" in line for line in now_and_then] == [True, True]
    assert all(figure in done for figure in FIGURES)
    assert "[a note]" in note


@pytest.mark.parametrize(("terminal", "lines"), [(True, 1), (False, 2)])
def test_whatever_a_start_waits_for_is_shown_at_once_and_once(terminal: bool, lines: int) -> None:
    console = console_of(terminal)
    display = open_display(DisplaySection(line_seconds=60.0), console)
    display.start(40)
    for waits_for in ("Ray", "Ray", "[1 of 2 ranks]"):
        display.update(DisplayState(epoch=0, epochs=40, waits_for=waits_for))
    display.close()
    shown = text_of(console).splitlines()
    waits = [line for line in shown if "waits for" in line]
    assert len(waits) == lines
    assert "[1 of 2 ranks]" in waits[-1]
