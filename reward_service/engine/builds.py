"""Building scorers beside the one that answers: in threads of their own, of which there are few."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future

from common.errors import RewardError
from reward_service.contract.registry import check_spec
from reward_service.contract.settings import ServedReward
from reward_service.engine.low_priority import at_low_priority
from reward_service.engine.service import RewardService, build_service
from reward_service.engine.torch_threads import use_threads

BUILD_LIMIT_S = 600.0
MOST_BUILDS = 3
BUILD_TRIES = 3
BUILD_PAUSE_S = 10.0


class HopelessError(RewardError):
    """These settings cannot be built, however often it is tried."""


class Builder:
    """Builds and checks scorers of the reward called `name`.

    A build that hangs cannot be stopped, and one that nobody waits for any more ends by itself. Both leave
    their thread until then; there are at most MOST_BUILDS.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._is_first = True
        self._room = threading.BoundedSemaphore(MOST_BUILDS)

    async def build(self, settings: ServedReward) -> RewardService:
        """A scorer that keeps its contract.

        Raises HopelessError where the settings cannot work or it is not ready in BUILD_LIMIT_S, RewardError
        where it cannot be built now, breaks its contract, or MOST_BUILDS are being built.
        """
        if not self._room.acquire(blocking=False):
            raise RewardError(
                f"Reward {self._name!r}: {MOST_BUILDS} scorers of earlier settings are still being built. "
                "Wait for them, or start new replicas if they hang."
            )
        built: Future[RewardService] = Future()
        threading.Thread(
            target=self._run, args=[settings, built], name=f"builds {self._name}", daemon=True
        ).start()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(built), BUILD_LIMIT_S)
        except TimeoutError as error:
            raise HopelessError(f"Reward {self._name!r} was not ready after {BUILD_LIMIT_S:g} s.") from error

    async def build_patiently(self, settings: ServedReward, failed: Callable[[str], object]) -> RewardService:
        """The same, tried BUILD_TRIES times with a pause between: memory may become free, a hub answer again.

        failed: told why, where it is tried once more.
        """
        for _ in range(BUILD_TRIES - 1):
            try:
                return await self.build(settings)
            except HopelessError:
                raise
            except RewardError as error:
                failed(f"{error} It is tried again after {BUILD_PAUSE_S:g} s.")
            await asyncio.sleep(BUILD_PAUSE_S)
        return await self.build(settings)

    def _run(self, settings: ServedReward, built: Future[RewardService]) -> None:
        try:
            if built.set_running_or_notify_cancel():
                built.set_result(self._built(settings))
        except RewardError as error:
            built.set_exception(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything
            built.set_exception(RewardError(f"Reward {self._name!r} could not be built: {error!r}"))
        finally:
            self._room.release()

    def _built(self, settings: ServedReward) -> RewardService:
        use_threads(settings.threads)
        try:
            self._load_modules(settings)
        except RewardError as error:
            raise HopelessError(f"Reward {self._name!r}: {error}") from error
        service = build_service(self._name, settings)
        # It may have loaded torch.
        use_threads(settings.threads)
        service.check()
        self._is_first = False
        return service

    def _load_modules(self, settings: ServedReward) -> None:
        """Import what the settings name, and check them. Raises RewardError.

        Imports are most of what a start costs (torch and transformers: ten seconds of a core). A process that
        does not answer yet leaves the core to those that do. In one that answers, a slow import would keep
        the interpreter's lock for longer, and so would hold up its own groups.
        """
        if self._is_first:
            at_low_priority(lambda: check_spec(settings), f"imports for {self._name}")
        else:
            check_spec(settings)
