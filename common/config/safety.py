"""Settings of what keeps a run safe: the guards that judge its numbers, and its checkpoints."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import field_validator

from common.config.fields import Section, setting
from common.config.paths import OutputPath
from common.hidden import hide

CHECKPOINT_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")


class GuardsSection(Section, title="What stops a run that goes wrong, and what raises an alarm."):
    skipped_updates_in_a_row: int = setting(
        3, "updates", "The run stops where so many in a row were skipped for numbers not finite.", ge=1
    )
    epochs_without_learning: int = setting(
        10, "epochs", "The run stops where nothing could be learned in so many in a row.", ge=1
    )
    gradient_norm_factor: float = setting(
        10.0, "", "Alarm: gradient norm above so many times the median of the last 20 epochs.", gt=1.0
    )
    spread_share: float = setting(
        0.2, "", "Alarm: spread of a prompt's rewards below so much of the first 5 epochs' median.", ge=0.0
    )


def refuse_credentials(uri: str, variables: str) -> None:
    """Raise ValueError, without the value, where a URI holds a secret: it would stand in every copy of the
    configuration. variables: of the environment, that are for it."""
    if hide(uri) != uri:
        raise ValueError(f"the URI holds credentials; give them by the environment ({variables})")


class CheckpointSection(Section, title="What a run needs to go on."):
    folder: OutputPath = setting(
        "",
        "",
        "Parent of the run's checkpoints: a folder, or a URI such as s3://bucket/prefix or gs://bucket/x; "
        "run.name is added. Empty = checkpoints in the run folder. Credentials come from the environment.",
    )
    every_epochs: int = setting(
        10, "epochs", "Save each so many epochs; always after the last and when stopped.", ge=1
    )
    keep: int = setting(2, "checkpoints", "Checkpoints kept besides the last.", ge=0)
    keep_best: int = setting(
        1,
        "checkpoints",
        "Best ones kept besides, by the mean of the gold rewards on unseen prompts; such an evaluation is "
        "also saved between the others. Without gold rewards there are none.",
        ge=0,
    )
    timeout_s: float = setting(1800.0, "s", "Longest wait for one checkpoint to be written.", gt=0.0)

    @field_validator("folder")
    @classmethod
    def _a_folder_or_uri(cls, value: str) -> str:
        if "://" not in value:
            return value
        refuse_credentials(value, "AWS_ACCESS_KEY_ID, …")
        parts = urlsplit(value, allow_fragments=False)
        if parts.scheme not in CHECKPOINT_SCHEMES:
            allowed = ", ".join(f"{scheme}://" for scheme in CHECKPOINT_SCHEMES)
            raise ValueError(f"got {value!r}; a URI begins with one of {allowed}")
        if not (parts.netloc + parts.path).strip("/"):
            raise ValueError(f"got {value!r}; name a bucket or folder")
        return value
