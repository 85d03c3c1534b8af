"""The actor: a plain class that samples with exactly the weights its task names.

consumes: PromptTask and the WeightBlob it names. produces: TrajectoryGroup, ImageGroup, SampleReport.
waits for: nothing. unblocked by: a task.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from actors.sampler import sample_group
from common.diffusion import StepDistribution
from common.errors import WeightsError
from common.policy import Denoiser, Policy
from common.trajectory import ImageGroup, PolicyStamp, PromptTask, TrajectoryGroup
from common.weights import WeightBlob, digest_tensors, unpack


@dataclass(frozen=True)
class SampleReport:
    """What the driver learns of a finished task.

    busy_s: seconds of work; nbytes: bytes of trajectories and pictures.
    """

    stamp: PolicyStamp
    images: int
    busy_s: float
    nbytes: int


class Actor:
    """Samples trajectories.

    Holds one version of the weights at a time; a task of another version loads it first.
    """

    def __init__(self, policy: Policy, reference: Denoiser, distribution: StepDistribution) -> None:
        self._policy = policy
        self._reference = reference
        self._distribution = distribution
        self._loaded: frozenset[PolicyStamp] = frozenset()

    def sample(self, task: PromptTask, blob: WeightBlob) -> tuple[TrajectoryGroup, ImageGroup, SampleReport]:
        """Do one task.

        Raises WeightsError where the weights are not, before or after loading, what the task names.
        """
        started = time.perf_counter()
        if task.stamp not in self._loaded:
            self._load(blob, task.stamp)
        trajectory, images = sample_group(task, self._policy, self._reference, self._distribution)
        report = SampleReport(
            stamp=task.stamp,
            images=task.images,
            busy_s=time.perf_counter() - started,
            nbytes=trajectory.nbytes + int(images.pixels.nbytes),
        )
        return trajectory, images, report

    def _load(self, blob: WeightBlob, stamp: PolicyStamp) -> None:
        self._loaded = frozenset()
        self._policy.load(unpack(blob, stamp))
        digest = digest_tensors(self._policy.trainable.parameters())
        if digest != stamp.digest:
            raise WeightsError(f"After loading {stamp} the policy's weights have digest {digest[:12]}.")
        self._loaded = frozenset({stamp})
