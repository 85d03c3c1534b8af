"""Paths among the settings: what one may hold, and that what a run writes outlives it.

A setting that names a file or folder is an InputPath, a ModelPath, or, where the run writes there, an
OutputPath. It may begin with ~ and name environment variables; it is whole from the configuration on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from common.config.fields import Section
from common.errors import ConfigError, ModelError
from common.places import expanded, local_file, why_no_model

JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Set by Ray in the process of a submitted job."""
SERVERS = ("databricks", "databricks-uc", "uc")
"""What MLflow calls its own servers: no relative paths, though they look like some."""
COPIES = ("runtime_resources", "working_dir_files")
"""Folders, one in the other, in which Ray keeps the copies of what jobs come with."""


class Use(Enum):
    """What a run does with a place."""

    READ = "read"
    MODEL = "model"
    WRITTEN = "written"


InputPath = Annotated[str, AfterValidator(expanded), Use.READ]
"""A file or folder that is read, or the id of something on the hub."""
ModelPath = Annotated[str, AfterValidator(expanded), Use.MODEL]
"""A folder or a single file of weights that is read, or the id of a model on the hub."""
OutputPath = Annotated[str, AfterValidator(expanded), Use.WRITTEN]
"""A folder or store that a run writes to: a path or a URI; empty where the run has a place of its own."""


def places(section: Section, use: Use, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every place in a section that is used so and not empty, by its dotted key."""
    for name, field in type(section).model_fields.items():
        value = vars(section)[name]
        if isinstance(value, Section):
            yield from places(value, use, f"{prefix}{name}.")
        elif value and use in field.metadata:
            yield prefix + name, value


def check_paths(config: Section, environ: Mapping[str, str], here: Path) -> None:
    """Raise ModelError where a model is neither there nor a hub id; ConfigError where the run would write
    into a job's copy of its folder, which Ray deletes.

    here: the folder that relative paths are relative to.
    """
    for key, place in places(config, Use.MODEL):
        if reason := why_no_model(place):
            raise ModelError(f"{key} is {place!r}: {reason}")
    for key, place in places(config, Use.WRITTEN):
        check_it_lasts(key, place, environ, here)


def check_it_lasts(key: str, place: str, environ: Mapping[str, str], here: Path) -> None:
    """Raise ConfigError where a place to be written to lies in a job's copy of its folder. key: names it."""
    if lies_in_a_copy(place, environ, here):
        raise ConfigError(
            f"{key} is {place!r}, in the folder of this job: a temporary copy, which Ray deletes, and what "
            "is written there with it. Give a folder on the head node's disk, or one that all nodes share: "
            f"{key}={_lasting(place)}"
        )


def lies_in_a_copy(place: str, environ: Mapping[str, str], here: Path) -> bool:
    """Whether what is written there is lost with a job's copy of its folder."""
    path = local_file(place)
    if path is None or place in SERVERS:
        return False
    parts = (here / path).parts
    inside = any(parts[index : index + 2] == COPIES for index in range(len(parts)))
    return inside or (job_folder_is_a_copy(environ) and not path.is_absolute())


def _lasting(place: str) -> str:
    return "sqlite:///~/prdp-runs/mlflow.db" if place.startswith("sqlite") else "~/prdp-runs"


def job_folder_is_a_copy(environ: Mapping[str, str]) -> bool:
    """Whether this process belongs to a submitted job that came with a folder (`--working-dir`)."""
    job = json.loads(environ.get(JOB_VARIABLE) or "{}")
    return bool((job.get("runtime_env") or {}).get("working_dir"))
