"""Timelines: shares of work, the advice, the file, the command, and what a run keeps."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from actors.actor import SampleReport
from common.errors import RunFolderError
from common.stopwatch import Busy
from common.trajectory import NoiseKey, PolicyStamp
from driver.observe.timeline_log import GroupHistory, TimelineLog, learner_spans
from driver.report.timeline import (
    ACTORS,
    LEARNER,
    REWARDS,
    Span,
    Timeline,
    find_timeline,
    main,
    read_timeline,
    timeline_files,
    write_timeline,
)
from reward_service.client.reward_client import Ask
from tests.driver.observe.test_epoch_metrics import report as update_report


def sample(process: str, begin: float, end: float, group: int) -> Span:
    return Span(ACTORS, process, "sample", begin, end, group, end - begin)


def score(begin: float, end: float, group: int, busy: float) -> Span:
    return Span(REWARDS, "jpeg", "score", begin, end, group, busy)


def gradient(begin: float, end: float, group: int) -> Span:
    return Span(LEARNER, "rank 0", "gradient", begin, end, group, end - begin)


def worked(actors: float, reward: float, learner: float, groups: int = 4) -> Timeline:
    """An epoch of 10 s; each of two actors, the reward and the learner works so many of them."""
    each = 2 * actors / groups
    begins = [100.0 + index // 2 * each for index in range(groups)]
    spans = [sample(f"actor {index % 2}", at, at + each, index) for index, at in enumerate(begins)]
    spans += [score(100.0, 110.0, index, reward / groups) for index in range(groups)]
    return Timeline(3, 100.0, 110.0, (*spans, gradient(100.0, 100.0 + learner, 0)))


def test_busy_shares_are_means_over_processes_of_the_work_inside_the_epoch() -> None:
    samples = sample("a", -5.0, 2.0, 0), sample("b", 4.0, 99.0, 1)
    timeline = Timeline(1, 0.0, 10.0, (*samples, score(1.0, 3.0, 0, 1.0), score(2.0, 6.0, 1, 3.0)))
    assert timeline.busy_share(ACTORS, "a") == pytest.approx(0.2)
    assert timeline.busy_share(ACTORS) == pytest.approx((0.2 + 0.6) / 2)
    assert timeline.busy_share(REWARDS, "jpeg") == pytest.approx(0.4)
    assert timeline.busy_share(LEARNER) == 0.0


@pytest.mark.parametrize(
    ("seconds", "groups", "expected"),
    [
        ((9.0, 1.0, 2.0), 4, "actors.count"),
        ((9.0, 1.0, 2.0), 2, "one of its own"),
        ((5.0, 8.0, 2.0), 4, "reward_service.replicas"),
        ((3.0, 1.0, 7.0), 4, "actors idled 70%"),
        ((4.0, 1.0, 4.5), 4, "No pool sets the pace: none worked more than 45%"),
    ],
)
def test_the_advice_names_the_pool_to_grow(
    seconds: tuple[float, float, float], groups: int, expected: str
) -> None:
    assert expected in worked(*seconds, groups=groups).advice()


@pytest.mark.parametrize("seconds", [2.0, 9.0])
def test_a_replay_is_not_told_to_sample_ahead(seconds: float) -> None:
    told = Timeline(1, 100.0, 110.0, (gradient(100.0, 100.0 + seconds, 0),)).advice()
    assert "max_staleness" not in told
    assert f"{seconds:.0f}0%" in told


def test_a_file_is_read_back_and_has_no_overlap_in_a_thread(tmp_path: Path) -> None:
    timeline = worked(9.0, 8.0, 5.0)
    write_timeline(tmp_path / "timeline.json", timeline)
    again = read_timeline(tmp_path / "timeline.json")
    assert (again.epoch, again.begin_s, again.end_s) == (3, 100.0, 110.0)
    for before, after in zip(*(sorted(one.spans, key=str) for one in (timeline, again)), strict=True):
        assert (before.process, before.what, before.group) == (after.process, after.what, after.group)
        assert (after.begin_s, after.end_s) == pytest.approx((before.begin_s, before.end_s), abs=1e-6)
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"X", "M"}
    threads: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            ends = event["ts"], event["ts"] + event["dur"]
            threads.setdefault((event["pid"], event["tid"]), []).append(ends)
    assert len(threads) == 2 + 4 + 1
    for ends in threads.values():
        assert all(first[1] <= second[0] + 1e-3 for first, second in pairwise(sorted(ends)))


def test_the_groups_of_a_rank_are_those_handed_to_it() -> None:
    busy = tuple(Busy(float(number), 0.5) for number in range(3))
    reports = [[update_report(process=f"host:{rank}", busy=busy) for rank in range(2)]]
    spans = list(learner_spans(reports, [10, 11, 12, 13]))
    found = [(span.process, span.group) for span in spans if span.what == "gradient"]
    assert found == [("host:0", 10), ("host:0", 12), ("host:1", 11), ("host:1", 13)]
    assert [span.what for span in spans].count("update 1") == 2
    waves = list(learner_spans(reports, list(range(6))))
    assert {span.group for span in waves} == {None}


def history(epoch: int, index: int, began_at: float) -> GroupHistory:
    report = SampleReport(PolicyStamp(0, "", "run"), 2, "host:1", Busy(began_at, 1.0), 10)
    ask = Ask(str(index), "jpeg", began_at + 1.0, began_at + 1.5, 0.2)
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
    first, second = (read_timeline(file) for file in timeline_files(tmp_path))
    assert [span.group for span in first.of(ACTORS)] == [0, 1]
    assert [span.group for span in second.of(LEARNER)] == [1, None]
    finish(log, 3, [history(2, 2, 31.0)])
    assert [file.stem for file in timeline_files(tmp_path)] == ["epoch_000002", "epoch_000003"]


def test_a_folder_that_cannot_be_written_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "timeline").write_text("a file")
    finish(TimelineLog(tmp_path, keep=1), 1, [history(0, 0, 10.5)])


def test_the_command_shows_shares_and_advises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_timeline(tmp_path / "timeline" / "epoch_000003.json", worked(9.0, 1.0, 2.0))
    assert main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "The actors worked 90%" in shown
    assert "reward jpeg" in shown
    assert main([str(tmp_path), "--epoch", "7"]) == 1
    assert "no timeline of epoch 7, only of 3" in capsys.readouterr().err
    with pytest.raises(RunFolderError, match=r"display\.timelines"):
        find_timeline(tmp_path / "elsewhere")
