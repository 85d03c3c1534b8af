"""A reward that runs on the same Ray cluster, asked by its Serve handle: pictures travel by reference."""

from __future__ import annotations

from typing import cast

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from common.config.services import RewardServiceSection
from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.asking.line import FailedError, FinalError, LostError, RefusedError, Request, Sending
from reward_service.on_ray.deployment import describe
from reward_service.on_ray.handles import reward_handle
from reward_service.part import BusyError, Description, Reply

DESCRIBE_LIMIT_S = 60.0
READ_LIMIT_S = 60.0


class _AppSending:
    """A request on its way to a replica."""

    def __init__(self, response: DeploymentResponse) -> None:
        self._response = response

    def taken(self, wait_s: float) -> list[ray.ObjectRef]:
        """See Sending."""
        try:
            return [self._response._to_object_ref_sync(_timeout_s=wait_s)]
        except TimeoutError:
            return []
        except ObjectLostError as error:
            raise FinalError(f"Its pictures are lost: {_short(error)}") from error
        except (RayError, RayServeException) as error:
            raise RefusedError(f"No replica took it: {_short(error)}", wait_s=0.0) from error

    def cancel(self) -> None:
        """See Sending."""
        self._response.cancel()


class AppLine:
    """The way to the application `app`. window: groups out at once, at most. stamp: its own at the start."""

    def __init__(
        self,
        app: str,
        handle: DeploymentHandle,
        window: int,
        section: RewardServiceSection,
        stamp: ScorerStamp,
    ) -> None:
        self._app = app
        self._handle = handle
        self._window = window
        self._timeout_s = section.timeout_s
        self._stamp = stamp

    @property
    def window(self) -> int:
        """See Line."""
        return self._window

    @property
    def limit_s(self) -> float:
        """See Line: twice the time of a batch, because a group may wait for the one before it."""
        return 2.0 * self._timeout_s

    @property
    def answers_as(self) -> ScorerStamp:
        """See Line."""
        return self._stamp

    def send(self, request: Request) -> Sending:
        """See Line."""
        try:
            response = self._handle.score.remote(request.prompt, request.images)
        except (RayError, RayServeException) as error:
            raise RefusedError(f"Serve did not take it: {_short(error)}", wait_s=0.0) from error
        return _AppSending(cast(DeploymentResponse, response))

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
        return describe(self._app)

    def _why_died(self, held_s: float) -> str:
        if held_s >= self._timeout_s:
            limit = f"reward_service.timeout_s ({self._timeout_s:g} s)"
            return f"Its scorer worked longer than {limit}; the replica ended."
        return "The replica that scored it died: killed, out of memory, or a crash in native code."


def open_app(app: str, window: int, section: RewardServiceSection) -> AppLine:
    """The line to an application that runs. Raises RewardError where it does not say what it is."""
    handle = reward_handle(app)
    return AppLine(app, handle, window, section, ask_description(app, handle).stamp)


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
