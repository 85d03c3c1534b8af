"""What recovery costs while nothing fails: digests, snapshots and checkpoints of the quickstart."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.options import QUICKSTART
from benchmarks.report import RESULTS
from common.config.load import load_config
from common.model.weights import digest_tensors
from learner.build import build_learner
from learner.learner import Learner
from learner.parallel import SingleRank
from learner.state import export_snapshot, export_state

REPEATS = 5
DIGESTS = 3
"""On the way of one epoch's weights: when they are packed, when an actor unpacks them, and in its module."""


@dataclass(frozen=True)
class Cost:
    """Median seconds of the learner. epoch_s: of the quickstart's epoch, as benchmarks.loop measured it."""

    digest_s: float
    snapshot_s: float
    checkpoint_s: float
    epoch_s: float

    @property
    def figures(self) -> dict[str, str]:
        """In words, as shares of an epoch."""
        parts = {
            f"digests, {DIGESTS} an epoch": DIGESTS * self.digest_s,
            "snapshot after an epoch (the learner's copy)": self.snapshot_s,
            "checkpoint (the learner's files; written in the background)": self.checkpoint_s,
        }
        return {
            name: f"{1000 * seconds:.1f} ms, {100 * seconds / self.epoch_s:.2f} % of an epoch of the "
            f"quickstart ({self.epoch_s:.1f} s)"
            for name, seconds in parts.items()
        }


def measure_cost() -> Cost:
    """Time them with the quickstart's learner, which trains all weights of the embedded model."""
    learner = build_learner(load_config(QUICKSTART), "chaos", SingleRank())
    _step(learner)
    loop = json.loads((RESULTS / "loop.json").read_text())
    return Cost(
        digest_s=_median_s(lambda: digest_tensors(learner.parameters)),
        snapshot_s=_median_s(lambda: export_snapshot(learner)),
        checkpoint_s=_median_s(lambda: export_state(learner)),
        epoch_s=statistics.median(loop["raw"]["epochs"]["ours_s"]),
    )


def _step(learner: Learner) -> None:
    """One step of the optimizer, which from then on has a state to save."""
    for value in learner.parameters.values():
        value.grad = torch.zeros_like(value)
    learner.optimizer.step()


def _median_s(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
