"""Prompt sets of the hub, the stream that training draws from, and a million prompts."""

from __future__ import annotations

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

from common.config.training import PromptSource
from common.errors import PromptSetError
from common.trajectory import PolicyStamp
from driver.run.prompts import (
    PromptSet,
    PromptStream,
    evaluation_tasks,
    open_prompts,
    sample_prompts,
    training_tasks,
)
from tests.prompt_writing import DATA, opened, refusal, write_as
from tests.tiny_config import make_config


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

    def test_what_is_not_there_is_named(self, cached: Path) -> None:
        (cached / "README.md").write_text("text")
        for place in ("org/name", "org/another", "org/name.txt"):
            assert place in refusal(place)


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

    def test_the_order_is_fixed_for_ever(self, numbers: PromptSet) -> None:
        """A position means the same prompts under later versions of this code and of numpy."""
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
        with pytest.raises(PromptSetError, match="100 prompts, 101"):
            sample_prompts(numbers, 101, seed=5)


_MEASURE = """
import sys, time
from common.config.training import PromptSource
from driver.run.prompts import PromptStream, open_prompts

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


@pytest.mark.parametrize("asked", [True, False])
def test_only_evaluations_may_be_without_noise(tmp_path: Path, asked: bool) -> None:
    config = make_config(Path("no/model"), tmp_path, {"evaluation.deterministic": asked})
    stream, stamp = PromptStream(open_prompts(config.prompts.train), 0), PolicyStamp(3, "", "run")
    assert not any(task.deterministic for task in training_tasks(config, stream, 1, stamp, True))
    assert {task.deterministic for task in evaluation_tasks(config, "seen", stream.take(0, 2), stamp)} == {
        asked
    }


def test_training_branches_and_an_evaluation_does_not(tmp_path: Path) -> None:
    config = make_config(Path("no/model"), tmp_path, {"sampling.branch_at": (0, 2)})
    stream, stamp = PromptStream(open_prompts(config.prompts.train), 0), PolicyStamp(3, "", "run")
    trained = training_tasks(config, stream, 1, stamp, with_reference=True)
    measured = evaluation_tasks(config, "seen", stream.take(0, 2), stamp)
    assert {task.branch_at for task in trained} == {(0, 2)}
    assert {task.branch_at for task in measured} == {()}
