"""evaluate.py and sample.py on a real checkpoint, without Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from rich.progress import Progress

import evaluate
import sample
from common.config.load import config_to_yaml
from common.config.schema import Config
from common.config.services import RewardSpec
from common.errors import BadNumbersError, RewardError
from common.storage import Content
from common.trajectory import NoiseKey
from driver import api
from driver.report.intervals import Interval, compare, mean_interval
from driver.run.changes import digest_model
from driver.run.checkpoints import Checkpoints, RunState
from driver.run.prompts import evaluation_tasks
from driver.standalone import LoadedPolicy, load_checkpoint, load_pretrained, measure, prompt_sets
from learner.build import build_learner
from learner.parallel import Single
from learner.state import export_state
from reward_service.client.local import local_rewards
from tests.reward_service.scorers import GreenDuel
from tests.tiny_config import make_config


@pytest.fixture(scope="module")
def trained(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A checkpoint of a LoRA policy that is not the pretrained one."""
    config = make_config(tiny_pipeline, tmp_path_factory.mktemp("tools"))
    return config, disturbed_checkpoint(config)


def disturbed_checkpoint(config: Config) -> Path:
    """A checkpoint of two epochs and seven updates, whose policy is the pretrained one and noise."""
    learner = build_learner(config, "run", Single())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in learner.parameters.values():
            value += 0.2 * torch.randn(value.shape, generator=generator)
    inputs = {**digest_model(config.model, None), "prompts.train": "0"}
    state = RunState(run_id="run", epoch=2, tracker_run="", inputs=inputs)
    files: dict[str, Content] = dict(export_state(learner))
    files["learner.json"] = json.dumps({**json.loads(bytes(files["learner.json"])), "version": 7}).encode()
    return Path(Checkpoints.of(config).write(state, config_to_yaml(config), files))


def test_sample_writes_the_checkpoint_s_own_pictures(trained: tuple[Config, Path], tmp_path: Path) -> None:
    config, checkpoint = trained
    output = tmp_path / "picture.png"
    arguments = [
        "a cat",
        "--checkpoint",
        str(checkpoint),
        "--images",
        "3",
        "--seed",
        "5",
        "--output",
        str(output),
    ]
    assert sample.main(arguments) == 0
    noise = NoiseKey(5, "sample", 0, 0)
    expected = load_checkpoint(config, checkpoint).images("a cat", 3, noise)
    np.testing.assert_array_equal(np.asarray(Image.open(output)), np.concatenate(list(expected), axis=1))
    untrained = load_pretrained(config).images("a cat", 3, noise)
    assert not np.array_equal(expected, untrained)


def test_latents_that_are_not_finite_give_no_picture(trained: tuple[Config, Path]) -> None:
    loaded = load_pretrained(trained[0])
    with torch.no_grad():
        next(iter(loaded.policy.trainable.parameters().values())).fill_(torch.nan)
    with pytest.raises(BadNumbersError, match="a cat"):
        loaded.images("a cat", 1, NoiseKey(0, "sample", 0, 0))


def test_another_pretrained_model_is_told_by_its_part(
    trained: tuple[Config, Path], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, checkpoint = trained
    other = Path(shutil.copytree(tiny_pipeline, tmp_path / "other"))
    for part in ("", "vae"):
        if part:
            file = other / part / "diffusion_pytorch_model.safetensors"
            held = {name: value * 1.5 for name, value in safetensors.torch.load_file(file).items()}
            safetensors.torch.save_file(held, file, {"format": "pt"})
        load_checkpoint(make_config(other, tmp_path), checkpoint)
        told = [line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines()[1:]]
        assert told == ([f"model {part}"] if part else [])


def test_a_checkpoint_is_stamped_with_its_updates_not_its_epochs(trained: tuple[Config, Path]) -> None:
    loaded = load_checkpoint(*trained)
    assert (loaded.epoch, loaded.stamp.version, loaded.stamp.run_id) == (2, 7, "run")


def test_evaluate_compares_with_the_pretrained_model_on_any_prompts(
    trained: tuple[Config, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, checkpoint = trained
    prompts = tmp_path / "mine.txt"
    # More than evaluation.prompts: of a set that is named all are evaluated.
    prompts.write_text("a bird\nthe sun\na red fish\na cat\na dog\n")
    output = tmp_path / "out"
    arguments = ["--checkpoint", str(checkpoint), "--prompts", str(prompts), "--output", str(output)]
    assert evaluate.main([*arguments, "gold.other.scorer=jpeg_incompressibility"]) == 0
    table = (output / "table.md").read_text()
    assert "other" in table
    assert "5 mine" in table
    assert Image.open(output / "grid.png").size[0] > 64
    assert "other" in capsys.readouterr().out


def test_evaluate_asks_a_judge_which_image_it_prefers(trained: tuple[Config, Path]) -> None:
    """Of the same prompt and noise: against the judge itself, asked about the two policies' own images."""
    config, checkpoint = trained
    config = config.model_copy(
        update={"gold": {"duel": RewardSpec(scorer="tests.reward_service.scorers:GreenDuel")}}
    )
    before, after = api.evaluate(str(checkpoint), config)
    policies = load_pretrained(config), load_checkpoint(config, checkpoint)
    own, prompts = after.sets[-1], prompt_sets(config, None)["unseen"]
    for row, task in enumerate(evaluation_tasks(config, "unseen", prompts, policies[0].stamp)):
        pictures = [policy.images(task.prompt, task.num_images, task.noise) for policy in policies]
        pairs = [np.stack(pair) for pair in zip(*pictures, strict=True)]
        expected = [GreenDuel().compare(task.prompt, pair)[1, 0] for pair in pairs]
        np.testing.assert_allclose(own.preferences["duel"][row], expected)
    assert own.preferences["duel"].any()
    changes = {change.score: change for change in compare([before, after])}
    assert changes["duel"].difference == mean_interval(own.preferences["duel"].mean(axis=1))


def test_evaluate_compares_two_checkpoints_whatever_is_trained_in_each(
    trained: tuple[Config, Path], tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, checkpoint = trained
    other = disturbed_checkpoint(make_config(tiny_pipeline, tmp_path, {"policy": {"kind": "full"}}))
    before, after = api.evaluate(str(checkpoint), config, against=str(other))
    (alone,) = api.evaluate(None, config)
    (itself,) = {change.difference for change in compare([after, api.evaluate(str(checkpoint), config)[1]])}
    assert itself == Interval(0.0, 0.0)
    means = [float(one.sets[-1].scores["jpeg"].mean()) for one in (before, after, alone)]
    assert len(set(means)) == 3
    flags = ["--checkpoint", str(checkpoint), "--against", str(other), "--output", str(tmp_path / "out")]
    assert evaluate.main(flags) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert all(f"{mean:.2f}"[:-1] in table for mean in means[:2])
    assert "first evaluation" not in table
    (tmp_path / "config.yaml").write_text(config_to_yaml(config))
    assert evaluate.main(["--config", str(tmp_path / "config.yaml"), *flags[2:]]) == 2
    assert "--checkpoint" in capsys.readouterr().err


def test_a_scorer_that_fails_is_told_before_the_second_prompt_is_sampled(
    trained: tuple[Config, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {"bad": RewardSpec(scorer="tests.reward_service.scorers:Moody")}
    config = trained[0].model_copy(update={"gold": bad})
    rewards = local_rewards(config.rewards, config.gold, config.reward_service)
    (tmp_path / "prompts.txt").write_text("raise a hand\nraise a flag\n")
    sets, sampled = prompt_sets(config, str(tmp_path / "prompts.txt")), list[str]()

    def images(_: LoadedPolicy, prompt: str, count: int, *__: Any, **___: Any) -> np.ndarray:
        sampled.append(prompt)
        return np.zeros((count, 8, 8, 3), np.uint8)

    monkeypatch.setattr(LoadedPolicy, "images", images)
    with pytest.raises(RewardError, match="the judge is out"):
        measure(config, load_pretrained(config), rewards, sets, Progress(disable=True))
    assert len(sampled) == 1


def test_evaluate_measures_the_pretrained_model_alone(trained: tuple[Config, Path], tmp_path: Path) -> None:
    config, _ = trained
    path = tmp_path / "config.yaml"
    path.write_text(config_to_yaml(config))
    assert evaluate.main(["--config", str(path), "--output", str(tmp_path / "out")]) == 0
    assert "unseen" in (tmp_path / "out" / "table.md").read_text()


def test_evaluate_compares_on_a_suite_with_the_base_at_its_best_guidance(
    trained: tuple[Config, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, checkpoint = trained
    suite = tmp_path / "sheet.csv"
    suite.write_text('Prompts,Category\na bird,Birds\nthe sun,Sky\n"two, red birds",Birds\n')
    output = tmp_path / "out"
    arguments = ["--checkpoint", str(checkpoint), "--suite", str(suite), "--output", str(output)]
    assert evaluate.main([*arguments, "--guidances", "1,4", "--suite-prompts", "2"]) == 0
    result = json.loads((output / "suite.json").read_text())
    assert list(result["scores"]) == ["trained", "base at 1", "base at 4"]
    means = {model: sets["sheet"]["jpeg"]["mean"] for model, sets in result["scores"].items()}
    assert len(set(means.values())) == 3
    assert len((output / "suite_prompts.jsonl").read_text().splitlines()) == 2
    assert {"seen", "unseen", "sheet"} <= set(result["scores"]["trained"])
    assert "sheet" in (output / "suite.md").read_text()
    assert "sheet" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--suite", "nowhere.csv", "--checkpoint", "CHECKPOINT"],
        ["--suite", "nowhere.csv"],
        ["--suite", "nowhere.csv", "--checkpoint", "CHECKPOINT", "--prompts", "mine.txt"],
        ["--guidances", "1,3", "--suite-alone", "--checkpoint", "CHECKPOINT"],
        ["--suite", "nowhere.csv", "--checkpoint", "CHECKPOINT", "--guidances", "0.5"],
        ["--suite", "nowhere.csv", "--checkpoint", "CHECKPOINT", "--guidances", "high"],
    ],
)
def test_a_suite_that_cannot_be_evaluated_is_told(
    wrong: list[str], trained: tuple[Config, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(trained[1]) if word == "CHECKPOINT" else word for word in wrong]
    assert evaluate.main([*given, "--output", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "Error: " in told
    assert any(word in told for word in wrong if word != "CHECKPOINT")
