"""What a process says about itself in metrics and timelines."""

from __future__ import annotations

import os
import socket

import torch


def process_name() -> str:
    """`host:pid`."""
    return f"{socket.gethostname()}:{os.getpid()}"


def gpu_memory() -> int:
    """Bytes of GPU memory that torch holds in this process; 0 where it uses no GPU."""
    return int(torch.cuda.memory_reserved()) if torch.cuda.is_initialized() else 0
