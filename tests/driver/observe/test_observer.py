"""What the observer keeps when epochs come again, and what a full disk looks like."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import driver.observe.status
from common.cluster.live_metrics import LiveMetric
from common.config.schema import Config
from common.errors import RunFolderError
from common.trajectory import ScorerStamp
from driver.observe.display import DisplayState, Phase
from driver.observe.gauges import RayGauges
from driver.observe.observer import Observer, Outlets
from driver.observe.status import StatusFile
from driver.observe.timeline_log import TimelineLog
from driver.run.reward_versions import VersionLog
from tests.driver.run.test_evaluations import make_evaluation
from tests.tiny_config import make_config


class KeptDisplay:
    """Keeps what it is asked to show."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.states: list[DisplayState] = []

    def update(self, state: DisplayState) -> None:
        self.states.append(state)

    def note(self, text: str) -> None:
        self.notes.append(text)


class KeptTracker:
    """Keeps what it is asked to log."""

    run_id = "tracked"

    def __init__(self) -> None:
        self.logged: list[tuple[int, float | None]] = []
        self.described: list[str] = []
        self.images: list[int] = []

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        self.logged.append((epoch, metrics.get("reward/mean")))

    def log_image(self, name: str, image: Any, epoch: int) -> None:
        self.images.append(epoch)

    def set_description(self, markdown: str) -> None:
        self.described.append(markdown)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nobody asks."""

    def log_text(self, file: str, text: str) -> None:
        """Nobody asks."""

    def log_folder(self, folder: Path, artifact_path: str) -> None:
        """Nobody asks."""

    def run_url_hint(self) -> str:
        return "mlflow"


class NoInstruments:
    """Records nothing."""

    def record(self, metric: LiveMetric, value: float, **labels: str) -> None:
        """Nobody asks."""


class Watched:
    """An observer of a run in a folder, and what it showed and logged."""

    def __init__(self, folder: Path, staleness: int) -> None:
        config = make_config(Path("no/model"), folder, {"data": {"max_staleness": staleness}})
        config.run_folder.mkdir(parents=True)
        self.config: Config = config
        self.display: Any = KeptDisplay()
        self.tracker: Any = KeptTracker()
        instruments: Any = NoInstruments()
        status, timelines = StatusFile(config, "run"), TimelineLog(config.run_folder, keep=0)
        outlets = Outlets(self.display, self.tracker, RayGauges(instruments), status, timelines)
        self.observer = Observer(config, outlets, 0, (), VersionLog())

    def end_epoch(self, epoch: int, mean: float) -> None:
        metrics = {"reward/mean": mean, "throughput/images_per_s": 1.0, "faults/dropped_groups": 0.0}
        self.observer.epoch_done(epoch, metrics)

    def run_epoch(self, epoch: int, mean: float, seed: int = 0) -> None:
        self.end_epoch(epoch, mean)
        self.observer.evaluated(make_evaluation(epoch, seed), {}, 1.0)


def disturbed(folder: Path, staleness: int) -> Watched:
    """Two epochs, the second of them twice, with other rewards, and evaluated each time."""
    run = Watched(folder, staleness)
    run.run_epoch(1, 0.5)
    run.run_epoch(2, 0.25)
    run.observer.rewound(1, "back")
    run.run_epoch(2, 0.75, seed=1)
    return run


def test_without_staleness_epochs_must_come_again_the_same(tmp_path: Path) -> None:
    run = disturbed(tmp_path, 0)
    assert run.tracker.logged == [(1, 0.5), (1, None), (2, 0.25), (2, None)]
    assert run.tracker.images == [1, 2]
    assert ["came out differently" in note for note in run.display.notes] == [False, True, True]
    assert [metrics["reward/mean"] for _, metrics in run.observer.epochs] == [0.5, 0.25]


def test_with_staleness_what_comes_again_takes_the_place_of_what_was_known(tmp_path: Path) -> None:
    run = disturbed(tmp_path, 1)
    assert run.tracker.logged == [(1, 0.5), (1, None), (2, 0.25), (2, None), (2, 0.75), (2, None)]
    assert run.display.notes == ["back"]
    assert [(epoch, known["reward/mean"]) for epoch, known in run.observer.epochs] == [(1, 0.5), (2, 0.75)]
    assert [known.epoch for known in run.observer.evaluations] == [1, 2]
    kept = run.observer.evaluations[1].sets[0].scores["gold"]
    assert (kept == make_evaluation(2, 1).sets[0].scores["gold"]).all()
    state = run.display.states[-1]
    assert (state.rewards, len(state.unseen), state.epoch) == ((0.5, 0.75), 2, 2)


def test_after_a_swap_rewards_are_compared_from_the_first_whole_epoch_of_the_new_version(
    tmp_path: Path,
) -> None:
    run = Watched(tmp_path, 0)
    for epoch, version in enumerate("AABB", start=1):
        for group in range(2):
            swapped = "B" if (epoch, group) == (2, 1) else version
            run.observer.group_scored(epoch, group, [ScorerStamp("jpeg", swapped, "")])
        run.end_epoch(epoch, float(epoch))
    shown = [state.rewards for state in run.display.states if state.rewards]
    assert list(dict.fromkeys(shown)) == [(1.0,), (2.0,), (3.0,), (3.0, 4.0)]


def test_what_cannot_be_shown_of_an_evaluation_is_said_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("NO")

    run = Watched(tmp_path, 0)
    run.run_epoch(1, 0.5)
    for name in ("before_after_grid", "describe_run"):
        monkeypatch.setattr(f"driver.observe.observer.{name}", fail)
    run.run_epoch(2, 0.5)
    assert [known.epoch for known in run.observer.evaluations] == [1, 2]
    assert ["NO" in note for note in run.display.notes] == [True, True]
    assert (run.tracker.images, len(run.display.states[-1].unseen)) == ([1], 2)


def test_a_full_disk_is_a_kind_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    run = Watched(tmp_path, 0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"epoch_000001\.npz"):
        run.observer.evaluated(make_evaluation(1), {}, 1.0)


@pytest.mark.parametrize(
    ("phase", "when"),
    [
        (Phase.SAMPLING, r"in the middle of sampling \(epoch 1/2\)"),
        (Phase.LEARNING, "after the updates of epoch 1/2"),
    ],
)
def test_a_stop_is_answered_at_once_with_what_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: Phase, when: str
) -> None:
    monkeypatch.setattr(driver.observe.status, "living_processes", lambda _: ())
    watched = Watched(tmp_path, 0)
    watched.observer.phase(phase, 0)
    watched.observer.stop_asked()
    assert re.search(f"{when}.*checkpoint", watched.display.notes[-1])
