"""Settings of the algorithm: model, policy, prompts, sampling, optimizer (objectives: objectives.py)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictInt, model_validator

from common.config.fields import Section, setting
from common.config.paths import InputPath, ModelPath

LONGEST_SIDE = 8192
"""Of a picture, in pixels: twice what any family is made for. More is a slip, and would fill the memory."""


TextPlace = Literal["keep", "offload", "drop"]


class ModelSection(Section, title="The pretrained text-to-image pipeline."):
    path: ModelPath = setting(
        ...,
        "",
        "Folder or hub id of a diffusers pipeline, or a .safetensors file of all its weights; docs/models.md "
        "lists the families.",
        min_length=1,
    )
    config: ModelPath = setting(
        "",
        "",
        "For a single file: folder or hub id of a pipeline of its kind, whose configurations and tokenizers "
        "it takes; empty = the one that diffusers knows for it.",
    )
    revision: str = setting("main", "", "Hub revision; ignored for a folder.")
    variant: str = setting(
        "",
        "",
        "Weight variant such as fp16; in a folder, parts without it take their default files. Empty = those.",
    )
    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "", "Where actors and learner compute; auto = CUDA where the process has a GPU."
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "", "Autocast type of the network's forward pass. Latents, log-probs: float32 or better."
    )
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32",
        "",
        "Type of the weights that are not trained: text encoders, VAE (float32 where it overflows) and, for "
        "LoRA, the network. Trained weights are float32.",
    )
    channels_last: bool = setting(True, "", "Keep a UNet's weights channels last on CUDA: faster.")
    compile: bool = setting(
        False,
        "",
        "Compile the network's repeated blocks at first use (minutes). Actors and learner then run different "
        "kernels: see policy/log_ratio_mismatch_max.",
    )
    prompt_tokens: int = setting(
        0,
        "tokens",
        "Length to which prompts are cut or filled up for text encoders that have none of their own (T5, "
        "language models); 0 = the pipeline's. Fewer cost less in every pass of the network.",
        ge=0,
        le=4096,
    )
    text_encoder: TextPlace = setting(
        "keep",
        "",
        "Where text encoders are but while they embed a prompt that is not remembered: keep = on the device, "
        "offload = in the host's memory, drop = nowhere, read again from their files. See docs/models.md.",
    )
    vae_chunk: int = setting(8, "images", "Images that the VAE decodes in one pass.", ge=1)
    vae_tiling: bool = setting(False, "", "Decode images in tiles: less memory, faint seams.")

    @model_validator(mode="after")
    def _only_a_single_file_needs_a_configuration(self) -> ModelSection:
        if self.path.endswith(".safetensors") and self.variant:
            raise ValueError(f"variant {self.variant!r} is for folders and hub ids; path is a single file")
        if self.config and not self.path.endswith(".safetensors"):
            raise ValueError("config is for a single file (.safetensors); a folder or hub id has its own")
        return self


class LoraPolicy(Section, title="Train a LoRA adapter; the reference is the adapter switched off."):
    kind: Literal["lora"] = "lora"
    rank: int = setting(16, "", "Rank of the adapter matrices.", ge=1)
    alpha: int = setting(16, "", "LoRA scale = alpha / rank.", ge=1)
    target_modules: tuple[str, ...] = setting(
        (),
        "",
        "Names, or their ends, of the network's modules that get an adapter; empty = those of the model's "
        "family (of a UNet to_q, to_k, to_v, to_out.0).",
    )


class FullPolicy(Section, title="Train every weight of the network; the reference is a frozen copy."):
    kind: Literal["full"] = "full"


PolicySection = Annotated[LoraPolicy | FullPolicy, Field(discriminator="kind")]


class PromptSource(Section, title="A prompt set: a file, or the id of a data set on the hub."):
    """Files are .txt (a prompt a line), .jsonl, .csv, .tsv or .parquet. A text in its place is its path."""

    shorthand: ClassVar[str] = "path"

    path: InputPath = setting(..., "", "File, or hub data set id such as org/name.", min_length=1)
    column: str = setting(
        "",
        "",
        "Column holding the prompt; empty = the first of prompt, text, Prompt, prompts, Prompts, caption.",
    )
    revision: str = setting("main", "", "Hub revision; ignored for a file.")


class AutoSampler(
    Section, title="What the model's family takes by itself: ddim, or flow_sde of a flow model."
):
    kind: Literal["auto"] = "auto"


class DdimSampler(Section, title="DDIM, for models that predict noise, v or x_0 (Song et al. 2021)."):
    kind: Literal["ddim"] = "ddim"
    eta: float = setting(1.0, "", "Noise of a stochastic step relative to DDPM's; 1 = DDPM.", gt=0.0, le=1.0)
    flat: bool = setting(
        False,
        "",
        "Give the stochastic steps less noise than eta says, so that all have the gain of the one whose gain "
        "is largest: none weighs more in the objective than another. See max_step_gain.",
    )


class FlowSdeSampler(Section, title="Flow-GRPO's SDE, for flow models."):
    kind: Literal["flow_sde"] = "flow_sde"
    level: float = setting(0.7, "", "Noise level of a stochastic step.", gt=0.0)


class DanceSdeSampler(Section, title="DanceGRPO's SDE, for flow models."):
    kind: Literal["dance_sde"] = "dance_sde"
    level: float = setting(0.3, "", "Noise level of a stochastic step.", gt=0.0)


class CpsSampler(Section, title="Coefficients-preserving sampling, for flow models (arXiv 2509.05952)."):
    kind: Literal["cps"] = "cps"
    level: float = setting(0.8, "", "Noise level of a stochastic step.", gt=0.0, lt=1.0)


class PreciseSampler(Section, title="Tencent-Hunyuan's Precise, for flow models."):
    kind: Literal["precise"] = "precise"
    level: float = setting(1.5, "", "Noise level of a stochastic step.", gt=0.0)


FlowSampler = FlowSdeSampler | DanceSdeSampler | CpsSampler | PreciseSampler
SamplerSection = Annotated[AutoSampler | DdimSampler | FlowSampler, Field(discriminator="kind")]


class WholeWindow(Section, title="All stochastic steps, in every epoch."):
    kind: Literal["whole"] = "whole"


class FixedWindow(Section, title="The same steps in every epoch."):
    kind: Literal["fixed"] = "fixed"
    size: int = setting(3, "steps", "How many stochastic steps in a row draw noise.", ge=1)
    first: int = setting(0, "", "The stochastic step that it begins at; 0 = the noisiest.", ge=0)


class ShiftingWindow(Section, title="Steps that change."):
    size: int = setting(3, "steps", "How many stochastic steps in a row draw noise.", ge=1)
    among: int = setting(
        0, "steps", "The window lies within the first so many stochastic steps; 0 = within all.", ge=0
    )


class RandomWindow(ShiftingWindow, title="Steps drawn for each epoch, from seed and epoch."):
    kind: Literal["random"] = "random"


class MovingWindow(ShiftingWindow, title="From the noisiest steps on, one step further at a time (MixGRPO)."):
    kind: Literal["moving"] = "moving"
    every_epochs: int = setting(
        25, "epochs", "The window stays so long; after its last place it begins again.", ge=1
    )


WindowSection = Annotated[
    WholeWindow | FixedWindow | RandomWindow | MovingWindow, Field(discriminator="kind")
]


class SamplingSection(Section, title="How actors sample, over the model's own noise schedule."):
    prompts_per_epoch: int = setting(16, "prompts", "N: prompts drawn an epoch.", ge=1)
    images_per_prompt: int = setting(8, "images", "B: images sampled of each prompt.", ge=2)
    height: int = setting(0, "pixels", "Height of the images; 0 = the model's own.", ge=0, le=LONGEST_SIDE)
    width: int = setting(0, "pixels", "Width of the images; 0 = the model's own.", ge=0, le=LONGEST_SIDE)
    steps: int = setting(50, "steps", "T: denoising steps.", ge=1, le=1000)
    sampler: SamplerSection = setting(AutoSampler(), "", "How a step draws: ddim, or one for flow models.")
    guidance_scale: float = setting(
        5.0,
        "",
        "Guidance as the model's family has it; the guided prediction defines the policy. 1 = none, which "
        "takes one network pass a step where classifier-free guidance takes two.",
        ge=1.0,
    )
    stochastic_steps: Literal["auto", "all_but_last", "all"] | tuple[StrictInt, ...] = setting(
        "auto",
        "",
        "Steps that draw noise and enter the objective (0 = the noisiest), the others follow the ODE. auto = "
        "those of a gain of at most max_step_gain.",
    )
    max_step_gain: float = setting(
        2.5,
        "standard deviations per unit of the network's output",
        "Largest gain of a step that auto chooses: how far the step's mean moves, in units of its own noise, "
        "where the network's output moves by one. A step of larger gain would outweigh the others.",
        gt=0.0,
    )
    window: WindowSection = setting(
        WholeWindow(),
        "",
        "Which of the stochastic steps draw noise in an epoch and enter the objective; the others follow the "
        "ODE.",
    )
    branch_at: tuple[StrictInt, ...] = setting(
        (),
        "",
        "Positions of stochastic steps at which every trajectory splits in two (twice there: in four), so "
        "that images share the steps before: 16 images with [1, 3, 5] are 2 trees of 8. Empty = "
        "independent trajectories.",
    )

    @model_validator(mode="after")
    def _steps_exist(self) -> SamplingSection:
        chosen = self.named_stochastic_steps
        if chosen is None:
            return self
        if not chosen:
            raise ValueError(
                f"stochastic_steps {self.stochastic_steps!r} with steps {self.steps} leaves no stochastic "
                "step, so no log-probability to train on; use more steps, or 'all'"
            )
        if min(chosen) < 0 or max(chosen) >= self.steps or list(chosen) != sorted(set(chosen)):
            allowed = f"increasing positions from 0 to {self.steps - 1}"
            raise ValueError(f"stochastic_steps must be {allowed}, got {chosen}")
        return self

    @model_validator(mode="after")
    def _branches_fit(self) -> SamplingSection:
        branches, images, leaves = self.branch_at, self.images_per_prompt, 2 ** len(self.branch_at)
        if not set(branches) <= set(range(self.steps)) or list(branches) != sorted(branches):
            raise ValueError(
                f"branch_at must be increasing positions from 0 to {self.steps - 1}, got {list(branches)}"
            )
        if images % leaves:
            raise ValueError(
                f"branch_at {list(branches)} gives each tree {leaves} images, so images_per_prompt must be a "
                f"multiple of that, such as {-(-images // leaves) * leaves}; got {images}"
            )
        still = set(branches) - set(self.named_stochastic_steps or branches)
        if still:
            raise ValueError(
                f"branch_at names steps {sorted(still)}, which draw no noise, so that siblings would be "
                f"equal; those that draw noise are {list(self.named_stochastic_steps or ())}"
            )
        return self

    @model_validator(mode="after")
    def _branches_need_noise(self) -> SamplingSection:
        if self.branch_at and not isinstance(self.window, WholeWindow):
            raise ValueError(
                "branch_at names steps that draw noise in every epoch, which those of a window do not; set "
                "window.kind to whole, or leave branch_at empty"
            )
        return self

    @property
    def learned_steps(self) -> tuple[int, ...]:
        """Positions of steps that enter the objective in an epoch: all, where the schedule decides; of those
        of a window, which move, the first that it may have."""
        named = self.named_stochastic_steps
        chosen = tuple(range(self.steps)) if named is None else named
        return chosen if isinstance(self.window, WholeWindow) else chosen[: self.window.size]

    @property
    def named_stochastic_steps(self) -> tuple[int, ...] | None:
        """Positions 0..T-1 of the stochastic steps, increasing; None where the schedule decides (auto)."""
        named = {"auto": None, "all_but_last": tuple(range(self.steps - 1)), "all": tuple(range(self.steps))}
        chosen = self.stochastic_steps
        return named[chosen] if isinstance(chosen, str) else chosen


class OptimizerSection(Section, title="AdamW on the trainable weights."):
    learning_rate: float = setting(1e-5, "", "AdamW's step size.", gt=0.0, le=1e38)
    warmup_updates: int = setting(
        0, "updates", "The step size rises in a line over so many updates; 0 = it begins at its peak.", ge=0
    )
    decay_updates: int = setting(
        0,
        "updates",
        "The step size falls as half a cosine over the first so many updates, then stays; 0 = no fall.",
        ge=0,
    )
    final_share: float = setting(
        0.1,
        "",
        "What is left of the step size after decay_updates, as a share of learning_rate.",
        gt=0.0,
        le=1.0,
    )
    beta1: float = setting(0.9, "", "AdamW's first-moment decay.", ge=0.0, lt=1.0)
    beta2: float = setting(0.999, "", "AdamW's second-moment decay.", ge=0.0, lt=1.0)
    epsilon: float = setting(1e-8, "", "AdamW's denominator offset.", gt=0.0)
    weight_decay: float = setting(1e-4, "", "AdamW's decoupled weight decay.", ge=0.0)
    max_gradient_norm: float = setting(1.0, "", "Gradients of larger L2 norm are scaled down to it.", gt=0.0)
    term_share: float = setting(
        1.0,
        "",
        "Share of a gradient's terms (a latent at a step) that pass the network: drawn for each prompt and "
        "update so that the expectation stays the whole gradient's; 1 = all of them, exactly.",
        gt=0.0,
        le=1.0,
    )
    ema_decay: float = setting(
        0.0,
        "",
        "Decay of an exponential moving average of the weights: saved beside them, used by evaluate.py and "
        "sample.py; 0 = off.",
        ge=0.0,
        lt=1.0,
    )


class DataSection(Section, title="Where trajectories come from."):
    mode: Literal["online", "offline"] = setting(
        "online", "", "online = sampled by actors from the current policy; offline = replayed from files."
    )
    folder: InputPath = setting(
        "", "", "Recorded trajectories: their folder, or that of the run; required for offline."
    )
    record: bool = setting(False, "", "Write scored trajectories to Parquet in the run folder (online only).")
    max_staleness: int = setting(
        0,
        "epochs",
        "How many epochs actors may run ahead of the learner; 0 = the paper's synchronous loop.",
        ge=0,
        le=8,
    )

    @model_validator(mode="after")
    def _offline_needs_a_folder(self) -> DataSection:
        if self.mode == "offline" and not self.folder:
            raise ValueError(
                "mode offline needs folder, where a run with data.record=true has recorded: runs/NAME"
            )
        if self.mode == "offline" and (self.record or self.max_staleness):
            raise ValueError("mode offline replays a recording: record must be false and max_staleness 0")
        return self


class PromptsSection(Section, title="Training prompts, and those that are only evaluated."):
    train: PromptSource
    unseen: PromptSource
