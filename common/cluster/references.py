"""Waiting for Ray's objects in an event loop: Ray calls back once for each, however many are waited for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

LOOK_S = 5.0
FETCH_LIMIT_S = 30.0
GIVE_TOKEN = "Put the cluster's into ~/.ray/auth_token and set RAY_AUTH_MODE=token."
"""What to do where a cluster wants a token."""


async def value_of(reference: ray.ObjectRef) -> Any:
    """The value of a small object, such as a report, as soon as it is made; raises what its task raised.

    Ray does not call back for an object that is lost with its node before this process has fetched it, so it
    is also looked for every LOOK_S. Without a limit of its own: use asyncio.timeout.
    """
    future = asyncio.wrap_future(reference.future())
    # Whoever gave up waiting does not want to hear of an error.
    future.add_done_callback(lambda done: None if done.cancelled() else done.exception())
    while True:
        done, _ = await asyncio.wait({future}, timeout=LOOK_S)
        if done:
            return future.result()
        ready, _ = ray.wait([reference], timeout=0, fetch_local=False)
        if ready:
            with suppress(GetTimeoutError):
                return await fetch(reference)


async def fetch(reference: ray.ObjectRef, limit_s: float = FETCH_LIMIT_S) -> Any:
    """The value of a large object, in a thread, so that the event loop goes on.

    Raises ObjectLostError where it is lost, GetTimeoutError where it does not come within limit_s.
    """
    return await asyncio.to_thread(ray.get, reference, timeout=limit_s)


def first_line(error: BaseException) -> str:
    """What it says, without the paragraphs that Ray adds."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
