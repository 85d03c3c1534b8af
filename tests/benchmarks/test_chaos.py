"""What chaos draws, and how it reads the times of a run's epochs. (The runs themselves: python -m ….)"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.chaos import Part
from benchmarks.chaos_kills import KINDS, LATEST_MS, PHASES, Recovery, draw, epoch_times, full_throughput
from benchmarks.chaos_run import Outcome
from common.config.load import load_config
from driver.run.prompts import open_prompts


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_every_kind_and_phase_comes_about_equally_often(seed: int) -> None:
    kills = draw(seed, 20, epochs=10)
    assert kills == draw(seed, 20, epochs=10)
    kinds, phases = Counter(kill.kind for kill in kills), Counter(kill.phase for kill in kills)
    assert set(kinds) == set(KINDS)
    assert set(phases) == set(PHASES)
    assert max(kinds.values()) - min(kinds.values()) <= 1
    assert max(phases.values()) - min(phases.values()) <= 1
    assert all(1 <= kill.epoch <= 6 and 0 <= kill.delay_ms <= LATEST_MS for kill in kills)


def test_seeds_draw_different_kills() -> None:
    assert len({tuple(draw(seed, 20, epochs=10)) for seed in range(10)}) == 10


def test_full_throughput_is_the_first_quick_epoch_after_the_kill() -> None:
    after = [(4, 9.0), (5, 10.2), (6, 10.9), (7, 11.5)]
    assert epoch_times(after) == pytest.approx([1.2, 0.7, 0.6])
    assert full_throughput(after, epoch_s=0.5) == 10.9
    assert full_throughput(after, epoch_s=0.1) == 0.0
    assert full_throughput(after[:1], epoch_s=0.5) == 0.0


def test_outcomes_differ_by_a_bit_or_by_what_is_missing() -> None:
    first = Outcome({"a": b"\x00", "b": b"1"})
    assert first.differences(Outcome({"b": b"1", "a": b"\x00"})) == []
    assert first.differences(Outcome({"a": b"\x01", "c": b"1"})) == ["a", "b", "c"]


def test_what_was_found_is_kept_for_the_same_kills_only(tmp_path: Path) -> None:
    found = [
        Recovery(kill, "epoch 3, sampling", 1.5, 2.5, finished=True, differences=("a", "b"))
        for kill in draw(3, 2, epochs=10)
    ]
    part = Part(tmp_path / "results", [2, 3, "run.epochs=10"])
    assert part.read() == []
    part.write(found)
    assert Part(tmp_path / "results", [2, 3, "run.epochs=10"]).read() == found
    assert Part(tmp_path / "results", [2, 4, "run.epochs=10"]).read() == []
    part.end()
    assert part.read() == []


def test_the_runs_prompts_are_there() -> None:
    prompts = load_config(Path("benchmarks/chaos.yaml")).prompts
    assert len(open_prompts(prompts.train)) >= 4
    assert len(open_prompts(prompts.unseen)) >= 2
