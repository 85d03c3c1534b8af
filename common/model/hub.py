"""Pipelines on the hub: their small files, which say what they are, without their weights."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError, LocalEntryNotFoundError

from common.errors import ModelError

SMALL_FILES = ("*.json", "*merges.txt", "*.jinja", "*.model")


def fetch_texts(key: str, hub_id: str, revision: str) -> Path:
    """The snapshot's folder in the hub's cache, with the small files. Raises ModelError.

    key: the setting that names it.
    """
    wanted = f"{key} {hub_id!r} (revision {revision!r})"
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(SMALL_FILES)))
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{wanted} is not in the cache, and the hub is not reached: {error}") from error
    except (HFValidationError, HTTPError, OSError) as error:
        raise ModelError(
            f"{wanted} is not to be had from the hub: {error}. Give a folder, or check the id, "
            "model.revision and the token (environment variable HF_TOKEN). Gated models ask that you accept "
            "their licence on the hub's page first."
        ) from error
