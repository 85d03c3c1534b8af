"""Readers of prompt files: every format gives the same set, and bad files are refused with the place."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.run.prompt_files import LONGEST_PROMPT
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
        assert "prompt, text, Prompt, prompts, Prompts, caption" in refusal(path)
        assert "id, frage" in refusal(path, "fraeg")

    def test_lines_without_fields_before_the_header_are_none(self, tmp_path: Path) -> None:
        assert list(opened(written(tmp_path / "p.csv", "\n\n,\nprompt,x\na cat,1\n"))) == ["a cat"]

    def test_blanks_around_a_columns_name_are_told(self, tmp_path: Path) -> None:
        assert "'prompt '" in refusal(written(tmp_path / "p.csv", "prompt , x\na cat,1\n"))

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
        text = (
            '{"prompt": "a", "x": '
            + "1" * 5000
            + '}\n\n{"x": "text", "prompt": "\\ud83d\\ude00", "y": [1]}\n'
        )
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
    """By a message that holds the place and the mistake."""

    def test_files_that_are_not_there_suggest_near_names(self, tmp_path: Path) -> None:
        assert str(tmp_path / "no") in refusal(tmp_path / "no" / "p.txt")
        assert "folder" in refusal(tmp_path)
        write_as(tmp_path / "train.txt", PROMPTS)
        assert f"did you mean {tmp_path / 'train.txt'}?" in refusal(tmp_path / "trian.txt")

    @pytest.mark.parametrize(
        ("name", "content", "mentions"),
        [
            ("p.xlsx", b"x", ".txt, .jsonl, .csv, .tsv, .parquet"),
            ("prompts", b"x", ".txt, .jsonl, .csv, .tsv, .parquet"),
            *((f"p{suffix}", b"", "is empty") for suffix in SUFFIXES),
            ("p.txt", b" \n\n\t\n", "no prompts"),
            ("p.csv", b"prompt\n", "no prompts"),
            ("p.tsv", b"prompt\tx\n", "no prompts"),
            ("p.txt", b"a cat\n\xff dog\n", "line 2: not UTF-8"),
            ("p.txt", b"a cat\rx\r\n\xff dog\r", "line 3: not UTF-8"),
            ("p.jsonl", b'{"prompt": "a"}\r{"prompt": "\xff"}\r', "line 2: not UTF-8"),
            *((f"p{suffix}", "prompt\n".encode("utf-16"), "UTF-16") for suffix in SUFFIXES[:-1]),
            *((f"p{suffix}", "prompt\na".encode("utf-16-le"), "NUL") for suffix in SUFFIXES[:-1]),
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "a\\u0000"}', "line 2: the prompt holds a NUL"),
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\\ud800"}', "line 2: the prompt holds"),
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "a", "prompt": "b"}', "line 2: the key 'prompt'"),
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": {"a": 1}}', "line 2: the prompt must be text"),
            ("p.csv", b"prompt,x\n\xff dog,1\n", "line 2: not UTF-8"),
            ("p.tsv", b"prompt\tx\n\xff dog\t1\n", "line 2: not UTF-8"),
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "\xff"}\n', "line 2: not UTF-8"),
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": "b"\n', "line 2, column "),
            ("p.jsonl", b'{"prompt": "a"}\n\n["b"]\n', "line 3: "),
            ("p.jsonl", b'{"prompt": "a"}\r["b"]\r', "line 2: "),
            ("p.jsonl", b"a cat\n", "line 1, column 1"),
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": 5}\n', "line 2: the prompt must be text"),
            ("p.jsonl", b'{"prompt": "a"}\n{"text": "b"}\n', "line 2: the prompt is missing"),
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": null}\n', "line 2: the prompt is missing"),
            ("p.jsonl", b'{"prompt": "a"}\n{"prompt": " "}\n', "line 2: the prompt is blank"),
            ("p.jsonl", b'{"id": 1}\n', "none of the columns"),
            ("p.jsonl", b"[" * 100_000, "nested"),
            ("p.csv", b"id,prompt\n1,a\n2,b,c\n", "line 3: "),
            ("p.csv", b"id,prompt\n1\n", "line 2: "),
            ("p.csv", b"id;prompt\n1;a\n", "';' between its columns"),
            ("p.csv", b"id\tprompt\n1\ta\n", "between its columns"),
            ("p.csv", b'id,prompt\n1,a\n2,"b\n3,c\n', "line 3: "),
            ("p.csv", b'id,prompt\n1,"a"b\n2,c\n', "line 2: "),
            ("p.csv", b"id,prompt\n1,a\n2,\n", "line 3: the prompt is blank"),
            ("p.csv", b'id,prompt\n1,"a\nb"\n\n2,\n', "line 5: the prompt is blank"),
            ("p.csv", b"prompt,prompt\na,b\n", "2 columns named 'prompt'"),
            ("p.tsv", b'id\tprompt\n1\t"a\n2 b\n', "line 3: "),
            ("p.parquet", b"a cat\n", ".parquet"),
        ],
    )
    def test_content(self, tmp_path: Path, name: str, content: bytes, mentions: str) -> None:
        message = refusal(written(tmp_path / name, content))
        assert name in message
        assert mentions in message

    def test_a_column_of_a_text_file(self, tmp_path: Path) -> None:
        assert "columns" in refusal(write_as(tmp_path / "p.txt", PROMPTS), "prompt")

    def test_bad_bytes_after_the_first_block_name_the_line(self, tmp_path: Path) -> None:
        path = written(tmp_path / "p.txt", b"a line of text\n" * 200_000 + b"bad \xc3\n")
        assert "line 200001: not UTF-8 text" in refusal(path)

    def test_other_fields_may_be_long_and_prompts_may_not(self, tmp_path: Path) -> None:
        article = "x" * 3_000_000
        assert list(opened(written(tmp_path / "p.csv", f"prompt,article\na,{article}\n"))) == ["a"]
        assert list(opened(written(tmp_path / "p.jsonl", f'{{"prompt": "a", "x": "{article}"}}\n'))) == ["a"]
        assert "line 2: the prompt has 3000000" in refusal(written(tmp_path / "p.txt", f"a\n{article}"))
        assert "row 2" in refusal(write_as(tmp_path / "p.parquet", ["a", "x" * (LONGEST_PROMPT + 1)]))

    @pytest.mark.parametrize("at", [0, 1, 70_000])
    def test_parquet_rows_without_a_prompt_name_the_row(self, tmp_path: Path, at: int) -> None:
        for value, what in ((None, "missing"), (" \t", "blank")):
            prompts: list[str | None] = ["a"] * 70_001
            prompts[at] = value
            pq.write_table(pa.table({"text": pa.array(prompts, pa.string())}), tmp_path / "p.parquet")
            assert f"row {at + 1}: the prompt (column 'text') is {what}" in refusal(tmp_path / "p.parquet")

    def test_parquet_of_numbers_of_nothing_and_half_of_one(self, tmp_path: Path) -> None:
        pq.write_table(pa.table({"prompt": [1, 2]}), tmp_path / "p.parquet")
        assert "int64" in refusal(tmp_path / "p.parquet")
        assert "p.parquet" in refusal(write_as(tmp_path / "p.parquet", []))
        whole = write_as(tmp_path / "q.parquet", PROMPTS).read_bytes()
        assert "p.parquet" in refusal(written(tmp_path / "p.parquet", whole[:-20]))
