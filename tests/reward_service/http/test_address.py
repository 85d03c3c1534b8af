"""Which hosts are this machine, and where a token may travel."""

from __future__ import annotations

import pytest

from common.errors import RewardError
from reward_service.http.address import check_address, is_loopback
from reward_service.http.client import HttpReward
from reward_service.http.token import NO_TOKEN, Token
from tests.reward_service.http_calls import TOKEN


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


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("pickscore", "address"),
        ("ftp://127.0.0.1/", "address"),
        ("http:///v1", "address"),
        ("http://127.0.0.1:99999/", "address"),
        ("http://127.0.0.1/?token=x", "address"),
        ("http://user:pass@127.0.0.1/", "password"),
        ("http://rewards.example.org/x", "unencrypted to rewards.example.org"),
        ("http://127.0.0.1.example.org/x", "unencrypted"),
    ],
)
def test_an_address_that_cannot_work_or_leaks_the_token_is_refused(url: str, reason: str) -> None:
    with pytest.raises(RewardError, match=reason):
        check_address(url, TOKEN, insecure=False)
    with pytest.raises(RewardError, match=reason):
        HttpReward(url, TOKEN, 1.0).describe()


@pytest.mark.parametrize(
    ("url", "token", "insecure"),
    [
        ("https://rewards.example.org/x", TOKEN, False),
        ("http://localhost:8000", TOKEN, False),
        ("http://[::1]:8000/x", TOKEN, False),
        ("http://rewards.example.org/x", NO_TOKEN, False),
        ("http://rewards.example.org/x", TOKEN, True),
    ],
)
def test_an_address_that_can_work_is_taken(url: str, token: Token, insecure: bool) -> None:
    check_address(url, token, insecure)
