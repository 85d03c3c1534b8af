"""The addresses of images in the description of a run."""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from driver.report.run_page import artifact_address


def test_an_artifact_address_can_be_read_back() -> None:
    address = urlsplit(artifact_address("abc", "before_after/unseen prompts & more.png"))
    assert " " not in address.query
    assert parse_qs(address.query) == {
        "path": ["before_after/unseen prompts & more.png"],
        "run_uuid": ["abc"],
    }
