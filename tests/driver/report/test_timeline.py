"""Timelines: the critical path, the advice, the files, and what a run keeps."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from actors.actor import SampleReport
from common.errors import RunFolderError
from common.stopwatch import Busy
from common.trajectory import NoiseKey, PolicyStamp
from driver.observe.history import GroupHistory
from driver.observe.timeline_log import TimelineLog, timeline_files
from driver.report.timeline import find_timeline, main
from driver.report.timeline_path import OTHER, advice, busy_share, critical_path, waits
from driver.report.timeline_picture import MOST_ROWS, shown_processes, timeline_figure
from driver.report.timeline_spans import ACTORS, LEARNER, REWARDS, Timeline, learner_spans
from driver.report.timeline_trace import lanes, read_trace, trace, write_trace
from reward_service.client.asks import Ask
from tests.driver.observe.test_epoch_metrics import report as update_report
from tests.driver.timelines import gradient, pipeline, sample, score, update

STAMP = PolicyStamp(0, "", "run")
DURATIONS = st.floats(0.1, 5.0)


def test_by_hand() -> None:
    """One actor, two groups: sampled till 3 and 6, scored till 7, learned till 9, published at 10."""
    timeline = Timeline(
        1,
        0.0,
        10.0,
        (
            sample("a", 0.0, 3.0, 0),
            sample("a", 3.0, 6.0, 1),
            score("jpeg", 3.1, 4.0, 0, 0.9),
            score("jpeg", 6.1, 7.0, 1, 0.9),
            gradient("r", 4.0, 5.5, 0),
            gradient("r", 7.5, 9.0, 1),
            update("r", 9.0, 9.5),
        ),
    )
    found = [(piece.role, piece.begin_s, piece.end_s) for piece in critical_path(timeline)]
    assert found == [
        (ACTORS, 0.0, 3.0),
        (ACTORS, 3.0, 6.0),
        (REWARDS, 6.0, 7.0),
        (OTHER, 7.0, 7.5),
        (LEARNER, 7.5, 9.0),
        (LEARNER, 9.0, 9.5),
        (OTHER, 9.5, 10.0),
    ]


@given(st.integers(1, 12), st.integers(1, 4), DURATIONS, DURATIONS, DURATIONS)
@settings(max_examples=60, deadline=None)
def test_the_path_covers_the_epoch_without_gaps(
    groups: int, actors: int, sample_s: float, score_s: float, learn_s: float
) -> None:
    timeline = pipeline(groups, actors, sample_s, score_s, learn_s)
    path = critical_path(timeline)
    assert path[0].begin_s == timeline.begin_s
    assert path[-1].end_s == timeline.end_s
    assert all(first.end_s == second.begin_s for first, second in pairwise(path))
    assert math.isclose(sum(waits(path).values()), timeline.seconds)


@given(
    st.integers(1, 12),
    st.integers(1, 4),
    st.tuples(DURATIONS, DURATIONS, DURATIONS),
    st.sampled_from([0.5, 0.9, 1.1, 3.0]),
)
@settings(max_examples=150, deadline=None)
def test_no_role_saves_more_than_was_waited_for_it(
    groups: int, actors: int, durations: tuple[float, float, float], factor: float
) -> None:
    """A role that takes `factor` of its time changes the epoch by that much of what was waited, or more."""
    timeline = pipeline(groups, actors, *durations)
    waited = waits(critical_path(timeline))
    for index, role in enumerate([(ACTORS, ""), (REWARDS, "jpeg"), (LEARNER, "")]):
        changed = list(durations)
        changed[index] *= factor
        # The update's half second does not change.
        scaled = waited.get(role, 0.0) - (0.5 if role[0] == LEARNER else 0.0)
        assert pipeline(groups, actors, *changed).seconds >= timeline.seconds + (factor - 1.0) * scaled - 1e-6


def test_groups_that_queue_at_a_reward_wait_for_it_all_the_time() -> None:
    """Ten groups sampled in 0.1 s each, scored in 2 s each, one at a time: all but the first 0.1 s is its."""
    waited = waits(critical_path(pipeline(10, 1, 0.1, 2.0, 0.1)))
    assert waited[ACTORS, ""] == pytest.approx(0.1)
    assert waited[REWARDS, "jpeg"] == pytest.approx(20.0)


def test_a_reward_that_takes_long_but_scores_all_at_once_is_waited_for_once() -> None:
    """An actor samples for 10 s, each second a group; each is scored in 5 s, beside the others."""
    spans = [sample("a", float(group), group + 1.0, group) for group in range(10)]
    spans += [score("vlm", group + 1.0, group + 6.0, group, 5.0) for group in range(10)]
    spans += [gradient("r", group + 6.0, group + 6.1, group) for group in range(10)]
    waited = waits(critical_path(Timeline(1, 0.0, 15.1, tuple(spans))))
    assert waited == pytest.approx({(ACTORS, ""): 10.0, (REWARDS, "vlm"): 5.0, (LEARNER, ""): 0.1})


@pytest.mark.parametrize(
    ("durations", "groups", "actors", "expected"),
    [
        ((4.0, 0.1, 0.5), 12, 2, "actors.count"),
        ((4.0, 0.1, 0.5), 2, 2, "an actor of its own"),
        ((0.1, 2.0, 0.5), 12, 2, "reward_service.replicas"),
        ((0.1, 0.1, 3.0), 12, 2, "learner.workers"),
        ((0.01, 0.01, 0.01), 1, 1, "learner.workers"),
    ],
)
def test_the_advice_names_the_pool_to_grow(
    durations: tuple[float, float, float], groups: int, actors: int, expected: str
) -> None:
    assert expected in advice(pipeline(groups, actors, *durations))


def test_a_slow_reward_that_idles_needs_speed_and_no_replicas() -> None:
    timeline = Timeline(
        1, 0.0, 10.0, (sample("a", 0.0, 1.0, 0), score("vlm", 1.0, 6.0, 0, 5.0), gradient("r", 6.0, 7.0, 0))
    )
    assert "slow to answer rather than overloaded" in advice(timeline)


def test_time_between_the_pools_blames_none() -> None:
    timeline = Timeline(
        1, 0.0, 10.0, (sample("a", 0.0, 1.0, 0), score("jpeg", 1.0, 1.2, 0, 0.2), gradient("r", 8.0, 9.0, 0))
    )
    assert advice(timeline).startswith("No pool sets the pace: 7.8 of 10 s")


def test_an_epoch_of_which_nothing_is_known_is_all_between() -> None:
    assert waits(critical_path(Timeline(1, 0.0, 4.0, ()))) == {(OTHER, ""): 4.0}


def test_busy_shares_count_overlap_once_and_only_inside_the_epoch() -> None:
    spans = (
        sample("a", -5.0, 2.0, 0),
        sample("b", 4.0, 99.0, 1),
        score("j", 1.0, 3.0, 0, 2.0),
        score("j", 2.0, 6.0, 1, 4.0),
    )
    timeline = Timeline(1, 0.0, 10.0, spans)
    assert busy_share(timeline, ACTORS, "a") == pytest.approx(0.2)
    assert busy_share(timeline, ACTORS) == pytest.approx((0.2 + 0.6) / 2)
    assert busy_share(timeline, REWARDS, "j") == pytest.approx(0.5)


def test_a_trace_is_read_back_and_has_no_overlap_in_a_thread(tmp_path: Path) -> None:
    timeline = pipeline(8, 3, 1.0, 0.7, 0.3)
    write_trace(tmp_path / "epoch_000003.json", timeline)
    again = read_trace(tmp_path / "epoch_000003.json")
    assert again.epoch == 3
    assert len(again.spans) == len(timeline.spans)
    for role in (ACTORS, REWARDS, LEARNER):
        for one, other in zip(timeline.of(role), again.of(role), strict=True):
            assert (one.process, one.what, one.group) == (other.process, other.what, other.group)
            assert other.begin_s == pytest.approx(one.begin_s, abs=1e-6)
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in trace(timeline)["traceEvents"]:
        if event["ph"] == "X":
            threads.setdefault((event["pid"], event["tid"]), []).append(
                (event["ts"], event["ts"] + event["dur"])
            )
    for spans in threads.values():
        assert all(first[1] <= second[0] + 1e-3 for first, second in pairwise(sorted(spans)))


def test_lanes_are_as_few_as_groups_at_once() -> None:
    spans = [score("j", 0.0, 2.0, 0, 2.0), score("j", 1.0, 3.0, 1, 2.0), score("j", 2.0, 4.0, 2, 2.0)]
    assert [len(lane) for lane in lanes(spans)] == [2, 1]


def test_what_is_no_timeline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "epoch.json").write_text('{"traceEvents": []}')
    with pytest.raises(RunFolderError, match="no timeline"):
        read_trace(tmp_path / "epoch.json")


def test_the_groups_of_a_rank_are_those_handed_to_it() -> None:
    busy = tuple(Busy(float(number), 0.5) for number in range(3))
    reports = [[update_report(process=f"host:{rank}", busy=busy) for rank in range(2)]]
    spans = list(learner_spans(reports, [10, 11, 12, 13]))
    assert [(span.process, span.group) for span in spans if span.what == "gradient"] == [
        ("host:0", 10),
        ("host:0", 12),
        ("host:1", 11),
        ("host:1", 13),
    ]
    assert [span.what for span in spans].count("update 1") == 2


def history(epoch: int, index: int, began_at: float) -> GroupHistory:
    report = SampleReport(STAMP, 2, "host:1", Busy(began_at, 1.0), 10)
    ask = Ask(index, "jpeg", began_at + 1.0, began_at + 1.5, 0.2)
    return GroupHistory(NoiseKey(0, "train", epoch, index), report, (ask,), scored=True)


def finish(log: TimelineLog, epoch: int, histories: list[GroupHistory]) -> None:
    begin = 10.0 * epoch
    busy = (Busy(begin + 4.0, 1.0), Busy(begin + 5.0, 0.5))
    log.epoch_done(epoch, Busy(begin, 9.0), histories, [[update_report(busy=busy)]])


def test_a_run_keeps_the_last_epochs_and_adds_what_is_known_later(tmp_path: Path) -> None:
    log = TimelineLog(tmp_path, keep=2, clock=lambda: 0.0)
    finish(log, 1, [history(0, 0, 10.5)])
    # An actor that ran ahead: at 17 s, in epoch 1, it sampled the group of epoch 2.
    finish(log, 2, [history(1, 1, 17.0)])
    first, second = (read_trace(file) for file in timeline_files(tmp_path))
    assert [span.group for span in first.of(ACTORS)] == [0, 1]
    assert [span.group for span in second.of(LEARNER)] == [1, -1]
    finish(log, 3, [history(2, 2, 31.0)])
    assert [file.stem for file in timeline_files(tmp_path)] == ["epoch_000002", "epoch_000003"]


def test_none_are_kept_where_none_are_asked_for(tmp_path: Path) -> None:
    log = TimelineLog(tmp_path, keep=0)
    finish(log, 1, [history(0, 0, 10.5)])
    assert log.last == ()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "timeline").write_text("a file")
    finish(TimelineLog(tmp_path, keep=1), 1, [history(0, 0, 10.5)])


def test_the_command_draws_and_advises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_trace(tmp_path / "timeline" / "epoch_000003.json", pipeline(12, 2, 4.0, 0.1, 0.5))
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "The actors set the pace" in shown
    assert "reward jpeg" in shown
    with Image.open(tmp_path / "timeline" / "epoch_000003.png") as picture:
        assert picture.width > 800
    assert main([str(tmp_path), "--epoch", "7"]) == 1
    assert "no timeline of epoch 7, only of 3" in " ".join(capsys.readouterr().err.split())
    with pytest.raises(RunFolderError, match=r"display\.timelines"):
        find_timeline(tmp_path / "elsewhere", 0)


def test_of_many_actors_some_are_drawn_and_the_title_says_so() -> None:
    timeline = pipeline(60, 40, 1.0, 0.01, 0.01)
    assert len(shown_processes(timeline, ACTORS)) == MOST_ROWS
    title = timeline_figure(timeline).get_suptitle()
    assert f"{MOST_ROWS} of 40 actors shown" in title


def test_the_trace_is_json_that_perfetto_reads(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", pipeline(2, 1, 1.0, 0.5, 0.5))
    found = json.loads((tmp_path / "t.json").read_text())
    assert {event["ph"] for event in found["traceEvents"]} == {"X", "M"}
    assert all(event["dur"] >= 0 for event in found["traceEvents"] if event["ph"] == "X")
