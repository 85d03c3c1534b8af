"""Bad numbers are named, saved and, when they go on, stop the run; a continued run remembers them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cluster.metrics import check_metrics
from common.config.safety import GuardsSection
from common.config.schema import Config
from common.errors import BadNumbersError, NothingLearnedError, RecordingError
from common.trajectory import ScoredGroup
from driver.observe.guards import (
    ALARMS,
    SAVED_FILES,
    SAVED_GROUPS,
    EpochSigns,
    Guards,
    gradient_norm_alarm,
    judge,
    longest_row,
    spread_alarm,
    why_idle,
)
from driver.run.recordings import INSPECTION, TrajectoryWriter, open_recording
from learner.report import BadGroup, UpdateOutcome, UpdateReport
from tests.driver.observe.test_epoch_metrics import report
from tests.scored_groups import assert_same_bits, make_group
from tests.tiny_config import make_config


class Notebook:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.alarms: list[tuple[int, dict[str, str], list[str]]] = []

    def note(self, text: str) -> None:
        """A line."""
        self.notes.append(text)

    def alarmed(self, epoch: int, raised: Mapping[str, str], new: Sequence[str]) -> None:
        """An epoch's alarms."""
        self.alarms.append((epoch, dict(raised), list(new)))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    made = make_config(Path("no/model"), tmp_path)
    made.run_folder.mkdir(parents=True)
    return made


def guards_of(config: Config, finished: int = 0) -> tuple[Guards, Notebook]:
    notebook = Notebook()
    return Guards.open(config, notebook, lambda epochs: f"THAT OF {epochs}", finished), notebook


def groups(count: int = 4) -> list[ScoredGroup]:
    """The second one holds values that are not finite."""
    made = [make_group(seed) for seed in range(count)]
    latents, rewards = made[1].trajectory.latents.copy(), made[1].score.rewards.copy()
    latents[0, 1], rewards[0] = math.nan, math.inf
    trajectory = replace(made[1].trajectory, latents=latents)
    with np.errstate(invalid="ignore"):
        differences = rewards[:, None] - rewards[None, :]
    made[1] = ScoredGroup(trajectory, replace(made[1].score, rewards=rewards, differences=differences))
    return made


def bad(*found: ScoredGroup, outcome: UpdateOutcome = UpdateOutcome.BAD_GROUP) -> list[UpdateReport]:
    """A skipped update of two ranks, the second of which had the bad groups."""
    reason = "log ratios not finite"
    named = tuple(BadGroup(one.trajectory.prompt, one.trajectory.noise, reason) for one in found)
    return [report(outcome=outcome), report(outcome=outcome, bad_groups=named)]


METRICS = {
    "optimizer/gradient_norm": 1.0,
    "reward/within_group_std": 1.0,
    "policy/log_ratio_mismatch_max": 0.0,
}


@given(st.integers(0, 3), st.lists(st.sampled_from(list(UpdateOutcome)), max_size=12))
def test_a_row_is_what_a_slow_count_says(before: int, outcomes: list[UpdateOutcome]) -> None:
    first, *rows = "".join(
        "a" if one is UpdateOutcome.APPLIED else "b" if one.is_bad else "" for one in outcomes
    ).split("a")
    grown = [before + len(first) if first else 0, *map(len, rows)]
    assert longest_row(before, outcomes) == (len(rows[-1]) if rows else before + len(first), max(grown))


def test_the_group_to_blame_is_saved_to_the_bit_and_nothing_trains_on_it(config: Config) -> None:
    guards, notebook = guards_of(config)
    given_groups = groups()
    guards.check_updates(3, [bad(given_groups[1]), [report()] * 2], given_groups)
    (shown,) = notebook.notes
    assert "1 of 2 updates skipped" in shown
    assert "'ein Bär, № 1'" in shown
    assert "epoch_000003.parquet" in shown
    (saved,) = open_recording(config.run_folder / "inspection", INSPECTION).read_epoch(3)
    assert_same_bits(saved, given_groups[1])
    with pytest.raises(RecordingError, match="nothing can train on them"):
        open_recording(config.run_folder / "inspection")


def test_where_no_group_is_to_blame_the_first_are_saved(config: Config) -> None:
    guards, _ = guards_of(config)
    many = [make_group(seed) for seed in range(SAVED_GROUPS + 3)]
    guards.check_updates(1, [bad(outcome=UpdateOutcome.BAD_GRADIENT)], many)
    saved = list(open_recording(config.run_folder / "inspection", INSPECTION).read_epoch(1))
    assert [one.trajectory.prompt for one in saved] == [one.trajectory.prompt for one in many[:SAVED_GROUPS]]


def through(guards: Guards, epoch: int, reports: list[list[UpdateReport]]) -> None:
    guards.check_updates(epoch, reports, groups())
    guards.after_epoch(epoch, reports, METRICS)


def test_three_in_a_row_stop_the_run_also_over_a_continuation(config: Config) -> None:
    guards, _ = guards_of(config)
    one = groups()[1]
    through(guards, 1, [bad(one), bad(one), [report()]])
    through(guards, 2, [bad(one), [report(outcome=UpdateOutcome.NOTHING_TO_LEARN)]])
    through(guards, 3, [bad(one)])
    for goes_on in (guards, guards_of(config, finished=3)[0]):
        with pytest.raises(BadNumbersError) as caught:
            goes_on.check_updates(4, [bad(one)], groups())
        text = str(caught.value)
        assert "3 updates in a row were skipped" in text
        assert UpdateOutcome.BAD_GROUP.value in text
        assert "The last checkpoint from before them: THAT OF 0." in text
        assert "epoch_000004.parquet" in text
    # An epoch that is done again counts once.
    again, _ = guards_of(config, finished=2)
    through(again, 3, [bad(one)])
    with pytest.raises(BadNumbersError, match="3 updates in a row"):
        again.check_updates(4, [bad(one)], groups())
    # After epoch 1 the row was broken.
    fresh, _ = guards_of(config, finished=1)
    through(fresh, 2, [bad(one), bad(one)])


def test_a_row_that_an_update_has_broken_stops_nothing(config: Config) -> None:
    """Also where it was long enough to stop the run before, which then went on from what the stop saved."""
    guards, _ = guards_of(config)
    one = groups()[1]
    guards.after_epoch(1, [bad(one)] * 3, METRICS)
    guards.check_updates(2, [[report()], bad(one)], groups())
    with pytest.raises(BadNumbersError, match="4 updates in a row"):
        guards.check_updates(2, [bad(one), [report()]], groups())


def test_sound_epochs_come_before_those_with_skipped_updates(config: Config) -> None:
    guards, _ = guards_of(config)
    one = groups()[1]
    nothing = [report(outcome=UpdateOutcome.NOTHING_TO_LEARN)]
    for epoch, update in enumerate([[report()], bad(one), nothing, bad(one), [report()]], start=1):
        guards.after_epoch(epoch, [update], METRICS)
    assert [guards.sound_epochs(epoch) for epoch in range(7)] == [0, 1, 1, 1, 1, 5, 6]


def test_a_disk_that_refuses_does_not_hide_the_reason(config: Config) -> None:
    guards, notebook = guards_of(config)
    (config.run_folder / "inspection").write_text("in the way")
    guards.check_updates(1, [bad(groups()[1])], groups())
    assert "could not be saved" in notebook.notes[0]


def test_only_the_newest_files_stay(config: Config) -> None:
    guards, _ = guards_of(config)
    for epoch in range(1, SAVED_FILES + 3):
        guards.check_updates(epoch, [bad(groups()[1])], groups())
    kept = open_recording(config.run_folder / "inspection", INSPECTION).epochs
    assert kept == list(range(3, SAVED_FILES + 3))


def test_an_alarm_is_told_once_when_it_begins_and_is_a_metric_of_every_epoch(config: Config) -> None:
    guards, notebook = guards_of(config)
    collapsed: dict[str, Any] = {**METRICS, "reward/within_group_std": 0.1}
    found = [
        guards.after_epoch(epoch, [[report()]], METRICS if epoch < 7 else collapsed) for epoch in range(1, 9)
    ]
    assert [one["alarms/reward_spread"] for one in found] == [0.0] * 6 + [1.0, 1.0]
    assert [one["alarms/gradient_norm"] for one in found] == [0.0] * 8
    assert [new for _, _, new in notebook.alarms] == [[]] * 6 + [["reward_spread"], []]
    continued, told = guards_of(config, finished=7)
    assert continued.after_epoch(8, [[report()]], collapsed) == found[7]
    assert told.alarms == [notebook.alarms[7]]


def test_groups_to_train_on_must_still_be_finite(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="not finite"):
        TrajectoryWriter(tmp_path).write_epoch(0, groups())
    bad_first = [groups()[1], *groups()]
    TrajectoryWriter(tmp_path).write_sound(3, bad_first)
    TrajectoryWriter(tmp_path).write_sound(4, bad_first[:1])
    recorded = open_recording(tmp_path)
    assert recorded.epochs == [3]
    kept = [one.trajectory.prompt for one in recorded.read_epoch(3)]
    assert kept == [one.trajectory.prompt for one in groups() if one.trajectory.prompt != "ein Bär, № 1"]


positive = st.floats(1e-6, 1e6)


@given(st.lists(positive, min_size=0, max_size=40), positive, st.floats(1.5, 100))
def test_a_gradient_norm_is_judged_by_the_median_of_the_last_twenty(
    earlier: list[float], norm: float, factor: float
) -> None:
    recent = sorted(earlier[-20:])
    expected = len(recent) >= 5 and norm > factor * (
        (recent[(len(recent) - 1) // 2] + recent[len(recent) // 2]) / 2
    )
    assert bool(gradient_norm_alarm(norm, earlier, factor)) == expected


def test_norms_that_are_not_finite_are_left_out_of_the_median() -> None:
    earlier = [1.0, math.nan, 1.0, math.inf, 1.0, 1.0, 1.0]
    assert gradient_norm_alarm(10.5, earlier, 10.0)
    assert not gradient_norm_alarm(10.5, earlier[:-1], 10.0)
    assert not gradient_norm_alarm(math.nan, earlier, 10.0)
    assert not gradient_norm_alarm(1.0, [0.0] * 6, 10.0)


@given(st.lists(positive, min_size=5, max_size=9), positive, st.floats(0.0, 0.99))
def test_a_spread_is_judged_by_the_median_of_the_first_five(
    first: list[float], spread: float, share: float
) -> None:
    assert bool(spread_alarm(spread, first, share)) == (spread < share * statistics.median(first[:5]))
    assert not spread_alarm(spread, first[:4], share)
    assert not spread_alarm(spread, [0.0] * 5, share)


def signs(norm: float = 1.0, spread: float = 1.0, bad: int = 0) -> EpochSigns:
    return EpochSigns(norm, spread, bad, row=0)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (signs(), set()),
        (signs(norm=11.0), {"gradient_norm"}),
        (signs(spread=0.19), {"reward_spread"}),
        (signs(bad=2, norm=math.nan), {"bad_numbers"}),
    ],
)
def test_an_epoch_is_judged_by_those_before_it_alone(now: EpochSigns, expected: set[str]) -> None:
    history = {number: signs() for number in range(1, 8)}
    later = {8: signs(norm=1e9, spread=1e9), 9: signs(norm=1e9)}
    assert set(judge(now, history, 8, GuardsSection())) == expected
    assert set(judge(now, {**history, **later}, 8, GuardsSection())) == expected


def test_a_mismatch_beyond_the_clip_range_is_an_alarm(config: Config) -> None:
    guards, notebook = guards_of(config)
    limit = config.objective.clip_per_element(report().latent_elements)
    for epoch, mismatch in enumerate((0.9 * limit, 1.1 * limit), start=1):
        metrics = {**METRICS, "policy/log_ratio_mismatch_max": mismatch}
        found = guards.after_epoch(epoch, [[report()]], metrics)
        check_metrics(found)
        assert set(found) == {f"alarms/{name}" for name in ALARMS}
        assert found["alarms/log_prob_mismatch"] == float(mismatch > limit)
    assert [new for _, _, new in notebook.alarms] == [[], ["log_prob_mismatch"]]


APPLIED, TIED = report(), report(outcome=UpdateOutcome.NOTHING_TO_LEARN, gradient_norm=0.0)


@pytest.mark.parametrize(
    ("reports", "tied", "weights_changed", "word"),
    [
        ([[APPLIED]], False, True, ""),
        ([[APPLIED]], True, True, "reward"),
        ([[TIED], [TIED]], False, False, "reward"),
        ([[TIED], [APPLIED]], False, True, ""),
        ([[report(gradient_norm=0.0)]], False, True, "gradient"),
        ([[APPLIED]], False, False, "learning rate"),
        ([bad()], True, False, ""),
    ],
)
def test_an_epoch_that_teaches_nothing_says_why(
    reports: list[list[UpdateReport]], tied: bool, weights_changed: bool, word: str
) -> None:
    found = why_idle(reports, tied, weights_changed)
    assert word in found
    assert bool(word) == bool(found)


def test_epochs_without_learning_are_an_alarm_at_once_and_stop_the_run_in_a_row(tmp_path: Path) -> None:
    config = make_config(Path("no/model"), tmp_path, {"guards.epochs_without_learning": 3})
    config.run_folder.mkdir(parents=True)
    guards, notebook = guards_of(config)
    for epoch, learned in enumerate((False, False, True, False, False), start=1):
        found = guards.after_epoch(epoch, [[APPLIED if learned else TIED]], METRICS)
        guards.check_learning(epoch)
        assert found["alarms/nothing_learned"] == float(not learned)
    assert [new for _, _, new in notebook.alarms] == [["nothing_learned"], [], [], ["nothing_learned"], []]
    for goes_on in (guards, guards_of(config, finished=5)[0]):
        goes_on.after_epoch(6, [[TIED]], METRICS)
        with pytest.raises(NothingLearnedError, match=r"3 epochs.*guards\.epochs_without_learning"):
            goes_on.check_learning(6)
