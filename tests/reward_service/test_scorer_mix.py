"""Mixes inside one application against sums by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import RewardError
from reward_service.contract.reward import check_scorer
from reward_service.contract.settings import ServedReward
from reward_service.engine.build import build_reward
from reward_service.scorers.mix import Mix, MixPairwise
from tests.reward_service.scorers import Duel, GreenDuel, Lookup, PromptLength, Redness

MakeImages = Callable[[int, int], NDArray[np.uint8]]
HERE = "tests.reward_service.scorers"
POINTS = f"""
red: {{scorer: "{HERE}:Redness", weight: 10}}
length: {{scorer: "{HERE}:PromptLength", weight: -0.5, options: {{scale: 2.0}}}}
"""
ANY = f"""
red: {{scorer: "{HERE}:Redness", weight: 10}}
green: {{scorer: "{HERE}:GreenDuel", weight: -2}}
duel: {{scorer: "{HERE}:Duel", weight: 3, options: {{scale: 2.0}}}}
"""


class Cats(Lookup):
    """Knows fewer."""

    check_prompts = ("two cats", "a bench")


def test_a_mix_is_the_weighted_sum(make_images: MakeImages) -> None:
    images, prompts = make_images(0, 4), ["a", "bb", "ccc", "a"]
    Mix.check_options(parts=POINTS)
    wanted = 10 * Redness().score(prompts, images) - 0.5 * PromptLength(2.0).score(prompts, images)
    np.testing.assert_allclose(Mix(parts=POINTS).score(prompts, images), wanted)
    check_scorer(Mix(parts=POINTS), prompts, images)


def test_a_pairwise_mix_adds_differences_of_every_kind(make_images: MakeImages) -> None:
    images = make_images(1, 5)
    MixPairwise.check_options(parts=ANY)
    red = Redness().score(["x"] * 5, images)
    pairs = np.argwhere(np.ones((5, 5)))
    duel = Duel(2.0).compare_pairs("x", images, pairs).reshape(5, 5)
    wanted = 10 * (red[:, None] - red[None, :]) - 2 * GreenDuel().compare("x", images) + 3 * duel
    np.testing.assert_allclose(MixPairwise(parts=ANY).compare("x", images), wanted, atol=1e-9)
    check_scorer(MixPairwise(parts=ANY), ["x"] * 5, images)


def test_a_part_has_its_own_budget_of_pairs(make_images: MakeImages) -> None:
    mix = MixPairwise(parts=f'duel: {{scorer: "{HERE}:Duel", pairs: 7}}')
    mix.compare("x", make_images(1, 6))
    (part,) = mix._parts
    assert isinstance(part.scorer, Duel)
    assert [len(pairs) for pairs in part.scorer.asked] == [7]


def test_a_mix_is_tested_with_prompts_that_all_its_parts_know() -> None:
    parts = f'''
red: {{scorer: "{HERE}:Redness"}}
table: {{scorer: "{HERE}:Lookup"}}
cats: {{scorer: "{__name__}:Cats"}}
'''
    assert Mix(parts=parts).check_prompts == MixPairwise(parts=parts).check_prompts == ("two cats",)
    assert Mix(parts=POINTS).check_prompts == ()
    build_reward("both", ServedReward(scorer="mix", options={"parts": parts})).check()


def test_a_part_that_fails_is_named(make_images: MakeImages) -> None:
    broken = f'moody: {{scorer: "{HERE}:Moody"}}\n{POINTS}'
    with pytest.raises(RewardError, match="'moody' raised"):
        Mix(parts=broken).score(["raise now"], make_images(0, 1))
    with pytest.raises(RewardError, match=r"'moody' .*not finite"):
        MixPairwise(parts=broken).compare("nan now", make_images(0, 2))


def test_a_mix_is_as_deterministic_and_as_paid_as_its_parts() -> None:
    judge = (
        "judge: {scorer: vlm_pairs, options: {base_url: 'http://127.0.0.1:9/v1', model: m, temperature: 1.0}}"
    )
    assert Mix(parts=POINTS).deterministic
    assert not MixPairwise(parts=f"{judge}\n{ANY}").deterministic
    assert not Mix(parts=POINTS).paid
    assert MixPairwise(parts=f"{judge}\n{ANY}").paid


def test_digest_follows_every_part() -> None:
    texts = [POINTS, POINTS.replace("10", "11"), POINTS.replace("2.0", "3.0"), POINTS.replace("red:", "rot:")]
    assert len({Mix(parts=text).digest for text in texts}) == 4
    assert Mix(parts=POINTS).digest == Mix(parts=POINTS + "\n\n").digest


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ("", "scorers"),
        ("- clip", "scorers"),
        ("a: {", "not valid YAML"),
        ("a: {scorer: jpeg_compresibility}", "part a: .*'jpeg_compressibility'"),
        ("a: {scorer: jpeg_compressibility, wieght: 2}", "weight"),
        ("a: {scorer: jpeg_compressibility, weight: 0}", "weight 0"),
        ("a: {scorer: jpeg_compressibility, options: {quality: 3}}", "part a: .*cannot take options"),
        ("a: {scorer: jpeg_compressibility, pairs: 3}", "pairs is for judges"),
        (ANY, "green, duel .*mix_pairwise"),
    ],
)
def test_impossible_parts_are_refused(parts: str, complaint: str) -> None:
    with pytest.raises(RewardError, match=complaint):
        Mix.check_options(parts=parts)
