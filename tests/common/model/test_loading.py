"""From the configuration to a policy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from common.errors import ModelError, WeightsError
from common.model.guidance import ClassifierFree
from common.model.loading import check_base, choose_device, digest_base, digest_encoders_and_vae, load_policy
from tests.tiny_config import make_config


def test_the_sampling_section_makes_the_step_distribution(tiny_pipeline: Path, tmp_path: Path) -> None:
    settings = {
        "sampling": {
            "steps": 5,
            "sampler": {"kind": "ddim", "eta": 0.5},
            "stochastic_steps": (0, 2),
            "guidance_scale": 2.5,
        },
        "model.precision": "bfloat16",
    }
    policy, distribution = load_policy(make_config(tiny_pipeline, tmp_path, settings))
    _, whole = load_policy(make_config(tiny_pipeline, tmp_path, {"sampling.steps": 5}))
    assert policy.guided.guidance == ClassifierFree(2.5)
    assert policy.guided.autocast
    assert distribution.stochastic_steps == (0, 2)
    assert whole.stochastic_steps == (0, 1, 2, 3)
    assert distribution.times == whole.times
    assert [distribution.std[at] for at in (0, 2)] == pytest.approx([0.5 * whole.std[at] for at in (0, 2)])
    assert not any(distribution.std[at] for at in (1, 3, 4))


@pytest.mark.parametrize(
    ("wanted", "has_cuda", "chosen"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_the_device_is_the_one_asked_for_or_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, wanted: str, has_cuda: bool, chosen: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_cuda)
    assert choose_device(wanted) == torch.device(chosen)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ModelError, match=r"model\.device"):
        choose_device("cuda")


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model_index\.json is missing"):
        load_policy(make_config(tmp_path, tmp_path))


def test_the_digest_of_the_pretrained_network_is_of_all_that_no_adapter_adds(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    kinds = [{"kind": "lora", "rank": 2}, {"kind": "full"}]
    lora, full = (load_policy(make_config(tiny_pipeline, tmp_path, {"policy": kind}))[0] for kind in kinds)
    base = digest_base(lora)
    with torch.no_grad():
        for value in lora.trainable.parameters().values():
            value.add_(1.0)
    assert digest_base(lora) == base
    check_base(base, base, "An actor")
    rest = digest_encoders_and_vae
    for part, digest in {"unet": digest_base, "vae": rest, "text_encoder": rest}.items():
        before = digest(full)
        with torch.no_grad():
            next(iter(full.family.parts()[part].state_dict().values())).add_(1.0)
        assert digest(full) != before
    with pytest.raises(WeightsError, match="actor 1 has loaded another pretrained model"):
        check_base(digest_base(full), base, "actor 1")


def test_a_learner_loads_the_network_alone(tiny_pipeline: Path, tmp_path: Path) -> None:
    config = make_config(tiny_pipeline, tmp_path, {"sampling.guidance_scale": 3.0})
    (whole, steps), (alone, same_steps) = load_policy(config), load_policy(config, network_only=True)
    assert set(alone.family.parts()) == {"unet"}
    assert digest_base(alone) == digest_base(whole)
    assert same_steps == steps
    assert alone.steps_fingerprint(steps) == whole.steps_fingerprint(steps)
    condition = whole.embed("a cat")
    example = alone.example()
    assert {name: rows[0].shape[-1] for name, rows in example.items()} == {
        name: rows[0].shape[-1] for name, rows in condition.items()
    }
    batch = torch.randn(2, 4, 8, 8), torch.tensor([900.0, 100.0])
    with torch.no_grad():
        assert torch.equal(alone.predict(*batch, condition), whole.predict(*batch, condition))
        alone.predict(*batch, example)
    for needed in (lambda: alone.embed("a cat"), lambda: alone.family.decode(batch[0])):
        with pytest.raises(ModelError, match="not loaded"):
            needed()
