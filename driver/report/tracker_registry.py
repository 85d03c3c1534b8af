"""The final policy as a version of a model in MLflow's registry, with what made it as tags."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from driver.run.reward_versions import VersionRecord

if TYPE_CHECKING:
    from mlflow import MlflowClient

LONGEST_TAG = 100_000
ALREADY_THERE = "RESOURCE_ALREADY_EXISTS"
"""MLflow's error code for a model of that name."""


@dataclass(frozen=True)
class ModelVersion:
    """What is registered. folder: of the run's artifacts. tags: longer values than MLflow takes are cut."""

    name: str
    folder: str
    description: str
    tags: Mapping[str, str]


def policy_tags(
    run_name: str, epochs: int, versions: Sequence[VersionRecord], config_yaml: str
) -> dict[str, str]:
    """What made a policy: the run, its whole configuration, and each reward version that scored for it."""
    rewards: dict[str, list[str]] = {}
    for record in versions:
        digest = f" ({record.digest[:12]})" if record.digest else ""
        rewards.setdefault(record.name, []).append(f"{record.version}{digest} from epoch {record.epoch}")
    return {
        "run": run_name,
        "epochs": str(epochs),
        "config": config_yaml,
        **{f"reward/{name}": "; ".join(said) for name, said in rewards.items()},
    }


def register(client: MlflowClient, run_id: str, model: ModelVersion) -> str:
    """Register the version, and the model where it is new. Returns its address, models:/NAME/NUMBER.

    Raises what MLflow raises.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model.name)
    except MlflowException as error:
        if error.error_code != ALREADY_THERE:
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{model.folder}"
    tags = {key: value[:LONGEST_TAG] for key, value in model.tags.items()}
    made = client.create_model_version(
        model.name, source, run_id, tags=tags, description=model.description, await_creation_for=0
    )
    return f"models:/{model.name}/{made.version}"
