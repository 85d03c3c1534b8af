"""Families around a transformer against diffusers' own pipelines: a row each, the same demands on all."""

from __future__ import annotations

import itertools
import json
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from peft import PeftModel
from torch import Tensor

from actors.sampler import denoise, sample_group
from common.config.training import ModelSection, SamplingSection
from common.errors import ModelError
from common.model.families import check_model
from common.model.loading import load_policy
from common.model.options import T5, T5_NAMES, check_options
from common.model.policy import Policy
from common.model.schedules import ddim_steps
from common.model.steps import Chosen, Steps
from common.trajectory import NoiseKey, PolicyStamp, PromptTask
from learner.gradient import GradientEngine, Wave
from learner.parallel import Single
from tests.tiny_config import make_config
from tests.tiny_flow import make_tiny_flux, make_tiny_sd3
from tests.tiny_transformers import (
    make_tiny_flux2_klein,
    make_tiny_pixart,
    make_tiny_qwen_image,
    make_tiny_sana,
    make_tiny_z_image,
)

STEPS = 5
LORA: dict[str, Any] = {"kind": "lora", "rank": 2, "alpha": 6}
PROMPTS = ("a red cat", "a prompt of many more words than fit into the few tokens of a tiny CLIP")


def _flow_ode(policy: Policy, steps: Steps) -> Steps:
    """The same times without noise: x + (n - s) v."""
    family: Any = policy.family
    sigmas = family.sigmas(family.scheduler[1], STEPS, family.layout.tokens)
    widths = tuple(n - s for s, n in itertools.pairwise(sigmas))
    return Steps(steps.times, (1.0,) * STEPS, widths, (0.0,) * STEPS, ())


def _same(scheduler: Any) -> Any:
    return scheduler


def _as_it_is(policy: Policy, latents: Tensor) -> Tensor:
    return latents


def _unpacked(policy: Policy, noise: Tensor) -> Tensor:
    family: Any = policy.family
    return noise.unflatten(1, family.layout.grid).permute(0, 3, 1, 2)


def _unscaled(policy: Policy, latents: Tensor) -> Tensor:
    family: Any = policy.family
    unscaled: Tensor = family.images.unscale(family.images.vae, latents)
    return unscaled


def _guidance_scale(scale: float) -> Mapping[str, Any]:
    return {"guidance_scale": scale}


def _load_lora_weights(pipeline: Any, folder: Path) -> None:
    pipeline.load_lora_weights(folder)


def _ddim_ode(policy: Policy, steps: Steps) -> Steps:
    family: Any = policy.family
    return ddim_steps(family.scheduler[1], STEPS, 1.0, Chosen((), 1.0))


def _ddim(scheduler: Any) -> Any:
    return DDIMScheduler.from_config(scheduler.config, clip_sample=False)


def _first_order(scheduler: Any) -> Any:
    return DPMSolverMultistepScheduler.from_config(scheduler.config, solver_order=1)


def _load_by_peft(pipeline: Any, folder: Path) -> None:
    PeftModel.from_pretrained(pipeline.transformer, folder)


@dataclass(frozen=True)
class Row:
    """A family.

    make: writes a pipeline. width: of the transformer's options, the one that the text's width has to fit.
    scale: of guidance. parts: its networks, the transformer first. absent: what diffusers' from_pretrained is
    told of parts that are not there. call: what its call is told besides. settings: ours, where the
    pipeline's own size is too large. ode: the policy's steps without noise. solver: changes diffusers'
    scheduler to one that takes such steps. adapt: loads an adapter into diffusers' pipeline. begin, end: from
    latents as the network has them to those that diffusers' call takes, and gives. pipeline_scale: what
    diffusers' call is told of guidance.
    """

    make: Callable[[Path], Path]
    pipeline: Any
    network: Any
    width: str
    scale: float
    parts: tuple[str, ...]
    absent: tuple[str, ...] = ()
    call: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    ode: Callable[[Policy, Steps], Steps] = _flow_ode
    solver: Callable[[Any], Any] = _same
    adapt: Callable[[Any, Path], object] = _load_lora_weights
    begin: Callable[[Policy, Tensor], Tensor] = _as_it_is
    end: Callable[[Policy, Tensor], Tensor] = _as_it_is
    pipeline_scale: Callable[[float], Mapping[str, Any]] = _guidance_scale


FLUX_PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
SD3_PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
SHORT, SHORT_PROMPTS = {"max_sequence_length": 64}, {"model.prompt_tokens": 64}
SMALL = {"height": 32, "width": 32, **SHORT}
SMALL_SAMPLING = {"sampling.height": 32, "sampling.width": 32, **SHORT_PROMPTS}
T5_PARTS = ("transformer", "vae", "text_encoder")
ROWS = {
    "sd3": Row(
        make_tiny_sd3,
        StableDiffusion3Pipeline,
        SD3Transformer2DModel,
        "joint_attention_dim",
        4.5,
        (*SD3_PARTS, "text_encoder_3"),
    ),
    "pixart": Row(
        make_tiny_pixart,
        PixArtSigmaPipeline,
        PixArtTransformer2DModel,
        "caption_channels",
        4.5,
        T5_PARTS,
        call={"clean_caption": False, "use_resolution_binning": False, **SHORT},
        settings={"sampling.stochastic_steps": "all_but_last", **SHORT_PROMPTS},
        ode=_ddim_ode,
        solver=_ddim,
        adapt=_load_by_peft,
    ),
    "sana": Row(
        make_tiny_sana,
        SanaPipeline,
        SanaTransformer2DModel,
        "caption_channels",
        4.5,
        T5_PARTS,
        call={**SMALL, "use_resolution_binning": False},
        settings=SHORT_PROMPTS,
        solver=_first_order,
    ),
    "qwen image": Row(
        make_tiny_qwen_image,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
        "joint_attention_dim",
        4.0,
        T5_PARTS,
        # In bytes the template alone has 213 tokens.
        call={**SMALL, "negative_prompt": [" ", " "], "max_sequence_length": 300},
        settings={**SMALL_SAMPLING, "model.prompt_tokens": 300},
        pipeline_scale=lambda scale: {"true_cfg_scale": scale},
    ),
    "z-image": Row(
        make_tiny_z_image,
        ZImagePipeline,
        ZImageTransformer2DModel,
        "cap_feat_dim",
        4.0,
        T5_PARTS,
        call=SMALL,
        settings=SMALL_SAMPLING,
        pipeline_scale=lambda scale: {"guidance_scale": scale - 1},
    ),
    "flux.2 klein": Row(
        make_tiny_flux2_klein,
        Flux2KleinPipeline,
        Flux2Transformer2DModel,
        "joint_attention_dim",
        4.0,
        T5_PARTS,
        call=SMALL,
        settings=SMALL_SAMPLING,
        begin=_unpacked,
        end=_unscaled,
    ),
    "flux dev": Row(
        make_tiny_flux,
        FluxPipeline,
        FluxTransformer2DModel,
        "joint_attention_dim",
        3.5,
        FLUX_PARTS,
        call={"height": 32, "width": 48},
        settings={"sampling.height": 32, "sampling.width": 48},
    ),
    "flux schnell": Row(
        partial(make_tiny_flux, guided=False),
        FluxPipeline,
        FluxTransformer2DModel,
        "joint_attention_dim",
        1.0,
        FLUX_PARTS,
        call={**SMALL, "height": 48},
        settings={**SMALL_SAMPLING, "sampling.height": 48},
    ),
    "sd3 unguided": Row(
        partial(make_tiny_sd3, with_t5=False),
        StableDiffusion3Pipeline,
        SD3Transformer2DModel,
        "joint_attention_dim",
        1.0,
        SD3_PARTS,
        absent=("text_encoder_3", "tokenizer_3"),
        call=SHORT,
        settings=SHORT_PROMPTS,
    ),
}


@dataclass(frozen=True)
class Case:
    """A family's row with its pipeline folder."""

    row: Row
    folder: Path

    def policy(self, place: Path, network_only: bool = False, **settings: Any) -> tuple[Policy, Steps]:
        overrides = {key.replace("__", "."): value for key, value in settings.items()}
        given = {
            "policy": LORA,
            "sampling.steps": STEPS,
            "sampling.guidance_scale": self.row.scale,
            "sampling.stochastic_steps": "auto",
            **self.row.settings,
        }
        return load_policy(make_config(self.folder, place, {**given, **overrides}), network_only)

    def plain(self) -> Any:
        """Frozen as ours is: torch rounds by requires_grad."""
        pipeline: Any = self.row.pipeline.from_pretrained(self.folder, **dict.fromkeys(self.row.absent))
        for part in self.row.parts:
            getattr(pipeline, part).requires_grad_(False)
        pipeline.register_modules(scheduler=self.row.solver(pipeline.scheduler))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def paint(self, policy: Policy, pipeline: Any, noise: Tensor, prompt: str, output_type: str) -> Any:
        return pipeline(
            prompt=[prompt] * len(noise),
            latents=self.row.begin(policy, noise),
            num_inference_steps=STEPS,
            output_type=output_type,
            **self.row.pipeline_scale(self.row.scale),
            **self.row.call,
        ).images


@pytest.fixture(scope="module", params=ROWS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    row = ROWS[request.param]
    return Case(row, row.make(tmp_path_factory.mktemp("flow") / "pipeline"))


def _noise(policy: Policy) -> Tensor:
    return torch.randn(2, 1, *policy.family.latent_shape, generator=torch.Generator().manual_seed(3))


def _update(policy: Policy, steps: Steps) -> None:
    optimizer = torch.optim.AdamW(policy.trainable.parameters().values(), lr=0.01)
    times = torch.tensor(steps.times)[[0, -1]].float()
    for _ in range(2):
        output = policy.predict(_noise(policy)[:, 0], times, policy.embed("a cat"))
        output.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def _close(ours: Tensor, theirs: Tensor) -> bool:
    return float((ours - theirs).abs().max()) < 1e-5 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_without_noise_latents_and_images_are_those_of_diffusers(
    case: Case, tmp_path: Path, prompt: str
) -> None:
    policy, steps = case.policy(tmp_path)
    assert steps.stochastic_steps
    noise = _noise(policy)
    ours = denoise(policy, case.row.ode(policy, steps), noise, policy.embed(prompt))[0][-1]
    plain = case.plain()
    assert _close(case.row.end(policy, ours), case.paint(policy, plain, noise[:, 0], prompt, "latent"))
    pixels = np.stack([np.asarray(image) for image in case.paint(policy, plain, noise[:, 0], prompt, "pil")])
    assert np.abs(policy.family.decode(ours).astype(int) - pixels.astype(int)).max() <= 1


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_plain_diffusers_loads_what_is_saved_and_paints_the_same(
    case: Case, tmp_path: Path, kind: str
) -> None:
    training = {"lora": LORA, "full": {"kind": "full"}}[kind]
    policy, steps = case.policy(tmp_path, policy=training)
    noise, condition = _noise(policy), policy.embed("a red cat")
    untrained = denoise(policy, case.row.ode(policy, steps), noise, condition)[0][-1]
    _update(policy, steps)
    ours = denoise(policy, case.row.ode(policy, steps), noise, condition)[0][-1]
    policy.trainable.check_saved()
    policy.trainable.save(tmp_path / "trained")
    plain = case.plain()
    if kind == "lora":
        case.row.adapt(plain, tmp_path / "trained")
    else:
        plain.register_modules(**{case.row.parts[0]: case.row.network.from_pretrained(tmp_path / "trained")})
    assert float((ours - untrained).abs().mean()) > 1e-3
    assert _close(case.row.end(policy, ours), case.paint(policy, plain, noise[:, 0], "a red cat", "latent"))


def test_sampler_and_learner_agree_to_the_bit_and_every_adapter_learns(case: Case, tmp_path: Path) -> None:
    policy, steps = case.policy(tmp_path)
    learner, _ = case.policy(tmp_path, network_only=True)
    _update(policy, steps)
    learner.load({name: value.detach() for name, value in policy.trainable.parameters().items()})
    stamp = PolicyStamp(0, "", "test")
    groups = [
        sample_group(
            PromptTask(prompt, 2, NoiseKey(0, "train", 0, number), stamp, with_reference=False),
            policy,
            None,
            steps,
        )[0]
        for number, prompt in enumerate(PROMPTS)
    ]
    assert np.abs(groups[0].latents - groups[1].latents).max() > 0.1
    assert any((groups[0].condition[name] != groups[1].condition[name]).any() for name in groups[0].condition)
    wave = Wave.of(groups, torch.device("cpu"))
    engine = GradientEngine(learner, steps, Single(), 2, wave)
    again = engine.evaluate(wave)
    for group, one in zip(groups, again, strict=True):
        assert np.abs(group.log_prob - one.numpy()).max() == 0.0
    generator = torch.Generator().manual_seed(0)
    coefficients = torch.randn(wave.size, dtype=torch.float64, generator=generator)
    engine.accumulate(wave, coefficients, torch.arange(wave.size))
    still = [
        name
        for name, value in learner.trainable.parameters().items()
        if value.grad is None or not float(value.grad.abs().max()) > 0
    ]
    assert still == []


def test_a_learner_loads_the_network_alone_and_its_example_has_the_shapes(case: Case, tmp_path: Path) -> None:
    whole, steps = case.policy(tmp_path)
    alone, own_steps = case.policy(tmp_path, network_only=True)
    assert set(whole.family.parts()) == set(case.row.parts)
    assert set(alone.family.parts()) == {case.row.parts[0]}
    assert alone.steps_fingerprint(own_steps) == whole.steps_fingerprint(steps)
    condition, example = whole.embed(PROMPTS[0]), alone.example()
    rows = alone.guided.guidance.rows
    assert {name: len(value) for name, value in condition.items()} == dict.fromkeys(example, rows)
    with torch.no_grad():
        latents, times = _noise(whole)[:, 0], torch.tensor([0.9, 0.1])
        assert alone.predict(latents, times, example).shape == latents.shape
        assert torch.isfinite(alone.predict_plainly(latents[:1], times[:1], example)).all()
    levels, every = (alone.family.noise_levels(count) for count in (STEPS, None))
    assert levels.times == own_steps.times
    # Sana's begin a little below 1, PixArt's end there; Qwen-Image's end at 0.02.
    assert every.count == 1000
    assert 0 < min(every.noise) < 0.03 < 0.999 < max(every.noise) <= 1
    assert 0.3 < np.median(every.noise) < 0.99


def test_frozen_weights_take_the_type_asked_for_and_text_encoders_are_dropped(
    case: Case, tmp_path: Path
) -> None:
    exact, _ = case.policy(tmp_path)
    small, _ = case.policy(tmp_path, model__dtype="bfloat16", model__text_encoder="drop")
    expected = {part: {torch.bfloat16} for part in case.row.parts}
    frozen = {
        part: {value.dtype for name, value in network.named_parameters() if "lora_" not in name}
        for part, network in small.family.parts().items()
    }
    if small.family.images.vae.config.get("force_upcast"):  # type: ignore[attr-defined]
        expected["vae"] = {torch.float32}
    assert frozen == expected
    assert {value.dtype for value in small.trainable.parameters().values()} == {torch.float32}
    encoders = [weakref.ref(small.family.parts()[part]) for part in case.row.parts[2:]]
    with torch.no_grad():
        outputs = [
            one.predict(_noise(one)[:, 0], torch.tensor([0.9, 0.1]), one.embed(PROMPTS[0]))
            for one in (small, exact)
        ]
    assert [encoder() for encoder in encoders] == [None] * len(encoders)
    assert outputs[0].dtype == torch.float32
    torch.testing.assert_close(*outputs, rtol=0.2, atol=0.2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"sampler": {"kind": "ddim"}}, "flow model"),
        ({"sampler": {"kind": "flow_sde"}}, "take auto or ddim"),
        ({"height": 39}, "multiple of "),
    ],
)
def test_what_no_family_honours_is_refused(case: Case, settings: dict[str, Any], reason: str) -> None:
    check_model(ModelSection(path=str(case.folder)), SamplingSection(guidance_scale=case.row.scale))
    if settings.get("sampler", {}).get("kind") == ("ddim" if case.row.ode is _ddim_ode else "flow_sde"):
        return
    sampling = SamplingSection(guidance_scale=case.row.scale, **settings)
    with pytest.raises(ModelError, match=reason):
        check_model(ModelSection(path=str(case.folder)), sampling)


def test_guidance_that_a_distilled_model_does_not_take_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_flux(tmp_path / "schnell", guided=False)
    with pytest.raises(ModelError, match=r"guidance_scale is 3\.5.* set it to 1"):
        check_model(ModelSection(path=str(folder)), SamplingSection(guidance_scale=3.5))


def test_parts_of_different_models_are_refused(case: Case, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(case.folder, tmp_path / "model"))
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), case.row.width: 7}))
    with pytest.raises(ModelError, match=f"{case.row.width} is 7"):
        check_model(ModelSection(path=str(folder)), SamplingSection(guidance_scale=case.row.scale))


def test_a_distilled_klein_takes_no_guidance(tmp_path: Path) -> None:
    model = ModelSection(path=str(make_tiny_flux2_klein(tmp_path / "model", distilled=True)))
    with pytest.raises(ModelError, match=r"distilled.* sampling\.guidance_scale"):
        check_model(model, SamplingSection(guidance_scale=4.0))
    check_model(model, SamplingSection(guidance_scale=1.0))


@pytest.mark.parametrize(
    ("name", "file", "published"),
    [
        ("sana", "text_encoder", {"hidden_act": "gelu_pytorch_tanh"}),
        ("qwen image", "transformer", {"pooled_projection_dim": 768}),
        ("flux.2 klein", "vae", {"force_upcast": True}),
    ],
)
def test_options_that_published_configurations_still_name_are_taken(
    name: str, file: str, published: dict[str, Any], tmp_path: Path
) -> None:
    folder = ROWS[name].make(tmp_path / "model")
    path = folder / file / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **published}))
    config = make_config(folder, tmp_path, {"sampling.guidance_scale": 4.0, **ROWS[name].settings})
    check_model(config.model, config.sampling)
    load_policy(config)


PUBLISHED_T5 = {
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "d_ff": 10240,
    "d_kv": 64,
    "d_model": 4096,
    "decoder_start_token_id": 0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "is_gated_act": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 24,
    "num_heads": 64,
    "num_layers": 24,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_max_distance": 128,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.41.2",
    "use_cache": True,
    "vocab_size": 32128,
}
"""Of Stable Diffusion 3.5's text_encoder_3."""


def test_the_published_configuration_of_t5_is_taken() -> None:
    check_options(Path("config.json"), PUBLISHED_T5, T5_NAMES, T5)
    with pytest.raises(ModelError, match="quantization_config"):
        check_options(Path("config.json"), {**PUBLISHED_T5, "quantization_config": {"bits": 4}}, T5_NAMES, T5)
