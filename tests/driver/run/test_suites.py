"""The suites' published formats, in small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import PromptSetError
from driver.run.suites import HPDV2_STYLES, SUITES, read_suite

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
        "prompt": "a photo of two clocks",
    },
]


def _geneval(folder: Path) -> list[tuple[str, str]]:
    (folder / SUITES["geneval"]).write_text("\n".join(map(json.dumps, GENEVAL)) + "\n")
    return [("a photo of a bench", "single_object"), ("a photo of two clocks", "counting")]


def _drawbench(folder: Path) -> list[tuple[str, str]]:
    rows = '"Prompts","Category",""\n"A red car, parked.","Colors",""\n"Supreme ""\nsign","Text",""\n'
    (folder / SUITES["drawbench"]).write_text(rows)
    return [("A red car, parked.", "Colors"), ('Supreme "\nsign', "Text")]


def _partiprompts(folder: Path) -> list[tuple[str, str]]:
    rows = 'Prompt\tCategory\tChallenge\tNote\n"hello" on a wall\tArts\tWriting\t\nbond\tAbstract\tBasic\tx\n'
    (folder / SUITES["partiprompts"]).write_text(rows)
    return [('"hello" on a wall', "Arts"), ("bond", "Abstract")]


def _pickapic(folder: Path) -> list[tuple[str, str]]:
    table = pa.table({"jpg_0": [b"\xff", b"\xd8"], "caption": ["a cat", "a dog "], "ranking_id": [1, 2]})
    pq.write_table(table, folder / "test_unique-00000-of-00001-c1.parquet")
    return [("a cat", ""), ("a dog", "")]


def _hpdv2(folder: Path) -> list[tuple[str, str]]:
    (folder / SUITES["hpdv2"]).mkdir()
    for style in (*HPDV2_STYLES, "drawbench"):
        (folder / SUITES["hpdv2"] / f"{style}.json").write_text(json.dumps([f"{style} one", f"{style} two"]))
    return [(f"{style} {n}", style) for style in HPDV2_STYLES for n in ("one", "two")]


@pytest.mark.parametrize("write", [_geneval, _drawbench, _partiprompts, _pickapic, _hpdv2])
def test_a_named_suite_is_read_in_its_published_form(
    write: Callable[[Path], list[tuple[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("suites").mkdir()
    expected = write(Path("suites"))
    suite = read_suite(write.__name__.removeprefix("_"))
    assert suite.name == write.__name__.removeprefix("_")
    assert [(one.prompt, one.category) for one in suite.prompts] == expected
    assert [one.index for one in suite.prompts] == list(range(len(expected)))
    assert read_suite(suite.origin) == suite


def test_what_a_detector_needs_is_kept(tmp_path: Path) -> None:
    _geneval(tmp_path)
    suite = read_suite(str(tmp_path / SUITES["geneval"]))
    assert [dict(one.metadata, prompt=one.prompt, tag=one.category) for one in suite.prompts] == GENEVAL


def test_the_other_test_set_of_hpdv2_is_read_by_its_columns(tmp_path: Path) -> None:
    file = tmp_path / "test.json"
    file.write_text(json.dumps([{"prompt": "a cat", "image_path": ["1.jpg"], "rank": [0]}]))
    assert [one.prompt for one in read_suite(str(file)).prompts] == ["a cat"]


def test_a_sample_keeps_positions_and_so_the_noise(tmp_path: Path) -> None:
    file = tmp_path / "many.json"
    file.write_text(json.dumps([f"prompt {n}" for n in range(50)]))
    suite = read_suite(str(file))
    sample = suite.sample(20, seed=3)
    assert len({one.index for one in sample.prompts}) == 20
    assert all(one == suite.prompts[one.index] for one in sample.prompts)
    assert sample == suite.sample(20, seed=3) != suite.sample(20, seed=4)
    assert sample.digest == suite.digest
    with pytest.raises(PromptSetError, match="50"):
        suite.sample(51, seed=3)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', "a.jsonl"),
        ("a.jsonl", '{"prompt": "a"}\n3\n', "line 2"),
        ("a.jsonl", '{"prompt": "a", "tag": "x"}\n{"prompt": "b", "tag": 7}\n', "row 2.*'tag'"),
        ("a.json", '{"prompt": "a"}', "list"),
        ("a.json", "[]", "no prompts"),
        ("a.tsv", "Prompt\tCategory\na\tx\n \tx\n", "row 2"),
        ("a.csv", "Text,Category\na,x\n", "Text, Category"),
        ("a.csv", "Prompt,Category\nThree dogs, one cat,x\n", "row 1 has more fields"),
        ("a.parquet", "not parquet", "a.parquet"),
        ("a.txt", "a cat\n", "jsonl"),
    ],
)
def test_what_is_no_suite_is_refused_by_file_and_row(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(PromptSetError, match=told):
        read_suite(str(tmp_path / name))


def test_a_suite_that_is_not_there_is_told_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PromptSetError, match="drawbench, partiprompts"):
        read_suite("drawbnch")
    with pytest.raises(PromptSetError, match=r"suites/drawbench\.csv"):
        read_suite("drawbench")
    (tmp_path / "styles").mkdir()
    with pytest.raises(PromptSetError, match=r"anime\.json"):
        read_suite("styles")
