"""Conditions are rearranged without mixing items."""

from __future__ import annotations

import torch

from common.model.conditioning import Conditioning


def _condition() -> Conditioning:
    return Conditioning(
        {"states": torch.arange(12.0).view(3, 2, 2), "pooled": torch.tensor([[10.0], [11.0], [12.0]])}
    )


def test_repeat_keeps_an_items_copies_together() -> None:
    repeated = _condition().repeat(2)
    assert repeated.tensors["pooled"].flatten().tolist() == [10, 10, 11, 11, 12, 12]
    assert torch.equal(repeated.tensors["states"][::2], _condition().tensors["states"])


def test_rows_picks_items_from_every_tensor() -> None:
    picked = _condition().rows(torch.tensor([2, 0]))
    assert picked.tensors["pooled"].flatten().tolist() == [12, 10]
    assert torch.equal(picked.tensors["states"], _condition().tensors["states"][[2, 0]])


def test_join_appends_the_other_items() -> None:
    joined = _condition().rows(torch.tensor([0])).join(_condition().rows(torch.tensor([1, 2])))
    for name, value in _condition().tensors.items():
        assert torch.equal(joined.tensors[name], value)
