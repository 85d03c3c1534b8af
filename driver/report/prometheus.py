"""Ask a Prometheus server for series over time."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.errors import PrdpError
from common.trajectory import Float64

LIMIT_S = 20.0


class PrometheusError(PrdpError):
    """A Prometheus server that does not answer, or refuses a query."""


@dataclass(frozen=True)
class Span:
    """The time asked about, in seconds since 1970, and the seconds between two values."""

    begin_s: float
    end_s: float
    step_s: float


@dataclass(frozen=True)
class Series:
    """labels: by name. seconds, values: float64, same length; values may be NaN."""

    labels: Mapping[str, str]
    seconds: Float64
    values: Float64


def ask(address: str, expr: str, span: Span) -> list[Series]:
    """The series of a query, as `query_range` answers it. address: http://host:port.

    Raises PrometheusError.
    """
    asked = {"query": expr, "start": span.begin_s, "end": span.end_s, "step": span.step_s}
    url = f"{address.rstrip('/')}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
    try:
        with urllib.request.urlopen(url, timeout=LIMIT_S) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise PrometheusError(f"Prometheus refuses {expr!r}: {error.read().decode()[:500]}") from error
    except (OSError, ValueError) as error:
        raise PrometheusError(
            f"No Prometheus answers at {address} ({error}). Give its address, such as http://127.0.0.1:9090."
        ) from error
    return [_series(row) for row in found["data"]["result"]]


def _series(row: Mapping[str, Any]) -> Series:
    points = np.array([(float(at), float(value)) for at, value in row["values"]], dtype=np.float64)
    return Series(row["metric"], points[:, 0], points[:, 1])
