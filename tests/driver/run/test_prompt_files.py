"""Readers of prompt files: every format gives the same set, and bad files are refused with the place."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.prompt_writing import DATA, opened, refusal, write_as, written

PROMPTS = ["a red cat", "ein Bär, 2 Äpfel", 'the word "PEACE"', "猫"]


SUFFIXES = [".txt", ".jsonl", ".csv", ".tsv", ".parquet"]


class TestFormats:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_every_format_gives_the_same_set(self, tmp_path: Path, suffix: str) -> None:
        prompts = opened(write_as(tmp_path / f"p{suffix}", PROMPTS))
        assert list(prompts) == PROMPTS
        assert len(prompts) == 4
        assert prompts.digest == opened(write_as(tmp_path / "other.txt", PROMPTS)).digest

    @pytest.mark.parametrize("suffix", SUFFIXES[1:])
    @pytest.mark.parametrize("column", ["prompt", "text", "Prompt", "caption"])
    def test_known_columns_are_found(self, tmp_path: Path, suffix: str, column: str) -> None:
        assert list(opened(write_as(tmp_path / f"p{suffix}", PROMPTS, column))) == PROMPTS

    @pytest.mark.parametrize("suffix", SUFFIXES[1:])
    def test_another_column_is_named(self, tmp_path: Path, suffix: str) -> None:
        path = write_as(tmp_path / f"p{suffix}", PROMPTS, "frage")
        assert list(opened(path, "frage")) == PROMPTS
        assert "none of the columns prompt, text, Prompt, caption" in refusal(path)
        assert f"{path} has no column 'fraeg'; set column to one of its own: id, frage" in refusal(
            path, "fraeg"
        )

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_whitespace_and_byte_order_mark_are_stripped(self, tmp_path: Path, suffix: str) -> None:
        path = write_as(tmp_path / f"p{suffix}", ["  a cat ", "\u00a0a dog\u3000"])
        if suffix != ".parquet":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert list(opened(path)) == ["a cat", "a dog"]

    def test_text_without_a_last_newline_with_blank_lines_and_other_line_ends(self, tmp_path: Path) -> None:
        assert list(opened(written(tmp_path / "p.txt", "\n a cat\r\n\t\n\na dog"))) == ["a cat", "a dog"]

    @pytest.mark.parametrize("suffix", SUFFIXES[:-1])
    @pytest.mark.parametrize("end", ["\r", "\r\n"])
    def test_other_line_ends(self, tmp_path: Path, suffix: str, end: str) -> None:
        path = write_as(tmp_path / f"p{suffix}", ["a cat", "a dog"])
        text = path.read_text().replace("\r\n", "\n")
        assert list(opened(written(path, text.replace("\n", end)))) == ["a cat", "a dog"]

    def test_text_longer_than_a_block(self, tmp_path: Path) -> None:
        prompts = [f"prompt number {number}" + " x" * (number % 50) for number in range(60_000)]
        path = write_as(tmp_path / "p.txt", prompts)
        assert path.stat().st_size > 3 << 20
        assert list(opened(path)) == prompts

    def test_quoted_fields_with_commas_quotes_and_line_breaks(self, tmp_path: Path) -> None:
        path = written(tmp_path / "p.csv", 'a,prompt\n1,"red, ""big""\ncat"\n\n2,plain\n')
        assert list(opened(path)) == ['red, "big"\ncat', "plain"]

    def test_prompts_that_look_like_numbers_dates_or_nothing_stay_text(self, tmp_path: Path) -> None:
        words = ["1", "2024-01-01", "null", "NaN", "true", "007"]
        for suffix in SUFFIXES:
            assert list(opened(write_as(tmp_path / f"p{suffix}", words))) == words

    def test_rows_of_jsonl_may_differ_in_their_other_columns(self, tmp_path: Path) -> None:
        text = '{"prompt": "a", "x": 1}\n\n{"x": "text", "prompt": "\\ud83d\\ude00", "y": [1]}\n'
        assert list(opened(written(tmp_path / "p.jsonl", text))) == ["a", "😀"]

    @pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
    def test_every_kind_of_parquet_text(self, tmp_path: Path, kind: pa.DataType) -> None:
        pq.write_table(
            pa.table({"prompt": pa.array(PROMPTS, kind)}), tmp_path / "p.parquet", row_group_size=2
        )
        assert list(opened(tmp_path / "p.parquet")) == PROMPTS

    def test_parquet_of_categories(self, tmp_path: Path) -> None:
        table = pa.table({"prompt": pa.array(["a", "b", "a"]).dictionary_encode()})
        pq.write_table(table, tmp_path / "p.parquet")
        assert list(opened(tmp_path / "p.parquet")) == ["a", "b", "a"]

    def test_published_sets(self) -> None:
        parti = opened(DATA / "parti_excerpt.tsv")
        assert len(parti) == 8
        assert parti[0] == "bond"
        assert parti[7].startswith('"G I G G L E" painted in thick colorful lettering')
        colours = opened(DATA / "t2i_color_excerpt.txt")
        assert len(colours) == 8
        assert colours[1] == "a red bench and a green car"

    def test_digest_depends_on_content_and_order(self, tmp_path: Path) -> None:
        sets = (["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", "c"])
        assert len({opened(write_as(tmp_path / "p.txt", prompts)).digest for prompts in sets}) == 4

    def test_positions_beyond_the_set(self, tmp_path: Path) -> None:
        prompts = opened(write_as(tmp_path / "p.txt", PROMPTS))
        for index in (-1, 4):
            with pytest.raises(IndexError, match=rf"prompts 0 to 3, asked for {index}"):
                prompts[index]


_lines = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]), max_size=20)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    drawn=st.lists(_lines, min_size=1, max_size=8),
    suffix=st.sampled_from([".txt", ".jsonl", ".csv", ".parquet"]),
)
def test_any_text_comes_back(tmp_path: Path, drawn: list[str], suffix: str) -> None:
    prompts = [line.strip() + "." for line in drawn]
    prompts = [prompt.removeprefix("\ufeff") or "." for prompt in prompts]
    assert list(opened(write_as(tmp_path / f"p{suffix}", prompts))) == [prompt.strip() for prompt in prompts]


class TestRefused:
    def test_a_missing_file_suggests_near_names(self, tmp_path: Path) -> None:
        write_as(tmp_path / "train.txt", PROMPTS)
        assert refusal(tmp_path / "trian.txt") == (
            f"There is no prompt file {tmp_path / 'trian.txt'}; did you mean {tmp_path / 'train.txt'}?"
        )

    def test_a_missing_folder_an_empty_one_and_a_folder(self, tmp_path: Path) -> None:
        assert f"the folder {tmp_path / 'no'} does not exist" in refusal(tmp_path / "no" / "p.txt")
        assert "no prompt file in" in refusal(tmp_path / "p.txt")
        assert "is a folder; name a file in it" in refusal(tmp_path)

    def test_unknown_suffixes_list_the_known(self, tmp_path: Path) -> None:
        for name, kind in {"p.xlsx": "files of .xlsx", "prompts": "a file without a suffix"}.items():
            message = refusal(written(tmp_path / name, "x"))
            assert f"cannot read {kind}; known are .txt, .jsonl, .csv, .tsv, .parquet" in message

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_an_empty_file(self, tmp_path: Path, suffix: str) -> None:
        assert refusal(written(tmp_path / f"p{suffix}", "")).endswith("is empty")

    @pytest.mark.parametrize(
        ("name", "content"), [("p.txt", " \n\n\t\n"), ("p.csv", "prompt\n"), ("p.tsv", "prompt\tx\n")]
    )
    def test_a_file_without_prompts(self, tmp_path: Path, name: str, content: str) -> None:
        assert refusal(written(tmp_path / name, content)).endswith("holds no prompts")

    def test_parquet_without_rows(self, tmp_path: Path) -> None:
        assert refusal(write_as(tmp_path / "p.parquet", [])).endswith(("holds no prompts", "it holds null"))

    def test_a_column_of_a_text_file(self, tmp_path: Path) -> None:
        assert "a .txt file has no columns" in refusal(write_as(tmp_path / "p.txt", PROMPTS), "prompt")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("p.txt", b"a cat\n\xff dog\n"),
            ("p.csv", b"prompt,x\n\xff dog,1\n"),
            ("p.tsv", b"prompt\tx\n\xff dog\t1\n"),
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n'),
        ],
    )
    def test_bytes_that_are_no_text_name_the_line(self, tmp_path: Path, name: str, content: bytes) -> None:
        assert f"{name}, line 2: not UTF-8 text" in refusal(written(tmp_path / name, content))

    def test_bad_bytes_after_the_first_block_name_the_line(self, tmp_path: Path) -> None:
        path = written(tmp_path / "p.txt", b"a line of text\n" * 200_000 + b"bad \xc3\n")
        assert "line 200001: not UTF-8 text" in refusal(path)

    def test_long_fields_of_tables_are_read_and_lines_of_text_are_bounded(self, tmp_path: Path) -> None:
        article = "x" * 3_000_000
        assert list(opened(written(tmp_path / "p.csv", f"prompt,article\na,{article}\n"))) == ["a"]
        assert list(opened(written(tmp_path / "p.jsonl", f'{{"prompt": "a", "x": "{article}"}}\n'))) == ["a"]
        assert "p.txt is not a readable .txt file" in refusal(written(tmp_path / "p.txt", f"a\n{article}"))

    @pytest.mark.parametrize(
        ("text", "mentions"),
        [
            ('{"prompt": "a"}\n{"prompt": "b"\n', "line 2, column "),
            ('{"prompt": "a"}\n\n["b"]\n', "line 3: must be an object"),
            ('{"prompt": "a"}\r["b"]\r', "line 2: must be an object"),
            ("a cat\n", "line 1, column 1"),
            ('{"prompt": "a"}\n{"prompt": 5}\n', "line 2: the prompt must be text, got int"),
            ('{"prompt": "a"}\n{"text": "b"}\n', "line 2: the prompt is missing"),
            ('{"prompt": "a"}\n{"prompt": null}\n', "line 2: the prompt is missing"),
            ('{"prompt": "a"}\n{"prompt": " "}\n', "line 2: the prompt is blank"),
            ('{"id": 1}\n', "none of the columns"),
            ("[" * 100_000, "nested too deep"),
        ],
    )
    def test_jsonl(self, tmp_path: Path, text: str, mentions: str) -> None:
        assert mentions in refusal(written(tmp_path / "p.jsonl", text))

    @pytest.mark.parametrize(
        ("name", "text", "mentions"),
        [
            ("p.csv", "id,prompt\n1,a\n2,b,c\n", "line 3: 3 fields where the header has 2"),
            ("p.csv", "id,prompt\n1\n", "line 2: 1 fields where the header has 2"),
            ("p.csv", 'id,prompt\n1,a\n2,"b\n3,c\n', "line 3: not a valid table"),
            ("p.csv", 'id,prompt\n1,"a"b\n2,c\n', "line 2: not a valid table"),
            ("p.csv", "id,prompt\n1,a\n2,\n", "line 3: the prompt is blank"),
            ("p.csv", 'id,prompt\n1,"a\nb"\n\n2,\n', "line 5: the prompt is blank"),
            ("p.csv", "prompt,prompt\na,b\n", "2 columns named 'prompt'"),
            ("p.tsv", 'id\tprompt\n1\t"a\n2 b\n', "line 3: 1 fields where the header has 2; separate"),
        ],
    )
    def test_tables(self, tmp_path: Path, name: str, text: str, mentions: str) -> None:
        assert mentions in refusal(written(tmp_path / name, text))

    @pytest.mark.parametrize("at", [0, 1, 70_000])
    def test_parquet_rows_without_a_prompt_name_the_row(self, tmp_path: Path, at: int) -> None:
        for value, what in ((None, "missing"), (" \t", "blank")):
            prompts: list[str | None] = ["a"] * 70_001
            prompts[at] = value
            pq.write_table(pa.table({"text": pa.array(prompts, pa.string())}), tmp_path / "p.parquet")
            assert f"row {at + 1}: the prompt (column 'text') is {what}" in refusal(tmp_path / "p.parquet")

    def test_parquet_of_numbers(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"prompt": [1, 2]}), tmp_path / "p.parquet")
        assert "column 'prompt' must be text, it holds int64" in refusal(tmp_path / "p.parquet")

    def test_what_is_no_parquet_or_half_of_one(self, tmp_path: Path) -> None:
        assert "not a readable .parquet file" in refusal(written(tmp_path / "p.parquet", "a cat\n"))
        whole = write_as(tmp_path / "q.parquet", PROMPTS).read_bytes()
        assert "not a readable .parquet file" in refusal(written(tmp_path / "p.parquet", whole[:-20]))
