"""Policy weights as they travel: plain arrays in the object store, proved by a digest of the tensors.

The digest is over names, types, shapes and bits of the tensors, so an actor computes it again from its module
after loading: it proves what the policy samples with, not what was sent.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import WeightsError
from common.trajectory import PolicyStamp

Tensors = Mapping[str, Tensor]

BLOCK = 2**14
"""Words of 8 bytes that one pair of sums is over. It is part of the digest's definition."""
CACHED_ROWS = 4
"""Blocks a step on a CPU, few enough for its cache."""
DEVICE_ROWS = 512
"""Blocks a step elsewhere: 64 MiB."""


@dataclass(frozen=True)
class Weights:
    """Published weights.

    arrays: trained tensors by name. bfloat16: names of those that numpy has no type for; they travel as
    uint16 arrays of the same bits. Never written to: they may be memory of the object store, or, in the
    process that trains them on a CPU, the live tensors' own. deepcopy them to keep them beside training.
    """

    stamp: PolicyStamp
    arrays: dict[str, NDArray[Any]]
    bfloat16: frozenset[str] = frozenset()

    @staticmethod
    def of(tensors: Tensors, version: int, run_id: str) -> Weights:
        """Stamp trained tensors: digest them where they lie, then bring them to the host's memory."""
        stamp = PolicyStamp(version, digest_tensors(tensors), run_id)
        bfloat16 = frozenset(name for name, value in tensors.items() if value.dtype is torch.bfloat16)
        return Weights(stamp, _to_host(tensors), bfloat16)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def tensors(self, expected: PolicyStamp) -> dict[str, Tensor]:
        """The arrays as tensors, without a copy; only for reading.

        Raises WeightsError where the stamp is not the expected one. The bits are not looked at: digest the
        module that they are loaded into.
        """
        if self.stamp != expected:
            raise WeightsError(f"Asked to sample with {expected} but the weights object holds {self.stamp}.")
        with warnings.catch_warnings():
            # That torch cannot mark them as read-only is said above.
            warnings.filterwarnings("ignore", message=".*not writable")
            tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        return {
            name: value.view(torch.bfloat16) if name in self.bfloat16 else value
            for name, value in tensors.items()
        }


def digest_tensors(tensors: Tensors) -> str:
    """An integrity proof (hex) over names, types, shapes and bits; equal on every device.

    Each tensor's bytes, padded with zeros, are int64 words w in blocks of BLOCK. A block has two sums mod
    2^64: of m_i w_i, and of m_i (w_i >> 32), where m_i are fixed pseudo-random odd numbers. The digest is the
    SHA-256 of every tensor's name, type and shape with its blocks' sums. This is multilinear hashing (Lemire
    and Kaser 2014, "Strongly universal string hashing is fast") of words and of their upper halves: one
    changed word always shows, and any other change is missed with probability 2^-32 at most, taken over the
    multipliers, since either a lower half differs or an upper one does. It is made for mix-ups and damage at
    the speed of memory. The multipliers are public, so it is not for somebody who searches for a collision.
    """
    total = hashlib.sha256()
    named = {name: tensors[name].detach() for name in sorted(tensors)}
    # numpy lets go of the interpreter, and integers add up to the same in any order.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        block_sums = threads.map(lambda value: _block_sums(_words(value)), named.values())
        sums = _on_cpu(dict(zip(named, block_sums, strict=True)))
    for name, value in named.items():
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(sums[name].astype("<i8").tobytes())
    return total.hexdigest()


@cache
def _multipliers() -> NDArray[np.int64]:
    data = hashlib.shake_256(b"multipliers of digest_tensors").digest(8 * BLOCK)
    return np.frombuffer(data, dtype="<i8").astype(np.int64) | 1


@cache
def _multipliers_on(device: torch.device) -> Tensor:
    return torch.from_numpy(_multipliers()).to(device)


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes in row-major order as int64 (n,), where they lie unless they have to be padded."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    missing = -data.numel() % 8
    if missing or data.storage_offset() % 8:
        data = torch.cat([data, data.new_zeros(missing)])
    return data.view(torch.int64)


def _block_sums(words: Tensor) -> Tensor:
    """(2, blocks), on the device of the words (n,); the last block may be short."""
    whole = words.numel() // BLOCK * BLOCK
    sums_of = _sums_in_cache if words.device.type == "cpu" else _sums_on_device
    parts = (words[:whole].view(-1, BLOCK), words[whole:].view(1, -1))
    return torch.cat([sums_of(part) for part in parts if part.numel()] or [words.new_zeros(2, 0)], dim=1)


def _sums_in_cache(rows: Tensor) -> Tensor:
    """Sums of rows (k, n), n <= BLOCK, as one core takes them fastest: a few rows at a time."""
    words, multipliers = rows.numpy(), _multipliers()[: rows.shape[1]]
    sums = np.empty((2, len(words)), dtype=np.int64)
    upper = np.empty((CACHED_ROWS, words.shape[1]), dtype=np.int64)
    for start in range(0, len(words), CACHED_ROWS):
        few = words[start : start + CACHED_ROWS]
        own = np.right_shift(few, 32, out=upper[: len(few)])
        np.einsum("ij,j->i", few, multipliers, out=sums[0, start : start + len(few)])
        np.einsum("ij,j->i", own, multipliers, out=sums[1, start : start + len(few)])
    return torch.from_numpy(sums)


def _sums_on_device(rows: Tensor) -> Tensor:
    """The same by torch alone."""
    multipliers = _multipliers_on(rows.device)[: rows.shape[1]]
    sums = []
    for few in rows.split(DEVICE_ROWS):
        sums.append(torch.stack([few, few >> 32]).mul_(multipliers).sum(2))
    return torch.cat(sums, dim=1)


def _on_cpu(sums: Mapping[str, Tensor]) -> dict[str, NDArray[np.int64]]:
    """All at once, so that a GPU is waited for once."""
    if not sums:
        return {}
    together = torch.cat(list(sums.values()), dim=1).cpu()
    parts = together.split([value.shape[1] for value in sums.values()], dim=1)
    return {name: part.numpy() for name, part in zip(sums, parts, strict=True)}


def _to_host(tensors: Tensors) -> dict[str, NDArray[Any]]:
    """Arrays by name: of a CPU's tensors the same memory, of a GPU's a copy by way of pinned memory."""
    there = {
        name: value.detach().contiguous().to("cpu", non_blocking=True) for name, value in tensors.items()
    }
    for device in {value.device for value in tensors.values() if value.is_cuda}:
        torch.cuda.synchronize(device)
    return {
        name: (value.view(torch.uint16) if value.dtype is torch.bfloat16 else value).numpy()
        for name, value in there.items()
    }


def order_metadata(data: bytes) -> bytes:
    """The same safetensors file with its metadata in order of name.

    safetensors writes metadata in the order of a hash table, which differs from call to call.
    """
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    ordered = {"__metadata__": dict(sorted(metadata.items())), **header} if metadata else header
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text.ljust(-(-len(text) // 8) * 8)
    return len(padded).to_bytes(8, "little") + padded + data[8 + length :]
