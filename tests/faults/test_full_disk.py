"""A disk that fills up in the middle of a run: a kind error, the last checkpoint whole, then it goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.config.load import config_to_yaml
from driver.run.checkpoints import list_checkpoints, read_checkpoint
from tests.tiny_config import make_config

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]

LIMIT_S = 600.0
SKIPPED = 77
# A small disk of its own for the run, full once the second checkpoint is there; what is left of it is kept.
SCRIPT = """
set -u
runs=$1; config=$2; python=$3; kept=$4
mount -t tmpfs -o size=24m none "$runs" || exit 77
"$python" train.py "$config" > "$kept/full.log" 2>&1 &
running=$!
while ! ls "$runs"/test/checkpoints/epoch_000002 > /dev/null 2>&1; do
    kill -0 $running || exit 1
    sleep 0.1
done
dd if=/dev/zero of="$runs/rest" bs=64k 2> /dev/null
wait $running
echo $? > "$kept/full.status"
cp -r "$runs/test" "$kept/full"
rm "$runs/rest"
"$python" train.py "$config" > "$kept/freed.log" 2>&1
echo $? > "$kept/freed.status"
cp -r "$runs/test" "$kept/freed"
"""


def test_a_full_disk_stops_the_run_and_loses_no_checkpoint(tiny_pipeline: Path, tmp_path: Path) -> None:
    settings = {"run.epochs": 12, "checkpoint.every_epochs": 1, "evaluation.every_epochs": 100}
    config = make_config(tiny_pipeline, tmp_path, settings)
    (tmp_path / "runs").mkdir()
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    script = tmp_path / "script.sh"
    script.write_text(SCRIPT)
    places = [str(tmp_path / "runs"), str(tmp_path / "config.yaml"), sys.executable, str(tmp_path)]
    try:
        done = subprocess.run(
            ["unshare", "-rm", "bash", str(script), *places], timeout=LIMIT_S, check=False, text=True
        )
    except FileNotFoundError:
        pytest.skip("no unshare here, so no small disk can be made")
    if done.returncode in (1, SKIPPED) and not (tmp_path / "full.log").exists():
        pytest.skip("this machine permits no mount of a small disk")

    shown = (tmp_path / "full.log").read_text()
    assert (tmp_path / "full.status").read_text() == "2\n", shown
    assert "No space left on device" in shown
    assert "Free space" in shown
    assert "Traceback" not in shown
    newest = list_checkpoints(tmp_path / "full")[-1]
    reached = read_checkpoint(newest).state.epoch
    assert 2 <= reached < 12
    assert (tmp_path / "freed.status").read_text() == "0\n"
    assert f"Going on after epoch {reached}" in (tmp_path / "freed.log").read_text()
    assert read_checkpoint(list_checkpoints(tmp_path / "freed")[-1]).state.epoch == 12
