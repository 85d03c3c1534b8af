"""A joined cluster: which folder its workers get."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.config.paths import JOB_VARIABLE
from common.errors import ConfigError
from driver.loop.cluster import CODE_FOLDER, worker_environment

WITHOUT_FOLDER = {JOB_VARIABLE: json.dumps({"runtime_env": {"env_vars": {"A": "1"}}, "metadata": {}})}


def test_workers_get_the_projects_folder_and_nothing_of_our_environment() -> None:
    for environ in ({"SECRET": "x"}, WITHOUT_FOLDER | {"SECRET": "x"}):
        assert worker_environment(environ, CODE_FOLDER) == {"working_dir": str(CODE_FOLDER)}


def test_elsewhere_than_in_the_project_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Start it in .*ray job submit"):
        worker_environment({}, tmp_path)
