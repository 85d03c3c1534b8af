"""How the learner's ranks agree: sums over all ranks. One rank needs no process group."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks(Protocol):
    """The learner's view of its peers."""

    rank: int

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in place."""
        ...


class SingleRank:
    """The only rank."""

    rank = 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """The sum over one rank is what is there."""


def listen(address: str, timeout_s: float) -> dist.TCPStore:
    """Where ranks meet: at this process, which is reached at the address, and at a port that was free."""
    return _store(address, 0, timeout_s, is_master=True)


def connect(address: str, port: int, timeout_s: float) -> dist.TCPStore:
    """What another process listens with."""
    return _store(address, port, timeout_s, is_master=False)


def _store(address: str, port: int, timeout_s: float, is_master: bool) -> dist.TCPStore:
    limit = timedelta(seconds=timeout_s)
    return dist.TCPStore(address, port, is_master=is_master, timeout=limit, wait_for_workers=False)


class TorchRanks:
    """One of several ranks, connected by torch.distributed (gloo on CPU, nccl on GPU)."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @staticmethod
    def join(rank: int, count: int, store: dist.Store, device: torch.device, timeout_s: float) -> TorchRanks:
        """Meet the other ranks by way of the store. Every later sum waits at most timeout_s."""
        backend = {"cuda": "nccl"}.get(device.type, "gloo")
        limit = timedelta(seconds=timeout_s)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=limit)
        return TorchRanks(rank)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """See Ranks. One collective for all tensors of a type."""
        for kind in sorted({tensor.dtype for tensor in tensors}, key=str):
            same = [tensor for tensor in tensors if tensor.dtype == kind]
            flat = torch.cat([tensor.reshape(-1) for tensor in same])
            dist.all_reduce(flat)
            for tensor, part in zip(same, flat.split([tensor.numel() for tensor in same]), strict=True):
                tensor.copy_(part.view_as(tensor))
