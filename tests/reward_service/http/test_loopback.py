"""Which hosts are this machine."""

from __future__ import annotations

import pytest

from reward_service.http.address import is_loopback


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1"]
)
def test_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "localhost.example.org",
        "127.0.0.1.example.org",
        "::ffff:10.0.0.1",
        "2130706433",
    ],
)
def test_other_machines(host: str) -> None:
    assert not is_loopback(host)
