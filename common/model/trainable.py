"""What of a network is trained, LoRA or all of it; how it is saved; and what the untrained network is."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from common.config.training import FullPolicy, LoraPolicy
from common.errors import ModelError
from common.model.families.base import Family
from common.model.guidance import Condition, Denoiser, GuidedNetwork
from common.model.weights import order_metadata

ADAPTED = (nn.Linear, nn.Conv2d)
"""Kinds of modules that get an adapter."""


class Reference(Denoiser, Protocol):
    """pi_ref. `predict` is one prediction, without a graph; several go faster within `active`."""

    def active(self) -> AbstractContextManager[Denoiser]:
        """Gives what predicts as the reference, until it is left. The policy must not predict meanwhile."""
        ...


class Trainable(Protocol):
    """Which of the network's tensors are trained, how they are saved, and what the untrained network is."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained tensors by name, float32. Live, not copies."""
        ...

    def untrained(self, guided: GuidedNetwork) -> Reference:
        """The reference. Call before training: what a fully trained network was is known only then."""
        ...

    def save(self, folder: Path) -> None:
        """Write the trained weights as plain diffusers reads them."""
        ...

    def check_saved(self) -> None:
        """Raise ModelError where diffusers' own loader does not read all that `save` writes."""
        ...


@dataclass(frozen=True)
class AdapterOff:
    """The reference of a LoRA policy: the same network with its adapter switched off."""

    guided: GuidedNetwork

    @contextmanager
    def active(self) -> Iterator[Denoiser]:
        """See Reference. The adapter is switched once, which takes a walk over all modules."""
        self.guided.network.disable_adapters()
        try:
            yield self.guided
        finally:
            self.guided.network.enable_adapters()

    @torch.no_grad()
    def predict(self, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        with self.active() as denoiser:
            return denoiser.predict(latents, times, condition)


@dataclass(frozen=True)
class FrozenCopy:
    """The reference of a fully trained policy: a copy of the network that nothing updates.

    Its weights keep the policy's requires_grad: torch chooses kernels by it, and frozen ones would round
    otherwise.
    """

    guided: GuidedNetwork

    def active(self) -> AbstractContextManager[Denoiser]:
        """See Reference."""
        return nullcontext(self.guided)

    @torch.no_grad()
    def predict(self, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        return self.guided.predict(latents, times, condition)


@dataclass(frozen=True)
class LoraTrainable:
    """A PEFT LoRA adapter."""

    family: Family
    network: Any

    def parameters(self) -> dict[str, nn.Parameter]:
        """Adapter matrices."""
        return {name: value for name, value in self.network.named_parameters() if "lora_" in name}

    def untrained(self, guided: GuidedNetwork) -> Reference:
        """The network with the adapter off: costs no memory."""
        return AdapterOff(guided)

    def save(self, folder: Path) -> None:
        """As the family saves them: pytorch_lora_weights.safetensors, read by pipe.load_lora_weights(folder),
        where diffusers has it.

        The same weights give the same bytes in every process.
        """
        adapter = self.network.peft_config["default"].to_dict()
        # By PEFT's own names: diffusers' older ones bind to attention alone.
        layers = get_peft_model_state_dict(self.network)
        ordered = {
            name: sorted(value) if isinstance(value, set) else value for name, value in adapter.items()
        }
        self.family.save_adapter(folder, layers, ordered)
        for file in folder.glob("*.safetensors"):
            file.write_bytes(order_metadata(file.read_bytes()))

    def check_saved(self) -> None:
        """See Trainable. Reads into a copy of the network without weights."""
        blank = _without_weights(self.network)
        with tempfile.TemporaryDirectory() as place:
            self.save(Path(place))
            self.family.load_adapter(Path(place), blank)
        read = dict(blank.named_parameters())
        lost = [
            name
            for name, value in self.parameters().items()
            if name not in read or read[name].is_meta or not torch.equal(read[name], value.cpu())
        ]
        if lost:
            raise ModelError(
                f"diffusers reads {len(self.parameters()) - len(lost)} of the {len(self.parameters())} "
                f"tensors of this adapter; among those that it does not are {lost[:3]}. Leave their modules "
                "out of policy.target_modules."
            )


@dataclass(frozen=True)
class FullTrainable:
    """Every weight of the network."""

    network: Any

    def parameters(self) -> dict[str, nn.Parameter]:
        """All weights."""
        return dict(self.network.named_parameters())

    def untrained(self, guided: GuidedNetwork) -> Reference:
        """A copy of the network as it is now."""
        network = copy.deepcopy(self.network)
        if guided.compiled:
            compile_blocks(network)
        return FrozenCopy(replace(guided, network=network))

    def save(self, folder: Path) -> None:
        """A folder of the network, read by its class's from_pretrained(folder)."""
        self.network.save_pretrained(folder, safe_serialization=True)

    def check_saved(self) -> None:
        """See Trainable. The class reads its own folders."""


def compile_blocks(network: Any) -> None:
    """Compile the blocks that diffusers names as repeated, else the whole network. Happens at first use."""
    if getattr(network, "_repeated_blocks", None):
        network.compile_repeated_blocks(dynamic=False)
    else:
        network.compile(dynamic=False)


def _without_weights(network: Any) -> Any:
    """A network of the same configuration whose weights are zeros that take no memory."""
    with torch.device("meta"):
        blank: Any = type(network).from_config(network.config)
    for module in blank.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            # Not on the meta device: an adapter is moved to where its layer's weights are.
            setattr(module, name, nn.Parameter(torch.zeros(()).expand(value.shape), requires_grad=False))
    return blank


def check_targets(network: nn.Module, targets: Sequence[str]) -> None:
    """Raise ModelError where targets (policy.target_modules) name no module, or one that takes no adapter."""
    modules = {name: module for name, module in network.named_modules() if name}
    takes_one = {name for name, module in modules.items() if isinstance(module, ADAPTED)}
    ends = sorted({_last_name(name) for name in takes_one})
    for target in targets:
        found = [name for name in modules if name == target or name.endswith(f".{target}")]
        others = sorted(set(found) - takes_one)
        if others or not found:
            reason = (
                f"and {others[0]}, of kind {type(modules[others[0]]).__name__}, takes no adapter"
                if others
                else "which no module of the network is called"
            )
            raise ModelError(
                f"policy.target_modules names {target!r}, {reason}. Those that take one are called "
                f"{', '.join(ends)}."
            )


def _last_name(module: str) -> str:
    """Of a module in a list the list's too: to_out.0."""
    parts = module.split(".")
    return ".".join(parts[-2:] if parts[-1].isdecimal() else parts[-1:])


def add_lora(family: Family, settings: LoraPolicy) -> LoraTrainable:
    """Attach a new adapter (B = 0, so the policy starts as the reference), float32 whatever the network is.

    Raises ModelError where it binds to nothing.
    """
    network: Any = family.network
    targets = settings.target_modules or family.targets(network)
    check_targets(network, targets)
    # The adapter's A matrices are drawn: a fork with a fixed seed keeps every process and every run equal.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network.add_adapter(
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                init_lora_weights="gaussian",
                target_modules=list(targets),
            )
        )
    trainable = LoraTrainable(family, network)
    for value in trainable.parameters().values():
        value.data = value.data.float()
        value.requires_grad_(True)
    return trainable


def make_trainable(family: Family, settings: LoraPolicy | FullPolicy) -> Trainable:
    """Choose what is trained. Called once for a loaded family."""
    if isinstance(settings, LoraPolicy):
        return add_lora(family, settings)
    network: Any = family.network
    network.requires_grad_(True)
    return FullTrainable(network)
