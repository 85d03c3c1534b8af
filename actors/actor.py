"""The actor: a plain class that samples with exactly the weights its task names.

consumes: PromptTask and the WeightBlob it names. produces: TrajectoryGroup, images, SampleReport.
waits for: nothing. unblocked by: a task.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from actors.sampler import sample_group
from common.cluster.process_name import process_name
from common.errors import WeightsError
from common.model.policy import Denoiser, Policy
from common.model.probe import Probe
from common.model.steps import StepDistribution
from common.model.weights import WeightBlob, digest_tensors, unpack
from common.stopwatch import Busy, Stopwatch
from common.trajectory import PolicyStamp, PromptTask, TrajectoryGroup


@dataclass(frozen=True)
class SampleReport:
    """What the driver learns of a finished task.

    process: of the actor, host:pid. busy: its work; nbytes: bytes of trajectories and images.
    """

    stamp: PolicyStamp
    images: int
    process: str
    busy: Busy
    nbytes: int

    @property
    def busy_s(self) -> float:
        """Seconds of work."""
        return self.busy.seconds


Sample = tuple[TrajectoryGroup, NDArray[np.uint8], SampleReport]


@dataclass(frozen=True)
class _Held:
    """Weights as they were when the policy was last looked at. output: of the probe."""

    digest: str
    output: Tensor


class Actor:
    """Samples trajectories.

    Holds one version of the weights at a time; a task of another version loads it first.
    """

    def __init__(
        self, policy: Policy, reference: Denoiser, distribution: StepDistribution, probe: Probe
    ) -> None:
        self._policy = policy
        self._reference = reference
        self._distribution = distribution
        self._probe = probe
        self._loaded: frozenset[PolicyStamp] = frozenset()
        self._held: tuple[_Held, ...] = ()

    @staticmethod
    def of(policy: Policy, distribution: StepDistribution) -> Actor:
        """An actor of a policy just loaded, which is its own reference as long as nothing trains it."""
        return Actor(policy, policy.reference(), distribution, Probe.of(policy, distribution))

    def sample(self, task: PromptTask, blob: WeightBlob) -> Sample:
        """Do one task. Images are uint8 (B, height, width, 3).

        Raises WeightsError where the weights are not, before or after loading, what the task names, or where
        the policy predicts with them what it predicted with others.
        """
        started = Stopwatch.now()
        if task.stamp not in self._loaded:
            self._load(blob, task.stamp)
        trajectory, images = sample_group(task, self._policy, self._reference, self._distribution)
        report = SampleReport(
            stamp=task.stamp,
            images=task.images,
            process=process_name(),
            busy=started.until_now(),
            nbytes=trajectory.nbytes + int(images.nbytes),
        )
        return trajectory, images, report

    def _load(self, blob: WeightBlob, stamp: PolicyStamp) -> None:
        self._loaded = frozenset()
        tensors = unpack(blob, stamp)
        before = self._held[0] if self._held else self._look()
        self._policy.load(tensors)
        after = self._look()
        if after.digest != stamp.digest:
            raise WeightsError(f"After loading {stamp} the policy's weights have digest {after.digest[:12]}.")
        if after.digest != before.digest:
            change = f"An actor loaded {stamp} in place of weights of digest {before.digest[:12]}"
            self._probe.check_influence(self._policy, before.output, after.output, change)
        self._held = (after,)
        self._loaded = frozenset({stamp})

    def _look(self) -> _Held:
        return _Held(digest_tensors(self._policy.trainable.parameters()), self._probe.output(self._policy))
