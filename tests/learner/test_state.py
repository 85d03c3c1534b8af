"""A learner continues from its files to the bit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from actors.sampler import sample_group
from common.errors import CheckpointError, WeightsError
from common.model.loading import load_policy
from common.model.policy import Policy
from common.trajectory import NoiseKey, PromptTask, ScoredGroup
from learner.learner import Learner
from learner.state import Files, export_snapshot, export_state, restore_snapshot, restore_state
from tests.learner.support import make_learner, perturb, scored
from tests.tiny_config import make_config

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"policy": {"kind": "lora", "rank": 2, "alpha": 4}},
    "full": {"policy": {"kind": "full"}},
}
both_kinds = pytest.mark.parametrize("kind", sorted(KINDS))


class Run:
    """A policy with its learner, which samples and learns an epoch at a time."""

    def __init__(self, pipeline: Path, folder: Path, kind: str, ema_decay: float = 0.5) -> None:
        config = make_config(pipeline, folder, {**KINDS[kind], "sampling.steps": 3})
        self.policy, self.steps = load_policy(config)
        self.reference = self.policy.reference()
        self.learner: Learner = make_learner(self.policy, self.steps, ema_decay=ema_decay)

    def epoch(self, number: int) -> None:
        """Two prompts, one update."""
        for group in self.groups(number):
            self.learner.accumulate([group])
        assert self.learner.finish_update().applied

    def groups(self, number: int) -> list[ScoredGroup]:
        """Two prompts' trajectories of the weights as they are."""
        stamp = self.learner.publish().stamp
        found = []
        for index, prompt in enumerate(("a cat", "two red birds")):
            task = PromptTask(prompt, 3, NoiseKey(0, "train", number, index), stamp, with_reference=True)
            group, _ = sample_group(task, self.policy, self.reference, self.steps)
            found.append(scored(group, [0.1 * number, 0.3, 0.2]))
        return found


def _tensors(files: Files) -> dict[str, torch.Tensor]:
    """Every tensor of every file."""
    return {
        f"{name}/{key}": value
        for name, data in files.items()
        if name.endswith(".safetensors")
        for key, value in safetensors.torch.load(bytes(data)).items()
    }


def _contents(learner: Learner) -> dict[str, bytes]:
    """The files of export_state."""
    return {name: bytes(data) for name, data in export_state(learner).items()}


def _assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@both_kinds
def test_a_restored_learner_continues_to_the_bit(tiny_pipeline: Path, tmp_path: Path, kind: str) -> None:
    undisturbed, restored = (Run(tiny_pipeline, tmp_path, kind) for _ in range(2))
    for number in (1, 2):
        undisturbed.epoch(number)
    files = export_state(undisturbed.learner)
    restore_state(restored.learner, files)
    assert restored.learner.version == 2
    assert restored.learner.publish().stamp == undisturbed.learner.publish().stamp
    for run in (undisturbed, restored):
        run.epoch(3)
    assert restored.learner.publish().stamp == undisturbed.learner.publish().stamp
    step = next(name for name in _tensors(files) if name.endswith("|step"))
    own, other = (_tensors(export_state(run.learner)) for run in (undisturbed, restored))
    _assert_same(own, other)
    assert not torch.equal(own[step], _tensors(files)[step])


@both_kinds
def test_a_snapshot_with_the_weights_before_it_is_the_learner(
    tiny_pipeline: Path, tmp_path: Path, kind: str
) -> None:
    undisturbed, restored = (Run(tiny_pipeline, tmp_path, kind) for _ in range(2))
    pretrained = copy.deepcopy(undisturbed.learner.publish())
    undisturbed.epoch(1)
    weights = undisturbed.learner.publish()
    snapshot = export_snapshot(undisturbed.learner)
    with pytest.raises(WeightsError, match="version 1"):
        restore_snapshot(restored.learner, snapshot, pretrained)
    restore_snapshot(restored.learner, snapshot, weights)
    assert _contents(restored.learner) == _contents(undisturbed.learner)


def test_a_restored_learner_accepts_what_is_still_in_flight(tiny_pipeline: Path, tmp_path: Path) -> None:
    """Trajectories of the weights before last, as with staleness, are learned after a restart too."""
    undisturbed, restored = (Run(tiny_pipeline, tmp_path, "lora") for _ in range(2))
    late = undisturbed.groups(1)
    undisturbed.epoch(2)
    weights = undisturbed.learner.publish()
    restore_snapshot(restored.learner, export_snapshot(undisturbed.learner), weights)
    restored.learner.publish()
    for run in (undisturbed, restored):
        for group in late:
            run.learner.accumulate([group])
        assert run.learner.finish_update().applied
    assert restored.learner.publish().stamp == undisturbed.learner.publish().stamp
    with pytest.raises(WeightsError, match="did not publish"):
        Run(tiny_pipeline, tmp_path, "lora").learner.accumulate([late[0]])


def test_an_epoch_that_is_begun_again_adds_up_to_the_same_bits(tiny_pipeline: Path, tmp_path: Path) -> None:
    once, again = (Run(tiny_pipeline, tmp_path, "lora") for _ in range(2))
    once.epoch(1)
    for group in again.groups(1)[:1]:
        again.learner.accumulate([group])
    again.learner.reset_epoch()
    again.epoch(1)
    assert _contents(again.learner) == _contents(once.learner)


def test_a_learner_that_never_stepped_can_be_restored(tiny_pipeline: Path, tmp_path: Path) -> None:
    first, second = (Run(tiny_pipeline, tmp_path, "lora", ema_decay=0.0) for _ in range(2))
    restore_state(second.learner, export_state(first.learner))
    for run in (first, second):
        run.epoch(1)
    assert first.learner.publish().stamp == second.learner.publish().stamp


def test_the_optimizers_settings_are_the_new_runs(tiny_pipeline: Path, tmp_path: Path) -> None:
    first, second = (Run(tiny_pipeline, tmp_path, "lora") for _ in range(2))
    first.epoch(1)
    second.learner.optimizer.param_groups[0]["lr"] = 0.5
    restore_state(second.learner, export_state(first.learner))
    assert second.learner.optimizer.param_groups[0]["lr"] == 0.5


@both_kinds
def test_exporting_changes_nothing(tiny_pipeline: Path, tmp_path: Path, kind: str) -> None:
    run = Run(tiny_pipeline, tmp_path, kind)
    run.epoch(1)
    before = run.learner.publish().stamp
    first, second = (_contents(run.learner) for _ in range(2))
    assert first == second
    assert run.learner.publish().stamp == before


def _load(folder: Path, kind: str, pipeline: Path) -> Any:
    """The UNet as plain diffusers loads it."""
    if kind == "full":
        return UNet2DConditionModel.from_pretrained(folder)
    pipe: Any = StableDiffusionPipeline.from_pretrained(pipeline)
    pipe.load_lora_weights(folder)
    return pipe.unet


def _write(files: Files, folder: Path) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@both_kinds
def test_the_policy_folders_hold_the_weights_and_their_averages(
    tiny_pipeline: Path, tmp_path: Path, kind: str
) -> None:
    run = Run(tiny_pipeline, tmp_path, kind)
    run.epoch(1)
    _write(export_state(run.learner), tmp_path / "out")
    latents, timesteps = torch.randn(2, 4, 8, 8), torch.tensor([900, 100])
    condition = run.policy.embed("a cat")
    states = condition["encoder_hidden_states"][:1].repeat(2, 1, 1)
    averaged = Run(tiny_pipeline, tmp_path, kind).policy
    averaged.load(run.learner.averages)
    outputs = []
    expected: list[tuple[str, Policy]] = [("policy", run.policy), ("policy_ema", averaged)]
    for name, policy in expected:
        unet = _load(tmp_path / "out" / name, kind, tiny_pipeline)
        with torch.no_grad():
            outputs.append(unet(latents, timesteps, states).sample)
            torch.testing.assert_close(
                outputs[-1], policy.predict(latents, timesteps, condition), rtol=1e-5, atol=1e-6
            )
    assert float((outputs[0] - outputs[1]).abs().max()) > 1e-4


def _without(name: str) -> Callable[[Files], Files]:
    return lambda files: {key: data for key, data in files.items() if key != name}


def _with(name: str, data: bytes) -> Callable[[Files], Files]:
    return lambda files: {**files, name: np.frombuffer(data, dtype=np.uint8)}


@pytest.mark.parametrize(
    "damage",
    [
        _without("trainable.safetensors"),
        _without("learner.json"),
        _with("optimizer.safetensors", b"torn"),
        _with("learner.json", b"{"),
        _with("learner.json", json.dumps({"version": "many"}).encode()),
        _with("learner.json", b"[]"),
    ],
)
def test_damaged_files_are_refused(
    tiny_pipeline: Path, tmp_path: Path, damage: Callable[[Files], Files]
) -> None:
    run = Run(tiny_pipeline, tmp_path, "lora")
    before = run.learner.publish().stamp
    with pytest.raises(CheckpointError, match="damaged"):
        restore_state(run.learner, damage(export_state(run.learner)))
    assert run.learner.publish().stamp == before


def test_weights_of_another_policy_are_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    lora, full = (Run(tiny_pipeline, tmp_path, kind) for kind in ("lora", "full"))
    with pytest.raises(WeightsError, match="do not fit the policy"):
        restore_state(full.learner, export_state(lora.learner))


def test_averages_that_do_not_fit_are_refused(tiny_pipeline: Path, tmp_path: Path) -> None:
    with_average, without = (Run(tiny_pipeline, tmp_path, "lora", ema_decay=decay) for decay in (0.5, 0.0))
    for target, source in ((without, with_average), (with_average, without)):
        before = target.learner.publish().stamp
        perturb(source.policy, 0.1)
        with pytest.raises(WeightsError, match=r"do not fit.*optimizer\.ema_decay"):
            restore_state(target.learner, export_state(source.learner))
        assert target.learner.publish().stamp == before


def _changed(file: str, change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Files], Files]:
    """The files with a change to the tensors of one of them."""

    def change_files(files: Files) -> Files:
        tensors = safetensors.torch.load(bytes(files[file]))
        change(tensors)
        return _with(file, safetensors.torch.save(tensors))(files)

    return change_files


def _lose(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[sorted(tensors)[0]]


def _gain(tensors: dict[str, torch.Tensor]) -> None:
    tensors["conv_in.weight|exp_avg"] = torch.zeros(1)


@pytest.mark.parametrize(
    ("file", "what"), [("ema.safetensors", "moving averages"), ("optimizer.safetensors", "optimizer's state")]
)
@pytest.mark.parametrize("change", [_lose, _gain])
def test_missing_and_extra_names_are_refused_before_anything_is_loaded(
    tiny_pipeline: Path,
    tmp_path: Path,
    file: str,
    what: str,
    change: Callable[[dict[str, torch.Tensor]], None],
) -> None:
    first, second = (Run(tiny_pipeline, tmp_path, "lora") for _ in range(2))
    first.epoch(1)
    before = _contents(second.learner)
    with pytest.raises(WeightsError, match=f"{what} do not fit the policy"):
        restore_state(second.learner, _changed(file, change)(export_state(first.learner)))
    assert _contents(second.learner) == before


def test_weights_stay_where_averages_cannot_be_written(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tiny_pipeline, tmp_path, "lora")
    run.epoch(1)
    before = run.learner.publish().stamp
    kept: list[None] = []

    def full_disk(_: Path) -> None:
        kept.append(None)
        if len(kept) == 2:
            raise OSError("No space left on device")

    monkeypatch.setattr(run.learner, "save_policy", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_state(run.learner)
    assert run.learner.publish().stamp == before
