"""What the observer keeps when epochs come again, and what a full disk looks like. Display and tracker are
made up."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from common.config.schema import Config
from common.errors import RunFolderError
from driver.observe.observer import Observer, first_state
from driver.run.reward_versions import VersionLog
from tests.driver.run.test_evaluations import make_evaluation
from tests.tiny_config import make_config


class FakeRun:
    """Display, tracker, gauges, status and timelines in one. Keeps what is logged, noted and described."""

    run_id = "tracked"

    def __init__(self) -> None:
        self.logged: list[tuple[int, float]] = []
        self.notes: list[str] = []
        self.described: list[str] = []

    def log_metrics(self, metrics: Mapping[str, float], epoch: int) -> None:
        self.logged.append((epoch, metrics.get("reward/mean", -1.0)))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def set_description(self, markdown: str) -> None:
        self.described.append(markdown)

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def make(folder: Path, staleness: int) -> Config:
    config = make_config(Path("no/model"), folder, {"data": {"max_staleness": staleness}})
    config.run_folder.mkdir(parents=True)
    return config


def observer_of(config: Config) -> tuple[Observer, FakeRun]:
    run: Any = FakeRun()
    return Observer(config, run, run, run, first_state(config, 0, []), [], VersionLog(), run, run), run


def metrics(mean: float) -> dict[str, float]:
    return {"reward/mean": mean, "throughput/images_per_s": 1.0, "faults/dropped_groups": 0.0}


def disturbed(config: Config) -> tuple[Observer, FakeRun]:
    """Two epochs, the second of them twice, with other rewards, and evaluated each time."""
    observer, run = observer_of(config)
    observer.epoch_done(1, metrics(0.5))
    observer.evaluated(make_evaluation(1), {}, 1.0)
    for seed, mean in enumerate((0.25, 0.75)):
        observer.epoch_done(2, metrics(mean))
        observer.evaluated(make_evaluation(2, seed), {}, 1.0)
        if not seed:
            observer.rewound(1, "back")
    return observer, run


def test_without_staleness_epochs_must_come_again_the_same(tmp_path: Path) -> None:
    observer, run = disturbed(make(tmp_path, 0))
    assert run.logged == [(1, 0.5), (1, -1.0), (2, 0.25), (2, -1.0)]
    assert ["came out differently" in note for note in run.notes] == [False, True, True]
    assert [own["reward/mean"] for _, own in observer.epochs] == [0.5, 0.25]


def test_with_staleness_what_comes_again_takes_the_place_of_what_was_known(tmp_path: Path) -> None:
    observer, run = disturbed(make(tmp_path, 1))
    assert run.logged == [(1, 0.5), (1, -1.0), (2, 0.25), (2, -1.0), (2, 0.75), (2, -1.0)]
    assert run.notes == ["back"]
    assert [(epoch, own["reward/mean"]) for epoch, own in observer.epochs] == [(1, 0.5), (2, 0.75)]
    assert [known.epoch for known in observer.evaluations] == [1, 2]
    kept = observer.evaluations[1].sets[0].scores["gold"]
    assert (kept == make_evaluation(2, 1).sets[0].scores["gold"]).all()
    state = cast(Any, observer)._state
    assert (state.rewards, len(state.unseen), state.epoch) == ((0.5, 0.75), 2, 2)


def test_a_page_without_the_first_evaluation_says_so(tmp_path: Path) -> None:
    _, run = disturbed(make(tmp_path, 0))
    assert all("before: after epoch 1," in text for text in run.described)
    observer, whole = observer_of(make(tmp_path / "whole", 0))
    observer.evaluated(make_evaluation(0), {}, 1.0)
    assert not any("before: after" in text for text in whole.described)


def test_a_full_disk_is_a_kind_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observer, _ = observer_of(make(tmp_path, 0))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"Cannot write .*epoch_000001\.npz.*Free space"):
        observer.evaluated(make_evaluation(1), {}, 1.0)
