from __future__ import annotations

import os
import time

from benchmarks.machine import spare_core_seconds


def test_cores_cannot_spare_more_than_they_have() -> None:
    began_at, before = time.monotonic(), spare_core_seconds()
    time.sleep(0.5)
    spared = spare_core_seconds() - before
    # The kernel counts in hundredths of a second, on each core.
    assert 0.0 <= spared <= (time.monotonic() - began_at + 0.05) * (os.cpu_count() or 1)
