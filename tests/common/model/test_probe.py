"""The probe shows whether trained weights act, and leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import WeightsError
from common.model.guidance import ClassifierFree
from common.model.loading import load_policy
from common.model.policy import Policy
from common.model.probe import Probe
from common.model.steps import Steps
from tests.tiny_config import make_config

KINDS = {"lora": {"kind": "lora", "rank": 2, "alpha": 6}, "full": {"kind": "full"}}
both_kinds = pytest.mark.parametrize("kind", sorted(KINDS))


def loaded(pipeline: Path, folder: Path, kind: str, **overrides: Any) -> tuple[Policy, Steps]:
    return load_policy(make_config(pipeline, folder, {"policy": KINDS[kind], **overrides}))


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in policy.trainable.parameters().items()}


def move(policy: Policy, size: float) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in policy.trainable.parameters().values():
            value.add_(size * torch.randn(value.shape, generator=generator))


@both_kinds
def test_every_process_sees_the_same_and_a_change_shows(
    tiny_pipeline: Path, tmp_path: Path, kind: str
) -> None:
    policy, steps = loaded(tiny_pipeline, tmp_path, kind)
    other, _ = loaded(tiny_pipeline, tmp_path, kind)
    probe = Probe.of(policy, steps)
    before = probe.output(policy)
    assert torch.equal(before, Probe.of(other, steps).output(other))
    assert not before.requires_grad
    move(policy, 1e-3)
    assert not torch.equal(before, probe.output(policy))
    probe.check_influence(policy, "An update was made")


@both_kinds
def test_guidance_and_autocast_stay_out_of_it(tiny_pipeline: Path, tmp_path: Path, kind: str) -> None:
    policy, steps = loaded(tiny_pipeline, tmp_path, kind)
    probe = Probe.of(policy, steps)
    guided = replace(policy, guided=replace(policy.guided, guidance=ClassifierFree(7.0), autocast=True))
    assert torch.equal(probe.output(policy), probe.output(guided))


@both_kinds
def test_a_change_too_small_to_show_is_no_error_and_leaves_no_trace(
    tiny_pipeline: Path, tmp_path: Path, kind: str
) -> None:
    policy, steps = loaded(tiny_pipeline, tmp_path, kind)
    probe = Probe.of(policy, steps)
    own, output = weights(policy), probe.output(policy)
    probe.check_influence(policy, "An update was made")
    assert all(torch.equal(value, own[name]) for name, value in policy.trainable.parameters().items())
    assert torch.equal(probe.output(policy), output)


def test_an_adapter_that_is_switched_off_is_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    policy, steps = loaded(tiny_pipeline, tmp_path, "lora")
    unet: Any = policy.guided.network
    unet.disable_adapters()
    probe = Probe.of(policy, steps)
    move(policy, 1.0)
    own = weights(policy)
    with pytest.raises(WeightsError, match=r"An update was made, .* they act on nothing"):
        probe.check_influence(policy, "An update was made")
    assert all(torch.equal(value, own[name]) for name, value in policy.trainable.parameters().items())
