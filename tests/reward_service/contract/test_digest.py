"""Digests of files and settings."""

from __future__ import annotations

from pathlib import Path

from reward_service.contract.digest import digest_files, digest_settings


def test_settings_count_whatever_their_order() -> None:
    assert digest_settings({"a": 1, "b": 2.0}) == digest_settings({"b": 2.0, "a": 1})
    assert digest_settings({"a": 1}) != digest_settings({"a": 2})
    assert len(digest_settings({})) == 64


def test_content_and_name_of_files_count_their_folder_and_order_do_not(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(b"1")
        (tmp_path / folder / "b").write_bytes(b"2")
    one = [tmp_path / "one" / name for name in "ab"]
    two = [tmp_path / "two" / name for name in "ba"]
    assert digest_files(one, {}) == digest_files(two, {})
    assert digest_files(one, {}) != digest_files(one, {"prefix": "x"})
    two[0].write_bytes(b"3")
    assert digest_files(one, {}) != digest_files(two, {})
    assert digest_files(one, {}) != digest_files(one[:1], {})
