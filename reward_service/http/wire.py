"""The bodies of the HTTP protocol, by content type: a group there, a reply back, both checked."""

from __future__ import annotations

from reward_service.http.wire_arrow import ArrowWire
from reward_service.http.wire_checks import Group, Wire, WireError
from reward_service.http.wire_json import JsonWire

JSON: Wire = JsonWire()
ARROW: Wire = ArrowWire()
WIRES: dict[str, Wire] = {wire.content_type: wire for wire in (JSON, ARROW)}
"""The codec of each content type that POST /v1/score takes; the reply is of the request's type."""

__all__ = ["ARROW", "JSON", "WIRES", "Group", "Wire", "WireError"]
