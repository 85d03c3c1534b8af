"""What a scorer may return, and the contract check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import RewardError
from common.trajectory import ScorerStamp
from reward_service.contract.reward import Reward, check_scorer
from reward_service.contract.scorer import AnyScorer, digest_files, digest_settings
from tests.reward_service.scorers import Careless, Duel, GreenDuel, PromptLength, Redness

MakeImages = Callable[[int, int], NDArray[np.uint8]]
PROMPTS = ["a cat", "a dog", "a red house"]


def stamp(name: str) -> ScorerStamp:
    """Of a scorer under a name."""
    return ScorerStamp(name, "1", "")


class Returns:
    """A scorer that returns what it was given."""

    version = "1"
    digest = ""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> object:
        return self._answer


class Judge:
    """A judge that returns what it was given."""

    version = "1"
    digest = ""

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> object:
        return self._answer


@pytest.mark.parametrize(
    ("scorer", "complaint"),
    [
        (Returns(np.zeros(2)), r"\(2,\)"),
        (Returns(np.zeros((3, 1))), r"\(3, 1\)"),
        (Returns(0.5), r"\(\)"),
        (Returns(None), "object"),
        (Returns(np.array([1.0, np.nan, 2.0])), "1 of 3"),
        (Returns(np.array([np.inf, np.nan, 2.0])), "2 of 3"),
        (Returns(np.ma.array([1.0, 2.0, 3.0], mask=[False, True, False])), r"1 of 3 .*\[1\]"),
        (Returns(np.ma.array([1, 2, 3], mask=[True, True, False])), "2 of 3"),
        (Judge([np.ma.array([0, 0, 0], mask=[False, False, True])] * 3), "3 of 9"),
        (Returns(np.array([1.0, 2.0, np.longdouble("1e999")])), "1 of 3"),
        (Returns(np.array([1.0, 2.0, -1e302])), r"1 of 3 .*1e\+100"),
        (Returns(np.array(["a", "b", "c"])), "U1"),
        (Returns(np.array([True, False, True])), "bool"),
        (Returns(np.array([1j, 0, 0])), "complex128"),
        (Returns([[1.0], [1.0, 2.0], []]), "list"),
        (Judge(np.zeros(3)), r"\(3,\)"),
        (Judge(np.ones((3, 3))), "antisymmetric"),
        (Judge(np.eye(3)), "antisymmetric"),
        (Judge(np.full((3, 3), np.nan)), "finite"),
    ],
)
def test_only_finite_numbers_and_antisymmetric_matrices_are_scores(
    scorer: AnyScorer, complaint: str, make_images: MakeImages
) -> None:
    with pytest.raises(RewardError, match=complaint):
        Reward.of(stamp("mine"), scorer).score([("a", make_images(0, 3))])


class Quits(Redness):
    """Ends the process, as a script does."""

    def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
        raise SystemExit(0)


def test_a_scorer_that_quits_is_a_failure_like_any_other(make_images: MakeImages) -> None:
    with pytest.raises(RewardError, match="SystemExit: 0"):
        Reward.of(stamp("mine"), Quits()).score([("a", make_images(0, 3))])


@pytest.mark.parametrize(
    "answer",
    [
        [1, 2, 3],
        np.array([1, 2, 3], np.int16),
        np.array([1.0, 2.0, 3.0], np.float32),
        np.ma.array([1, 2, 3]),
    ],
)
def test_any_real_numbers_become_float64(answer: object, make_images: MakeImages) -> None:
    (part,) = Reward.of(stamp("mine"), Returns(answer)).score([("a", make_images(0, 3))])  # type: ignore[arg-type]
    assert type(part.rewards) is np.ndarray
    assert part.rewards.dtype == np.float64
    np.testing.assert_array_equal(part.rewards, [1.0, 2.0, 3.0])


class Dice(Duel):
    """A judge of pairs that throws dice, and says so or not."""

    def __init__(self, scale: float = 1.0, deterministic: bool = False) -> None:
        super().__init__(scale)
        self.deterministic = deterministic

    def compare_pairs(
        self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return np.random.default_rng().normal(size=len(pairs)) / self.scale


class FirstPlace:
    """A judge of a matrix that likes earlier images better."""

    version = "1"
    digest = ""

    def compare(self, prompt: str, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        places = np.arange(len(images), dtype=np.float64)
        return places[None, :] - places[:, None]


class FirstShown(Duel):
    """A judge of pairs that likes the image shown first better."""

    def compare_pairs(
        self, prompt: str, images: NDArray[np.uint8], pairs: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return super().compare_pairs(prompt, images, pairs) + 0.5


@pytest.mark.parametrize("scorer", [Redness(), PromptLength(2.0), GreenDuel(), Duel(), Dice()])
def test_good_scorers_and_declared_dice_pass_the_check(scorer: AnyScorer, make_images: MakeImages) -> None:
    check_scorer(scorer, PROMPTS, make_images(2, 3))


@pytest.mark.parametrize(
    ("scorer", "complaint"),
    [
        (Careless(), "alone"),
        (Dice(deterministic=True), "again"),
        (Dice(scale=0.0), "finite"),
        (FirstPlace(), "order"),
        (FirstShown(), "order"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_broken_contract_fails_the_check(
    scorer: AnyScorer, complaint: str, make_images: MakeImages
) -> None:
    with pytest.raises(RewardError, match=complaint):
        check_scorer(scorer, PROMPTS, make_images(3, 3))


def test_all_pairs_of_a_judge_are_its_matrix_with_the_misfit_as_residual(make_images: MakeImages) -> None:
    images = make_images(7, 5)
    (part,) = Reward.of(stamp("duel"), Duel()).score([("a", images)])
    (whole,) = Reward.of(stamp("duel"), GreenDuel()).score([("a", images)])
    np.testing.assert_allclose(part.differences, whole.differences, atol=1e-12)
    np.testing.assert_allclose(part.rewards, whole.rewards, atol=1e-12)
    misses = [
        whole.differences[i, j] - (whole.rewards[i] - whole.rewards[j]) for i in range(5) for j in range(i)
    ]
    wanted = float(np.sqrt(np.mean(np.square(misses))))
    assert wanted > 1e-6
    assert part.residual == pytest.approx(wanted)
    assert whole.residual == pytest.approx(wanted)


def test_a_budget_of_pairs_is_kept_and_depends_on_the_group_alone(make_images: MakeImages) -> None:
    duel = Duel()
    judge = Reward.of(stamp("duel"), duel, pairs=6)
    first, second, again = judge.score(
        [("a", make_images(1, 5)), ("b", make_images(1, 5)), ("a", make_images(1, 5))]
    )
    asked = [sorted(map(sorted, pairs.tolist())) for pairs in duel.asked]
    assert [len(pairs) for pairs in asked] == [6, 6, 6]
    assert asked[0] == asked[2] != asked[1]
    np.testing.assert_array_equal(first.differences, again.differences)
    for part in (first, second):
        np.testing.assert_allclose(part.differences, part.rewards[:, None] - part.rewards[None, :])


def test_a_single_image_costs_a_judge_of_pairs_nothing(make_images: MakeImages) -> None:
    duel = Duel()
    (part,) = Reward.of(stamp("duel"), duel).score([("a", make_images(1, 1))])
    assert duel.asked == []
    np.testing.assert_array_equal(part.rewards, [0.0])


@pytest.mark.parametrize("scorer", [object(), type("Both", (Redness, GreenDuel), {})()])
def test_a_scorer_has_exactly_one_of_the_methods(scorer: AnyScorer) -> None:
    with pytest.raises(RewardError, match="exactly one"):
        Reward.of(stamp("mine"), scorer)


def test_a_scorer_cannot_change_the_callers_images(make_images: MakeImages) -> None:
    class Eraser(Redness):
        def score(self, prompts: list[str], images: NDArray[np.uint8]) -> NDArray[np.float64]:
            rewards = super().score(prompts, images)
            images[:] = 0
            return rewards

    images = make_images(6, 2)
    before = images.copy()
    images.setflags(write=False)
    Reward.of(stamp("eraser"), Eraser()).score([("a", images)])
    np.testing.assert_array_equal(images, before)


def test_settings_count_whatever_their_order() -> None:
    assert digest_settings({"a": 1, "b": 2.0}) == digest_settings({"b": 2.0, "a": 1})
    assert digest_settings({"a": 1}) != digest_settings({"a": 2})


def test_content_and_name_of_files_count_their_folder_and_order_do_not(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(b"1")
        (tmp_path / folder / "b").write_bytes(b"2")
    one = [tmp_path / "one" / name for name in "ab"]
    two = [tmp_path / "two" / name for name in "ba"]
    assert digest_files(one, {}) == digest_files(two, {})
    assert digest_files(one, {}) != digest_files(one, {"prefix": "x"})
    two[0].write_bytes(b"3")
    assert digest_files(one, {}) != digest_files(two, {})
    assert digest_files(one, {}) != digest_files(one[:1], {})
