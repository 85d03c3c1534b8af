"""What one reward did lately: how fast, how consistent, and how its shadow compares. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from common.trajectory import Float64
from reward_service.contract.results import Reply, RewardFailure


@dataclass(frozen=True, eq=False)
class RewardReport:
    """What one reward answered, since the last report.

    groups: answered with a part. latency_s: from sending a group to its answer. busy_s: of the scorer.
    residual: of scores, see RewardScores. All three are sums over groups. shadow: of each group that a shadow
    answered, its rewards and the used ones, (B,) each. shadow_failures: groups that it did not answer.
    """

    groups: int = 0
    latency_s: float = 0.0
    busy_s: float = 0.0
    residual: float = 0.0
    shadow: tuple[tuple[Float64, Float64], ...] = ()
    shadow_failures: int = 0

    def with_reply(self, reply: Reply, latency_s: float) -> RewardReport:
        """One more answer. A shadow's part that does not fit the used one counts as its failure."""
        report = replace(self, busy_s=self.busy_s + reply.busy_s)
        if isinstance(reply.outcome, RewardFailure):
            return report
        report = replace(
            report,
            groups=report.groups + 1,
            latency_s=report.latency_s + latency_s,
            residual=report.residual + reply.outcome.residual,
        )
        if reply.shadow is None:
            return report
        used = reply.outcome.rewards
        if isinstance(reply.shadow, RewardFailure) or reply.shadow.rewards.shape != used.shape:
            return replace(report, shadow_failures=report.shadow_failures + 1)
        return replace(report, shadow=(*report.shadow, (reply.shadow.rewards, used)))

    def metrics(self, name: str) -> dict[str, float]:
        """The metrics of common.cluster.metrics about this reward; none where it answered nothing."""
        if not self.groups:
            return {}
        found = {
            f"reward_latency_s/{name}": self.latency_s / self.groups,
            f"reward_busy_s/{name}": self.busy_s,
            f"reward_residual/{name}": self.residual / self.groups,
        }
        if self.shadow or self.shadow_failures:
            found[f"shadow/{name}/failures"] = float(self.shadow_failures)
        if self.shadow:
            said, used = (np.concatenate(rewards) for rewards in zip(*self.shadow, strict=True))
            found[f"shadow/{name}/reward_mean"] = float(said.mean())
            correlation = _correlation(said, used)
            if math.isfinite(correlation):
                found[f"shadow/{name}/correlation"] = correlation
        return found


def _correlation(x: Float64, y: Float64) -> float:
    """Pearson's of (N,) and (N,), -1 to 1; NaN where either is constant, as one number is."""
    if np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return math.nan
    # Deviations may be too small to be squared.
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.corrcoef(x, y)[0, 1])
