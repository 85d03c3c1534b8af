"""Tests that need several hosts run only where `-m cluster` asks for them: they take minutes."""

from __future__ import annotations

import pytest

from tests.cluster.hosts import make_network


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect this folder's cluster tests unless the -m expression names them."""
    if "cluster" in config.option.markexpr:
        return
    skipped = [item for item in items if item.get_closest_marker("cluster")]
    if skipped:
        config.hook.pytest_deselected(items=skipped)
        items[:] = [item for item in items if item not in skipped]


@pytest.fixture(scope="session")
def network() -> None:
    """The bridge that hosts are plugged into."""
    make_network()
