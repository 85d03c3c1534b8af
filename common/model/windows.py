"""Where the window of an epoch lies, a function of the run's seed and the epoch: see steps.Window."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from common.config.training import FixedWindow, MovingWindow, RandomWindow, WholeWindow, WindowSection
from common.errors import ModelError
from common.model.steps import Steps, Window


def _fixed(section: FixedWindow, places: int, seed: int, epoch: int) -> int:
    return section.first


def _random(section: RandomWindow, places: int, seed: int, epoch: int) -> int:
    key = hashlib.sha256(f"window/{seed}/{epoch}".encode()).digest()[:16]
    return int(np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big"))).integers(places))


def _moving(section: MovingWindow, places: int, seed: int, epoch: int) -> int:
    return epoch // section.every_epochs % places


_BEGINS: dict[type[Any], Callable[[Any, int, int, int], int]] = {
    FixedWindow: _fixed,
    RandomWindow: _random,
    MovingWindow: _moving,
}


def windowed(steps: Steps, section: WindowSection) -> Steps:
    """Steps that draw noise in the epoch's window alone. Raises ModelError where it does not fit in."""
    if isinstance(section, WholeWindow):
        return steps
    count = len(steps.stochastic_steps)
    first, among = (section.first, 0) if isinstance(section, FixedWindow) else (0, section.among)
    places = min(among or count, count) - section.size + 1
    if first >= places:
        limit, larger = "", ""
        if among:
            limit, larger = f", of which sampling.window.among takes the first {among}", ", a larger among"
        raise ModelError(
            f"sampling.window takes {section.size} steps from number {first} of the stochastic ones on, but "
            f"these are {list(steps.stochastic_steps)}{limit}. Take a smaller size{larger}, or more "
            "stochastic steps (sampling.steps, sampling.max_step_gain)."
        )
    begin = partial(_BEGINS[type(section)], section, places)
    return replace(steps, window=Window(section.size, begin, repr(section)))
