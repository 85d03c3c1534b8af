"""Who may write into a run folder, and what there is to go on with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.load import config_to_yaml
from common.config.schema import Config
from common.errors import RunFolderError
from driver.run.checkpoints import Checkpoints, RunState, checkpoint_folder
from driver.run.folder import (
    JOURNAL_FILE,
    Journal,
    claim,
    find_beginning,
    read_journal,
    write_journal,
)
from driver.run.recordings import TrajectoryWriter
from tests.tiny_config import make_config


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return make_config(Path("no/model"), tmp_path, {"run.epochs": 4})


def save(config: Config, epoch: int) -> Path:
    """A checkpoint with made-up files."""
    state = RunState(run_id="abc", epoch=epoch, tracker_run="tracked")
    return Path(Checkpoints.of(config).write(state, config_to_yaml(config), {"learner.json": b"{}"}))


def elsewhere(config: Config, folder: Path) -> Config:
    """With checkpoints in another folder."""
    return changed(config, "checkpoint", folder=str(folder))


def test_checkpoints_may_lie_elsewhere_by_run_name(config: Config, tmp_path: Path) -> None:
    other = elsewhere(config, tmp_path / "far")
    assert save(other, 2) == tmp_path / "far" / "test" / "epoch_000002"
    assert find_beginning(other).epoch == 2
    by_uri = changed(config, "checkpoint", folder=f"file://{tmp_path}/far")
    assert find_beginning(by_uri).epoch == 2
    assert find_beginning(config).epoch == 0


def test_a_folder_of_checkpoints_that_has_none_of_this_run_is_refused(config: Config, tmp_path: Path) -> None:
    shutil.copytree(save(config, 2), tmp_path / "copied" / "test" / "epoch_000002")
    with pytest.raises(RunFolderError, match=r"checkpoints.*far/test"):
        find_beginning(elsewhere(config, tmp_path / "far"))
    assert find_beginning(elsewhere(config, tmp_path / "copied")).epoch == 2


def changed(config: Config, section: str, **values: object) -> Config:
    """The configuration with other values in one section."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def test_a_folder_in_use_is_refused_and_free_again_when_its_holder_dies(config: Config) -> None:
    code = (
        "import sys, time; from pathlib import Path; from driver.run.folder import claim\n"
        "with claim(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(config.run_folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunFolderError, match=f"pid {holder.pid}.*run.name"), claim(config.run_folder):
            pass
    finally:
        holder.kill()
        holder.wait()
    with claim(config.run_folder):
        assert config.run_folder.is_dir()


def delete(folder: Path) -> None:
    shutil.rmtree(folder)


def replace(folder: Path) -> None:
    """By a copy of it, lock and all."""
    folder.rename(folder.with_name("away"))
    shutil.copytree(folder.with_name("away"), folder)


@pytest.mark.parametrize("take_away", [delete, replace])
def test_nothing_is_written_into_a_folder_that_is_not_the_runs_any_more(
    config: Config, take_away: Callable[[Path], None]
) -> None:
    folder, journal = config.run_folder, Journal("abc", "tracked", "digest", 0)
    with claim(folder):
        save(config, 1)
        take_away(folder)
        before = sorted(folder.rglob("*"))
        for write in (
            lambda: write_journal(folder, journal),
            lambda: save(config, 1),
            lambda: TrajectoryWriter(folder / "trajectories").write_epoch(0, ()),
        ):
            with pytest.raises(RunFolderError, match=str(folder)):
                write()
        assert sorted(folder.rglob("*")) == before
    with claim(folder):
        write_journal(folder, journal)


def test_a_folder_that_was_moved_and_came_back_is_written_again(config: Config) -> None:
    folder = config.run_folder
    with claim(folder):
        folder.rename(folder.with_name("away"))
        with pytest.raises(RunFolderError, match="move it back"):
            save(config, 1)
        folder.with_name("away").rename(folder)
        save(config, 1)


def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunFolderError, match=r"cannot be written.*run\.folder"),
        claim(tmp_path / "file" / "run"),
    ):
        pass


def test_new_runs_differ_and_begin_at_zero(config: Config) -> None:
    first, second = find_beginning(config), find_beginning(config)
    assert (first.epoch, first.checkpoint, first.tracker_run) == (0, None, "")
    assert first.run_id != second.run_id


def test_a_run_goes_on_from_its_last_whole_checkpoint(config: Config) -> None:
    save(config, 1)
    torn = save(config, 2)
    (torn / "learner.json").write_bytes(b"{ }")
    beginning = find_beginning(config)
    assert (beginning.epoch, beginning.run_id, beginning.tracker_run) == (1, "abc", "tracked")
    (note,) = beginning.notes
    assert "epoch_000002 is damaged: learner.json changed" in note


def test_more_epochs_other_actors_and_another_tracker_are_no_other_run(config: Config) -> None:
    save(config, 4)
    with pytest.raises(RunFolderError, match="finished run of 4 epochs"):
        find_beginning(config)
    longer = changed(changed(config, "run", epochs=9), "actors", count=5)
    assert find_beginning(changed(longer, "learner", workers=2)).epoch == 4


def test_another_configuration_is_refused_with_the_differences(config: Config) -> None:
    save(config, 1)
    other = changed(changed(config, "objective", kl_weight=7.0), "sampling", steps=9)
    with pytest.raises(RunFolderError) as caught:
        find_beginning(other)
    assert "objective.kl_weight" in str(caught.value)
    assert "sampling.steps" in str(caught.value)
    assert checkpoint_folder(config.run_folder, 1).is_dir()


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert read_journal(tmp_path) is None
    for finished in (0, 5):
        journal = Journal("run", "tracked", "epochs: 2", finished, inputs={"prompts.train": "digest"})
        write_journal(tmp_path, journal)
        assert read_journal(tmp_path) == journal
    assert [path.name for path in tmp_path.iterdir()] == [JOURNAL_FILE]


WRONG_TYPE = b'{"run_id": "run", "tracker_run": "t", "config_digest": "d", "finished": "4"}'


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"run_id": "run"}', b"\xff\xfe", WRONG_TYPE])
def test_a_damaged_one_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / JOURNAL_FILE).write_bytes(content)
    with pytest.raises(RunFolderError, match=rf"{JOURNAL_FILE} cannot be read.*Delete it"):
        read_journal(tmp_path)


def test_a_run_without_a_checkpoint_goes_on_as_the_same_run(config: Config) -> None:
    config.run_folder.mkdir(parents=True)
    write_journal(config.run_folder, Journal("abc", "tracked", config_to_yaml(config), 0))
    free = changed(changed(config, "run", epochs=9), "actors", count=5)
    for same in (config, free):
        beginning = find_beginning(same)
        assert (beginning.run_id, beginning.epoch, beginning.tracker_run) == ("abc", 0, "tracked")
        assert beginning.files == {}
    other = find_beginning(changed(config, "optimizer", learning_rate=0.5))
    assert other.run_id != "abc"
    assert other.tracker_run == ""


def test_a_run_killed_before_its_result_was_shown_is_not_finished(config: Config) -> None:
    save(config, 4)
    for finished in (0, 2):
        write_journal(config.run_folder, Journal("abc", "tracked", "any", finished))
        assert find_beginning(config).epoch == 4
    write_journal(config.run_folder, Journal("abc", "tracked", "any", 4))
    with pytest.raises(RunFolderError, match="finished run of 4 epochs"):
        find_beginning(config)
