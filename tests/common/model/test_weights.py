"""Weights travel with a proof: any change of a bit, name, shape or type is noticed, on any device."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import WeightsError
from common.model import weights
from common.model.weights import COLUMNS, ROWS, Tensors, Weights, digest_tensors, order_metadata
from common.trajectory import PolicyStamp

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.bool, torch.int64)
BLOCK = 2 * ROWS * COLUMNS
"""Numbers of float32 in a block."""
SIZES = st.sampled_from([0, 1, 2, 3, 7, 8, 1000, 2 * COLUMNS, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 5])


def _drawn(size: int, seed: int = 0, kind: torch.dtype = torch.float32) -> torch.Tensor:
    """Random bits without NaN."""
    generator = torch.Generator().manual_seed(seed)
    return (100 * torch.randn(size, generator=generator)).to(kind)


def _tensors() -> dict[str, torch.Tensor]:
    return {
        "block.weight": _drawn(12).view(3, 4),
        "block.bias": torch.zeros(3),
        "scale": torch.tensor(2.0),
        "half": _drawn(5, kind=torch.bfloat16),
        "none": torch.zeros(0, 2),
        "large": _drawn(2 * BLOCK + 3),
    }


def slow_digest(tensors: Tensors) -> str:
    """The formula in Python's own numbers."""
    total = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        data = bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist())
        data += bytes(-len(data) % 8)
        words = [int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, len(data), 8)]
        whole = len(words) // COLUMNS * COLUMNS
        rows = [words[start : start + COLUMNS] for start in range(0, whole, COLUMNS)]
        blocks = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
        columns = [sum(column) for block in blocks for column in zip(*block, strict=True)]
        taken = [*map(sum, rows), *columns, *words[whole:]]
        sums = b"".join((number % 2**64).to_bytes(8, "little") for number in taken)
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(hashlib.sha256(sums).digest())
    return total.hexdigest()


@settings(max_examples=12, deadline=None)
@given(SIZES, st.sampled_from(TYPES), st.integers(0, 9))
def test_the_digest_is_its_formula(size: int, kind: torch.dtype, seed: int) -> None:
    tensors = {"a": _drawn(size, seed, kind), "b": torch.tensor(1, dtype=kind)}
    assert digest_tensors(tensors) == slow_digest(tensors)


@settings(max_examples=20, deadline=None)
@given(SIZES, st.integers(1, 7), st.integers(1, 7))
def test_neither_device_nor_division_nor_alignment_matter(size: int, rows: int, offset: int) -> None:
    tensors = {"a": _drawn(size + offset, kind=torch.bfloat16)[offset:], "b": _drawn(size), "c": _drawn(3)}
    expected = digest_tensors({name: value.clone() for name, value in tensors.items()})
    assert digest_tensors(tensors) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: rows)
        patch.setattr(weights, "_sums_in_cache", weights._sums_on_device)
        assert digest_tensors(tensors) == expected


def _flip(value: torch.Tensor, place: int, bit: int) -> torch.Tensor:
    value.view(-1).view(torch.uint8)[place % (value.numel() * value.element_size())] ^= 1 << bit % 8
    return value


def _swap(value: torch.Tensor, first: int, second: int) -> torch.Tensor:
    flat, size = value.view(-1), value.numel()
    flat[[first % size, second % size]] = flat[[second % size, first % size]]
    return value


CHANGES: dict[str, Callable[[torch.Tensor, int, int], torch.Tensor]] = {
    "bit flipped": _flip,
    "negated": lambda value, *_: -value,
    "every other negated": lambda value, *_: value * torch.tensor([1, -1]).repeat(len(value) // 2),
    "halves exchanged": lambda value, *_: value.roll(len(value) // 2),
    "transposed": lambda value, *_: value.view(100, -1).t().reshape(-1),
    "two signs": lambda value, first, second: _flip(_flip(value, 4 * first + 3, 7), 4 * second + 3, 7),
    "elements exchanged": _swap,
    "rows exchanged": lambda value, first, second: (
        value.view(100, -1)[torch.arange(100).roll(1 + first % 99)].view(-1) if first < second else value
    ),
    "doubled": lambda value, *_: value * 2,
    "zero": lambda value, *_: torch.zeros_like(value),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16]), SIZES)
def test_any_change_of_values_changes_the_digest(
    change: str, first: int, second: int, kind: torch.dtype, size: int
) -> None:
    value = _drawn(100 * (1 + size // 100), kind=kind)
    changed = CHANGES[change](value.clone(), first, second)
    same = torch.equal(changed.view(torch.uint8), value.view(torch.uint8))
    assert (digest_tensors({"a": value}) == digest_tensors({"a": changed})) == same


def test_any_change_of_names_types_and_shapes_changes_the_digest() -> None:
    tensors = _tensors()
    weight, bias = tensors.pop("block.weight"), tensors.pop("block.bias")
    variants = [
        {**tensors, "block.weight": weight, "block.bias": bias},
        {**tensors, "block.weight": bias, "block.bias": weight},
        {**tensors, "block.weights": weight, "block.bias": bias},
        {**tensors, "block.weight": weight.view(4, 3), "block.bias": bias},
        {**tensors, "block.weight": weight.view(torch.int32), "block.bias": bias},
        {**tensors, "block.weight": weight},
        {**tensors, "block.weight": torch.cat([weight.view(-1), torch.zeros(2)]), "block.bias": bias},
        tensors,
        {name: value for name, value in tensors.items() if name != "none"},
    ]
    assert len({digest_tensors(variant) for variant in variants}) == len(variants)


def test_the_digest_ignores_order_layout_and_graph() -> None:
    tensors = _tensors()
    other = dict(reversed(tensors.items()))
    other["block.weight"] = tensors["block.weight"].t().contiguous().t().requires_grad_(True)
    assert digest_tensors(other) == digest_tensors(tensors)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 63), SIZES)
def test_one_bit_turned_over_in_every_word_shows(bit: int, size: int) -> None:
    """Also the highest, whose changes add up to 0 mod 2^64 two by two."""
    words = _drawn(2 * size + 2).view(torch.int64)
    turned = words ^ (-(2**63) if bit == 63 else 1 << bit)
    assert digest_tensors({"a": turned}) != digest_tensors({"a": words})


def test_weights_keep_bits_names_and_types() -> None:
    tensors = _tensors()
    published = Weights.of(tensors, 7, "run")
    assert published.stamp == PolicyStamp(7, digest_tensors(tensors), "run")
    back = copy.deepcopy(published).tensors(published.stamp)
    assert {name: value.dtype for name, value in back.items()} == {n: v.dtype for n, v in tensors.items()}
    assert digest_tensors(back) == published.stamp.digest


@pytest.mark.parametrize("change", [{"version": 8}, {"digest": "0" * 64}, {"run_id": "other"}])
def test_another_stamp_is_refused(change: dict[str, object]) -> None:
    published = Weights.of(_tensors(), 7, "run")
    with pytest.raises(WeightsError, match="version 7"):
        published.tensors(replace(published.stamp, **change))  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=9))
def test_the_order_of_metadata_is_its_names_and_nothing_else_changes(metadata: dict[str, str]) -> None:
    tensors = {"a": _drawn(12)}
    files = [safetensors.torch.save(tensors, metadata) for _ in range(3)]
    (ordered,) = {order_metadata(data) for data in files}
    header = json.loads(ordered[8 : 8 + int.from_bytes(ordered[:8], "little")])
    assert list(header.get("__metadata__", {}).items()) == sorted(metadata.items())
    assert digest_tensors(safetensors.torch.load(ordered)) == digest_tensors(tensors)
    assert order_metadata(ordered) == ordered
