"""What one reward did lately: how fast, how consistent, and how its shadow compares. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from common.trajectory import Float64, RewardScores
from reward_service.contract.results import NoShadow, Reply, RewardFailure


@dataclass(frozen=True)
class Agreement:
    """Sums over images of a shadow's rewards x and the used ones y, from which their correlation follows.

    images: how many; mean_x, mean_y: means; xx, yy, xy: sums of products of deviations from the means.
    """

    images: int = 0
    mean_x: float = 0.0
    mean_y: float = 0.0
    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0

    def with_group(self, x: Float64, y: Float64) -> Agreement:
        """One more group, x and y (B,): the pairwise update of means and products (Chan and others, 1979)."""
        added = len(x)
        images = self.images + added
        share = added / images
        from_x, from_y = float(x.mean()) - self.mean_x, float(y.mean()) - self.mean_y
        scale = self.images * share
        dx, dy = x - x.mean(), y - y.mean()
        return Agreement(
            images=images,
            mean_x=self.mean_x + from_x * share,
            mean_y=self.mean_y + from_y * share,
            xx=self.xx + float(dx @ dx) + from_x * from_x * scale,
            yy=self.yy + float(dy @ dy) + from_y * from_y * scale,
            xy=self.xy + float(dx @ dy) + from_x * from_y * scale,
        )

    @property
    def correlation(self) -> float:
        """Pearson's, -1 to 1; NaN where either is constant."""
        spread = math.sqrt(self.xx) * math.sqrt(self.yy)
        return self.xy / spread if spread > 0.0 else math.nan


@dataclass(frozen=True)
class RewardReport:
    """Sums over the groups that one reward answered.

    groups: answered with a part. latency_s: from sending a group to its answer. busy_s: of the scorer.
    residual: of scores, see RewardScores. shadow_groups, shadow_failures: groups a shadow answered, or not.
    """

    groups: int = 0
    latency_s: float = 0.0
    busy_s: float = 0.0
    residual: float = 0.0
    shadow_groups: int = 0
    shadow_failures: int = 0
    agreement: Agreement = Agreement()

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
        if isinstance(reply.shadow, NoShadow):
            return report
        return report._with_shadow(reply.outcome, reply.shadow)

    def _with_shadow(self, part: RewardScores, shadow: RewardScores | RewardFailure) -> RewardReport:
        if isinstance(shadow, RewardFailure) or shadow.rewards.shape != part.rewards.shape:
            return replace(self, shadow_failures=self.shadow_failures + 1)
        return replace(
            self,
            shadow_groups=self.shadow_groups + 1,
            agreement=self.agreement.with_group(shadow.rewards, part.rewards),
        )

    def metrics(self, name: str) -> dict[str, float]:
        """The metrics of common.cluster.metrics about this reward; none where it answered nothing."""
        if not self.groups:
            return {}
        found = {
            f"reward_latency_s/{name}": self.latency_s / self.groups,
            f"reward_busy_s/{name}": self.busy_s,
            f"reward_residual/{name}": self.residual / self.groups,
        }
        if self.shadow_groups or self.shadow_failures:
            found[f"shadow/{name}/failures"] = float(self.shadow_failures)
        if self.shadow_groups:
            found[f"shadow/{name}/reward_mean"] = self.agreement.mean_x
        if math.isfinite(self.agreement.correlation):
            found[f"shadow/{name}/correlation"] = self.agreement.correlation
        return found
