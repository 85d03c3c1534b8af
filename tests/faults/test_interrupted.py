"""Ctrl-C on a real run in its own process: a checkpoint, nothing left running, then the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.config.load import config_to_yaml
from common.config.schema import Config
from learner.checkpoint import checkpoint_folder, list_checkpoints, read_checkpoint
from tests.tiny_config import make_config

pytestmark = pytest.mark.faults

LIMIT_S = 200.0


def begin(config: Config, folder: Path) -> subprocess.Popen[str]:
    """Start train.py on a configuration."""
    path = folder / "config.yaml"
    path.write_text(config_to_yaml(config))
    return subprocess.Popen(
        [sys.executable, "train.py", str(path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def await_checkpoint(config: Config) -> None:
    """Wait until the first checkpoint is there."""
    deadline = time.monotonic() + LIMIT_S
    while not list_checkpoints(config.run_folder):
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.2)


def children_of(pid: int) -> list[int]:
    """Living descendants of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
            except (OSError, IndexError):
                continue
            if parent == pid:
                found += [int(entry.name), *children_of(int(entry.name))]
    return found


@pytest.fixture
def settings() -> dict[str, object]:
    return {"run.epochs": 40, "checkpoint.every_epochs": 1, "evaluation.every_epochs": 100}


def test_the_first_signal_saves_and_the_same_command_goes_on(
    tiny_pipeline: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    config = make_config(tiny_pipeline, tmp_path / "stopped", settings)
    running = begin(config, tmp_path)
    await_checkpoint(config)
    children = children_of(running.pid)
    assert children
    running.send_signal(signal.SIGINT)
    shown, _ = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130, shown
    assert "The same command goes on from there" in shown
    assert "Traceback" not in shown
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]

    reached = read_checkpoint(list_checkpoints(config.run_folder)[-1]).state.epoch
    assert 1 <= reached < 40
    total = reached + 1
    continued = make_config(tiny_pipeline, tmp_path / "stopped", {**settings, "run.epochs": total})
    again = begin(continued, tmp_path)
    shown, _ = again.communicate(timeout=LIMIT_S)
    assert again.returncode == 0, shown
    whole = make_config(tiny_pipeline, tmp_path / "whole", {**settings, "run.epochs": total})
    undisturbed = begin(whole, tmp_path)
    shown, _ = undisturbed.communicate(timeout=LIMIT_S)
    assert undisturbed.returncode == 0, shown
    files = [read_checkpoint(checkpoint_folder(one.run_folder, total)).files for one in (continued, whole)]
    assert files[0]["trainable.safetensors"] == files[1]["trainable.safetensors"]
    assert files[0]["optimizer.safetensors"] == files[1]["optimizer.safetensors"]


def test_a_second_run_into_the_same_folder_is_refused_while_the_first_goes_on(
    tiny_pipeline: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    config = make_config(tiny_pipeline, tmp_path / "run", settings)
    first = begin(config, tmp_path)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not (config.run_folder / ".lock").exists():
            assert time.monotonic() < deadline, "the first run did not begin"
            time.sleep(0.1)
        time.sleep(0.5)
        second = begin(config, tmp_path)
        shown, _ = second.communicate(timeout=LIMIT_S)
        assert second.returncode == 2
        assert f"pid {first.pid}" in shown
        assert first.poll() is None
    finally:
        os.kill(first.pid, signal.SIGTERM)
        shown, _ = first.communicate(timeout=LIMIT_S)
    assert first.returncode != 0
