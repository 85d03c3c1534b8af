"""What a run on a cluster that it has joined needs: its code on every node, and a run folder that lasts.

In a job of `ray job submit --working-dir` Ray has seen to the code: every worker process of the job begins
in a copy of the folder that was uploaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.schema import Config
from common.errors import ConfigError

# Set by Ray in the process of a submitted job.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
CODE_FOLDER = Path(__file__).resolve().parents[2]


def job_folder_is_a_copy(environ: Mapping[str, str]) -> bool:
    """Whether this process belongs to a submitted job that came with a folder (`--working-dir`)."""
    job = json.loads(environ.get(JOB_VARIABLE) or "{}")
    return bool((job.get("runtime_env") or {}).get("working_dir"))


def check_run_folder(config: Config, environ: Mapping[str, str]) -> None:
    """Raise ConfigError where the run would write into a job's folder, which Ray deletes with the job."""
    if job_folder_is_a_copy(environ) and not config.run_folder.is_absolute():
        raise ConfigError(
            f"run.folder is {config.run.folder!r}, relative to the folder of this job: a temporary copy, "
            "which Ray deletes, and the run with it. Give a folder on the head node's disk, or one that all "
            "nodes share: run.folder=~/prdp-runs"
        )


def worker_environment(environ: Mapping[str, str], here: Path, code: Path = CODE_FOLDER) -> dict[str, Any]:
    """The runtime environment of a run's worker processes on a cluster that was there before it.

    Workers begin in a copy of the project's folder, so that they find its code, and relative paths of the
    configuration mean the same to them as to the driver. environ: of the driver; here: its folder; code: the
    folder that holds our packages. Empty where the job has brought the folder, or where the packages are
    installed (then on every node). Raises ConfigError where `here` is another folder than `code`.
    """
    if job_folder_is_a_copy(environ) or code.name in ("site-packages", "dist-packages"):
        return {}
    if here.resolve() != code:
        raise ConfigError(
            "A run on a cluster (ray.address is not local) gives its workers the folder that it is started "
            f"in, and here ({here}) the project is not. Start it in {code}, or submit it from there: "
            "ray job submit --working-dir . -- python train.py CONFIG.yaml"
        )
    return {"working_dir": str(code)}
