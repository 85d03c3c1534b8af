"""Addresses of rewards: which are of this machine, and where a token may travel."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

from common.errors import RewardError
from reward_service.http.token import Token


def is_loopback(host: str) -> bool:
    """Whether a host name or address (without a port) means this machine and no other."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return address.is_loopback if mapped is None else mapped.is_loopback


def is_on_this_machine(url: str) -> bool:
    """Whether a URL leads to this machine, so that no proxy of the environment may see what goes there."""
    return is_loopback(urlsplit(url).hostname or "")


def check_address(base_url: str, token: Token, insecure: bool) -> None:
    """Check an address without asking it.

    Raises RewardError where it is no http(s) address, holds credentials, or where the token would travel
    unencrypted to another machine (http:// to a host other than loopback) and `insecure` is False.
    """
    parts = _split(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise RewardError(
            f"{base_url!r} is no address of a reward; needed is one such as http://127.0.0.1:8000/pickscore "
            "or https://rewards.example.org/pickscore."
        )
    if token.is_set and parts.scheme == "http" and not is_loopback(parts.hostname) and not insecure:
        raise RewardError(
            f"The token would travel unencrypted to {parts.hostname}. Use https, or a tunnel to a port of "
            "this machine; or set insecure: true where the network between is trusted."
        )


def _split(base_url: str) -> SplitResult:
    try:
        parts = urlsplit(base_url)
        has_credentials = bool(parts.username or parts.password)
        _ = parts.port  # raises where it is no port
    except ValueError as error:
        raise RewardError(f"{base_url!r} is no address: {error}.") from error
    if has_credentials:
        raise RewardError("The address of a reward must not hold a user or password; give a token instead.")
    return parts
