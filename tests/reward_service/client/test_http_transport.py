"""What a trainer's asker makes of the answers of an address."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import numpy as np
import pytest

from common.config.services import UrlReward
from reward_service.client.http_transport import HttpAsker
from reward_service.client.transport import FailedError, LostError, RefusedError, RequestError
from reward_service.contract.results import Reply
from reward_service.http.token import NO_TOKEN
from tests.reward_service.scripted_http import Say, Script, error, scripted

IMAGES = np.zeros((3, 8, 8, 3), dtype=np.uint8)


def asked(*says: Say) -> Reply | RequestError:
    """What the asker gives for one group."""
    with scripted(Script(*says)) as url:
        asker = HttpAsker(UrlReward(url=url), NO_TOKEN, deadline_s=1.0)
        return asyncio.run(asker.score("a", IMAGES))


@pytest.mark.parametrize(
    ("say", "trouble"),
    [
        (error(429), RefusedError),
        (error(503), RefusedError),
        (error(504), RefusedError),
        (Say(wait_s=5.0), RefusedError),
        (error(503, code="lost"), LostError),
        (Say(drop=True), LostError),
        (Say(body=b"no score"), FailedError),
        (error(413), FailedError),
    ],
)
def test_who_is_to_blame_decides_what_follows(say: Say, trouble: type[RequestError]) -> None:
    assert type(asked(say)) is trouble
    assert isinstance(asked(error(503), Say()), Reply)


@pytest.mark.parametrize("trouble", [LostError("gone"), FailedError("gone"), RefusedError("gone", 1.5)])
def test_troubles_travel_between_processes(trouble: Any) -> None:
    again = pickle.loads(pickle.dumps(trouble))
    assert (type(again), str(again), vars(again)) == (type(trouble), str(trouble), vars(trouble))
