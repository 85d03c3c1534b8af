"""One cluster for all tests of this folder; each of them takes away what it put up."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ray import serve

from tests.integration.rewards.apps import Cluster, cluster


@pytest.fixture(scope="package", autouse=True)
def shared() -> Iterator[Cluster]:
    """The cluster, with Serve's HTTP proxy."""
    with cluster() as started:
        yield started


@pytest.fixture(scope="module", autouse=True)
def _nothing_stays(shared: Cluster) -> Iterator[None]:
    """The next module finds no application."""
    yield
    for name in list(serve.status().applications):
        serve.delete(name)
