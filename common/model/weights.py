"""Policy weights as they travel: one safetensors blob in the object store, proved by a digest of the tensors.

The digest is over names, types, shapes and bytes of the tensors, not over the container, so an actor can
compute it again from the module after loading: it proves what the policy samples with, not what was sent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray

from common.errors import WeightsError
from common.trajectory import PolicyStamp

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class WeightBlob:
    """Published weights. data: uint8 (n,), a safetensors file of the trainable tensors. Never mutated."""

    stamp: PolicyStamp
    data: NDArray[np.uint8]


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


def digest_tensors(tensors: Tensors) -> str:
    """SHA-256 (hex) over the sorted names with type, shape and bytes of each tensor."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def pack(tensors: Tensors, version: int, run_id: str) -> WeightBlob:
    """Stamp and serialise trainable tensors. The blob is a copy: later training does not touch it."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    stamp = PolicyStamp(version=version, digest=digest_tensors(on_cpu), run_id=run_id)
    return WeightBlob(stamp=stamp, data=np.frombuffer(safetensors.torch.save(on_cpu), dtype=np.uint8))


def unpack(blob: WeightBlob, expected: PolicyStamp) -> dict[str, torch.Tensor]:
    """The tensors of a blob.

    Raises WeightsError where the blob is not the expected version, is damaged, or its digest does not match
    its stamp.
    """
    if blob.stamp != expected:
        raise WeightsError(f"Asked to sample with {expected} but the weights object holds {blob.stamp}.")
    try:
        tensors = safetensors.torch.load(blob.data.tobytes())
    except safetensors.SafetensorError as error:
        raise WeightsError(f"The weights object of {expected} is damaged: {error}") from error
    digest = digest_tensors(tensors)
    if digest != expected.digest:
        raise WeightsError(
            f"The weights object of {expected} has been altered: its tensors' digest is {digest[:12]}."
        )
    return tensors
