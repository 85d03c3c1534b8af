"""Who is stuck on what is said in time, not too often, and only while nothing moves."""

from __future__ import annotations

from driver.stalls import FIRST_NOTE_S, NEXT_NOTES_S, StallReporter

NOTES = int(FIRST_NOTE_S + 3 * NEXT_NOTES_S)


def reporter() -> tuple[StallReporter, list[float], list[str]]:
    """It, its clock to be set by hand, and what it says."""
    clock, notes = [0.0], list[str]()
    return StallReporter(notes.append, lambda: clock[0]), clock, notes


def test_notes_come_after_half_a_minute_and_then_each_minute() -> None:
    stalls, clock, notes = reporter()
    for clock[0] in map(float, range(NOTES)):
        stalls.look(lambda: ["actor 0 has 'a cat'", "reward clip has 'a dog'"])
    assert len(notes) == 3
    assert "actor 0 has 'a cat'; reward clip has 'a dog'" in notes[0]
    assert ["30 s" in notes[0], "90 s" in notes[1]] == [True, True]


def test_movement_begins_the_wait_anew() -> None:
    stalls, clock, notes = reporter()
    for clock[0] in map(float, range(0, 300, 20)):
        stalls.look(lambda: ["never asked"])
        stalls.moved()
    assert notes == []
    clock[0] += FIRST_NOTE_S
    stalls.look(lambda: ["one"])
    assert len(notes) == 1


def test_what_the_run_waits_for_comes_first_and_its_end_is_a_movement() -> None:
    stalls, clock, notes = reporter()
    with stalls.waiting_for("the learner's update 2", lambda: f" ({clock[0]:.0f} done)"):
        assert stalls.waits() == ["the learner's update 2 (0 done)"]
        clock[0] = FIRST_NOTE_S
        stalls.look(lambda: ["actor 0 has 'a cat'"])
        clock[0] = 2 * FIRST_NOTE_S
    assert notes[0].index("the learner's update 2") < notes[0].index("actor 0")
    clock[0] += FIRST_NOTE_S - 1.0
    stalls.look(lambda: ["never asked"])
    assert len(notes) == 1
