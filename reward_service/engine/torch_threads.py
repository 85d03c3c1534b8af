"""How many threads torch uses, in a process whose scorer may have no use for torch."""

from __future__ import annotations

import sys


def use_threads(count: int) -> None:
    """Give torch, where this process has loaded it, so many threads for calls from this thread.

    Loading torch for this alone would cost each replica of a small scorer a second and 200 MB.
    """
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
