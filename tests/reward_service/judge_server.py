"""A real HTTP server that answers /v1/chat/completions by rules on the images it decodes."""

from __future__ import annotations

import base64
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.reward_service.scripted_http import HttpAnswer, http_server


@dataclass(frozen=True)
class Question:
    """What one request asked. headers: with lower-case names."""

    body: dict[str, Any]
    headers: dict[str, str]
    images: tuple[NDArray[np.uint8], ...]
    texts: str


@dataclass
class Judge:
    """rule: a question -> the text to answer. faults: (status, headers, body) sent first, one a request.

    slow_s: seconds before each answer. most_at_once: how many requests were under way together.
    """

    rule: Callable[[Question], str]
    faults: list[HttpAnswer] = field(default_factory=list)
    slow_s: float = 0.0
    finish_reason: str = "stop"
    asked: list[Question] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, question: Question) -> HttpAnswer:
        with self.lock:
            self.asked.append(question)
            self.at_once += 1
            self.most_at_once = max(self.at_once, self.most_at_once)
            fault = self.faults.pop(0) if self.faults else None
        time.sleep(self.slow_s)
        with self.lock:
            self.at_once -= 1
        if fault is not None:
            return fault
        choice = {
            "message": {"role": "assistant", "content": self.rule(question)},
            "finish_reason": self.finish_reason,
            "index": 0,
        }
        return 200, {}, json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def read_question(raw: bytes, headers: dict[str, str]) -> Question:
    body = json.loads(raw)
    images, texts = [], []
    for message in body["messages"]:
        parts = message["content"]
        for part in [{"type": "text", "text": parts}] if isinstance(parts, str) else parts:
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                match = re.fullmatch(r"data:image/png;base64,(.+)", part["image_url"]["url"])
                assert match is not None
                images.append(np.array(Image.open(io.BytesIO(base64.b64decode(match[1], validate=True)))))
    return Question(body, headers, tuple(images), "\n".join(texts))


@contextmanager
def serving(judge: Judge) -> Iterator[str]:
    """Serve the judge; gives the base URL."""

    def answer(path: str, headers: dict[str, str], body: bytes) -> HttpAnswer:
        assert path == "/v1/chat/completions"
        return judge.answer(read_question(body, headers))

    with http_server(answer) as url:
        yield f"{url}/v1"
