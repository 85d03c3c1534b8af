"""Every path of a configuration is made whole in one place, and judged where a run writes to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from common.config.load import config_from_yaml_text, flat_settings
from common.config.paths import (
    JOB_VARIABLE,
    Use,
    check_paths,
    job_folder_is_a_copy,
    places,
)
from common.config.schema import Config
from common.errors import ConfigError, ModelError
from tests.tiny_config import make_config

WITH_FOLDER = {JOB_VARIABLE: json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}})}
WITHOUT_FOLDER = {JOB_VARIABLE: json.dumps({"runtime_env": {"env_vars": {"A": "1"}}, "metadata": {}})}
COPY = Path("/tmp/ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1")
PATHS = """
model: {path: ~/m}
prompts: {train: ~/a.txt, unseen: {path: $HOME/b.txt}}
rewards:
  clip: {scorer: clip, options: {path: ~/c, prefix: "a ~/b"}}
  mix: {scorer: mix, options: {parts: "x: {scorer: clip, options: {path: ~/d}}"}}
run: {folder: ~/r}
data: {folder: ~/t}
checkpoint: {folder: ~/k}
tracker: {uri: "sqlite:///~/l.db"}
"""


def test_every_path_is_whole_from_the_configuration_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    settings = flat_settings(config_from_yaml_text(PATHS))
    found = {key: value for key, value in settings.items() if "/home/me" in str(value)}
    assert found == {
        "model.path": "/home/me/m",
        "prompts.train.path": "/home/me/a.txt",
        "prompts.unseen.path": "/home/me/b.txt",
        "rewards.clip.options.path": "/home/me/c",
        "run.folder": "/home/me/r",
        "data.folder": "/home/me/t",
        "checkpoint.folder": "/home/me/k",
        "tracker.uri": "sqlite:////home/me/l.db",
    }
    assert settings["rewards.clip.options.prefix"] == "a ~/b"


def test_a_path_that_cannot_be_is_refused_at_its_key() -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.folder.*NOT_SET_ANYWHERE"):
        config_from_yaml_text(PATHS, overrides=["checkpoint.folder=$NOT_SET_ANYWHERE/x"])


def fields_of(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Name and field of every setting, of every section below."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation)
        else:
            yield name, field


def test_what_is_called_like_a_path_is_one() -> None:
    """Else a new setting would not be made whole, or would write into a job's copy."""
    named = [(name, field) for name, field in fields_of(Config) if name in ("path", "folder", "uri", "file")]
    assert len(named) >= 7
    assert [name for name, field in named if not any(use in field.metadata for use in Use)] == []


@pytest.mark.parametrize(
    ("environ", "copy"),
    [({}, False), (WITHOUT_FOLDER, False), ({JOB_VARIABLE: "{}"}, False), (WITH_FOLDER, True)],
)
def test_only_a_job_with_a_working_dir_runs_in_a_copy(environ: dict[str, str], copy: bool) -> None:
    assert job_folder_is_a_copy(environ) == copy


LOST = {"run.folder": "runs", "checkpoint.folder": "k", "tracker.uri": "sqlite:///l.db"}
KEPT = {"run.folder": "~/runs", "checkpoint.folder": "s3://b/k", "tracker.uri": "sqlite:////l.db"}


@pytest.mark.parametrize("key", LOST)
@pytest.mark.parametrize(("environ", "here"), [(WITH_FOLDER, Path("/work")), ({}, COPY)])
def test_what_would_lie_in_a_jobs_copy_is_refused(
    tmp_path: Path, key: str, environ: dict[str, str], here: Path
) -> None:
    with pytest.raises(ConfigError, match=rf"{key} is '{LOST[key]}'.*{key}=.*~/"):
        check_paths(make_config(tmp_path, tmp_path, {**KEPT, key: LOST[key]}), environ, here)
    absolute = make_config(tmp_path, tmp_path, {**KEPT, "run.folder": str(COPY / "runs")})
    with pytest.raises(ConfigError, match=r"run\.folder"):
        check_paths(absolute, environ, here)


@pytest.mark.parametrize("uri", [KEPT["tracker.uri"], "databricks", "http://h:5000", "postgresql://h/d"])
def test_what_lasts_is_allowed(tmp_path: Path, uri: str) -> None:
    config = make_config(tmp_path, tmp_path, {**KEPT, "tracker.uri": uri})
    assert dict(places(config, Use.WRITTEN)) == {**KEPT, "tracker.uri": uri, "run.folder": config.run.folder}
    check_paths(config, WITH_FOLDER, COPY)
    check_paths(make_config(tmp_path, tmp_path, LOST), {}, Path("/work"))


def test_a_model_that_is_not_there_is_told_with_what_is(tmp_path: Path) -> None:
    (tmp_path / "tiny-sd").mkdir()
    with pytest.raises(ModelError, match=r"model\.path is .*tiny-sdd'.*did you mean .*tiny-sd\?"):
        check_paths(make_config(tmp_path / "tiny-sdd", tmp_path), {}, tmp_path)
