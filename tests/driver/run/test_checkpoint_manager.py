"""Which checkpoints stay, and that writing them holds nobody up and hides no failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from common.config.schema import Config
from common.errors import CheckpointError, StuckError
from common.storage import Storage
from common.trajectory import PolicyStamp
from driver.report.evaluation import Evaluation, PromptSetEvaluation
from driver.run.checkpoint_manager import CheckpointManager
from driver.run.checkpoints import Checkpoints, RunState, read_checkpoint
from tests.tiny_config import make_config

LIMIT_S = 20.0
FILES = {"a.bin": b"a" * 100}


def state(epoch: int) -> RunState:
    return RunState("run", epoch, "tracked")


def evaluation(epoch: int, *golds: float) -> Evaluation:
    """With two gold rewards a and b on unseen prompts, and others that must not count."""
    unseen = {name: np.array([[gold - 1, gold + 1]]) for name, gold in zip("ab", golds, strict=False)}
    unseen["reward"] = np.full((1, 2), 1000.0 - epoch)
    seen = {name: -values for name, values in unseen.items()}
    pixels = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    sets = [PromptSetEvaluation(n, ("p",), s, pixels) for n, s in (("seen", seen), ("unseen", unseen))]
    return Evaluation(epoch, PolicyStamp(epoch, "", "run"), tuple(sets))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    gold = {name: {"scorer": "jpeg_compressibility"} for name in "ab"}
    return make_config(
        Path("no/model"), tmp_path, {"gold": gold, "checkpoint": {"keep": 1, "keep_best": 1, "timeout_s": 20}}
    )


def test_saved_checkpoints_are_whole(config: Config) -> None:
    with CheckpointManager(config, None, [], print) as keeper:
        keeper.save(replace(state(1), forked_from="elsewhere"), "config", FILES, 1)
    read = read_checkpoint(config.run_folder / "checkpoints" / "epoch_000001")
    assert read.state == RunState("run", 1, "tracked", forked_from="elsewhere")
    assert (read.files, read.config_yaml) == (FILES, "config")


def test_the_best_are_asked_for_and_outlive_the_others(config: Config) -> None:
    checkpoints = Checkpoints.of(config)
    golds = {1: 0.2, 2: 0.9, 3: 0.4, 4: 0.9, 5: 0.5, 6: 0.1}
    asked = []
    with CheckpointManager(config, None, [evaluation(0, 5.0, 5.0)], print) as keeper:
        for epoch, gold in golds.items():
            keeper.save(state(epoch), "config", FILES, epoch)
            if keeper.after_evaluation(evaluation(epoch, gold, gold)):
                asked.append(epoch)
    assert asked == [1, 2]
    assert checkpoints.epochs() == [2, 5, 6]
    known = [evaluation(epoch, gold, gold) for epoch, gold in golds.items()]
    continued = CheckpointManager(config, None, known, print)
    assert not continued.after_evaluation(evaluation(7, 0.8, 0.8))
    with continued:
        continued.save(state(7), "config", FILES, 7)
        assert continued.after_evaluation(evaluation(8, 1.8, 0.1))
        continued.save(state(8), "config", FILES, 8)
    assert checkpoints.epochs() == [7, 8]


class HeldStorage(Storage):
    """A local storage as slow as the test likes."""

    begun, go_on = threading.Event(), threading.Event()

    def write(self, name: str, files: Mapping[str, bytes]) -> None:
        """Say that it was called, and wait."""
        self.begun.set()
        assert self.go_on.wait(LIMIT_S)
        super().write(name, files)


@pytest.fixture
def held(config: Config) -> Iterator[HeldStorage]:
    storage = HeldStorage(**vars(Storage.open(config.run_folder / "checkpoints")))
    storage.begun.clear()
    storage.go_on.clear()
    yield storage
    storage.go_on.set()


def test_saving_does_not_wait_but_a_second_one_and_the_end_do(config: Config, held: HeldStorage) -> None:
    checkpoints = Checkpoints(held)
    keeper = CheckpointManager(config, None, [], print, checkpoints)
    keeper.save(state(1), "config", FILES, 1)
    assert held.begun.wait(LIMIT_S)
    keeper.check()
    assert checkpoints.epochs() == []
    second = threading.Thread(target=keeper.save, args=(state(2), "config", FILES, 2), daemon=True)
    second.start()
    second.join(0.1)
    assert second.is_alive()
    held.go_on.set()
    second.join(LIMIT_S)
    keeper.finish()
    assert checkpoints.epochs() == [1, 2]


def test_one_that_took_too_long_and_another_are_never_written_at_a_time(
    config: Config, held: HeldStorage
) -> None:
    section = config.checkpoint.model_copy(update={"timeout_s": 0.05})
    keeper = CheckpointManager(
        config.model_copy(update={"checkpoint": section}), None, [], print, Checkpoints(held)
    )
    keeper.save(state(1), "config", FILES, 1)
    for _ in range(2):
        with pytest.raises(StuckError, match="epoch_000001 to be written"):
            keeper.save(state(2), "config", FILES, 2)
    held.go_on.set()
    until(lambda: Checkpoints(held).epochs() == [1])
    until(lambda: keeper.save(state(3), "config", FILES, 3) or True, StuckError)
    until(lambda: Checkpoints(held).epochs() == [1, 3])


def test_a_write_that_fails_at_the_end_hides_no_error_that_ended_the_run(config: Config) -> None:
    notes: list[str] = []
    keeper = CheckpointManager(config, None, [], notes.append)
    keeper.save(state(2), "config", {"x" * 300: b""}, 2)
    with pytest.raises(ValueError, match="the real one"), keeper:
        raise ValueError("the real one")
    (line,) = notes
    assert "Could not write the checkpoint" in line


def test_the_best_stay_where_the_evaluations_are_lost(config: Config) -> None:
    """checkpoint.folder outlives the run folder: the scores lie with the checkpoints."""
    golds = {1: 0.25, 2: 0.875, 3: 0.375, 4: 0.5}
    checkpoints = Checkpoints.of(config)
    with CheckpointManager(config, None, [], print) as keeper:
        for epoch, gold in golds.items():
            keeper.after_evaluation(evaluation(epoch, gold, gold))
            keeper.save(state(epoch), "config", FILES, epoch)
    newest = checkpoints.newest().checkpoint
    assert newest is not None
    assert newest.state.golds == tuple(golds.items())
    assert checkpoints.epochs() == [2, 3, 4]
    with CheckpointManager(config, newest.state, [], print) as continued:
        assert not continued.after_evaluation(evaluation(5, 0.8, 0.8))
        continued.save(state(5), "config", FILES, 5)
    assert checkpoints.epochs() == [2, 4, 5]


def test_the_newest_sound_one_stays_while_bad_ones_follow(config: Config) -> None:
    checkpoints = Checkpoints.of(config)
    with CheckpointManager(config, None, [], print) as keeper:
        for epoch, sound in ((1, 1), (2, 2), (3, 2), (4, 2), (5, 2)):
            keeper.save(state(epoch), "config", FILES, sound)
    assert checkpoints.epochs() == [2, 4, 5]
    with CheckpointManager(config, None, [], print) as keeper:
        keeper.save(state(6), "config", FILES, 6)
    assert checkpoints.epochs() == [5, 6]


def test_a_second_ctrl_c_waits_for_nothing(config: Config, held: HeldStorage) -> None:
    keeper = CheckpointManager(config, None, [], print, Checkpoints(held))
    keeper.save(state(1), "config", FILES, 1)
    with pytest.raises(KeyboardInterrupt), keeper:
        raise KeyboardInterrupt
    assert Checkpoints(held).epochs() == []


@pytest.mark.parametrize("how", ["check", "wait", "finish", "save"])
def test_a_write_that_failed_is_told_at_the_next_occasion_and_once(config: Config, how: str) -> None:
    keeper = CheckpointManager(config, None, [], print)
    keeper.save(state(1), "config", FILES, 1)
    keeper.wait()
    keeper.save(state(2), "config", {"x" * 300: b""}, 2)
    calls = {
        "check": lambda: until_told(keeper),
        "wait": keeper.wait,
        "finish": keeper.finish,
        "save": lambda: keeper.save(state(3), "config", FILES, 3),
    }
    with pytest.raises(CheckpointError, match=r"Could not write the checkpoint.*epoch_000002"):
        calls[how]()
    keeper.save(state(4), "config", FILES, 4)
    keeper.finish()
    assert Checkpoints.of(config).epochs() == [1, 4]


def until(there: Callable[[], bool], *meanwhile: type[Exception]) -> None:
    """Wait until it is so; errors of these kinds may come meanwhile."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        with suppress(*meanwhile):
            if there():
                return
        time.sleep(0.01)
    raise AssertionError("it never came")


def until_told(keeper: CheckpointManager) -> None:
    """Look, as the loop does after each epoch."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        keeper.check()
        time.sleep(0.01)


def test_an_error_of_the_program_is_no_checkpoint(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda raised: told.append(raised.exc_type.__name__))
    keeper, wrong = CheckpointManager(config, None, [], print), {"a.bin": "no bytes"}
    keeper.save(state(1), "config", cast(Any, wrong), 1)
    with pytest.raises(CheckpointError, match="an error of the program"):
        keeper.finish()
    assert len(told) == 1


def test_the_best_are_those_of_one_version_of_the_gold_rewards(config: Config) -> None:
    manager = CheckpointManager(config, None, [evaluation(1, 9.0, 9.0)], print)
    assert not manager.after_evaluation(evaluation(2, 8.0, 8.0))
    (seen, unseen) = evaluation(3, 1.0, 1.0).sets
    swapped = replace(unseen, versions={"a": ("version 2",)})
    assert manager.after_evaluation(Evaluation(3, PolicyStamp(3, "", "run"), (seen, swapped)))
    assert not manager.after_evaluation(evaluation(4))


def test_the_best_of_before_a_gold_reward_was_added_are_forgotten(config: Config) -> None:
    before = replace(state(2), golds=((1, 20.0), (2, 21.0)))
    manager = CheckpointManager(config, before, [evaluation(1, 20.0), evaluation(2, 21.0)], print)
    assert manager.after_evaluation(evaluation(3, 0.5, 0.5))
    assert not manager.after_evaluation(evaluation(4, 0.25, 0.25))
