"""Loading: what a file and overrides come to, the round trip, and the differences of two configurations."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.fields import Section
from common.config.load import (
    apply_overrides,
    config_differences,
    config_from_yaml_text,
    config_to_yaml,
    load_config,
)
from common.config.objectives import DdpoSection, GrpoSection, PrdpSection
from common.config.problems import validate
from common.config.schema import Config
from common.config.services import AppReward, RewardSpec, UrlReward
from common.config.training import DanceSdeSampler, DdimSampler, FullPolicy, LoraPolicy
from common.config.tree import tree_of
from common.errors import ConfigError

MINIMAL = """
model: {path: models/tiny}
prompts: {train: seen.txt, unseen: {path: unseen.parquet, column: text}}
rewards: {clip: {scorer: clip}}
"""


def load(*overrides: str, text: str = "") -> Config:
    return config_from_yaml_text(MINIMAL + text, "run.yaml", overrides)


def test_a_number_in_exponent_form_without_a_point_is_a_number() -> None:
    config = load("objective.kl_weight=3e-6", text="optimizer: {learning_rate: 1e-4}\n")
    assert config.optimizer.learning_rate == 1e-4
    assert config.objective.kl_weight == 3e-6


class Pen(Section):
    """A section."""

    width: int = 1


class Box(Section):
    """What may have a pen."""

    pen: Pen | None = None


@pytest.mark.parametrize(
    ("given", "overrides", "expected"),
    [
        ({"pen": None}, ["pen.width=3"], {"width": 3}),
        ({"pen": {"width": 2}}, ["pen=null"], None),
        ({}, ["pen.wide=3"], "pen.wide: unknown key; did you mean pen.width?"),
        ({}, ["pen=3"], "pen: got 3; allowed: settings or null"),
    ],
)
def test_a_section_that_may_be_left_out_takes_keys_and_null(
    given: dict[str, Any], overrides: list[str], expected: Any
) -> None:
    _, problems = apply_overrides(tree_of(Box), given, overrides)
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=re.escape(expected)):
            validate(Box, given, "box", problems=problems)
    else:
        assert given == {"pen": expected}
        assert validate(Box, given, "box", problems=problems).model_dump() == given


@pytest.mark.parametrize("word", ["no", "on", "yes", "010", "1:30", "2024-01-01", "1_000"])
def test_words_that_yaml_1_1_turns_into_something_else_stay_as_they_look(word: str) -> None:
    config = load(text=f"actors: {{labels: {{zone: '{word}'}}}}\ngold: {{g: {{scorer: {word}x}}}}\n")
    assert config.actors.labels == {"zone": word}
    assert config_from_yaml_text(config_to_yaml(config)) == config


class TestOverrides:
    def test_replace_nested_values_and_the_last_one_wins(self) -> None:
        text = "sampling: {steps: 3, sampler: {kind: ddim, eta: 0.5}}\n"
        config = load("sampling.steps=5", "sampling.steps=7", text=text)
        assert (config.sampling.steps, config.sampling.sampler) == (7, DdimSampler(eta=0.5))

    def test_create_entries_of_a_table(self) -> None:
        config = load("rewards.clip.weight=2", "rewards.size.scorer=jpeg", "rewards.size.options.quality=80")
        assert config.rewards["clip"].weight == 2.0
        assert config.rewards["clip"].scorer == "clip"
        assert config.rewards["size"].options == {"quality": 80}

    def test_replace_a_whole_table(self) -> None:
        config = load("rewards={other: {scorer: jpeg, weight: -1}}")
        assert set(config.rewards) == {"other"}
        assert config.rewards["other"].weight == -1.0

    def test_a_name_in_a_table_of_single_settings_may_hold_dots(self) -> None:
        assert load("actors.labels.ray.io/zone=eu").actors.labels == {"ray.io/zone": "eu"}

    def test_a_text_setting_takes_the_characters_as_they_are(self) -> None:
        config = load("run.name=007", "tracker.uri=", "tracker.experiment='1e-4'", "model.path=a: b #c")
        assert config.run.name == "007"
        assert config.tracker.uri == ""
        assert config.tracker.experiment == "1e-4"
        assert config.model.path == "a: b #c"

    def test_extend_a_prompt_set_given_by_its_path_alone(self) -> None:
        config = load("prompts.train.column=caption", "prompts.unseen=other.txt")
        assert (config.prompts.train.path, config.prompts.train.column) == ("seen.txt", "caption")
        assert (config.prompts.unseen.path, config.prompts.unseen.column) == ("other.txt", "")

    def test_lists(self) -> None:
        config = load("sampling.stochastic_steps=[0, 1, 4]", "policy.target_modules=[to_q]")
        assert config.sampling.named_stochastic_steps == (0, 1, 4)
        assert config.policy == LoraPolicy(target_modules=("to_q",))

    def test_ranks_that_may_share_a_gpu_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="NCCL"):
            load("learner.workers=2", "learner.gpus=0.5")
        assert load("learner.workers=2", "learner.gpus=0.6").learner.gpus == 0.6
        assert load("learner.workers=2", "learner.gpus=0.5", "model.device=cpu").learner.workers == 2

    def test_all_groups_cannot_be_dropped(self) -> None:
        with pytest.raises(ConfigError, match="max_dropped_share"):
            load("reward_service.max_dropped_share=1.0")

    def test_do_not_change_a_mapping_that_an_anchor_shares(self) -> None:
        text = "actors: &pool {threads: 3}\nlearner: *pool\n"
        config = load("actors.threads=1", text=text)
        assert (config.actors.threads, config.learner.threads) == (1, 3)


class TestKinds:
    def test_the_default_kind_need_not_be_named_and_another_drops_what_the_file_gives_for_it(self) -> None:
        assert load(text="policy: {rank: 4}\n").policy == load("policy.rank=4").policy == LoraPolicy(rank=4)
        assert load("policy.kind=full", text="policy: {kind: lora, rank: 4}\n").policy == FullPolicy()
        resolved = config_to_yaml(load())
        assert config_from_yaml_text(resolved, overrides=["policy.kind=full"]).policy == FullPolicy()

    def test_settings_that_both_kinds_have_stay(self) -> None:
        config = load("objective.kind=ddpo", text="objective: {pair_weighting: all, updates_per_epoch: 3}\n")
        assert config.objective == DdpoSection(updates_per_epoch=3)

    def test_settings_that_mean_something_else_there_take_its_default_unless_given(self) -> None:
        text = "objective: {kind: prdp, kl_weight: 3.0e-5, updates_per_epoch: 3}\n"
        assert load("objective.kind=grpo", text=text).objective == GrpoSection(updates_per_epoch=3)
        given = load("objective.kind=grpo", "objective.kl_weight=0.5", text=text)
        assert given.objective == GrpoSection(updates_per_epoch=3, kl_weight=0.5)
        same = load("objective.kind=prdp", text=text).objective
        assert same == PrdpSection(updates_per_epoch=3, kl_weight=3e-5)
        sampler = load(
            "sampling.sampler.kind=dance_sde", text="sampling: {sampler: {kind: flow_sde, level: 0.9}}\n"
        )
        assert sampler.sampling.sampler == DanceSdeSampler()

    @pytest.mark.parametrize(
        ("text", "overrides"),
        [("", ["policy.rank=4", "policy.kind=full"]), ("policy: {kind: full, rank: 4}\n", [])],
    )
    def test_a_key_of_the_other_kind_is_refused(self, text: str, overrides: list[str]) -> None:
        with pytest.raises(ConfigError, match=r"policy\.rank.*for full"):
            load(*overrides, text=text)


class TestRewards:
    """The three forms of a reward."""

    FILE = """
ray: {address: auto}
gold:
  deployed: {app: pickscore, weight: 10}
  elsewhere: {url: "https://host:8000/geneval/", token_env: GENEVAL_TOKEN}
"""

    def test_each_form_is_told_by_its_own_key(self) -> None:
        config = load(text=self.FILE)
        assert config.rewards == {"clip": RewardSpec(scorer="clip")}
        assert config.gold == {
            "deployed": AppReward(app="pickscore", weight=10.0),
            "elsewhere": UrlReward(url="https://host:8000/geneval", token_env="GENEVAL_TOKEN"),
        }
        assert config.embedded == config.rewards
        assert config_from_yaml_text(config_to_yaml(config)) == config

    def test_a_form_chosen_on_the_command_line_drops_what_only_the_other_has(self) -> None:
        text = "gold: {g: {scorer: clip, weight: 3, options: {path: x}}}\n"
        joined = load("gold.g.app=foo", "ray.address=auto", text=text)
        assert joined.gold["g"] == AppReward(app="foo", weight=3.0)
        again = load("gold.g.url=http://h", text="gold: {g: {app: foo}}\n")
        assert again.gold["g"] == UrlReward(url="http://h")
        back = load("gold.deployed.scorer=clip", "gold.deployed.options.path=x", text=self.FILE)
        assert back.gold["deployed"] == RewardSpec(scorer="clip", options={"path": "x"}, weight=10.0)

    def test_what_the_command_line_itself_gives_for_another_form_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"rewards\.clip\.options.*for app"):
            load("rewards.clip.app=foo", "rewards.clip.options.path=x")


_text = st.text(st.characters(codec="utf-8", exclude_characters="\ufeff"), max_size=12)
_value = _text | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans()


@settings(max_examples=30, deadline=None)
@given(
    options=st.dictionaries(_text, _value, max_size=4),
    labels=st.dictionaries(_text, _text, max_size=3),
    rate=st.floats(min_value=1e-300, max_value=1e38),
    experiment=st.sampled_from(["no", "1e-4", "null", "~", "on", "1:30", "2024-01-01", "0x1f", "1_0", "<<"]),
)
def test_round_trip(options: dict, labels: dict, rate: float, experiment: str) -> None:
    config = Config.model_validate(
        {
            "model": {"path": "m"},
            "prompts": {"train": "a.txt", "unseen": "b.txt"},
            "rewards": {"r": {"scorer": experiment, "options": options}},
            "actors": {"labels": labels},
            "optimizer": {"learning_rate": rate},
            "tracker": {"experiment": experiment},
        }
    )
    again = config_from_yaml_text(config_to_yaml(config))
    assert again == config
    assert list(map(type, again.rewards["r"].options.values())) == list(map(type, options.values()))


def test_differences_have_both_values() -> None:
    assert config_differences(load(), load()) == []
    other = load("sampling.steps=7", "policy.kind=full", "rewards.b.scorer=jpeg")
    found = dict(line.split(": ", 1) for line in config_differences(load(), other))
    assert found["policy.kind"] == '"lora" against "full"'
    assert found["sampling.steps"] == "50 against 7"
    assert found["rewards.b.scorer"] == 'not set against "jpeg"'
    assert {key.split(".")[0] for key in found} == {"policy", "sampling", "rewards"}
    a, b = (load(f"prompts.train.column={'x' * 300}{end}") for end in "ab")
    assert len(config_differences(a, b)) == 1


class TestFiles:
    def test_a_file_with_a_byte_order_mark_is_read(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(MINIMAL, encoding="utf-8-sig")
        assert load_config(path, ["run.seed=3"]).run.seed == 3

    def test_a_missing_file_suggests_near_names(self, tmp_path: Path) -> None:
        (tmp_path / "quickstart.yaml").write_text(MINIMAL)
        with pytest.raises(ConfigError, match=r"quikstart\.yaml; did you mean .*quickstart\.yaml"):
            load_config(tmp_path / "quikstart.yaml", [])

    def test_what_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_bytes(b"a: 1\nb: \xff\n")
        for place, mentions in (
            (tmp_path / "nowhere" / "run.yaml", "nowhere"),
            (tmp_path, str(tmp_path)),
            (path, r"line 2: not UTF-8"),
        ):
            with pytest.raises(ConfigError, match=mentions):
                load_config(place, [])


def test_loading_needs_nothing_heavy() -> None:
    code = (
        "import sys, common.config.load\n"
        "heavy = {'torch', 'ray', 'pandas', 'mlflow', 'numpy', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
