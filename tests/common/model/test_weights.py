"""Weights travel with a proof: any change of a bit, name, shape or type is noticed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import WeightsError
from common.model.weights import WeightBlob, digest_tensors, order_metadata, pack, unpack
from common.trajectory import PolicyStamp


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "block.weight": torch.randn(3, 4, generator=generator),
        "block.bias": torch.zeros(3),
        "scale": torch.tensor(2.0),
        "half": torch.ones(2, dtype=torch.bfloat16),
    }


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(_tensors())), st.integers(0, 10**6), st.integers(0, 7))
def test_digest_changes_with_any_bit(name: str, place: int, bit: int) -> None:
    tensors = _tensors()
    before = digest_tensors(tensors)
    data = tensors[name].view(-1).view(torch.uint8)
    data[place % data.numel()] ^= 1 << bit
    assert digest_tensors(tensors) != before


def test_digest_changes_with_name_shape_and_type() -> None:
    tensors = _tensors()
    weight = tensors.pop("block.weight")
    variants = [
        {**tensors, "block.weight": weight},
        {**tensors, "block.weights": weight},
        {**tensors, "block.weight": weight.view(4, 3)},
        {**tensors, "block.weight": weight.view(torch.int32)},
        tensors,
    ]
    assert len({digest_tensors(variant) for variant in variants}) == len(variants)


def test_digest_ignores_order_layout_and_graph() -> None:
    tensors = _tensors()
    other = dict(reversed(tensors.items()))
    other["block.weight"] = tensors["block.weight"].t().contiguous().t().requires_grad_(True)
    assert digest_tensors(other) == digest_tensors(tensors)


def test_pack_and_unpack_give_the_same_bits() -> None:
    tensors = _tensors()
    blob = pack(tensors, 7, "run")
    assert blob.stamp == PolicyStamp(7, digest_tensors(tensors), "run")
    back = unpack(blob, blob.stamp)
    assert set(back) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(back[name], value)
        assert back[name].dtype == value.dtype


def test_a_blob_is_a_copy_and_cannot_be_written() -> None:
    tensors = _tensors()
    blob = pack(tensors, 0, "run")
    tensors["block.bias"] += 1
    assert torch.equal(unpack(blob, blob.stamp)["block.bias"], torch.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        blob.data[0] = 1


@pytest.mark.parametrize("change", [{"version": 8}, {"digest": "0" * 64}, {"run_id": "other"}])
def test_another_stamp_is_refused(change: dict[str, object]) -> None:
    blob = pack(_tensors(), 7, "run")
    with pytest.raises(WeightsError, match=r"Asked to sample with .* but the weights object holds version 7"):
        unpack(blob, replace(blob.stamp, **change))  # type: ignore[arg-type]


def test_every_altered_byte_is_noticed() -> None:
    blob = pack(_tensors(), 7, "run")
    for place in range(blob.data.size):
        data = blob.data.copy()
        data[place] ^= 1
        try:
            tensors = unpack(WeightBlob(blob.stamp, data), blob.stamp)
        except WeightsError:
            continue
        # Only padding of the header may differ without changing a tensor.
        assert digest_tensors(tensors) == blob.stamp.digest


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 0.999))
def test_truncated_blobs_are_refused(share: float) -> None:
    blob = pack(_tensors(), 7, "run")
    short = WeightBlob(blob.stamp, blob.data[: int(share * blob.data.size)])
    with pytest.raises(WeightsError, match="damaged"):
        unpack(short, blob.stamp)


def test_altered_values_are_named_as_such() -> None:
    blob = pack(_tensors(), 7, "run")
    data = blob.data.copy()
    data[-1] ^= 255
    with pytest.raises(WeightsError, match="has been altered"):
        unpack(WeightBlob(blob.stamp, np.ascontiguousarray(data)), blob.stamp)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=9))
def test_the_order_of_metadata_is_its_names_and_nothing_else_changes(metadata: dict[str, str]) -> None:
    files = [safetensors.torch.save(_tensors(), metadata) for _ in range(3)]
    (ordered,) = {order_metadata(data) for data in files}
    header = json.loads(ordered[8 : 8 + int.from_bytes(ordered[:8], "little")])
    assert list(header.get("__metadata__", {}).items()) == sorted(metadata.items())
    assert digest_tensors(safetensors.torch.load(ordered)) == digest_tensors(_tensors())
    assert order_metadata(ordered) == ordered
