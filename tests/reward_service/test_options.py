"""Wrong options of shipped scorers are refused before anything is read, asked or downloaded, by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest

from common.errors import RewardError
from reward_service.contract.registry import check_spec

HERE = "http://127.0.0.1:8000"
JUDGE = {"base_url": HERE, "model": "m"}


@dataclass(frozen=True)
class _Spec:
    scorer: str
    options: dict[str, Any]


@pytest.mark.parametrize("scorer", ["aesthetic", "clipscore", "hpsv2", "imagereward", "ocr", "pickscore"])
def test_the_defaults_are_possible(scorer: str) -> None:
    check_spec(_Spec(scorer, {}))


@pytest.mark.parametrize(
    ("scorer", "options", "key"),
    [
        ("aesthetic", {"head": "no/file"}, "head"),
        ("clip", {}, "path"),
        ("clip", {"path": 5}, "path"),
        ("clip", {"path": "/no/such/folder"}, "path"),
        ("clip", {"path": "a/b", "revison": "main"}, "revision"),
        ("clipscore", {"revision": 3}, "revision"),
        ("hpsv2", {"release": "3"}, "release"),
        ("hpsv2", {"antialias": "no"}, "antialias"),
        ("hpsv2", {"path": "/no/such/folder"}, "path"),
        ("imagereward", {"tokenizer": "/no/such/folder"}, "tokenizer"),
        ("mix", {"parts": 7}, "parts"),
        ("ocr", {"unquoted": "skip"}, "unquoted"),
        ("ocr", {"min_confidence": 1.0}, "min_confidence"),
        ("ocr", {"min_confidence": True}, "min_confidence"),
        ("ocr", {"threads": 0}, "threads"),
        *(("pickscore", {"scale": scale}, "scale") for scale in (0, -1.0, True, "26", math.inf, math.nan)),
        ("remote", {"url": "rewards"}, "rewards"),
        ("remote", {"url": HERE, "deadline_s": 0}, "deadline_s"),
        ("remote", {"url": HERE, "insecure": "yes"}, "insecure"),
        ("remote_score", {"url": HERE, "token_env": 3}, "token_env"),
        ("vlm_pairs", {"model": "m"}, "base_url"),
        ("vlm_pairs", {**JUDGE, "base_url": "ftp://x"}, "ftp://x"),
        ("vlm_rubric", {**JUDGE, "temprature": 1.0}, "temperature"),
        ("vlm_rubric", {**JUDGE, "lowest": 3.0, "highest": 3.0}, "lowest"),
        ("vlm_rubric", {**JUDGE, "extra_body": "[1]"}, "extra_body"),
        ("vlm_rubric", {**JUDGE, "extra_body": "{"}, "extra_body"),
        ("vlm_rubric", {**JUDGE, "tries": 0}, "tries"),
    ],
)
def test_a_wrong_option_is_refused_and_named(scorer: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(RewardError, match=key):
        check_spec(_Spec(scorer, options))
