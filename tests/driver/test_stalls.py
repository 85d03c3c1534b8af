"""Who is stuck on what is said in time, not too often, and only while nothing moves."""

from __future__ import annotations

from driver.stalls import FIRST_NOTE_S, NEXT_NOTES_S, StallReporter


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_notes_come_after_half_a_minute_and_then_each_minute() -> None:
    clock, notes = Clock(), []
    patience = StallReporter(notes.append, clock)
    for second in range(int(FIRST_NOTE_S + 3 * NEXT_NOTES_S)):
        clock.now = float(second)
        patience.look(lambda: ["actor 0 has 'a cat'", "reward clip has 'a dog'"])
    assert len(notes) == 3
    assert notes[0] == "Nothing has moved for 30 s: actor 0 has 'a cat'; reward clip has 'a dog'."
    assert notes[1].startswith("Nothing has moved for 90 s")


def test_movement_begins_the_wait_anew() -> None:
    clock, notes = Clock(), []
    patience = StallReporter(notes.append, clock)
    for second in range(0, 300, 20):
        clock.now = float(second)
        patience.look(lambda: ["never asked"])
        patience.moved()
    assert notes == []
    clock.now += FIRST_NOTE_S
    patience.look(lambda: ["one"])
    assert notes == ["Nothing has moved for 30 s: one."]


def test_what_the_run_waits_for_comes_first_and_its_end_is_a_movement() -> None:
    clock, notes = Clock(), []
    stalls = StallReporter(notes.append, clock)
    with stalls.waiting_for("the learner's update 2"):
        clock.now = FIRST_NOTE_S
        stalls.look(lambda: ["actor 0 has 'a cat'"])
        clock.now = 2 * FIRST_NOTE_S
    assert notes[0].endswith("the run waits for the learner's update 2; actor 0 has 'a cat'.")
    clock.now += FIRST_NOTE_S - 1.0
    stalls.look(lambda: ["never asked"])
    assert len(notes) == 1
