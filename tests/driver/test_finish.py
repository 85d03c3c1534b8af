"""The end of a run: what cannot be shown is said, and everything else is there."""

from __future__ import annotations

import io
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from driver.command_line import parse_arguments
from driver.finish import next_commands, nothing_learned, show_result
from driver.report.console import PlainConsole
from tests.driver.observe.test_observer import Watched
from tests.tiny_config import make_config


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Two epochs through, without a checkpoint to log. Plots are not drawn: they take a second."""
    monkeypatch.setattr("driver.finish.write_plots", lambda *_: None)
    run = Watched(tmp_path, 0)
    for epoch in (1, 2):
        run.run_epoch(epoch, 0.5)
    return run


def result_of(run: Watched) -> str:
    text = io.StringIO()
    show_result(run.config, run.observer, run.tracker, PlainConsole(text, width=200))
    return text.getvalue()


@pytest.mark.parametrize("part", ["write_plots", "describe_run", "change_table", "config_to_yaml"])
def test_whatever_fails_to_show_the_rest_is_shown(
    run: Watched, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("NO " + part)

    monkeypatch.setattr(f"driver.finish.{part}", fail)
    shown = result_of(run)
    assert "NO " + part in shown
    assert "sample.py" in shown
    assert "unseen" in (run.config.run_folder / "result.md").read_text()


def test_a_run_that_learned_nothing_says_so_loudly(run: Watched) -> None:
    """The policy after epoch 2 is version 4, after epoch 1 version 2, of one update an epoch."""
    first, last = run.observer.evaluations
    still = replace(last, stamp=replace(last.stamp, version=2))
    assert "1 of 1 updates" in nothing_learned(run.config, [first, still])
    moved = replace(last, stamp=replace(last.stamp, version=3, digest="cd" * 32))
    assert nothing_learned(run.config, [first, moved]) == ""
    assert nothing_learned(run.config, [first]) == ""
    # Before epoch 1 the settings were others, and so the number of updates.
    earlier = replace(first, epoch=0, stamp=replace(first.stamp, version=-5))
    assert "skipped" in nothing_learned(run.config, [earlier, first, moved])
    assert nothing_learned(run.config, [earlier, first, moved], since=1) == ""
    shown = result_of(run)
    assert "NOTHING WAS LEARNED" in shown
    assert "NOTHING WAS LEARNED" in (run.config.run_folder / "result.md").read_text()


@pytest.mark.parametrize(
    "prompt", ["a cat [/b]", "$(touch x) `y` 'z' \"w\"", "--seed", "run.epochs=3", "a\nb"]
)
def test_a_shell_reads_the_commands_as_they_are_meant(tmp_path: Path, prompt: str) -> None:
    config = make_config(Path("model"), tmp_path, {"run.folder": "runs [v2]/$(id)"})
    found = next_commands(config, "s3://bucket/a?x=1&y=2", prompt)
    assert shlex.split(found["Go on"])[2:] == ["runs [v2]/$(id)/test/config.yaml", "run.epochs=4"]
    _, program, *words = shlex.split(found["Sample"])
    given = parse_arguments(words, "usage", {"--checkpoint": "place"})
    assert (program, given.words, given.overrides) == ("sample.py", (prompt,), ())
    assert given.flags == {"--checkpoint": "s3://bucket/a?x=1&y=2"}
