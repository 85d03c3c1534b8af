"""Bad configurations: every problem at once, one a line, with the key, the value and what is allowed."""

from __future__ import annotations

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


def test_all_problems_at_once_one_a_line() -> None:
    text = "sampling: {steps: 0, eta: 2}\nsmpling: {}\ndata: {mode: offlin}\nactors: {count: many}\n"
    found = lines(MINIMAL + text, "learner.wrkers=2", "run.seed=-1", "nonsense")
    assert {line.split(":")[0].split(" ")[0] for line in found} == {
        "learner.wrkers",
        '"nonsense"',
        "sampling.steps",
        "sampling.eta",
        "smpling",
        "data.mode",
        "actors.count",
        "run.seed",
    }
    assert len(found) == 8


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sampling.steps=0", "(command line): got 0; allowed: whole number, at least 1, at most 1000"),
        ("sampling.steps=five", 'got "five"; allowed: whole number'),
        ("sampling.steps=true", "got true; allowed: whole number"),
        ("sampling.steps=5.5", "got 5.5; allowed: whole number"),
        ("sampling.steps=", "got null; allowed: whole number"),
        ("optimizer.learning_rate=.inf", "allowed: number, above 0.0"),
        ("optimizer.beta1=.nan", "allowed: number, at least 0.0, below 1.0"),
        ("objective.clip=yes", 'got "yes"; allowed: true or false'),
        ("data.mode=offlin", "allowed: online or offline; did you mean offline?"),
        ("policy.kind=ful", "allowed: lora or full; did you mean full?"),
        ("sampling.stochastic_steps=none", "allowed: all_but_last, all or list of whole numbers"),
        ("sampling.stochastic_steps=[1, x]", "allowed: all_but_last, all or list of whole numbers"),
        ("sampling.stochastic_steps=[3, 2]", "increasing positions from 0 to 49"),
        ("sampling.stochastic_steps=[]", "leaves no stochastic step"),
        ("policy.target_modules=[]", "list of texts, not empty"),
        ("rewards.clip.options.path=[a]", "allowed: text, whole number, number or true or false"),
        ("rewards.other.weight=2", "rewards.other: got weight; give exactly one of scorer (A shipped"),
        ("rewards.clip={}", "rewards.clip (command line): got nothing; give exactly one of scorer"),
        ("rewards.clip=5", "got 5; allowed: settings with exactly one of scorer, app, url"),
        ("rewards={clip: {scorer: x, app: y}}", "rewards.clip: got scorer and app; give exactly one of"),
        ("rewards={clip: {scoer: x}}", "got scoer; give exactly one of"),
        ("rewards={clip: {scoer: x}}", "; did you mean scorer?"),
        ("rewards={clip: {app: y, options: {a: 1}}}", "it belongs to scorer, and rewards.clip has app"),
        ("rewards={clip: {app: ''}}", 'rewards.clip.app: got ""; allowed: text, not empty'),
        ("rewards={clip: {app: y, weight: x}}", 'rewards.clip.weight: got "x"; allowed: number'),
        ("rewards={clip: {url: 'ftp://h'}}", "begins with http:// or https://"),
        ("rewards={clip: {url: 'http://'}}", "begins with http:// or https:// and a host"),
        ("rewards={clip: {url: 'http://[h'}}", "is no address"),
        ("rewards={clip: {url: 'http://me:pw@h'}}", "give the token by token_env"),
        ("rewards={clip: {url: 'http://h/?a=b'}}", "has no '?'"),
        ("rewards={clip: {url: 'http://h', token_env: s3-cr3t}}", "must be the name of an environment"),
        ("rewards.clip.weight=0", "every reward has weight 0"),
        ("rewards={}", "name at least one reward"),
        ("rewards={reward: {scorer: x}}", "another name"),
        ("rewards={a/b: {scorer: x}}", "cannot be names of metrics"),
        ("gold.clip.scorer=x", "named in both rewards and gold"),
        ("actors=5", "actors (command line): got 5; allowed: settings"),
        ("prompts=3", "allowed: settings (at least train, unseen)"),
        ("actors.gpus=1.5", "whole GPUs"),
        ("run.name=../x", "cannot be a folder name"),
        ("evaluation.grid_prompts=99", "grid_prompts (99) cannot exceed prompts (32)"),
        ("actors.minimum=3", "minimum (3) cannot exceed count (2)"),
        ("data.mode=offline", "needs folder"),
        ("model.path=", "allowed: text, not empty"),
        ("checkpoint.folder=ftp://h/a", "begins with one of s3://, gs://"),
        ("checkpoint.folder=s3://", "name a bucket or folder"),
        ("checkpoint.folder=s3://k:s@bucket/a", "give them by the environment"),
        ("checkpoint.folder=s3://bucket/a?secret_key=x", "give them by the environment"),
    ],
)
def test_impossible_values(override: str, expected: str) -> None:
    assert expected in only(override)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["rewards.clip.pairs=6"], "6, which cannot connect 8 images (sampling.images_per_prompt)"),
        (["rewards.clip.pairs=6"], "give at least 7, or 0 for all 28"),
        (["rewards.clip.pairs=7", "evaluation.images_per_prompt=9"], "9 images (evaluation."),
        (["gold={duel: {scorer: x, pairs: 2}}", "evaluation.images_per_prompt=4"], "duel has pairs: 2"),
    ],
)
def test_pairs_that_cannot_connect_the_images_of_a_group(overrides: list[str], expected: str) -> None:
    assert expected in only(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["rewards.clip.pairs=7"],
        ["gold={duel: {scorer: x, pairs: 2}}"],
        ["rewards.clip.pairs=6", "data.mode=offline", "data.folder=recorded"],
    ],
)
def test_pairs_that_connect_them_are_taken(overrides: list[str]) -> None:
    config_from_yaml_text(MINIMAL, "run.yaml", overrides)


def test_a_number_for_a_text_in_a_file_says_to_quote_it() -> None:
    assert only(text="run: {name: 5}\n") == (
        'run.name: got 5; allowed: text; write it as "5", in quotes, if it is meant as text'
    )


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("samling.steps=5", "sampling.steps"),
        ("sampling.step=5", "sampling.steps"),
        ("samling.stps=5", "sampling.steps"),
        ("smpling=5", "sampling"),
        ("steps=5", "sampling.steps"),
        ("learning_rate=5", "optimizer.learning_rate"),
        ("policy.rnk=5", "policy.rank"),
        ("prompts.train.colum=a", "prompts.train.column"),
        ("rewards.clip.wieght=5", "rewards.clip.weight"),
    ],
)
def test_unknown_keys_of_overrides_suggest_the_nearest(override: str, near: str) -> None:
    assert only(override) == f"{override.partition('=')[0]}: unknown key; did you mean {near}?"


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("samling: {steps: 5}", "samling", "sampling"),
        ("sampling: {setps: 5}", "sampling.setps", "sampling.steps"),
        ("policy: {rnk: 5}", "policy.rnk", "policy.rank"),
        ("gold: {g: {scorer: x, wieght: 2}}", "gold.g.wieght", "gold.g.weight"),
        ("gold: {g: {url: 'http://h', token: X}}", "gold.g.token", "gold.g.token_env"),
        ("steps: 5", "steps", "sampling.steps"),
    ],
)
def test_unknown_keys_of_files_suggest_the_nearest(text: str, key: str, near: str) -> None:
    assert only(text=text) == f"{key}: unknown key; did you mean {near}?"


def test_an_unknown_key_like_no_other_lists_what_is_there() -> None:
    assert "allowed there: buckets" not in only("checkpoint.zzz=1")
    allowed = "every_epochs, folder, keep, keep_best, timeout_s"
    assert only("checkpoint.zzz=1") == f"checkpoint.zzz: unknown key; allowed there: {allowed}"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("sampling.steps", "not an override"),
        ("=5", "not an override"),
        ("sampling..steps=5", "not an override"),
        ("--sampling.steps=5", "take no dashes"),
        ("sampling.steps.x=1", "sampling.steps is a single setting"),
        ("sampling.steps=[1", "line 1, column"),
        ("sampling={steps: 1, steps: 2}", "given twice"),
    ],
)
def test_malformed_overrides(override: str, expected: str) -> None:
    assert expected in only(override)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "run.yaml is empty. It needs at least: model, prompts, rewards"),
        ("# only a comment\n", "is empty"),
        ("- a\n- b\n", 'must hold settings (key: value), got ["a", "b"]'),
        ("text", "must hold settings"),
        ("a: [1\nb: 2\n", "run.yaml, line 2, column 2: not valid YAML"),
        ("a: 1\n\tb: 2\n", "line 2, column 1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4, column 3: not valid YAML: the key b is given twice, first"),
        ("1: a\n", "keys must be text, got 1"),
        ("? [a]\n: b\n", "keys must be text, got a list or mapping"),
        ("a: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1"),
        ("a: \x01\n", "line 1, column 4"),
        ("a: " + "[" * 5000, "not valid YAML"),
    ],
)
def test_malformed_yaml(text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_yaml_text(text, "run.yaml")
    assert expected in str(caught.value)


def test_missing_sections_say_what_they_need() -> None:
    found = lines("run: {seed: 1}\n")
    assert found[0] == "model: missing; give settings (at least path)"
    assert found[1] == "prompts: missing; give settings (at least train, unseen)"
    exactly = "rewards: missing; give mapping of names to settings with exactly one of scorer, app, url"
    assert found[2].startswith(exactly)


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
    assert all(len(line) < 400 for line in found)
    assert any(line.startswith("run.seed: got [[[[[[[") for line in found)
