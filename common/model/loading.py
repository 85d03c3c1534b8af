"""From the configuration to a loaded policy: what actor, learner and the command-line tools share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common.config.schema import Config
from common.errors import ModelError, WeightsError
from common.model.families.stable_diffusion import check_model_folder, load_family, read_scheduler_config
from common.model.policy import Policy
from common.model.schedules import ddim_steps
from common.model.steps import Chosen, Steps
from common.model.weights import digest_tensors


def choose_device(wanted: str) -> torch.device:
    """auto = CUDA where this process sees a GPU."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def check_model(config: Config) -> None:
    """Raise ModelError where the model's folder or its noise schedule cannot serve this configuration.

    Reads small JSON files only. What a hub id holds is known when it is loaded.
    """
    check_model_folder(config.model.path)
    if Path(config.model.path).is_dir():
        _steps(config, read_scheduler_config(Path(config.model.path)))


def load_policy(config: Config) -> tuple[Policy, Steps]:
    """The policy at version 0, that is the pretrained model, and its steps. Raises ModelError."""
    family = load_family(
        config.model.path, choose_device(config.model.device), config.model.revision, config.model.variant
    )
    steps = replace(_steps(config, family.scheduler_config), device=family.device)
    policy = Policy.build(family, config.policy, config.sampling.guidance_scale, config.model.precision)
    return policy, steps


def digest_base(policy: Policy) -> str:
    """Digest (hex) of the pretrained model: all that an adapter is added to, and what decodes and embeds.

    Of a policy just loaded: a fully trained UNet is the pretrained one only until then.
    """
    tensors = policy.family.tensors()
    return digest_tensors({name: value for name, value in tensors.items() if "lora_" not in name})


def check_base(base: str, wanted: str, who: str) -> None:
    """Raise WeightsError where a process has loaded another pretrained model than the learner.

    base, wanted: its digest and the learner's. who: the process and its node, in words.
    """
    if base != wanted:
        raise WeightsError(
            f"{who} has loaded another pretrained model (digest {base[:12]}) than the learner "
            f"({wanted[:12]}). Is model.path the same on all nodes, and has the hub's revision changed? Pin "
            "model.revision."
        )


def _steps(config: Config, scheduler: Mapping[str, Any]) -> Steps:
    sampling = config.sampling
    if sampling.sampler.kind != "ddim":
        raise ModelError(f"sampling.sampler is {sampling.sampler.kind}, which is for flow models; take ddim.")
    chosen = Chosen(sampling.named_stochastic_steps, sampling.max_step_gain)
    return ddim_steps(scheduler, sampling.steps, sampling.sampler.eta, chosen)
