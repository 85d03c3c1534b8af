"""A replica loads torch for scorers that use it only, and then has the threads that were set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROCESS = """
import asyncio, sys
import numpy as np
import reward_service.on_ray.app
from reward_service.engine.engine import Engine, end_process
from reward_service.engine.meter import SilentMeter
from reward_service.contract.settings import ServedReward

async def main():
    pixels = np.zeros((2, 16, 16, 3), np.uint8)
    small = ServedReward(scorer="jpeg_compressibility")
    engine = await Engine.start("it", small, end_process, SilentMeter())
    await engine.score("a cat", pixels)
    print("torch" in sys.modules)
    for threads in (3, 5):
        settings = {"scorer": "tests.reward_service.scorers:Threads", "threads": threads}
        print(await engine.change(settings), (await engine.score("a cat", pixels)).outcome.rewards)
    engine.close()

asyncio.run(main())
"""


def test_torch_is_loaded_where_a_scorer_uses_it_and_has_its_threads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROCESS], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split("\n") == ["False", " [3. 3.]", " [5. 5.]", ""]
