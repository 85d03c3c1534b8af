"""From settings to a reward, checked where that is asked for."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import threading
from concurrent.futures import Future

from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.contract.registry import build_scorer, naming, scorer_path
from reward_service.contract.results import check_stamp
from reward_service.contract.reward import Reward
from reward_service.contract.settings import ServedReward

BUILD_LIMIT_S = 600.0


def build_reward(name: str, served: ServedReward) -> Reward:
    """One as configured. Raises RewardError naming the reward it cannot build."""
    with naming(name):
        scorer = build_scorer(served)
        version = f"{scorer.version}+{served.version}" if served.version else scorer.version
        stamp = ScorerStamp(name, version, stamp_digest(served, scorer.digest))
        check_stamp(stamp)
        return Reward.of(stamp, scorer, served.pairs)


def build_checked(name: str, served: ServedReward) -> Reward:
    """The same, with its weights loaded and its contract checked. Raises RewardError."""
    use_threads(served.threads)
    reward = build_reward(name, served)
    # It may have loaded torch.
    use_threads(served.threads)
    reward.check()
    return reward


async def build_aside(name: str, settings: ServedReward) -> Reward:
    """A checked scorer, built in a thread of its own, which lives on where it hangs or nobody waits any more.

    Raises RewardError where it cannot be built, breaks its contract, or is not ready in BUILD_LIMIT_S.
    """
    built: Future[Reward] = Future()

    def build() -> None:
        try:
            reward = build_checked(name, settings)
        except RewardError as error:
            built.set_exception(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything
            built.set_exception(RewardError(f"Reward {name!r} could not be built: {error!r}"))
        else:
            built.set_result(reward)

    threading.Thread(target=build, name=f"builds {name}", daemon=True).start()
    try:
        # Shielded, because the thread sets it whoever still waits.
        return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(built)), BUILD_LIMIT_S)
    except TimeoutError as error:
        raise RewardError(f"Reward {name!r} was not ready after {BUILD_LIMIT_S:g} s.") from error


def use_threads(count: int) -> None:
    """Give torch, where this process has loaded it, so many threads for calls from this thread.

    Loading torch for this alone would cost each replica of a small scorer a second and 200 MB.
    """
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)


def stamp_digest(served: ServedReward, scorer_digest: str) -> str:
    """SHA-256 (hex) over the scorer's path, its options, the pairs asked and its own digest."""
    content = {
        "scorer": scorer_path(served.scorer),
        "options": served.options,
        "pairs": served.pairs,
        "digest": scorer_digest,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
