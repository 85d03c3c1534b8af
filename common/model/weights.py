"""Policy weights as they travel: plain arrays in the object store, proved by a digest of the tensors.

The digest is over names, types, shapes and bits of the tensors, so an actor computes it again from its module
after loading: it proves what the policy samples with, not what was sent.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.errors import WeightsError
from common.trajectory import PolicyStamp

Tensors = Mapping[str, Tensor]

ROWS, COLUMNS = 127, 511
"""Of a block of words that is summed along both: 519 kB, which a core's cache holds. Both are odd, so that a
bit turned over in all words of a line always shows. They are part of the digest's definition."""


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

    Each tensor's bytes, padded with zeros, are int64 words in rows of COLUMNS, and those in blocks of ROWS;
    what is left over is a short row. Taken are the sums mod 2^64 of all rows, those of all columns of each
    block, and the short row as it is. The digest is the SHA-256 of every tensor's name, type and shape with
    the SHA-256 of what was taken.

    Whatever changes one word, or several of which one stands alone in its row or in its column of a block,
    always shows. Missed is only what adds up to 0 along every row and every column: four words at least, at
    the corners of a rectangle, each changed by the same number up or down. It is made for mix-ups and damage,
    at the speed of memory, and not for somebody who searches for a collision.
    """
    named = {name: tensors[name].detach() for name in sorted(tensors)}
    # numpy and hashlib let go of the interpreter, and integers add up to the same in any order.
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        sums = _on_cpu(list(threads.map(lambda value: _line_sums(_words(value)), named.values())))
        digests = threads.map(lambda lines: hashlib.sha256(lines.astype("<i8", copy=False)).digest(), sums)
        total = hashlib.sha256()
        for (name, value), digest in zip(named.items(), digests, strict=True):
            total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode() + digest)
    return total.hexdigest()


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes in row-major order as int64 (n,), where they lie unless they have to be padded."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    missing = -data.numel() % 8
    if missing or data.storage_offset() % 8:
        data = torch.cat([data, data.new_zeros(missing)])
    return data.view(torch.int64)


def _line_sums(words: Tensor) -> Tensor:
    """Of the rows, then of each block's columns, then the short row's words themselves; on their device."""
    whole = words.numel() // COLUMNS * COLUMNS
    rows, rest = words[:whole].view(-1, COLUMNS), words[whole:]
    sums_of = _sums_in_cache if words.device.type == "cpu" else _sums_on_device
    return torch.cat([*sums_of(rows), rest])


def _sums_in_cache(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of rows (n, COLUMNS), (n,), and of columns by block, flat. A core reads each block once."""
    words = rows.numpy()
    of_rows = np.empty(len(words), dtype=np.int64)
    of_columns = np.empty((-(-len(words) // ROWS), COLUMNS), dtype=np.int64)
    for number, of_block in enumerate(of_columns):
        here = slice(number * ROWS, (number + 1) * ROWS)
        np.add.reduce(words[here], axis=1, out=of_rows[here])
        np.add.reduce(words[here], axis=0, out=of_block)
    return torch.from_numpy(of_rows), torch.from_numpy(of_columns).view(-1)


def _sums_on_device(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The same by torch alone."""
    whole = len(rows) // ROWS * ROWS
    blocks, rest = rows[:whole].view(-1, ROWS, COLUMNS), rows[whole:]
    of_rest = [rest.sum(0)] if len(rest) else []
    return rows.sum(1), torch.cat([blocks.sum(1).view(-1), *of_rest])


def _on_cpu(sums: Sequence[Tensor]) -> list[NDArray[np.int64]]:
    """All of a device at once, so that a GPU is waited for once."""
    found = {place: value.numpy() for place, value in enumerate(sums) if value.device.type == "cpu"}
    for device in {value.device for value in sums} - {torch.device("cpu")}:
        there = {place: value for place, value in enumerate(sums) if value.device == device}
        together = torch.cat([*there.values()]).cpu()
        parts = together.split([len(value) for value in there.values()])
        found |= {place: part.numpy() for place, part in zip(there, parts, strict=True)}
    return [found[place] for place in range(len(sums))]


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
