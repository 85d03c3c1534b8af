"""Bad configurations: every problem at once, one a line, with the key, the value and what is allowed."""

from __future__ import annotations

import re

import pytest

from common.config.load import config_from_yaml_text
from common.errors import ConfigError

MINIMAL = """
model: {path: models/tiny}
prompts: {train: seen.txt, unseen: unseen.txt}
rewards: {clip: {scorer: clip}}
"""


def lines(text: str, *overrides: str) -> list[str]:
    """The lines of the error, without the first, stripped."""
    with pytest.raises(ConfigError) as caught:
        config_from_yaml_text(text, "run.yaml", overrides)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def only(*overrides: str, text: str = "") -> str:
    found = lines(MINIMAL + text, *overrides)
    assert len(found) == 1, found
    return found[0]


def test_the_words_of_every_kind_of_problem() -> None:
    """The one test of wording: each problem on a line of its own, those of overrides first."""
    text = """
smpling: {}
sampling: {steps: 0, setps: 3}
data: {mode: offlin}
actors: {count: many}
run: {name: 5}
policy: {kind: ful}
evaluation: {grid_prompts: 99}
gold: {a: {weight: 2}, b: {app: x, options: {a: 1}}}
"""
    without_path = MINIMAL.replace("path: models/tiny", "")
    found = lines(without_path + text, "learner.wrkers=2", "run.seed=-1", "nonsense")
    assert found == [
        "learner.wrkers: unknown key; did you mean learner.workers?",
        '"nonsense": not an override; write key.sub=value, for example sampling.steps=20',
        "model.path: missing; give text, not empty "
        "(Folder or hub id of a diffusers pipeline, or a .safetensors file of all its weights; "
        "docs/models.md lists the families)",
        'gold.a: got ["weight"]; allowed: settings with exactly one of scorer, app, url',
        "gold.b.options: unknown key for app; allowed there: app, weight",
        'policy.kind: got "ful"; allowed: lora or full; did you mean full?',
        'run.name: got 5; allowed: text; write it as "5", in quotes, if it is meant as text',
        "run.seed (command line): got -1; allowed: whole number, at least 0, at most 4294967295",
        "sampling.steps: got 0; allowed: whole number, at least 1, at most 1000",
        "sampling.setps: unknown key; did you mean sampling.steps?",
        'data.mode: got "offlin"; allowed: online or offline; did you mean offline?',
        'actors.count: got "many"; allowed: whole number, at least 1',
        "evaluation: grid_prompts (99) cannot exceed prompts (32)",
        "smpling: unknown key; did you mean sampling?",
    ]


@pytest.mark.parametrize(
    "override",
    [
        "sampling.steps=true",
        "sampling.steps=5.5",
        "sampling.width=1000000",
        "sampling.steps=",
        "optimizer.learning_rate=.inf",
        "optimizer.beta1=.nan",
        "objective.clip=yes",
        "sampling.stochastic_steps=none",
        "sampling.stochastic_steps=[1, x]",
        "rewards.clip.options.path=[a]",
        "rewards.clip.app=",
        "model.path=",
        "actors.gpus=1.5",
        "run.name=../x",
    ],
)
def test_an_impossible_value_names_its_key(override: str) -> None:
    key = override.partition("=")[0]
    assert only(override).startswith((f"{key} (command line): ", f"{key}: "))


@pytest.mark.parametrize(
    ("override", "key", "mentions"),
    [
        ("sampling.stochastic_steps=[3, 2]", "sampling", "from 0 to 49"),
        ("sampling.stochastic_steps=[]", "sampling", "no stochastic step"),
        ("sampling.branch_at=[3, 1]", "sampling", "increasing positions from 0 to 49"),
        ("sampling.branch_at=[1, 2, 3, 50]", "sampling", "increasing positions from 0 to 49"),
        ("sampling.branch_at=[1, 2, 3, 4]", "sampling", "such as 16; got 8"),
        ("sampling={stochastic_steps: [0, 2], branch_at: [1, 2]}", "sampling", "[1], which draw no noise"),
        ("rewards.other.weight=2", "rewards.other", "scorer, app, url"),
        ("rewards.clip=5", "rewards.clip", "scorer, app, url"),
        ("rewards={clip: {scorer: x, app: y}}", "rewards.clip", '["scorer", "app"]'),
        ("rewards={clip: {scoer: x}}", "rewards.clip", "did you mean scorer?"),
        ("rewards={clip: {url: 'ftp://h'}}", "rewards.clip.url", "http://"),
        ("rewards={clip: {url: 'http://'}}", "rewards.clip.url", "host"),
        ("rewards={clip: {url: 'http://[h'}}", "rewards.clip.url", "no address"),
        ("rewards={clip: {url: 'http://h/?a=b'}}", "rewards.clip.url", "'?'"),
        ("rewards.clip.weight=0", "rewards", "weight 0"),
        ("rewards={}", "rewards", "at least one"),
        ("rewards={reward: {scorer: x}}", "rewards", "another name"),
        ("rewards={a/b: {scorer: x}}", "rewards", "names of metrics"),
        ("gold.clip.scorer=x", "whole configuration", "both rewards and gold"),
        ("gold={g: {app: x}}", "whole configuration", "ray.address=auto"),
        ("actors=5", "actors", "settings"),
        ("prompts=3", "prompts", "at least train, unseen"),
        ("actors.minimum=3", "actors", "count (2)"),
        ("data.mode=offline", "data", "folder"),
        ("checkpoint.folder=ftp://h/a", "checkpoint.folder", "s3://"),
        ("checkpoint.folder=s3://", "checkpoint.folder", "bucket"),
        ("run.folder=file:///tmp/x", "run.folder", "path"),
    ],
)
def test_what_rules_refuse_is_said_where_it_stands(override: str, key: str, mentions: str) -> None:
    line = only(override)
    assert line.split(":")[0].removesuffix(" (command line)") == key
    assert mentions in line


@pytest.mark.parametrize(
    ("overrides", "mentions"),
    [
        (["objective={kind: rwr, pairs_per_image: 60}"], "at most 50"),
        (["objective.kind=nft", "optimizer.ema_decay=0.9"], "ema_decay=0"),
        (["objective.kind=raft", "optimizer.term_share=0.5"], "pairs_per_image"),
    ],
)
def test_what_objectives_without_likelihoods_do_not_go_with(overrides: list[str], mentions: str) -> None:
    assert mentions in only(*overrides)
    trained = ["objective={kind: rwr, pairs_per_image: 60, noise_levels: trained}"]
    assert config_from_yaml_text(MINIMAL, "run.yaml", trained).objective.kind == "rwr"


@pytest.mark.parametrize(
    ("overrides", "mentions"),
    [
        (["rewards.clip.pairs=6"], "at least 7"),
        (["rewards.clip.pairs=7", "evaluation.images_per_prompt=9"], "9 images"),
        (["gold={duel: {scorer: x, pairs: 2}}", "evaluation.images_per_prompt=4"], "duel"),
        (["rewards.clip.pairs=7"], None),
        (["objective.extremes=5"], "at most 4"),
        (["objective.extremes=4"], None),
        (["rewards.clip.pairs=6", "data.mode=offline", "data.folder=recorded"], None),
    ],
)
def test_pairs_and_extremes_fit_the_images_of_a_group(overrides: list[str], mentions: str | None) -> None:
    if mentions is None:
        config_from_yaml_text(MINIMAL, "run.yaml", overrides)
    else:
        assert mentions in only(*overrides)


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("samling.stps=5", "sampling.steps"),
        ("smpling=5", "sampling"),
        ("steps=5", "sampling.steps"),
        ("learning_rate=5", "optimizer.learning_rate"),
        ("policy.rnk=5", "policy.rank"),
        ("prompts.train.colum=a", "prompts.train.column"),
        ("rewards.clip.wieght=5", "rewards.clip.weight"),
    ],
)
def test_unknown_keys_suggest_the_nearest_on_the_command_line_and_in_a_file(override: str, near: str) -> None:
    key, _, value = override.partition("=")
    assert only(override).endswith(f"did you mean {near}?")
    if key.split(".")[0] not in ("prompts", "rewards"):
        nested = value
        for part in reversed(key.split(".")):
            nested = f"{{{part}: {nested}}}"
        assert near.startswith(only(text=nested[1:-1]).partition("did you mean ")[2].rstrip("?"))


@pytest.mark.parametrize(
    ("override", "mentions"),
    [
        ("=5", "not an override"),
        ("sampling..steps=5", "not an override"),
        ("--sampling.steps=5", "dashes"),
        ("sampling.steps.x=1", "sampling.steps is a single setting"),
        ("sampling.steps=[1", "line 1, column"),
        ("sampling={steps: 1, steps: 2}", "given twice"),
        ("checkpoint.zzz=1", "allowed there: folder, every_epochs"),
    ],
)
def test_malformed_overrides(override: str, mentions: str) -> None:
    assert mentions in only(override)


@pytest.mark.parametrize(
    ("text", "mentions"),
    [
        ("# only a comment\n", "is empty. It needs at least: model, prompts, rewards"),
        ("- a\n- b\n", 'got ["a", "b"]'),
        ("a: [1\nb: 2\n", "line 2, column 2"),
        ("a: 1\n\tb: 2\n", "line 2, column 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4, column 3: not valid YAML: the key b is given twice"),
        ("1: a\n", "keys must be text, got 1"),
        ("? [a]\n: b\n", "keys must be text"),
        ("a: !!python/object/apply:os.getcwd []\n", "constructor"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("a: \x01\n", "line 1, column 4"),
        ("a: " + "[" * 1000, "not valid YAML"),
    ],
)
def test_malformed_yaml(text: str, mentions: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_yaml_text(text, "run.yaml")
    assert str(caught.value).startswith("run.yaml")
    assert mentions in str(caught.value)


def test_a_token_that_stands_in_the_configuration_is_not_repeated() -> None:
    for entry in ("{url: 'http://h', token_env: s3-cr3t}", "{url: 'http://me:s3-cr3t@h'}"):
        assert "s3-cr3t" not in only(text=f"gold: {{g: {entry}}}\n")
    for uri in ("s3://key:s3-cr3t@bucket/a", "s3://bucket/a?access_key=k&secret_key=s3-cr3t"):
        assert "s3-cr3t" not in only(text=f"checkpoint: {{folder: '{uri}'}}\n")


def test_an_alias_bomb_is_refused_in_a_short_line() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, name in zip("abcdefg", "bcdefgh", strict=True):
        bomb += f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
    found = lines(MINIMAL + bomb + "run: {seed: *h}\n")
    assert all(len(line) < 500 for line in found)
    assert any(line.startswith("run.seed: got [[[[[[[") for line in found)


def test_letters_that_the_locale_does_not_know_are_refused_with_the_remedy() -> None:
    assert "PYTHONUTF8=1" in only("run.folder=/tmp/\udce7\udc8c")


@pytest.mark.parametrize("value", ["[true]", "[1.0]", '["1"]'])
@pytest.mark.parametrize("key", ["sampling.branch_at", "sampling.stochastic_steps"])
def test_only_whole_numbers_are_taken_in_lists_of_them(key: str, value: str) -> None:
    assert re.search(rf"{key}.*whole number", only(f"{key}={value}"))
