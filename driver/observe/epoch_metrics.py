"""What an epoch measured, from its groups and update reports to the metrics of common.cluster.metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from actors.actor import SampleReport
from common.config.schema import Config
from common.trajectory import GroupScore, PolicyStamp
from learner.report import UpdateReport
from reward_service.client.report import RewardReport

ROUNDING = 1e-6
"""Of a float32's value: a few of its last digits, which the company of a batch may change."""

Reports = Sequence[Sequence[UpdateReport]]
Rewards = Mapping[str, RewardReport]


@dataclass(frozen=True)
class EpochTally:
    """Sums over the epoch's groups so far.

    means, spreads: each group's mean reward and standard deviation over its images. ages: updates between the
    weights
    sampled with and those trained. parts: each group's mean raw score by reward. untied: groups whose images
    got different rewards, by more than rounding. actor_passes: see SampleReport.
    """

    config: Config
    trajectories: int
    means: tuple[float, ...]
    spreads: tuple[float, ...]
    parts: tuple[dict[str, float], ...]
    ages: tuple[int, ...]
    actor_busy_s: float
    nbytes: int
    untied: int = 0
    actor_passes: int = 0

    @staticmethod
    def start(config: Config, weight_bytes: int) -> EpochTally:
        """Nothing yet but the weights that were published."""
        return EpochTally(config, 0, (), (), (), (), 0.0, weight_bytes)

    def with_group(self, score: GroupScore, report: SampleReport, current: PolicyStamp) -> EpochTally:
        """One more group, learned by a policy that is `current`."""
        rewards = score.rewards
        return replace(
            self,
            trajectories=self.trajectories + len(rewards),
            means=(*self.means, float(rewards.mean())),
            spreads=(*self.spreads, float(rewards.std())),
            parts=(*self.parts, {name: float(values.mean()) for name, values in score.parts.items()}),
            ages=(*self.ages, current.version - report.stamp.version),
            actor_busy_s=self.actor_busy_s + report.busy_s,
            nbytes=self.nbytes + report.nbytes,
            untied=self.untied + (not is_tied(score)),
            actor_passes=self.actor_passes + report.passes,
        )

    def nothing_differs(self, across_prompts: bool) -> bool:
        """Whether no rewards differ that are compared with each other: those of a prompt's images, or all."""
        means = np.array(self.means)
        same_means = float(np.ptp(means)) <= ROUNDING * float(np.abs(means).max())
        return not self.untied and (same_means or not across_prompts)

    def metrics(
        self, reports: Reports, rewards: Rewards, faults: dict[str, float], seconds: float
    ) -> dict[str, float]:
        """Every metric of the epoch. rewards: what each did in it, by name. faults: FaultCounter's. seconds:
        its wall time."""
        first = list(reports[0])
        every = [update[0] for update in reports]
        age = float(np.mean(self.ages)) if self.config.data.mode == "online" else 0.0
        return {
            "reward/mean": float(np.mean(self.means)),
            "reward/within_group_std": float(np.mean(self.spreads)),
            **{
                f"reward/{name}/mean": float(np.mean([part[name] for part in self.parts]))
                for name in self.config.rewards
            },
            "objective/loss": every[0].loss,
            **{
                f"objective/{name}": float(np.mean([report.stats[name] for report in every]))
                for name in every[0].stats
            },
            **_kl_to_reference(every[0]),
            **{
                f"policy/log_ratio_share_step_{step}": share
                for step, share in every[-1].log_ratio_shares.items()
            },
            "policy/log_ratio_mismatch_max": float(np.max([report.log_ratio_mismatch for report in first])),
            "policy/age_epochs": age / self.config.objective.updates_per_epoch,
            "policy/version": float(every[-1].version),
            "optimizer/gradient_norm": float(np.mean([report.gradient_norm for report in every])),
            "optimizer/skipped_updates": float(sum(not report.applied for report in every)),
            "optimizer/bad_updates": float(sum(report.outcome.is_bad for report in every)),
            **{
                f"optimizer/gradient_norm_step_{step}": norm
                for step, norm in first[0].step_gradient_norms.items()
            },
            "work/actor_passes": float(self.actor_passes),
            "work/learner_passes": float(sum(report.passes for update in reports for report in update)),
            "work/reward_queries": float(self.trajectories if self.config.data.mode == "online" else 0),
            **self._times(reports, rewards, faults, seconds),
            **reward_metrics(rewards, self.config.rewards),
            "throughput/images_per_s": self.trajectories / seconds,
            "transport/bytes_moved": float(self.nbytes),
            **faults,
        }

    def _times(
        self, reports: Reports, rewards: Rewards, faults: dict[str, float], seconds: float
    ) -> dict[str, float]:
        """Busy seconds and idle share of each role, mean over its processes."""
        ranks = len(reports[0])
        busy = {
            "actors": self.actor_busy_s / max(faults["throughput/actors_ready"], 1e-9),
            "reward": self._reward_busy_s(rewards),
            "learner": math.fsum(report.busy_s for update in reports for report in update) / ranks,
        }
        idle = {f"time/{role}_idle_share": max(0.0, 1.0 - value / seconds) for role, value in busy.items()}
        return {
            "time/epoch_s": seconds,
            **{f"time/{role}_busy_s": value for role, value in busy.items()},
            **idle,
        }

    def _reward_busy_s(self, rewards: Rewards) -> float:
        """Mean over the trained rewards' processes; those that run elsewhere count like embedded ones."""
        busy = math.fsum(rewards[name].busy_s for name in self.config.rewards if name in rewards)
        return busy / (len(self.config.rewards) * self.config.reward_service.replicas)


def is_tied(score: GroupScore) -> bool:
    """Whether a group's images got the same reward, or such as differ by the rounding of a float32 alone."""
    largest = float(np.abs(score.rewards).max(initial=0.0))
    return float(np.abs(score.differences).max(initial=0.0)) <= ROUNDING * largest


def _kl_to_reference(report: UpdateReport) -> dict[str, float]:
    """Nothing where the trajectories have no reference."""
    ratio = report.log_ratio_mean
    return {} if ratio is None else {"policy/kl_to_reference": ratio * report.latent_elements}


def reward_metrics(rewards: Rewards, names: Iterable[str]) -> dict[str, float]:
    """The metrics of the named rewards; of those that answered nothing there are none."""
    found: dict[str, float] = {}
    for name in names:
        if name in rewards:
            found |= rewards[name].metrics(name)
    return found
