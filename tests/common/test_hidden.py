"""What is named like a secret is hidden, wherever it stands."""

from __future__ import annotations

import json

import pytest

from common.config.yaml_text import read_yaml
from common.hidden import HIDDEN, error_without_secrets, hide, remember, remember_options, without_secrets
from reward_service.contract.settings import ServedReward

KEY = "sk-of-the-tests"


@pytest.mark.parametrize(
    "name",
    ["api_key", "API-KEY", "apikey", "openai_api_key", "token", "client_secret", "password", "Authorization"],
)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert without_secrets({name: KEY, "path": "p"}) == {name: HIDDEN, "path": "p"}


@pytest.mark.parametrize("name", ["token_env", "api_key_env", "max_tokens", "keyboard", "secretary"])
def test_other_names_are_shown(name: str) -> None:
    assert without_secrets({name: KEY}) == {name: KEY}


NESTED = {
    "judge": {"scorer": "mine:Judge", "options": {"api_key": KEY, "model": "m"}},
    "rest": [{"token": KEY}],
}
CLEAN = {
    "judge": {"scorer": "mine:Judge", "options": {"api_key": HIDDEN, "model": "m"}},
    "rest": [{"token": HIDDEN}],
}
TEXTS = {
    "JSON": json.dumps(NESTED),
    "YAML in one line": f"{{judge: {{scorer: 'mine:Judge', options: {{api_key: {KEY}, model: m}}}}, "
    f"rest: [{{token: {KEY}}}]}}",
    "YAML": "judge:\n  scorer: mine:Judge\n  options:\n    ? api_key\n    : |-\n      sk-of-the-tests\n"
    "    model: m\nrest:\n- token: >-\n    sk-of-the-tests\n",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_secrets_inside_a_text_are_hidden(text: str) -> None:
    shown = without_secrets({"parts": text})["parts"]
    assert read_yaml(shown, "shown") == CLEAN
    assert error_without_secrets(f"401 for {KEY}", {"parts": text}) == f"401 for {HIDDEN}"
    outer = json.dumps({"extra_body": text})
    assert KEY not in str(ServedReward(scorer="mix", options={"parts": outer}).without_secrets())


@pytest.mark.parametrize("text", ['{"api_key": "sk-of-the-tests"', "a: {token: sk-of", "x: api_key: s"])
def test_a_text_that_names_a_secret_and_cannot_be_read_is_hidden(text: str) -> None:
    assert without_secrets(text) == HIDDEN


@pytest.mark.parametrize(
    "text",
    ["", "Which is the better: a or b: c?", "Show the secret garden", '{"max_tokens": null, "a":  1}'],
)
def test_a_text_without_secrets_stays_as_it_is(text: str) -> None:
    assert without_secrets(text) == text


def test_values_that_are_no_secrets_are_left_in_errors() -> None:
    options = {"token": True, "password": "abc", "path": "folder", "secret": 123456}
    error = "abc folder True 123456"
    assert error_without_secrets(error, options) == f"abc folder True {HIDDEN}"


def test_a_secret_that_an_error_quotes_is_hidden() -> None:
    secret = "it's a\nsecret"
    error = f"raised {OSError(secret)!r}, that is {secret}"
    shown = error_without_secrets(error, {"token": secret})
    assert shown == f'raised OSError("{HIDDEN}"), that is {HIDDEN}'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql+psycopg2://u:p/w#d@h:5432/x: no", "at postgresql+psycopg2://(hidden)@h:5432/x: no"),
        ("mysql://us%40er:p%40ss@h/x", "mysql://(hidden)@h/x"),
        ("https%3A%2F%2Fu%3Apw%40h%2Fx", "https%3A%2F%2F(hidden)@h%2Fx"),
        (r'"postgresql:\/\/u:p@h\/d"', r'"postgresql:\/\/(hidden)@h\/d"'),
        ("redis://:pw@h", "redis://(hidden)@h"),
        ("https://ghp_abc@host/x", "https://(hidden)@host/x"),
        (
            "s3://b?access_key=AK&secret_key=SK&scheme=http",
            "s3://b?access_key=(hidden)&secret_key=(hidden)&scheme=http",
        ),
        (
            "abfs://c@a.dfs.core.windows.net/x?sv=1&sig=a%2Bb%3D",
            "abfs://c@a.dfs.core.windows.net/x?sv=1&sig=(hidden)",
        ),
        ("https://b/x?X-Amz-Signature=ab&x=1", "https://b/x?X-Amz-Signature=(hidden)&x=1"),
        ("x%3Fsig%3Dab%26sv%3D1", "x%3Fsig%3D(hidden)%26sv%3D1"),
        ("s3://b?secret_key=a%2Fb&scheme=http", "s3://b?secret_key=(hidden)&scheme=http"),
        ("abfs://c@a/x?account_key=K", "abfs://c@a/x?account_key=(hidden)"),
        ("{'Authorization': 'Bearer abc'}", "{'Authorization': 'Bearer (hidden)'}"),
        ("authorization: Basic dTpw, x", "authorization: Basic (hidden), x"),
        ("you sent Bearer abc123abc123abc123.", "you sent Bearer (hidden)"),
        ('{"api_key": "sk-1"}', '{"api_key": "(hidden)"}'),
    ],
)
def test_what_looks_like_a_secret_is_hidden_in_every_text(text: str, shown: str) -> None:
    assert hide(text) == shown
    assert hide(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "http://host:5000/team@x",
        "http://[::1]:8000/x@y",
        "http://host:5000, mail a@b",
        "abfs://container@account/x",
        "s3://bucket/a:b@c",
        "sqlite:////tmp/a:b@c/mlflow.db",
        "config=a, sig=b; design=c",
        "a torch bearer standing-in-the-sunlight",
        "a cat (word:1.2)@home, token_env=NAME",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert hide(text) == text


def test_a_remembered_secret_is_hidden_however_it_is_written() -> None:
    remember("pass/wörd 1")
    remember_options({"judge": {"options": {"api_key": "key-of-an-option"}}})
    text = r"pass/wörd 1, pass%2Fw%C3%B6rd%201, pass%2Fw%C3%B6rd+1, pass/w\u00f6rd 1, key-of-an-option"
    assert hide(text) == ", ".join([HIDDEN] * 5)
