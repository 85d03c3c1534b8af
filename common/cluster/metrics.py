"""The table of metrics: every number a run reports, with its unit and meaning. Names are the tracker's.

A name in angle brackets stands for one path segment: `reward/<part>/mean` covers `reward/aesthetic/mean`.
`check_metrics` refuses a report that uses any other name, so a metric that is not described here cannot be.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

PLACEHOLDERS: dict[str, str] = {
    "part": r"[A-Za-z0-9_.\- ]+",
    "score": r"[A-Za-z0-9_.\- ]+",
    "set": "seen|unseen",
    "step": "[0-9]+",
    "role": "actors|reward|learner",
    "alarm": "[a-z_]+",
    "statistic": "[a-z0-9_]+",
}
"""What each placeholder may stand for, as a regular expression."""


INEXACT = ("time/", "throughput/", "faults/", "reward_latency_s/", "reward_busy_s/", "shadow/", "1 progress/")
"""What metrics begin with that depend on more than the seed; the tracker's progress repeats a throughput."""


class MetricKind(Enum):
    """gauge = a state: its last value counts. counter = an amount >= 0: the sum counts. histogram = one of
    many sizes: how many there were of each counts (live metrics only)."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class MetricDefinition:
    """One metric. name: path, with placeholders; unit: "" where it has none."""

    name: str
    unit: str
    description: str
    kind: MetricKind = MetricKind.GAUGE

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        around = [re.escape(text) for text in re.split(r"<\w+>", self.name)]
        named = [f"(?P<{name}>{PLACEHOLDERS[name]})" for name in self.placeholders]
        return re.compile("".join(text + value for text, value in zip(around, [*named, ""], strict=True)))

    @property
    def placeholders(self) -> tuple[str, ...]:
        """Names of the placeholders, in order."""
        return tuple(re.findall(r"<(\w+)>", self.name))

    def values_in(self, name: str) -> dict[str, str]:
        """What the placeholders stand for in a reported name; ValueError where it is not this metric's."""
        found = self._pattern.fullmatch(name)
        if found is None:
            raise ValueError(f"{name!r} is not an instance of the metric {self.name!r}")
        return found.groupdict()

    def covers(self, name: str) -> bool:
        """Whether a reported name is an instance of this metric."""
        return self._pattern.fullmatch(name) is not None


def _gauge(name: str, unit: str, description: str) -> MetricDefinition:
    return MetricDefinition(name, unit, description, MetricKind.GAUGE)


def _counter(name: str, unit: str, description: str) -> MetricDefinition:
    return MetricDefinition(name, unit, description, MetricKind.COUNTER)


METRICS: tuple[MetricDefinition, ...] = (
    _gauge("reward/mean", "reward", "Mean over training images of the weighted sum of raw rewards."),
    _gauge("reward/within_group_std", "reward", "Spread (std) over a prompt's images, mean over prompts."),
    _gauge("reward/<part>/mean", "raw score", "Mean raw score of one reward over training images."),
    _gauge(
        "reward_version/<part>",
        "",
        "Number of the reward's version that scored the epoch's last group, 1 = the run's first; a step is a "
        "swap (reward_versions.json names them).",
    ),
    _gauge(
        "reward_residual/<part>",
        "raw score",
        "Root mean square of what a judge's differences are not explained by one number an image, mean over "
        "groups; 0 for a scorer that gives each image a number.",
    ),
    _gauge("reward_latency_s/<part>", "s", "From sending a group to its answer, mean over groups."),
    _gauge("reward_busy_s/<part>", "s", "Time that one reward's scorer worked, all its processes together."),
    _gauge("shadow/<part>/reward_mean", "raw score", "Mean raw score by the reward's unused shadow version."),
    _gauge(
        "shadow/<part>/correlation",
        "",
        "Pearson's correlation over images of the shadow version's scores with the used ones.",
    ),
    _counter("shadow/<part>/failures", "groups", "Groups that the shadow version failed to score in time."),
    _gauge(
        "eval/<set>/<score>",
        "raw score",
        "Mean over the evaluated prompts (images averaged first); reward = trained sum.",
    ),
    _gauge("eval/width95/<set>/<score>", "raw score", "Half-width of its 95 % interval, over prompts."),
    _gauge(
        "objective/<statistic>",
        "",
        "loss: at the epoch's first update. Others: named by the objective (docs/algorithm.md), mean over "
        "the epoch's updates.",
    ),
    _gauge(
        "policy/kl_to_reference",
        "nats per trajectory",
        "Unbiased estimate of KL(behaviour || reference) of whole trajectories: the mean over sampled "
        "trajectories of log pi_old - log pi_ref, summed over stochastic steps and elements. Only where the "
        "objective needs the reference. With data.mode offline old is the policy as the epoch starts, and "
        "the trajectories are others', so it is no KL.",
    ),
    _gauge(
        "policy/log_ratio_mismatch_max",
        "nats per element",
        "Largest |log pi(learner) - log pi(sampler)| of any step at unchanged weights, mean over C H W: "
        "0 up to rounding.",
    ),
    _gauge("policy/age_epochs", "epochs", "Epochs between the weights sampled with and those trained."),
    _gauge("policy/version", "updates", "Optimizer updates behind the published weights."),
    _gauge("optimizer/gradient_norm", "", "L2 norm of the gradient before clipping, mean over the updates."),
    _gauge(
        "policy/log_ratio_share_step_<step>",
        "",
        "A stochastic step's share of how much a prompt's images differ in the summed log ratio to the "
        "reference, at the epoch's last update; a step near 1 outweighs the others.",
    ),
    _gauge(
        "optimizer/gradient_norm_step_<step>",
        "",
        "L2 norm of the part of the gradient from one denoising step (0 = noisiest).",
    ),
    _counter(
        "optimizer/skipped_updates",
        "updates",
        "Updates not made, because there was nothing to learn or a number was not finite.",
    ),
    _counter(
        "optimizer/bad_updates",
        "updates",
        "Updates not made because a loss, log-prob or gradient was not finite.",
    ),
    _counter(
        "work/actor_passes",
        "passes",
        "Passes of one latent through the network that sampled the epoch's groups, the reference's too. "
        "Classifier-free guidance takes two a prediction.",
    ),
    _counter(
        "work/learner_passes",
        "passes",
        "Passes of one latent through the network that the epoch's updates took, of all ranks: 1 forward, "
        "2 backward.",
    ),
    _counter("work/reward_queries", "images", "Images that were sampled and scored to train on."),
    _gauge("time/epoch_s", "s", "Wall time from the epoch's first task to its published weights."),
    _gauge("time/evaluation_s", "s", "Wall time of an evaluation of all prompt sets."),
    _gauge("time/<role>_busy_s", "s", "Time a role worked during the epoch, mean over its processes."),
    _gauge(
        "time/<role>_idle_share",
        "share",
        "Share of the epoch's wall time in which a role waited, mean over its processes.",
    ),
    _gauge("throughput/images_per_s", "images/s", "Training images sampled, scored and learned a second."),
    _gauge("throughput/actors_ready", "actors", "Actors that take tasks, mean over the epoch's time."),
    _counter(
        "transport/bytes_moved", "bytes", "Bytes of trajectories, images and weights put in the object store."
    ),
    _gauge("alarms/<alarm>", "", "1 in an epoch that raises this alarm, else 0; see docs/operations.md."),
    _counter("faults/dropped_groups", "groups", "Prompts left out because no score could be had."),
    _counter("faults/retried_groups", "groups", "Prompts whose scoring failed and was tried again."),
    _counter("faults/actor_restarts", "restarts", "Actors that died and were replaced."),
    _counter("faults/learner_restarts", "restarts", "Times that the learner died and was started again."),
    _counter("faults/redone_tasks", "tasks", "Sampling tasks done again after their actor died."),
)


def definition_of(name: str) -> MetricDefinition:
    """The metric that a reported name is an instance of.

    Raises ValueError naming the nearest metrics where there is none.
    """
    for metric in METRICS:
        if metric.covers(name):
            return metric
    nearest = difflib.get_close_matches(name, [metric.name for metric in METRICS], n=3, cutoff=0.4)
    hint = f"nearest: {', '.join(nearest)}" if nearest else "see common/cluster/metrics.py for all of them"
    raise ValueError(f"{name!r} is no metric of the table; {hint}")


def check_metrics(names: Iterable[str]) -> None:
    """Check that every reported name (or key of a mapping) is in the table.

    Raises ValueError naming the nearest ones.
    """
    for name in names:
        definition_of(name)


def exact_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those that an epoch that is done again gives again to the bit: neither times nor counts of faults."""
    return {name: value for name, value in metrics.items() if not name.startswith(INEXACT)}


def metrics_markdown(statistics: Sequence[MetricDefinition] = ()) -> str:
    """The table as Markdown, for people who look at a run. statistics: of the run's objective."""
    rows = ["| metric | unit | kind | meaning |", "| --- | --- | --- | --- |"]
    for metric in (*METRICS, *statistics):
        meaning = metric.description.replace("|", "\\|")
        rows.append(f"| `{metric.name}` | {metric.unit} | {metric.kind.value} | {meaning} |")
    return "\n".join(rows) + "\n"
