"""Signs that a training goes wrong, judged by an epoch's metrics and those of the epochs before. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from common.config.safety import GuardsSection

ALARMS = ("bad_numbers", "gradient_norm", "log_prob_mismatch", "reward_spread")
RECENT_EPOCHS = 20
FIRST_EPOCHS = 5
"""Epochs that give a spread to compare with; and as many before a gradient norm is judged."""


@dataclass(frozen=True)
class EpochSigns:
    """What is remembered of an epoch.

    bad_updates: of the epoch. row: updates skipped for a bad number since the last one that was made.
    mismatch: largest deviation of the learner's log-probs from the actors' in nats per latent element, and
    clip_range: the objective's, on the same scale; infinite = no clip.
    alarms: those that the epoch raised, in words by name.
    """

    gradient_norm: float
    reward_spread: float
    bad_updates: int
    row: int
    mismatch: float = 0.0
    clip_range: float = math.inf
    alarms: dict[str, str] = field(default_factory=dict)


def gradient_norm_alarm(norm: float, earlier: Sequence[float], factor: float) -> str:
    """Why the norm is too large against those of earlier epochs, the last one last; "" where it is not."""
    known = [value for value in earlier if math.isfinite(value)][-RECENT_EPOCHS:]
    if len(known) < FIRST_EPOCHS or not math.isfinite(norm):
        return ""
    usual = statistics.median(known)
    if not usual > 0 or norm <= factor * usual:
        return ""
    return f"gradient norm {norm:.3g}, {norm / usual:.3g} times the median of the last {len(known)} epochs"


def spread_alarm(spread: float, first: Sequence[float], share: float) -> str:
    """Why the spread of rewards is too small against that of the run's first epochs; "" where it is not."""
    if len(first) < FIRST_EPOCHS:
        return ""
    usual = statistics.median(first[:FIRST_EPOCHS])
    if not usual > 0 or not spread < share * usual:
        return ""
    return (
        f"rewards of a prompt's images spread by {spread:.3g}, {spread / usual:.2g} of the median of the "
        f"first {FIRST_EPOCHS} epochs"
    )


def bad_numbers_alarm(bad_updates: int) -> str:
    """Why an epoch with skipped updates is one to look at; "" where there were none."""
    return f"{bad_updates} updates skipped, because a number was not finite" if bad_updates else ""


def mismatch_alarm(mismatch: float, clip_range: float) -> str:
    """Why a clip would act on rounding alone; "" where it would not."""
    if not mismatch > clip_range:
        return ""
    return (
        f"the learner's log-probs differ from the actors' by up to {mismatch:.3g} nats per element at "
        f"unchanged weights, more than the clip range of {clip_range:.3g}: use a higher model.precision or a "
        "larger objective.clip_range"
    )


def judge(
    signs: EpochSigns, history: Mapping[int, EpochSigns], epoch: int, section: GuardsSection
) -> dict[str, str]:
    """The alarms that an epoch raises, in words by name. history: by number of the epoch, from 1."""
    earlier = [history[number] for number in sorted(history) if number < epoch]
    first = [history[number].reward_spread for number in range(1, FIRST_EPOCHS + 1) if number in history]
    norms = [one.gradient_norm for one in earlier]
    found = {
        "bad_numbers": bad_numbers_alarm(signs.bad_updates),
        "gradient_norm": gradient_norm_alarm(signs.gradient_norm, norms, section.gradient_norm_factor),
        "log_prob_mismatch": mismatch_alarm(signs.mismatch, signs.clip_range),
        "reward_spread": spread_alarm(signs.reward_spread, first, section.spread_share)
        if epoch > FIRST_EPOCHS
        else "",
    }
    return {name: text for name, text in found.items() if text}
