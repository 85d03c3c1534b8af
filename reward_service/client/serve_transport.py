"""A reward that runs on the same Ray cluster, asked by its Serve handle: pictures travel by reference."""

from __future__ import annotations

import math
import time
from typing import cast

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.client.transport import FailedError, FinalError, LostError, RefusedError, Request, Sending
from reward_service.contract.results import BusyError, Description, Reply
from reward_service.on_ray.deployment import describe
from reward_service.on_ray.handles import check_serve, forget_ended_serve, reward_handle, serve_id

DESCRIBE_LIMIT_S = 60.0
READ_LIMIT_S = 60.0
LOOK_S = 1.0
"""How often to look which Serve runs, which costs half a millisecond."""
SERVE_LIMIT_S = 1.0


class _AppSending:
    """A request on its way to a replica, in the queue of the Serve of that id."""

    def __init__(self, response: DeploymentResponse, serve: str) -> None:
        self._response = response
        self._serve = serve
        self._looks_at = time.monotonic() + LOOK_S

    def taken(self, wait_s: float) -> list[ray.ObjectRef]:
        """See Sending."""
        try:
            return [self._response._to_object_ref_sync(_timeout_s=wait_s)]
        except TimeoutError:
            self._look()
            return []
        except ObjectLostError as error:
            raise FinalError(f"Its pictures are lost: {_short(error)}") from error
        except (RayError, RayServeException) as error:
            raise RefusedError(f"No replica took it: {_short(error)}", wait_s=0.0) from error

    def cancel(self) -> None:
        """See Sending."""
        self._response.cancel()

    def _look(self) -> None:
        """Raises RefusedError where the Serve that has it in its queue was shut down, which nobody tells."""
        if time.monotonic() < self._looks_at:
            return
        self._looks_at = time.monotonic() + LOOK_S
        if serve_id() != self._serve:
            self.cancel()
            raise RefusedError("Serve was shut down before a replica took it.", wait_s=0.0)


class AppLine:
    """The way to the application `app`.

    handle, serve: to it, and the id of the Serve that it belongs to. window: groups out at once, at most.
    held: groups that one replica holds, at most. described: what it says of itself at the start.
    """

    def __init__(
        self, app: str, handle: DeploymentHandle, serve: str, window: int, held: int, described: Description
    ) -> None:
        self._app = app
        self._handle = handle
        self._serve = serve
        self._window = window
        self._held = held
        self._described = described
        self._looks_at = 0.0

    @property
    def window(self) -> int:
        """See Line."""
        return self._window

    @property
    def limit_s(self) -> float:
        """See Line: of all batches that a replica can hold, and of one that was in work before.

        Only a backstop: a replica ends itself where one batch takes longer than its timeout_s.
        """
        batches = math.ceil(self._held / self._described.settings["max_batch_groups"])
        return self._timeout_s * (batches + 1)

    @property
    def answers_as(self) -> ScorerStamp:
        """See Line."""
        return self._described.stamp

    def send(self, request: Request) -> Sending:
        """See Line."""
        try:
            self._follow()
            response = self._handle.score.remote(request.prompt, request.images)
        except (RewardError, RayError, RayServeException) as error:
            raise RefusedError(f"Serve did not take it: {_short(error)}", wait_s=0.0) from error
        return _AppSending(cast(DeploymentResponse, response), self._serve)

    def read(self, reference: ray.ObjectRef, held_s: float) -> Reply:
        """See Line."""
        try:
            reply: Reply = ray.get(reference, timeout=READ_LIMIT_S)
        except ObjectLostError as error:
            raise FinalError(f"Its pictures or its answer are lost: {_short(error)}") from error
        except RayActorError as error:
            raise LostError(self._why_died(held_s)) from error
        except RayTaskError as error:
            if isinstance(error.cause, BusyError):
                raise RefusedError(str(error.cause), error.cause.retry_after_s) from error
            raise FailedError(f"The replica failed: {_short(error.cause)}") from error
        except (RayError, GetTimeoutError) as error:
            raise FailedError(f"Its answer cannot be read: {_short(error)}") from error
        return reply

    def state(self) -> str:
        """See Line."""
        try:
            forget_ended_serve()
            return describe(self._app)
        except (RayError, RayServeException) as error:
            return f"Serve does not say how it is: {_short(error)}"

    @property
    def _timeout_s(self) -> float:
        return float(self._described.settings["timeout_s"])

    def _follow(self) -> None:
        """Get a handle to the Serve that runs, where it is another one. Raises RewardError."""
        if time.monotonic() < self._looks_at:
            return
        running = serve_id()
        if running != self._serve:
            # A handle is made without a limit on its waits, and the groups of other rewards wait meanwhile.
            check_serve(SERVE_LIMIT_S)
            self._handle = reward_handle(self._app)
            self._serve = running
        self._looks_at = time.monotonic() + LOOK_S

    def _why_died(self, held_s: float) -> str:
        if held_s >= self._timeout_s:
            limit = f"timeout_s ({self._timeout_s:g} s)"
            return f"Its scorer worked longer than {limit}; the replica ended."
        return "The replica that scored it died: killed, out of memory, or a crash in native code."


def open_app(app: str, window: int, held: int) -> AppLine:
    """The line to an application that runs. window: groups out at once; held: groups at one replica.

    Raises RewardError where it does not say what it is.
    """
    running = serve_id()
    handle = reward_handle(app)
    return AppLine(app, handle, running, window, held, ask_description(app, handle))


def ask_description(app: str, handle: DeploymentHandle) -> Description:
    """What the application says of itself. Raises RewardError."""
    try:
        found: Description = handle.describe.remote().result(timeout_s=DESCRIBE_LIMIT_S)
    except (TimeoutError, RayError, RayServeException) as error:
        raise RewardError(
            f"The application {app!r} runs but does not say which reward it is: {_short(error)}"
        ) from error
    return found


def _short(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip() if lines else ''}"[:400]
