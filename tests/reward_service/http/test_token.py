"""The token: where it is read, what it lets in, and that it is shown nowhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import RewardError
from reward_service.http.token import NO_TOKEN, Token, TokenSource

SECRET = "abcdefgh-01234567.XYZ"


def test_it_is_read_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T", f" {SECRET}\n")
    assert Token.from_env("T").get_secret_value() == SECRET
    (tmp_path / "token").write_text(SECRET + "\n")
    assert TokenSource(file=str(tmp_path / "token")).read() == Token(SECRET)
    monkeypatch.delenv("T")
    with pytest.raises(RewardError, match="T is not set"):
        Token.from_env("T")


@pytest.mark.parametrize(
    "value", ["", "short", "with space 0123456789", "new\nline-0123456789", "ü" * 20, "a" * 5000]
)
def test_a_malformed_token_is_refused_without_showing_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T", value)
    with pytest.raises(RewardError) as caught:
        Token.from_env("T")
    assert "environment variable T" in str(caught.value)
    assert not value or value not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff" * 20, None])
def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(RewardError, match="token"):
        Token.from_file(tmp_path / "token")


def test_two_sources_are_refused_and_none_is_no_token() -> None:
    with pytest.raises(RewardError, match="both"):
        TokenSource(env="A", file="b").read()
    assert TokenSource().read() is NO_TOKEN


def test_nothing_shows_it() -> None:
    token = Token(SECRET)
    assert SECRET not in f"{token} {token!r} {[token]} {TokenSource(env='T')}"


def test_the_right_header_matches() -> None:
    token = Token(SECRET)
    assert token.matches(f"Bearer {SECRET}".encode())
    assert token.matches(f"bearer   {SECRET}".encode())
    assert token.headers() == {"Authorization": f"Bearer {SECRET}"}
    assert NO_TOKEN.headers() == {}


@given(st.binary(max_size=60))
@example(b"")
def test_no_other_header_matches(header: bytes) -> None:
    assert not Token(SECRET).matches(header)
    assert not Token(SECRET).matches(b"Bearer " + header)
    assert not NO_TOKEN.matches(header)
    assert not NO_TOKEN.matches(b"Bearer " + header)
