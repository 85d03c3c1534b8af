"""SIGKILL while checkpoints are written: what was finished stays whole, what was not is recognised."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.storage import Storage
from driver.run.checkpoints import Checkpoints

pytestmark = pytest.mark.faults

KILLS, MOST_KILLS = 4, 20
"""As many, and more until one has come in the middle of a write, which on a quick disk few do."""
LIMIT_S = 60.0
# Writes one checkpoint after the other, also over an earlier one, and says which are finished.
WRITER = """
import sys
from common.storage import Storage
from driver.run.checkpoints import Checkpoints, RunState
checkpoints = Checkpoints(Storage.open(sys.argv[1]))
first = int(sys.argv[2])
files = {f"policy/{number}.bin": bytes([number]) * 300_000 for number in range(5)}
for epoch in (first, *range(first, first + 1000)):
    checkpoints.write(RunState("run", epoch, "t"), "config", files)
    checkpoints.prune(range(epoch - 1, epoch + 1))
    print(epoch, flush=True)
"""


def test_a_killed_writer_loses_no_finished_checkpoint(tmp_path: Path) -> None:
    checkpoints, moments = Checkpoints(Storage.open(tmp_path)), random.Random(4)
    reached, unfinished = 0, 0
    for kill in range(MOST_KILLS):
        if kill >= KILLS and unfinished:
            break
        told = write_and_kill(tmp_path, reached, moments.uniform(0.0, 0.05))
        found = checkpoints.newest()
        assert found.checkpoint is not None
        assert found.checkpoint.state.epoch in (told, told + 1)
        assert all("was not finished" in note for note in found.notes)
        unfinished += len(found.notes)
        reached = found.checkpoint.state.epoch
    assert unfinished, "no kill came in the middle of a write"
    checkpoints.prune({reached})
    assert [path.name for path in tmp_path.iterdir()] == [f"epoch_{reached:06d}"]


def write_and_kill(folder: Path, first: int, after_s: float) -> int:
    """Start a writer, and kill it so long after its first words. Returns the last epoch it has told of."""
    command = [sys.executable, "-c", WRITER, str(folder), str(first)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = int(writer.stdout.readline())
    time.sleep(after_s)
    writer.kill()
    rest, _ = writer.communicate(timeout=LIMIT_S)
    return max([told, *(int(line) for line in rest.split())])
