"""The commands, run as a person runs them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from common.errors import ConfigError, RewardError
from common.trajectory import ScorerStamp
from reward_service.__main__ import main
from reward_service.cli.commands import read_pairs, whole_numbers
from reward_service.contract.results import RUNNING, Description, Report
from tests.reward_service.scorers import Redness

SHARED = "tests.reward_service.scorers"


def save(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (32, 24)) -> str:
    Image.new("RGB", size, colour).save(path)
    return str(path)


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    seen = (
        "import sys, runpy; sys.argv = ['reward_service', '--help']\n"
        "try: runpy.run_module('reward_service', run_name='__main__')\n"
        "except SystemExit: print(sorted({'torch', 'ray', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", seen], capture_output=True, text=True, timeout=60, check=True
    )
    assert "check" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
    assert time.monotonic() - started < 5.0  # well under a second on an idle machine


def test_try_prints_the_matrix_of_a_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [save(tmp_path / f"{green}.png", (0, green, 0)) for green in (0, 50, 100)]
    arguments = ["try", f"{SHARED}:Duel", *names, "x", "--option", "scale=2.0", "--json"]
    assert main(arguments) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["differences"][2][0] == pytest.approx(np.tanh(100 / 32) / 2.0)
    assert read["residual"] > 0
    assert main(arguments[:-1]) == 0


def test_images_of_different_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [save(tmp_path / "a.png", (1, 2, 3)), save(tmp_path / "b.png", (200, 2, 3), (50, 50))]
    assert main(["try", f"{SHARED}:Redness", *names, "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rewards"] == pytest.approx([1 / 255, 200 / 255])
    assert main(["try", f"{SHARED}:GreenDuel", *names, "x"]) == 2
    assert re.search(r"a\.png 32x24.*b\.png 50x50", capsys.readouterr().err)


class Hangs(Redness):
    """Answers nobody."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        time.sleep(30.0)
        return super().score(prompts, images)


@pytest.mark.parametrize("command", [["try", "SCORER", "FILE", "x"], ["check", "SCORER"]])
def test_a_scorer_that_hangs_ends_the_command_in_time(
    command: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    woken = threading.Event()
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        woken.set()

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(time, "sleep", lambda _: woken.wait(30.0))
    made = {"FILE": save(tmp_path / "a.png", (1, 2, 3)), "SCORER": f"{__name__}:Hangs"}
    main([*(made.get(text, text) for text in command), "--set", "timeout_s=0.05"])
    assert ended[0] == 2
    assert re.search("error: .*0.05 s", capsys.readouterr().err)


def test_what_the_scorer_prints_is_no_part_of_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = save(tmp_path / "a.png", (51, 0, 0))
    assert main(["try", f"{SHARED}:Talkative", name, "a cat", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["rewards"] == [0.2]
    assert "asked about a cat" in shown.err


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["jpeg_compressibility", "FILE", "FILE"], "add the prompt"),
        (["jpeg_compresibility", "FILE", "x"], "'jpeg_compressibility'"),
        (["jpeg_compressibility", "nowhere.png", "x"], "nowhere.png"),
        (["jpeg_compressibility", "pyproject.toml", "x"], "pyproject.toml"),
        (["jpeg_compressibility", "DEEP", "x"], "deep.png has 16 bits"),
        (["ocr", "FILE", "no quotes"], "double quotes"),
        (["ocr", "FILE", "x", "--option", "unquoted"], "KEY=VALUE"),
        (["ocr", "FILE", "x", "--option", "unqoted=whole"], "unquoted"),
        (["ocr", "FILE", "x", "--set", "tmeout_s=1"], "timeout_s"),
        (["ocr", "FILE", "x", "--set", "scorer=clip"], "SCORER"),
        (["http://127.0.0.1:9", "FILE", "x"], "127.0.0.1:9"),
        (["http://127.0.0.1:9", "FILE", "x", "--set", "timeout_s=5"], "--set with http://127.0.0.1:9"),
        (["jpeg_compressibility", "FILE", "x", "--token-env", "HOME"], "--token-env with jpeg"),
        (["http://127.0.0.1:9", "FILE", "x", "--token-env", "NOT_SET_HERE"], "NOT_SET_HERE"),
        (["http://judge.example", "FILE", "x", "--token-file", "TOKEN"], "unencrypted"),
    ],
)
def test_errors_are_one_kind_line(
    given: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text("0123456789abcdef0123")
    Image.fromarray(np.full((8, 8), 30_000, np.uint16)).save(tmp_path / "deep.png")
    made = {"FILE": save(tmp_path / "a.png", (1, 2, 3)), "TOKEN": str(tmp_path / "token")}
    made["DEEP"] = str(tmp_path / "deep.png")
    assert main(["try", *(made.get(text, text) for text in given)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert complaint in error
    assert "Traceback" not in error


def test_check_tells_by_its_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{SHARED}:Redness", "--prompt", "a cat"]) == 0
    assert "FAILED" not in capsys.readouterr().out
    assert main(["check", f"{SHARED}:Careless"]) == 1
    assert re.search(r"FAILED +batch size", capsys.readouterr().out)


def test_bench_has_a_row_for_each_size(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", f"{SHARED}:Redness", "--groups", "1,3", "--sizes", "16,32", "--seconds", "0.01"]
    assert main(arguments) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [row[:2] for row in rows] == [["16x16", "1"], ["16x16", "3"], ["32x32", "1"], ["32x32", "3"]]
    assert all(int(row[2]) >= 2 and float(row[3]) > 0 for row in rows)


def test_serve_refuses_the_world_without_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "jpeg_compressibility", "--host", "0.0.0.0"]) == 2
    assert "token" in capsys.readouterr().err
    assert main(["serve", "jpeg_compressibility", "--limit", "imags=3"]) == 2
    assert "images" in capsys.readouterr().err


def test_serve_then_status_try_and_bench_by_address(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLI_TOKEN", "0123456789abcdef0123")
    command = [sys.executable, "-m", "reward_service", "serve", f"{SHARED}:Redness", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--name", "red", "--token-env", "CLI_TOKEN", "--set", "version=v7"],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        assert found is not None
        address, token = found[0], ["--token-env", "CLI_TOKEN"]
        assert main(["status", address, *token]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"red +pointwise .*1\+v7 .*yes", shown)
        assert re.search(rf'{address}: settings {{.*"timeout_s": 120\.0.*"version": "v7"', shown)
        name = save(tmp_path / "a.png", (51, 0, 0))
        assert main(["try", address, name, "x", "--json", *token]) == 0
        assert json.loads(capsys.readouterr().out)["rewards"] == [0.2]
        assert main(["bench", address, "--groups", "2", "--sizes", "8", "--seconds", "0.01", *token]) == 0
        assert main(["status", address]) == 1
        assert "401" in capsys.readouterr().out
    finally:
        server.terminate()
        assert server.wait(30) == 0


def test_status_has_a_line_for_each_also_where_replicas_are_silent_or_differ(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Description(
        "jpeg", ScorerStamp("jpeg", "1", ""), "jpeg_compressibility", "pointwise", {}, "", True
    )
    other = replace(said, stamp=ScorerStamp("jpeg", "2", ""), refused="no such scorer")
    reports = {
        "clip": Report(RUNNING, "", 2, (), "TimeoutError: busy"),
        "jpeg": Report(RUNNING, "", 2, (said, other), ""),
        "pick": Report("DEPLOY_FAILED", "no weights", 0, (), ""),
        "far": Report("?", "", 1, (), "refused"),
    }
    monkeypatch.setattr("reward_service.on_ray.handles.report_applications", lambda: reports)
    assert main(["status"]) == 1
    shown = capsys.readouterr().out
    rows = [line.split()[:3] for line in shown.splitlines()[1:4]]
    assert rows == [["clip", RUNNING, "0/2"], ["jpeg", RUNNING, "2/2"], ["pick", "DEPLOY_FAILED", "0/0"]]
    for said_of in ("clip: .*busy", "jpeg .* 1, 2 ", "jpeg: .*refused: no such scorer", "pick: .*no weights"):
        assert re.search(said_of, shown)
    assert [line for line in shown.splitlines() if line.startswith("far:")] == ["far: no answer: refused"]
    reports.clear()
    reports["jpeg"] = Report(RUNNING, "", 1, (said,), "")
    assert main(["status"]) == 0


def test_key_value_texts_and_numbers() -> None:
    given = [
        "n=3",
        "x=0.5",
        "on=true",
        "text=a b",
        "empty=",
        "equals=a=b",
        "parts=a: {scorer: b}",
        'v="1"',
    ]
    assert list(read_pairs(given, "--option").items()) == [
        *(("n", 3), ("x", 0.5), ("on", True), ("text", "a b"), ("empty", ""), ("equals", "a=b")),
        *(("parts", "a: {scorer: b}"), ("v", "1")),
    ]
    with pytest.raises(ConfigError, match="twice"):
        read_pairs(["n=3", "n=4"], "--option")
    assert whole_numbers("1, 4") == [1, 4]
    for text in ("", "1,,2", "0", "-1", "1.5", "x"):
        with pytest.raises(RewardError):
            whole_numbers(text)
