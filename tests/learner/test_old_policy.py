"""Whose trajectories are accepted, and around which policy the clip holds."""

from __future__ import annotations

import pytest
import torch

from common.errors import WeightsError
from common.trajectory import PolicyStamp
from learner.old_policy import Offline, Online

STAMPS = [PolicyStamp(version, f"{version}" * 64, "run") for version in range(4)]


def test_online_remembers_the_last_versions_only() -> None:
    experience = Online(remembered=2)
    with pytest.raises(WeightsError, match="did not publish"):
        experience.check(STAMPS[0])
    for stamp in STAMPS[:3]:
        experience.published(stamp)
        experience.check(stamp)
    experience.check(STAMPS[1])
    with pytest.raises(WeightsError, match=r"version 0 .* It knows: version 1 .*; version 2"):
        experience.check(STAMPS[0])


def test_publishing_unchanged_weights_again_forgets_nothing() -> None:
    """A skipped update leaves the version as it is; trajectories of the one before stay welcome."""
    experience = Online(remembered=2)
    for stamp in (STAMPS[0], STAMPS[1], STAMPS[1], STAMPS[1]):
        experience.published(stamp)
    experience.check(STAMPS[0])


def test_which_policy_is_old() -> None:
    sampled, current = torch.zeros(2, 3), torch.ones(2, 3)
    assert Online(1).log_prob(sampled, current) is sampled
    offline = Offline()
    offline.published(STAMPS[0])
    offline.check(PolicyStamp(99, "", "another run"))
    assert offline.log_prob(sampled, current) is current
