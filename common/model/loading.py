"""From the configuration to a loaded policy: what actor, learner and the command-line tools share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from common.config.schema import Config
from common.config.training import LoraPolicy
from common.errors import ModelError, WeightsError
from common.model import families
from common.model.parts import Source
from common.model.policy import Policy
from common.model.steps import Steps
from common.model.trainable import check_targets
from common.model.weights import digest_tensors


def choose_device(wanted: str) -> torch.device:
    """auto = CUDA where this process sees a GPU. Raises ModelError where cuda is wanted and it sees none."""
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise ModelError(
            "model.device is cuda, and this process sees no GPU that its build of torch can use. Set "
            "model.device=auto or cpu; on a cluster give actors and learner GPUs (actors.gpus, learner.gpus)."
        )
    return torch.device(wanted if wanted != "auto" else "cuda" if has_gpu else "cpu")


def check_model(config: Config) -> None:
    """Raise ModelError where the model cannot serve this configuration. Loads no weights."""
    families.check_model(config.model, config.sampling)
    if isinstance(config.policy, LoraPolicy):
        check_targets(families.outline(config.model), config.policy.target_modules)


def load_policy(config: Config, network_only: bool = False) -> tuple[Policy, Steps]:
    """The policy at version 0, that is the pretrained model, and its steps. Raises ModelError.

    network_only: without text encoders and VAE, for a learner, whose trajectories carry their conditions.
    """
    source = Source(
        config.model,
        choose_device(config.model.device),
        network_only=network_only,
        trains_all=config.policy.kind == "full",
    )
    family = families.load_family(source, config.sampling)
    policy = Policy.build(family, config.policy, config.sampling.guidance_scale, config.model)
    return policy, family.steps(config.sampling)


def digest_base(policy: Policy) -> str:
    """Digest (hex) of the pretrained network, that is all that an adapter is added to.

    Of a policy just loaded: a fully trained network is the pretrained one only until then.
    """
    return _digest({"network": policy.family.network})


def digest_encoders_and_vae(policy: Policy) -> str:
    """Digest (hex) of text encoders and VAE: what turns prompts into conditions and latents into images."""
    network = policy.family.network
    return _digest({part: one for part, one in policy.family.parts().items() if one is not network})


def _digest(networks: Mapping[str, nn.Module]) -> str:
    return digest_tensors(
        {
            f"{part}.{name}": value
            for part, network in networks.items()
            for name, value in network.state_dict().items()
            if "lora_" not in name
        }
    )


def check_base(base: str, wanted: str, who: str) -> None:
    """Raise WeightsError where a process has loaded another pretrained model than another one.

    base, wanted: the digests of the two. who: the process and its node, in words.
    """
    if base != wanted:
        raise WeightsError(
            f"{who} has loaded another pretrained model (digest {base[:12]}) than the others "
            f"({wanted[:12]}). Is model.path the same on all nodes, and has the hub's revision changed? Pin "
            "model.revision."
        )
