"""Prompt sets of every format, what is refused and how, and the stream that training draws from."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.config.training import PromptSource
from common.errors import PromptSetError
from common.prompts import PromptSet, PromptStream, open_prompts, sample_prompts

DATA = Path(__file__).parents[1] / "data"
PROMPTS = ["a red cat", "ein Bär, 2 Äpfel", 'the word "PEACE"', "猫"]


def opened(path: Path | str, column: str = "") -> PromptSet:
    return open_prompts(PromptSource(path=str(path), column=column))


def refusal(path: Path | str, column: str = "") -> str:
    with pytest.raises(PromptSetError) as caught:
        opened(path, column)
    return str(caught.value)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_as(path: Path, prompts: list[str], column: str = "prompt") -> Path:
    """The prompts in the format of the suffix, beside a column of numbers."""
    writers = {
        ".txt": lambda: path.write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8"),
        ".jsonl": lambda: path.write_text(
            "".join(json.dumps({"id": i, column: prompt}) + "\n" for i, prompt in enumerate(prompts))
        ),
        ".parquet": lambda: pq.write_table(pa.table({"id": range(len(prompts)), column: prompts}), path),
        ".csv": lambda: _write_csv(path, prompts, column),
        ".tsv": lambda: path.write_text(
            f"id\t{column}\n" + "".join(f"{i}\t{prompt}\n" for i, prompt in enumerate(prompts)),
            encoding="utf-8",
        ),
    }
    writers[path.suffix]()
    return path


def _write_csv(path: Path, prompts: list[str], column: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["id", column])
        rows.writerows(enumerate(prompts))


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

    def test_a_line_too_long_for_a_prompt(self, tmp_path: Path) -> None:
        assert "line 2: longer than" in refusal(written(tmp_path / "p.txt", "a\n" + "x" * 3_000_000))
        text = '{"prompt": "a"}\n{"prompt": "' + "x" * 3_000_000 + '"}\n'
        assert "line 2: longer than" in refusal(written(tmp_path / "p.jsonl", text))

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ('{"prompt": "a"}\n{"prompt": "b"\n', "line 2, column 1: not valid JSON"),
            ('{"prompt": "a"}\n\n["b"]\n', "line 3: must be an object"),
            ("a cat\n", "line 1, column 1: not valid JSON"),
            ('{"prompt": "a"}\n{"prompt": 5}\n', "line 2: column 'prompt' must be text, got int"),
            ('{"prompt": ["a"]}\n', "line 1: column 'prompt' must be text, got list"),
            ('{"prompt": "a"}\n{"text": "b"}\n', "row 2: the prompt (column 'prompt') is missing"),
            ('{"prompt": "a"}\n{"prompt": null}\n', "row 2: the prompt (column 'prompt') is missing"),
            ('{"prompt": "a"}\n{"prompt": " "}\n', "row 2: the prompt (column 'prompt') is blank"),
            ('{"id": 1}\n', "none of the columns"),
            ("[" * 100_000, "nested too deep"),
        ],
    )
    def test_jsonl(self, tmp_path: Path, text: str, reason: str) -> None:
        assert reason in refusal(written(tmp_path / "p.jsonl", text))

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (
                "id,prompt\n1,a\n2,b,c\n",
                "line 3: 3 fields where the header has 2; put a field that holds a comma",
            ),
            ("id,prompt\n1\n", "line 2: 1 fields where the header has 2"),
            ('id,prompt\n1,a\n2,"b\n3,c\n', "line 3: not a valid table: unexpected end of data"),
            ('id,prompt\n1,"a"b\n2,c\n', "line 2: not a valid table"),
            ("id,prompt\n1,a\n2,\n", "row 2: the prompt (column 'prompt') is blank"),
            ("prompt,prompt\na,b\n", "2 columns named 'prompt'"),
        ],
    )
    def test_csv(self, tmp_path: Path, text: str, reason: str) -> None:
        assert reason in refusal(written(tmp_path / "p.csv", text))

    def test_tsv_fields(self, tmp_path: Path) -> None:
        assert "line 3: 1 fields where the header has 2; separate fields by tabs" in refusal(
            written(tmp_path / "p.tsv", 'id\tprompt\n1\t"a\n2 b\n')
        )

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
        assert "not a readable Parquet file" in refusal(written(tmp_path / "p.parquet", "a cat\n"))
        whole = write_as(tmp_path / "q.parquet", PROMPTS).read_bytes()
        assert "not a readable Parquet file" in refusal(written(tmp_path / "p.parquet", whole[:-20]))


class TestHub:
    """Offline, on a cache laid out as the hub's client leaves it."""

    REVISION = "0123456789abcdef0123456789abcdef01234567"

    @pytest.fixture
    def cached(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The snapshot folder of data set org/name."""
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        data_set = tmp_path / "datasets--org--name"
        (data_set / "refs").mkdir(parents=True)
        (data_set / "refs" / "main").write_text(self.REVISION)
        snapshot = data_set / "snapshots" / self.REVISION
        (snapshot / "data").mkdir(parents=True)
        return snapshot

    def test_the_training_split_is_preferred(self, cached: Path) -> None:
        write_as(cached / "data" / "train-00001-of-00002.parquet", ["c"])
        write_as(cached / "data" / "train-00000-of-00002.parquet", ["a", "b"])
        write_as(cached / "data" / "test-00000-of-00001.parquet", ["t"])
        write_as(cached / "train.csv", ["x"])
        write_as(cached / "constraints.parquet", ["y"])
        assert list(opened("org/name")) == ["a", "b", "c"]

    def test_files_without_a_split_come_before_another_split(self, cached: Path) -> None:
        write_as(cached / "validation.jsonl", ["v"])
        assert list(opened("org/name")) == ["v"]
        write_as(cached / "prompts.jsonl", ["a"], "caption")
        (cached / "README.md").write_text("text")
        assert list(opened("org/name")) == ["a"]

    def test_a_column_and_a_revision(self, cached: Path) -> None:
        write_as(cached / "prompts.tsv", ["a"], "frage")
        source = PromptSource(path="org/name", column="frage", revision=self.REVISION)
        assert list(open_prompts(source)) == ["a"]

    def test_a_data_set_without_prompt_files(self, cached: Path) -> None:
        (cached / "README.md").write_text("text")
        assert "org/name (revision main) has no .parquet or .jsonl or .csv or .tsv file" in refusal(
            "org/name"
        )

    def test_a_data_set_that_is_not_cached(self, cached: Path) -> None:
        message = refusal("org/another")
        assert "There is no file org/another" in message
        assert "not in the cache" in message

    def test_a_path_with_a_known_suffix_is_a_file(self, cached: Path) -> None:
        assert "There is no prompt file org/name.txt: the folder org does not exist" in refusal(
            "org/name.txt"
        )

    def test_the_environment_variables_do_the_same(self, cached: Path) -> None:
        write_as(cached / "train.jsonl", ["a", "b"])
        code = (
            "from common.prompts import open_prompts\nfrom common.config.training import PromptSource\n"
            "print(list(open_prompts(PromptSource(path='org/name'))))"
        )
        environment = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cached.parents[2]), "PATH": "/usr/bin"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=DATA.parents[1],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.strip() == "['a', 'b']", done.stderr


@pytest.fixture
def numbers(tmp_path: Path) -> PromptSet:
    return opened(write_as(tmp_path / "numbers.txt", [f"prompt {number}" for number in range(100)]))


class TestStream:
    def test_each_pass_holds_each_prompt_once_in_an_order_of_its_own(self, numbers: PromptSet) -> None:
        stream = PromptStream(numbers, seed=1)
        passes = [[stream.at(index) for index in range(start, start + 100)] for start in (0, 100, 200)]
        for drawn in passes:
            assert Counter(drawn) == Counter(numbers)
        assert passes[0] != passes[1] != passes[2] != list(numbers)

    def test_a_position_alone_says_which_prompt(self, numbers: PromptSet) -> None:
        stream = PromptStream(numbers, seed=1)
        wanted = [stream.at(index) for index in range(1000)]
        order = np.random.default_rng(0).permutation(1000)
        assert [stream.at(int(index)) for index in order] == [wanted[index] for index in order]
        assert PromptStream(numbers, seed=1).at(777) == wanted[777]
        assert stream.take(95, 10) == [(index, wanted[index]) for index in range(95, 105)]

    def test_seeds_differ(self, numbers: PromptSet) -> None:
        first = [tuple(prompt for _, prompt in PromptStream(numbers, seed).take(0, 20)) for seed in range(20)]
        assert len(set(first)) == 20

    def test_the_order_is_fixed_for_ever(self, numbers: PromptSet) -> None:
        """A checkpoint's cursor means the same prompts under later versions of this code and of numpy."""
        drawn = [prompt for _, prompt in PromptStream(numbers, seed=7).take(98, 4)]
        assert drawn == ["prompt 47", "prompt 79", "prompt 79", "prompt 10"]

    def test_orders_are_even(self, tmp_path: Path) -> None:
        """Each of the 6 orders of 3 prompts about equally often: 600 passes, expected 100 +- 9 each."""
        stream = PromptStream(opened(write_as(tmp_path / "p.txt", ["a", "b", "c"])), seed=3)
        orders = Counter(
            "".join(stream.at(3 * number + place) for place in range(3)) for number in range(600)
        )
        assert len(orders) == 6
        assert all(60 < count < 140 for count in orders.values())

    def test_at_most_two_orders_are_kept(self, numbers: PromptSet) -> None:
        stream = PromptStream(numbers, seed=1)
        for index in range(0, 2000, 10):
            stream.at(index)
            assert len(stream._orders) <= 2

    def test_positions_before_the_beginning(self, numbers: PromptSet) -> None:
        with pytest.raises(IndexError, match="begin at 0"):
            PromptStream(numbers, seed=1).at(-1)


class TestSample:
    def test_without_replacement_and_by_seed(self, numbers: PromptSet) -> None:
        drawn = sample_prompts(numbers, 100, seed=5)
        assert Counter(index for index, _ in drawn) == Counter(range(100))
        assert all(prompt == numbers[index] for index, prompt in drawn)
        assert sample_prompts(numbers, 10, seed=5) == drawn[:10]
        assert sample_prompts(numbers, 10, seed=6) != drawn[:10]

    def test_it_is_no_pass_of_the_stream(self, numbers: PromptSet) -> None:
        sampled = [prompt for _, prompt in sample_prompts(numbers, 100, seed=5)]
        assert sampled != [prompt for _, prompt in PromptStream(numbers, seed=5).take(0, 100)]

    def test_more_than_there_are(self, numbers: PromptSet) -> None:
        with pytest.raises(PromptSetError, match=r"has 100 prompts, 101 different ones are asked for; lower"):
            sample_prompts(numbers, 101, seed=5)


_MEASURE = """
import sys, time
from common.config.training import PromptSource
from common.prompts import PromptStream, open_prompts

def status(name):
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith(name))

before, started = status("VmRSS"), time.process_time()
prompts = open_prompts(PromptSource(path=sys.argv[1]))
PromptStream(prompts, 0).take(0, 16)
seconds = time.process_time() - started
print(len(prompts), seconds, status("VmHWM") - before)
"""


@pytest.fixture(scope="module", params=[".txt", ".parquet"])
def million(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    words = pa.array(["a", "painting", "of", "the", "red", "large", "robot", "castle", "under", "near"])
    drawn = np.random.default_rng(0).integers(len(words), size=(12, 1_000_000))
    prompts = pc.binary_join_element_wise(*(words.take(pa.array(row)) for row in drawn), " ")
    path: Path = tmp_path_factory.mktemp("million") / f"prompts{request.param}"
    if request.param == ".parquet":
        pq.write_table(pa.table({"id": np.arange(1_000_000), "prompt": prompts}), path)
    else:
        path.write_bytes(pc.binary_join_element_wise(prompts, "\n", "").buffers()[2])
    yield path
    path.unlink()


def test_a_million_prompts_start_at_once_in_little_memory(million: Path) -> None:
    """Seconds of processor time, and a second try, because other programs may share the processor."""
    measured: list[tuple[float, float]] = []
    while len(measured) < 2 and not any(seconds < 2.0 and size < 200.0 for seconds, size in measured):
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(million)],
            cwd=DATA.parents[1],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        count, seconds, megabytes = done.stdout.split()
        assert count == "1000000"
        measured.append((float(seconds), float(megabytes)))
    seconds_used, megabytes_used = measured[-1]
    assert seconds_used < 2.0, measured
    assert megabytes_used < 200.0, measured
