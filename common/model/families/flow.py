"""What flow-matching transformer families share: noise levels, samplers, one pass, loading."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from common.config.training import AutoSampler, DdimSampler, FlowSampler, FlowSdeSampler, SamplingSection
from common.errors import ModelError
from common.model.families.base import Family
from common.model.forward_process import NoiseLevels
from common.model.guidance import Condition, Guidance, classifier_free
from common.model.parts import Source, Unscale, unscale
from common.model.scheduler_options import check_flow
from common.model.schedules import flow_noise_levels, flow_steps
from common.model.steps import Chosen, Steps
from common.model.text import PaddedText, TextStage
from common.model.windows import windowed

Settings = Mapping[str, Any]
"""A part's configuration, its class's defaults filled in."""


TRAINED_STEPS = 1000
"""Of a schedule that names no number."""
JOINT_PROJECTIONS = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
)
"""Of the joint attention of image and text, as several families name them."""


@dataclass(frozen=True)
class Layout:
    """Of one image: the latent's shape as the network takes it, rows and columns of its patches."""

    latent_shape: tuple[int, ...]
    grid: tuple[int, int]

    @property
    def tokens(self) -> int:
        """Patches of the latent."""
        return self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class FlowFamily(Family):
    """A transformer that predicts v = e - x0 (flow matching).

    A family states what is abstract here, and overrides where it differs. TIME_SCALE: the network is told so
    many times the noise level. SAMPLER: of the stochastic steps, where the configuration says auto.
    """

    TIME_SCALE: ClassVar[float]
    SAMPLER: ClassVar[FlowSampler] = FlowSdeSampler()

    layout: Layout

    @classmethod
    @abstractmethod
    def check_fit(cls, source: Source, network: Settings) -> None:
        """Raise ModelError where the parts do not fit each other. network: the transformer's settings."""
        ...

    @classmethod
    @abstractmethod
    def lay_out(cls, source: Source, sampling: SamplingSection) -> Layout:
        """For the size asked for. Raises ModelError where the model has none such."""
        ...

    @classmethod
    @abstractmethod
    def sigmas(cls, scheduler: Settings, steps: int, tokens: int) -> list[float]:
        """T+1 noise levels from 1 to 0, those of the pipeline's own call; T = steps."""
        ...

    @classmethod
    @abstractmethod
    def encode(cls, source: Source, encoders: Mapping[str, PaddedText]) -> Callable[[str], Condition]:
        """Makes one prompt's condition, one row of the same shapes for every prompt."""
        ...

    @classmethod
    def guided(cls, network: Settings, scale: float) -> Guidance:
        """How it is guided at this scale. Raises ModelError where it cannot be."""
        return classifier_free(scale)

    @classmethod
    def check_scheduler(cls, name: str, config: Settings) -> None:
        """Raise ModelError where the noise levels of the pipeline's scheduler cannot be taken exactly."""
        check_flow(name, config)

    @classmethod
    def times(cls, scheduler: Settings, sigmas: Sequence[float]) -> tuple[float, ...]:
        """What the network is told at the T steps that begin at these noise levels."""
        return tuple(cls.TIME_SCALE * sigma for sigma in sigmas)

    @classmethod
    def unscaling(cls, layout: Layout) -> Unscale:
        """From latents as the network has them to those that the VAE decodes."""
        return unscale

    @classmethod
    def check(cls, source: Source, sampling: SamplingSection) -> None:
        outlines = cls.PARTS.check(source)
        network = source.config(cls.PARTS.network, cls.PARTS.denoiser)
        cls.check_fit(source, network)
        cls.guided(network, sampling.guidance_scale)
        cls._steps(source.scheduler(), sampling, cls.lay_out(source, sampling))
        cls.PARTS.check_weights(source, outlines)

    @classmethod
    def load(cls, source: Source, sampling: SamplingSection) -> Self:
        layout = cls.lay_out(source, sampling)
        return cls._loaded(
            source,
            source.scheduler(),
            cls._text,
            cls.unscaling(layout),
            latent_shape=layout.latent_shape,
            layout=layout,
        )

    def guidance(self, scale: float) -> Guidance:
        return self.guided(self.network.config, scale)

    def steps(self, sampling: SamplingSection) -> Steps:
        return replace(self._steps(self.scheduler, sampling, self.layout), device=self.device)

    def noise_levels(self, steps: int | None) -> NoiseLevels:
        _, config = self.scheduler
        count = config.get("num_train_timesteps", TRAINED_STEPS) if steps is None else steps
        sigmas = self.sigmas(config, count, self.layout.tokens)[:-1]
        levels = flow_noise_levels(sigmas, self.TIME_SCALE)
        return replace(levels, times=self.times(config, sigmas), device=self.device)

    def forward(self, network: nn.Module, latents: Tensor, times: Tensor, condition: Condition) -> Tensor:
        kind = next(network.parameters()).dtype
        rows = {
            name: value.to(kind) if value.is_floating_point() else value for name, value in condition.items()
        }
        output: Tensor = network(
            hidden_states=latents.to(kind),
            timestep=times,
            return_dict=False,
            **rows,
            **self.constants(condition),
        )[0]
        return output.to(latents.dtype)

    def constants(self, condition: Condition) -> dict[str, Any]:
        """Further arguments of the network, by name, which are the same for all items."""
        return {}

    def load_adapter(self, folder: Path, network: nn.Module) -> None:
        layers, metadata = self.PIPELINE.lora_state_dict(folder, return_lora_metadata=True)
        loader: Any = network
        loader.load_lora_adapter(layers, adapter_name="default", metadata=metadata, low_cpu_mem_usage=True)

    @classmethod
    def _text(cls, source: Source) -> TextStage:
        encoders = cls.PARTS.text(source)
        between = source.settings.text_encoder
        return TextStage(encoders, source.device, between, cls.encode(source, encoders))

    @classmethod
    def _steps(cls, scheduler: tuple[str, Settings], sampling: SamplingSection, layout: Layout) -> Steps:
        name, config = scheduler
        cls.check_scheduler(name, config)
        sampler = cls.SAMPLER if isinstance(sampling.sampler, AutoSampler) else sampling.sampler
        if isinstance(sampler, DdimSampler):
            raise ModelError(
                "sampling.sampler is ddim, which is for models that predict noise. This is a flow model: "
                "take auto, flow_sde, dance_sde, cps or precise."
            )
        sigmas = cls.sigmas(config, sampling.steps, layout.tokens)
        chosen = Chosen(sampling.named_stochastic_steps, sampling.max_step_gain, sampling.branch_at)
        steps = flow_steps(sigmas, cls.TIME_SCALE, sampler.kind, sampler.level, chosen)
        return windowed(replace(steps, times=cls.times(config, sigmas[:-1])), sampling.window)
