"""The recipe: its parts against slow references, and every stage in a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.scenes import OBJECTS, Kind, Scene, all_scenes, canonical, is_heldout
from models.train_tiny.__main__ import main
from models.train_tiny.base import random_times
from models.train_tiny.facts import FACT_SIZES, FactHead, facts, impossible
from models.train_tiny.flow import PEAK_SHARE, make_transformer, random_sigmas, rate_at
from models.train_tiny.paths import FLOW_NAME, GOLD_NAME, MODELS, PROXY_NAME, SD_NAME

SCENES = list(all_scenes())
TRAINING = [scene for scene in SCENES if not is_heldout(scene)]
scenes = st.integers(0, len(SCENES) - 1).map(SCENES.__getitem__)
training_scenes = st.integers(0, len(TRAINING) - 1).map(TRAINING.__getitem__)


def test_facts_tell_pictures_apart_and_prompts_of_one_picture_together() -> None:
    sample = SCENES[:30_000:7] + SCENES[200_000:230_000:7]
    told = {tuple(facts(scene)): canonical(scene) for scene in sample}
    assert len(told) == len({canonical(scene) for scene in sample})
    assert all(facts(scene) == facts(canonical(scene)) for scene in sample)


@settings(max_examples=100, deadline=None)
@given(scenes)
def test_facts_are_class_numbers_and_know_the_direction_of_a_relation(scene: Scene) -> None:
    assert all(0 <= fact < size for fact, size in zip(facts(scene), FACT_SIZES, strict=True))
    if scene.kind is Kind.PAIR:
        mirrored = replace(scene, object1=str(scene.object2), object2=scene.object1)
        assert facts(mirrored) != facts(scene)


@settings(max_examples=60, deadline=None)
@given(training_scenes, st.sampled_from(OBJECTS))
def test_objects_are_impossible_just_where_training_never_shows_them(scene: Scene, obj: str) -> None:
    shown = canonical(scene)
    not_first, not_second = impossible(torch.tensor([facts(shown)]))
    index = OBJECTS.index(obj)
    unseen = obj == shown.object2 or is_heldout(replace(shown, object1=obj))
    assert bool(not_first[0, index]) == unseen
    if shown.object2 is not None:
        unseen = obj == shown.object1 or is_heldout(replace(shown, object2=obj))
        assert bool(not_second[0, index]) == unseen
    assert not not_first[0, OBJECTS.index(shown.object1)]
    assert not not_second[0, facts(shown)[1]]


def test_losses_agree_where_the_unseen_objects_are_out_of_the_question() -> None:
    torch.manual_seed(0)
    head, targets = FactHead(), torch.tensor([facts(scene) for scene in TRAINING[::9001]])
    embeddings = torch.nn.functional.normalize(torch.randn(len(targets), 128), dim=1)
    first, second, *others = (part.log_softmax(1) for part in head(embeddings))
    not_first, not_second = impossible(targets)
    slow = []
    for row, target in enumerate(targets.tolist()):
        for scores, unseen, truth in (
            (first, not_first, target[0]),
            (second, not_second, target[1]),
        ):
            left = scores[row][~unseen[row]].exp().sum()
            slow.append(-(scores[row, truth] - left.log()))
        slow += [-part[row, truth] for part, truth in zip(others, target[2:], strict=True)]
    assert head.loss_of_pictures(embeddings, targets).item() == pytest.approx(
        torch.stack(slow).mean().item(), rel=1e-4
    )
    assert head.loss(embeddings, targets) > head.loss_of_pictures(embeddings, targets)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_random_times_fall_one_into_each_stretch(count: int) -> None:
    torch.manual_seed(1)
    times = random_times(count)
    assert len(times) == count
    for index, time in enumerate(times.tolist()):
        assert int(index * 1000 / count) <= time < (index + 1) * 1000 / count
    assert times.min() >= 0
    assert times.max() <= 999


@pytest.mark.parametrize("count", [1, 7, 64])
def test_random_sigmas_fall_one_into_each_part_of_equal_logit_normal_probability(count: int) -> None:
    torch.manual_seed(1)
    logits = torch.logit(random_sigmas(count).double()).tolist()
    parts = [int(NormalDist().cdf(logit) * count - 1e-6) for logit in logits]
    assert sorted(parts) == list(range(count))


def test_the_flow_s_rate_rises_stays_and_falls() -> None:
    rates = [rate_at(step, 10_000) for step in range(10_000)]
    peak = max(rates)
    assert rates[199 : int(PEAK_SHARE * 10_000) + 1] == [peak] * (int(PEAK_SHARE * 10_000) - 198)
    assert rates[:200] == sorted(rates[:200])
    assert rates[7000:] == sorted(rates[7000:], reverse=True)
    assert rates[-1] == pytest.approx(0.02 * peak, rel=0.01)


def test_a_fresh_transformer_says_nothing_and_its_gates_are_shut() -> None:
    transformer = make_transformer()
    latents, states, pooled = torch.randn(2, 24, 8, 8), torch.randn(2, 5, 192), torch.randn(2, 256)
    block = transformer.transformer_blocks[0]
    with torch.no_grad():
        assert not transformer(latents, states, pooled, torch.tensor([1.0, 999.0])).sample.any()
        image, text = torch.randn(2, 64, 96), torch.randn(2, 5, 96)
        text_after, image_after = block(image, text, torch.randn(2, 96))
    assert torch.equal(image, image_after)
    assert torch.equal(text, text_after)


FEW = (
    "--threads 1 --text-steps 1 --vae-steps 5 --proxy-steps 2 --gold-steps 2 --base-steps 2 --flow-steps 2 "
    "--pictures 12"
)


def make(folder: Path, stages: str) -> dict[str, bytes]:
    """What the stages write in a few steps: path -> bytes."""
    main([*stages.split(), *FEW.split(), "--into", str(folder)])
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    main(["vae", "proxy", "gold", "base", "flow", "report", *FEW.split(), "--into", str(folder)])
    return folder


@pytest.mark.slow
def test_the_recipe_makes_every_committed_file(made: Path) -> None:
    for name in (SD_NAME, FLOW_NAME, PROXY_NAME, GOLD_NAME):
        files = {path.relative_to(made) for path in (made / name).rglob("*") if path.is_file()}
        assert files == {path.relative_to(MODELS) for path in (MODELS / name).rglob("*") if path.is_file()}
    assert min((made / f"samples{model}.png").stat().st_size for model in ("", "_flow")) > 1000


@pytest.mark.slow
def test_the_committed_tokenizers_are_the_recipe_s(made: Path) -> None:
    for path in made.rglob("tokenizer.json"):
        assert path.read_text() == (MODELS / path.relative_to(made)).read_text()


@pytest.mark.slow
def test_a_stage_makes_the_same_bytes_again(tmp_path: Path) -> None:
    first, again = (make(tmp_path / name, "vae base flow") for name in ("one", "two"))
    assert first == again
