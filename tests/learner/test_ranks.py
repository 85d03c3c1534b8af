"""Groups reach the ranks in waves, and only small answers come back. Ray's handles are stood in for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from learner.ranks import LearnerRanks
from tests.tiny_config import make_config


class Handle:
    """Records calls, as Ray's handle of a rank would take them."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls: list[tuple[Any, ...]] = []
        for name in ("accumulate", "publish", "agree"):
            setattr(self, name, self._method(name))

    def _method(self, name: str) -> Any:
        def remote(*given: Any) -> Any:
            self.calls.append((name, *given))
            return (f"stamp {self.number}", "weights") if name == "publish" else f"{name} {self.number}"

        return SimpleNamespace(remote=remote, options=lambda num_returns: SimpleNamespace(remote=remote))


@pytest.mark.parametrize(
    ("workers", "micro_batch", "images", "steps", "expected"),
    [(1, 16, 4, 4, 1), (1, 33, 4, 4, 2), (3, 48, 4, 4, 9), (4, 1, 4, 4, 4)],
)
def test_a_wave_fills_a_micro_batch_on_each_rank(
    tmp_path: Path, workers: int, micro_batch: int, images: int, steps: int, expected: int
) -> None:
    changes = {
        "learner.micro_batch_size": micro_batch,
        "sampling.images_per_prompt": images,
        "sampling.steps": steps,
        "sampling.stochastic_steps": "all",
    }
    ranks = [Handle(number) for number in range(workers)]
    assert LearnerRanks(make_config(tmp_path, tmp_path, changes), "run", ranks).wave_size == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"objective": {"kind": "raft", "pairs_per_image": 4}}, 4),
        ({"objective": {"kind": "nft", "pairs_per_image": 4}}, 1),
        ({"objective.extremes": 1}, 2),
        ({"sampling.stochastic_steps": (1, 2)}, 2),
        ({"optimizer.term_share": 0.3}, 3),
        ({"sampling.branch_at": (1, 2)}, 2),
    ],
)
def test_what_does_not_pass_leaves_room_for_other_groups(
    tmp_path: Path, changes: dict[str, Any], expected: int
) -> None:
    """4 images of 4 steps are 16 items. Of the tree, 7 pass: the first step is all images', 1 + 2 + 4."""
    whole = {"learner.micro_batch_size": 16, "sampling.stochastic_steps": "all"}
    config = make_config(tmp_path, tmp_path, {**whole, **changes})
    assert LearnerRanks(config, "run", [Handle(0)]).wave_size == expected


@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_every_rank_gets_its_part_of_a_wave_in_order_and_maybe_none(tmp_path: Path, count: int) -> None:
    ranks = [Handle(number) for number in range(3)]
    learner = LearnerRanks(make_config(tmp_path, tmp_path), "run", ranks)
    wave: Any = [(f"trajectory {n}", (f"score {n}", None)) for n in range(count)]
    assert learner.accumulate(wave) == [f"accumulate {rank.number}" for rank in ranks]
    for rank in ranks:
        numbers = range(rank.number, count, 3)
        expected = [(f"score {n}", None) for n in numbers], *(f"trajectory {n}" for n in numbers)
        assert rank.calls == [("accumulate", *expected)]


def test_only_the_first_rank_hands_out_weights(tmp_path: Path) -> None:
    ranks = [Handle(number) for number in range(3)]
    published = LearnerRanks(make_config(tmp_path, tmp_path), "run", ranks).publish()
    assert published.stamps == ["stamp 0", "agree 1", "agree 2"]
    assert published.weights == "weights"
    assert [rank.calls for rank in ranks[1:]] == [[("agree",)], [("agree",)]]
