"""A run that is killed while it starts makes room for the next one's turn."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray

from driver.loop.services import turn_to_start
from driver.stalls import StallReporter
from driver.stop import StopFlag

pytestmark = [pytest.mark.faults, pytest.mark.slow]

OTHER_RUN = """
import asyncio, sys, ray
from driver.loop.services import turn_to_start
from driver.stalls import StallReporter
from driver.stop import StopFlag

async def start():
    async with turn_to_start(StopFlag(), StallReporter(print), 120.0):
        print("has its turn", flush=True)
        await asyncio.sleep(600)

ray.init(address=sys.argv[1], namespace="prdp", logging_level=40, log_to_driver=False)
asyncio.run(start())
"""


@pytest.fixture
def address() -> Iterator[str]:
    """Of a cluster that this process has joined."""
    context = ray.init(
        num_cpus=1, namespace="prdp", include_dashboard=False, logging_level=40, log_to_driver=False
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


def test_the_turn_of_a_killed_run_is_free_again(address: str) -> None:
    async def turns() -> None:
        first = asyncio.create_task(start())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(first), 2.0)
        other.kill()
        await asyncio.wait_for(first, 30.0)
        await asyncio.wait_for(start(), 10.0)

    async def start() -> None:
        async with turn_to_start(StopFlag(), StallReporter(print), 120.0):
            pass

    with subprocess.Popen(
        [sys.executable, "-c", OTHER_RUN, address], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        assert other.stdout.readline() == "has its turn\n"
        asyncio.run(turns())
