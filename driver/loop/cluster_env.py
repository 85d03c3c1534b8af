"""What a run on a cluster that it has joined needs: its code on every node.

In a job of `ray job submit --working-dir` Ray has seen to the code: every worker process of the job begins
in a copy of the folder that was uploaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.paths import job_folder_is_a_copy
from common.errors import ConfigError

CODE_FOLDER = Path(__file__).resolve().parents[2]


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
