"""How the learner's ranks work as one. All collective work goes through a Parallel: with one there is none.

Ranks get their groups in waves. In a wave every rank calls the same methods in the same order, whatever it
was given, so a sharded network (FSDP2) enters here as one more class: `place` shards, `most` makes ranks pass
equally often through the network, `micro_batch` holds back the exchange of gradients. Whoever reads whole
tensors (publishing, state) must gather them then.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from socket import AF_INET, AF_INET6, socket
from typing import Any, Protocol

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import ConfigError

BUCKET_BYTES = 64 * 2**20
"""Gradients travel in pieces of about this size: as little extra memory, few collectives."""


class Parallel(Protocol):
    """One rank's view of all ranks. Every method is called by all of them."""

    rank: int

    def place(self, network: nn.Module) -> None:
        """Spread a network with its trained weights over the ranks, in place; before an optimizer is made."""
        ...

    def most(self, passes: int) -> int:
        """How many passes through the network this rank must make where it has work for `passes`."""
        ...

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        """Around one forward and backward pass. is_last: of a wave."""
        ...

    def sum_(self, values: Tensor) -> None:
        """Replace a small tensor by its sum over all ranks, in place."""
        ...

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each .grad by its sum over all ranks, in place; every parameter has one. Once an update."""
        ...

    def norm(self, tensors: Iterable[Tensor]) -> Tensor:
        """L2 norm over all elements of tensors that are placed like the network's, float64 scalar."""
        ...

    def all_finite(self, tensors: Iterable[Tensor]) -> bool:
        """Whether every number is finite, of tensors that are placed like the network's."""
        ...

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """Scale gradients down to an L2 norm of at most max_norm. Returns the norm before."""
        ...


class Single:
    """The only rank."""

    rank = 0

    def place(self, network: nn.Module) -> None:
        """It stays where it is."""

    def most(self, passes: int) -> int:
        """As many as there is work for."""
        return passes

    def micro_batch(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients add up in .grad."""
        return nullcontext()

    def sum_(self, values: Tensor) -> None:
        """The sum over one rank is what is there."""

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """The sum over one rank is what is there."""

    def norm(self, tensors: Iterable[Tensor]) -> Tensor:
        """See Parallel."""
        parts = [tensor.double().norm() for tensor in tensors]
        return torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros((), dtype=torch.float64)

    def all_finite(self, tensors: Iterable[Tensor]) -> bool:
        """See Parallel.

        A sum with a NaN or an infinity is not finite, and is one pass over a tensor, without a copy of it.
        Numbers so large that their sum overflows are called non-finite too. Waits for the device once.
        """
        sums: dict[torch.device, list[Tensor]] = {}
        for value in tensors:
            sums.setdefault(value.device, []).append(value.detach().sum().double())
        return all(bool(torch.isfinite(torch.stack(parts)).all()) for parts in sums.values())

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
        """See Parallel."""
        return nn.utils.clip_grad_norm_(parameters, max_norm)


class Replicated(Single):
    """One of several ranks that each hold the whole network (gloo on CPU, nccl on GPU).

    They pass through the network at their own pace, and meet once an update.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    @staticmethod
    def join(rank: int, count: int, store: dist.Store, device: torch.device, timeout_s: float) -> Replicated:
        """Meet the other ranks by way of the store. Every later sum waits at most timeout_s."""
        backend = {"cuda": "nccl"}.get(device.type, "gloo")
        limit = timedelta(seconds=timeout_s)
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=limit)
        return Replicated(rank)

    def sum_(self, values: Tensor) -> None:
        """See Parallel."""
        dist.all_reduce(values)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """See Parallel. In buckets of one type, in the order of the parameters."""
        for bucket in _buckets([value.grad for value in parameters if value.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            dist.all_reduce(flat)
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, part in zip(bucket, flat.split(sizes), strict=True):
                gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, together at most BUCKET_BYTES unless one alone is larger."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


def listen_only_at(address: str) -> None:
    """Have the connections among ranks (gloo, nccl) come to this address of this process's machine alone.

    Interfaces that the environment names already stay. Raises ConfigError where no interface has the address.
    """
    interfaces = psutil.net_if_addrs()
    names = [name for name, own in interfaces.items() if address in (one.address for one in own)]
    if not names:
        there = [one.address for own in interfaces.values() for one in own if one.family == AF_INET]
        raise ConfigError(
            f"Ray says that the address of a learner's node is {address}, and no interface there has it. "
            f"Start Ray on that node with --node-ip-address and one of {', '.join(there)}."
        )
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, names[0])


def listen(address: str, timeout_s: float) -> dist.TCPStore:
    """Where ranks meet: at this process, at this address of its machine alone, at a port that was free."""
    # The store by itself listens at every address of the machine, and whoever reaches it may write.
    with socket(AF_INET6 if ":" in address else AF_INET) as bound:
        bound.bind((address, 0))
        port = bound.getsockname()[1]
        return _store(address, port, timeout_s, is_master=True, master_listen_fd=bound.detach())


def connect(address: str, port: int, timeout_s: float) -> dist.TCPStore:
    """What another process listens with."""
    return _store(address, port, timeout_s, is_master=False)


def _store(address: str, port: int, timeout_s: float, **options: Any) -> dist.TCPStore:
    limit = timedelta(seconds=timeout_s)
    return dist.TCPStore(address, port, timeout=limit, wait_for_workers=False, **options)
