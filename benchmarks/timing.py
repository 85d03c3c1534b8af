"""Times of the sides of a comparison, taken in turns in one run, so that a busy machine slows all of them."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

Seconds = tuple[float, ...]


@dataclass(frozen=True)
class Times:
    """Of each timed call: wall time, and the CPU time of this process with all its threads."""

    wall: Seconds
    cpu: Seconds


@dataclass(frozen=True)
class Comparison:
    """Ours against a bare side that does the same work.

    items: units of work in one call of either side; unit: what they are; target: the least good ratio.
    """

    what: str
    items: int
    unit: str
    ours: Times
    bare: Times
    target: float

    @property
    def ratio(self) -> float:
        """Our units per second over the bare side's, from the medians of wall time."""
        return statistics.median(self.bare.wall) / statistics.median(self.ours.wall)

    @property
    def cpu_ratio(self) -> float:
        """The same in CPU time, which other processes on the machine disturb less."""
        return statistics.median(self.bare.cpu) / statistics.median(self.ours.cpu)

    @property
    def ours_per_s(self) -> float:
        """Units per second of our side, from the median."""
        return self.items / statistics.median(self.ours.wall)

    @property
    def bare_per_s(self) -> float:
        """Units per second of the bare side, from the median."""
        return self.items / statistics.median(self.bare.wall)

    @property
    def spread(self) -> tuple[float, float]:
        """The middle half of the ratios of neighbouring calls: how far noise moved the ratio in the run."""
        ratios = [bare / ours for bare, ours in zip(self.bare.wall, self.ours.wall, strict=True)]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
        return lower, upper

    @property
    def met(self) -> bool:
        """Whether the ratio reaches the target."""
        return self.ratio >= self.target


def alternate(
    sides: Sequence[Callable[[int], object]], repeats: int, warm_ups: int, device: torch.device
) -> list[Times]:
    """Call the sides in turns, A B A B, and time each call.

    Each side is called with the number of the turn, from 0 on; the first warm_ups turns are not timed.
    Returns the times of each side, `repeats` of them. Calls on a GPU are timed until it is done.
    """
    times: list[list[tuple[float, float]]] = [[] for _ in sides]
    for turn in range(warm_ups + repeats):
        taken = [seconds_of(lambda side=side: side(turn), device) for side in sides]  # type: ignore[misc]  # noqa: B023
        _show_progress(turn, warm_ups, repeats, [wall for wall, _ in taken])
        for seconds, one in zip(times, taken, strict=True):
            seconds.extend([one] if turn >= warm_ups else [])
    return [Times(*zip(*taken, strict=True)) for taken in times]


def seconds_of(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Wall time and CPU time of one call, until a GPU is done with it."""
    _finish(device)
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    _finish(device)
    return time.perf_counter() - wall, time.process_time() - cpu


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _show_progress(turn: int, warm_ups: int, repeats: int, walls: Sequence[float]) -> None:
    """One line that is written over, so that a long run shows that it goes on."""
    name = f"turn {turn + 1 - warm_ups} of {repeats}" if turn >= warm_ups else "warm-up"
    print(f"\r{name}: {', '.join(f'{wall:.2f} s' for wall in walls)}   ", end="", file=sys.stderr, flush=True)
    if turn + 1 == warm_ups + repeats:
        print(file=sys.stderr)
