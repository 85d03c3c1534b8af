"""A joined cluster: which folder its workers get, and which run folder would vanish."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import ConfigError
from driver.loop.cluster_env import (
    CODE_FOLDER,
    JOB_VARIABLE,
    check_run_folder,
    job_folder_is_a_copy,
    worker_environment,
)
from tests.tiny_config import make_config

WITH_FOLDER = {JOB_VARIABLE: json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}})}
WITHOUT_FOLDER = {JOB_VARIABLE: json.dumps({"runtime_env": {"env_vars": {"A": "1"}}, "metadata": {}})}
EMPTY = {JOB_VARIABLE: json.dumps({"runtime_env": None})}


@pytest.mark.parametrize(
    ("environ", "copy"), [({}, False), (WITHOUT_FOLDER, False), (EMPTY, False), (WITH_FOLDER, True)]
)
def test_only_a_job_with_a_working_dir_runs_in_a_copy(environ: dict[str, str], copy: bool) -> None:
    assert job_folder_is_a_copy(environ) == copy


def test_workers_get_the_projects_folder_and_nothing_of_our_environment() -> None:
    for environ in ({"SECRET": "x"}, WITHOUT_FOLDER | {"SECRET": "x"}):
        assert worker_environment(environ, CODE_FOLDER) == {"working_dir": str(CODE_FOLDER)}


def test_elsewhere_than_in_the_project_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Start it in .*ray job submit"):
        worker_environment({}, tmp_path)


def test_a_run_folder_inside_a_jobs_folder_is_refused(tmp_path: Path) -> None:
    relative = make_config(tmp_path, tmp_path, {"run.folder": "runs"})
    with pytest.raises(ConfigError, match=r"'runs'.*temporary copy.*run\.folder=~/"):
        check_run_folder(relative, WITH_FOLDER)
    check_run_folder(relative, {})
    for lasting in (str(tmp_path), "~/runs"):
        check_run_folder(make_config(tmp_path, tmp_path, {"run.folder": lasting}), WITH_FOLDER)
