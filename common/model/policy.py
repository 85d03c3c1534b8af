"""The policy pi_theta: a pipeline family's network under guidance, and what of it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from common.config.training import FullPolicy, LoraPolicy, ModelSection
from common.errors import WeightsError
from common.model.families.base import Family
from common.model.guidance import Condition, GuidedNetwork
from common.model.steps import Steps
from common.model.trainable import Reference, Trainable, compile_blocks, make_trainable
from common.model.weights import Tensors


@dataclass(frozen=True)
class Policy:
    """pi_theta."""

    family: Family
    trainable: Trainable
    guided: GuidedNetwork

    @staticmethod
    def build(
        family: Family, settings: LoraPolicy | FullPolicy, guidance_scale: float, model: ModelSection
    ) -> Policy:
        """Make a loaded family trainable. Raises ModelError where nothing would be trained."""
        trainable = make_trainable(family, settings)
        if model.compile:
            compile_blocks(family.network)
        guidance, autocast = family.guidance(guidance_scale), model.precision == "bfloat16"
        guided = GuidedNetwork(family.forward, family.network, guidance, autocast, model.compile)
        return Policy(family, trainable, guided)

    def reference(self) -> Reference:
        """pi_ref, the pretrained policy. Call before any load or update."""
        return self.trainable.untrained(self.guided)

    def predict(self, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        return self.guided.predict(latents, times, condition)

    def predict_plainly(self, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """With a guidance scale of 1 and without autocast, for the first row of the condition alone."""
        first = {name: rows[:1] for name, rows in condition.items()}
        plain = replace(self.guided, guidance=self.family.guidance(1.0), autocast=False)
        return plain.predict(latents, times, first)

    def steps_fingerprint(self, steps: Steps) -> str:
        """Of the steps and of what decides the prediction: equal where log-probs compare."""
        guided, shape = self.guided, self.family.latent_shape
        weights = next(guided.network.parameters()).dtype
        return steps.fingerprint(
            f"{guided.guidance}; latents {shape}; weights {weights}; autocast {guided.autocast}"
        )

    def embed(self, prompt: str) -> Condition:
        """The prompt's condition, as TrajectoryGroup has it. Needs the text encoders."""
        return self._rows(self.family.embed([prompt]), self.family.negative)

    def example(self) -> Condition:
        """A condition of made-up numbers, the same in every process. Needs the network alone."""
        return self._rows(self.family.example(), self.family.example)

    def _rows(self, prompt: Condition, negative: Callable[[], Condition]) -> Condition:
        if self.guided.guidance.rows == 1:
            return prompt
        other = negative()
        return {name: torch.cat([rows, other[name]]) for name, rows in prompt.items()}

    def load(self, tensors: Tensors) -> None:
        """Copy trained weights in.

        Raises WeightsError on a missing or extra name, or another shape or type.
        """
        parameters = self.trainable.parameters()
        missing, extra = sorted(set(parameters) - set(tensors)), sorted(set(tensors) - set(parameters))
        if missing or extra:
            raise WeightsError(
                f"Weights do not fit the policy: missing {missing[:3]}, not in the policy {extra[:3]}."
            )
        with torch.no_grad():
            for name, value in parameters.items():
                new = tensors[name]
                if new.shape != value.shape or new.dtype != value.dtype:
                    raise WeightsError(
                        f"Weight {name} is {new.dtype} {tuple(new.shape)}, "
                        f"the policy's {value.dtype} {tuple(value.shape)}."
                    )
                # A GPU's later work comes after it; what it copies from pageable memory it has read by then.
                value.copy_(new, non_blocking=True)
