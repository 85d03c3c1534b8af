"""The start of a Ray of a run's own on this machine, which may come late."""

from __future__ import annotations

import logging
from typing import Any

import ray

from common.cluster.references import first_line
from common.config.services import RaySection
from common.errors import ConfigError, StuckError

QUIET: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "namespace": "prdp"}
"""What workers print would tear the progress display; it stands in their log files."""
TRIES = 2


def start_local(section: RaySection) -> dict[str, Any]:
    """Start Ray here; tried again where it does not come up in time, as on a machine with much else to do.

    Returns its addresses. Raises ConfigError where it refuses the settings or the machine, StuckError where
    it does not come up.
    """
    options: dict[str, Any] = {
        "object_store_memory": int(section.object_store_gb * 1e9),
        "include_dashboard": section.dashboard,
    }
    for attempt in range(1, TRIES + 1):
        try:
            context: Any = ray.init(address="local", **options, **QUIET)
        except Exception as error:
            # What was half started ends with this process.
            ray.shutdown()
            late = isinstance(error, ConnectionError | TimeoutError)
            if isinstance(error, ValueError | OSError) and not late:
                raise ConfigError(
                    f"Ray cannot start here (ray.object_store_gb = {section.object_store_gb:g}): "
                    f"{first_line(error)}"
                ) from error
            if attempt == TRIES:
                raise StuckError(
                    f"Ray did not come up in {TRIES} tries: {first_line(error)} Has this machine too much "
                    "else to do? Ray's logs are in session_latest/logs under /tmp/ray, or under RAY_TMPDIR."
                ) from error
        else:
            found: dict[str, Any] = context.address_info
            return found
    raise AssertionError
