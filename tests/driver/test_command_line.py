"""Arguments, --help and errors of the three programs."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from common.config.paths import JOB_VARIABLE
from common.errors import ConfigError
from driver.command_line import check_writable, fail, parse_arguments, writable_folder
from sample import picture_file

EARLY = {
    "rewards={r: {app: pickscore}}": "ray.address=auto",
    "model.path=models/tiny-sdd": "did you mean models/tiny-sd or",
    "checkpoint.folder=$NOT_SET_ANYWHERE/x": "NOT_SET_ANYWHERE",
    "tracker.uri=http://127.0.0.1:1": "127.0.0.1 does not answer",
}
"""Overrides of a sound configuration, and what is said to them."""
FLAGS = {"--seed": "seed of the noise"}


def test_words_overrides_and_flags_are_told_apart() -> None:
    given = parse_arguments(["a cat = a dog", "x.yaml", "run.epochs=3", "--seed", "7"], "usage", FLAGS)
    assert given.words == ("a cat = a dog", "x.yaml")
    assert given.overrides == ("run.epochs=3",)
    assert given.whole_number("--seed", 0, least=0) == 7
    assert parse_arguments(["--seed=8"], "usage", FLAGS).flags == {"--seed": "8"}
    switched = parse_arguments(["--now", "x.yaml"], "usage", FLAGS, {"--now": "at once"})
    assert (switched.words, switched.flags) == (("x.yaml",), {"--now": ""})


@pytest.mark.parametrize(
    ("word", "is_override"),
    [
        ("run.epochs=3", True),
        ("samling.steps=5", True),
        ("steps=5", True),
        ("rewards.clip.weight=2", True),
        ("E=mc2 on a board", False),
        ("x=y", False),
        ("a = b", False),
        ("=", False),
    ],
)
def test_a_word_is_an_override_where_its_left_side_is_nearly_a_key(word: str, is_override: bool) -> None:
    given = parse_arguments([word], "usage", FLAGS)
    assert (given.overrides, given.words) == (((word,), ()) if is_override else ((), (word,)))
    assert parse_arguments(["--", word, "--seed"], "usage", FLAGS).words == (word, "--seed")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["a.yaml", "run.epochs", "3"], "run.epochs=VALUE"),
        (["a.yaml", "run.epocs"], "run.epochs=VALUE"),
        (["--", "a.yaml", "--seed"], "--seed: options come before"),
        (["a.yaml", "E=mc2"], "no setting is called 'E'"),
        (["a.yaml", "--run.epochs=3"], "run.epochs=VALUE"),
    ],
)
def test_what_was_probably_meant_is_said(words: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_arguments(words, "usage", FLAGS).config()


def test_output_is_looked_at_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    check_writable("--output", tmp_path / "new.png")
    check_writable("--output", tmp_path / "file")
    assert writable_folder("--output", tmp_path / "a" / "b").is_dir()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"
    for refused in (tmp_path / "no" / "x.png", tmp_path / "a", tmp_path / "file" / "x.png"):
        with pytest.raises(ConfigError, match=f"--output {refused}"):
            check_writable("--output", refused)
    with pytest.raises(ConfigError, match="--output"):
        writable_folder("--output", tmp_path / "file")


def test_output_within_a_jobs_copy_of_its_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(JOB_VARIABLE, '{"runtime_env": {"working_dir": "gcs://x.zip"}}')
    with pytest.raises(ConfigError, match=r"--output is 'evaluation', in the folder of this job"):
        writable_folder("--output", Path("evaluation"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "file"), [("pic", "pic.png"), ("pic.JPG", "pic.JPG"), ("v1.webp", "v1.webp")]
)
def test_a_picture_has_a_known_format(
    given: str, file: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert picture_file(given) == Path(file)
    with pytest.raises(ConfigError, match=r"pic\.xyz.*\.png"):
        picture_file("pic.xyz")
    with pytest.raises(ConfigError, match="standard output"):
        picture_file("-")
    for folder in (".", "..", "/"):
        with pytest.raises(ConfigError, match="is a folder"):
            picture_file(folder)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--sed", "7"], "Unknown option --sed.*--seed"),
        (["--seed"], "--seed needs a value: seed of the noise"),
        (["--now=3"], "--now takes no value, got '3'"),
    ],
)
def test_a_wrong_flag_is_an_error(arguments: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse_arguments(arguments, "usage", FLAGS, {"--now": "at once"})


def test_without_docstrings_a_command_says_so_before_transformers_fails() -> None:
    done = subprocess.run(
        [sys.executable, "-OO", "train.py", "configs/quickstart.yaml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "-OO" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["-1", "x", "1.5", "0"])
def test_a_number_below_its_least_or_none_is_an_error(value: str) -> None:
    with pytest.raises(ConfigError, match="--seed must be a whole number of at least 1"):
        parse_arguments([f"--seed={value}"], "usage", FLAGS).whole_number("--seed", 3, least=1)


def test_errors_for_people_are_printed_and_others_are_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with fail():
        raise ConfigError("mend this")
    assert "ConfigError: mend this" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError), fail():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train.py", "nothere.yaml"], "nothere.yaml"),
        (["train.py", "configs/quickstart.yaml", "samling.steps=5"], "did you mean sampling.steps"),
        (["sample.py"], "One prompt in quotes"),
        (["sample.py", "steps=20 on a board"], "given after --"),
        (["sample.py", "E=mc2 on a board"], "Name a policy"),
        (["sample.py", "a cat", "--checkpoint", "nowhere"], "nowhere is no checkpoint"),
        (["evaluate.py", "a cat"], "Not understood: a cat"),
    ],
)
def test_mistakes_end_with_a_sentence_and_status_2(
    arguments: list[str], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(arguments[0], run_name="__main__")
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert text in shown
    assert "Traceback" not in shown


def test_what_can_be_told_early_is_told_before_anything_heavy_is_imported() -> None:
    program = (
        "import sys, train\n"
        "codes = [train.main(['configs/quickstart.yaml', mistake]) for mistake in sys.argv[1:]]\n"
        "print(codes, sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *EARLY], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines()[-1] == "[2, 2, 2, 2] []"
    assert all(said in done.stderr for said in EARLY.values())


def test_flags_name_paths_as_a_shell_gives_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_arguments(["--seed=~/x"], "usage", FLAGS).flags == {"--seed": "/home/me/x"}
    with pytest.raises(ConfigError, match=r"--seed: .*NOT_SET_ANYWHERE"):
        parse_arguments(["--seed", "$NOT_SET_ANYWHERE/x"], "usage", FLAGS)
