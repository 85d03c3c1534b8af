"""How the applications of a run learn that its driver is gone: Serve keeps them, whoever started them.

A lifeline is a small process of the driver's own, on the driver's node: Ray ends it with the driver, however
that ends. Replicas hold on to it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import ray
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOGGER = logging.getLogger("ray.serve")
MOST_REPLICAS = 10_000


class Lifeline:
    """The process."""

    async def hold(self) -> None:
        """Does not return."""
        await asyncio.Event().wait()


def start_lifeline() -> ActorHandle:
    """One of this process's own. Started again where it dies by itself: only its driver's end counts."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "max_concurrency": MOST_REPLICAS}
    process: Any = ray.remote(Lifeline)
    lifeline: ActorHandle = process.options(scheduling_strategy=here, **options).remote()
    return lifeline


async def end_with(lifeline: ActorHandle) -> None:
    """In a replica: wait for the end of the lifeline's driver, then delete the replica's application."""
    try:
        await lifeline.hold.remote()
    except RayActorError:
        app = serve.get_replica_context().app_name
        LOGGER.warning("The run that started %r is gone: the application ends.", app)
        await asyncio.to_thread(serve.delete, app)
