"""Recordings: what is read is bit for bit what was written, or is refused with file, row and reason."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import RecordingError
from common.trajectory import (
    GroupScore,
    NoiseKey,
    PolicyStamp,
    ScoredGroup,
    ScorerStamp,
    TrajectoryGroup,
)
from driver.run.recordings import TrajectoryWriter, open_recording
from learner.objectives import Needs
from tests.scored_groups import assert_same_bits, make_group


def write(folder: Path, *groups: ScoredGroup, epoch: int = 0) -> Path:
    return TrajectoryWriter(folder, base="base").write_epoch(epoch, groups)


def read(folder: Path, epoch: int = 0) -> list[ScoredGroup]:
    return list(open_recording(folder).read_epoch(epoch))


_texts = st.text(st.characters(codec="utf-8"), max_size=8)
_whole = st.integers(-(2**63), 2**63 - 1)


def _floats(kind: Any, shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    width = np.dtype(kind).itemsize * 8
    finite = st.floats(allow_nan=False, allow_infinity=False, width=width)
    return hnp.arrays(kind, shape, elements=finite)


_conditions = _floats(np.float32, (2, 3)) | hnp.arrays(np.int64, (1, 2))


@st.composite
def scored_groups(draw: st.DrawFn) -> ScoredGroup:
    images, steps, channels, size, rows = (draw(st.integers(1, 3)) for _ in range(5))
    chosen = sorted(draw(st.sets(st.integers(0, steps - 1), min_size=0)))
    trajectory = TrajectoryGroup(
        prompt=draw(_texts),
        noise=NoiseKey(draw(_whole), draw(_texts), draw(_whole), draw(_whole)),
        stamp=PolicyStamp(draw(_whole), draw(_texts), draw(_texts)),
        latents=draw(_floats(np.float32, (rows, channels, size, size))),
        nodes=draw(hnp.arrays(np.int32, (images, steps + 1), elements=st.integers(0, rows - 1))),
        times=draw(_floats(np.float64, (steps,))),
        stochastic_steps=np.array(chosen, dtype=np.int64),
        log_prob=draw(_floats(np.float64, (images, len(chosen)))),
        log_ratio=draw(st.none() | _floats(np.float32, (images, len(chosen)))),
        condition=draw(st.dictionaries(_texts, _conditions, max_size=2)),
        steps_fingerprint=draw(_texts),
    )
    drawn = draw(hnp.arrays(np.float64, (images, images), elements=st.floats(-1e9, 1e9)))
    upper = np.triu(drawn, 1)
    names = draw(st.lists(st.tuples(_texts, _texts, _texts), max_size=2))
    score = GroupScore(
        rewards=draw(_floats(np.float64, (images,))),
        differences=upper - upper.T,
        parts=draw(st.dictionaries(_texts, _floats(np.float64, (images,)), max_size=2)),
        scorers=tuple(ScorerStamp(*three) for three in names),
    )
    return ScoredGroup(trajectory, score, draw(st.none() | _floats(np.float64, (images,))))


_SLOW_IS_FINE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=25, deadline=None, suppress_health_check=_SLOW_IS_FINE)
@given(groups=st.lists(scored_groups(), min_size=1, max_size=3))
def test_round_trip_is_bit_exact(tmp_path: Path, groups: list[ScoredGroup]) -> None:
    write(tmp_path, *groups)
    again = read(tmp_path)
    assert len(again) == len(groups)
    for got, wanted in zip(again, groups, strict=True):
        assert_same_bits(got, wanted)


def x_0_alone(group: ScoredGroup) -> ScoredGroup:
    """The group as an objective without likelihoods has it sampled."""
    whole = group.trajectory
    images = whole.num_images
    alone = replace(
        whole,
        latents=whole.latents[whole.clean_rows],
        nodes=np.arange(images, dtype=np.int32)[:, None],
        stochastic_steps=np.zeros(0, np.int64),
        log_prob=np.zeros((images, 0)),
        log_ratio=None,
    )
    return replace(group, trajectory=alone)


def test_x_0_alone_is_recorded_too(tmp_path: Path) -> None:
    group = x_0_alone(make_group())
    write(tmp_path, group)
    assert_same_bits(read(tmp_path)[0], group)


def test_a_folder_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("a:b 50%20?#\u00fc")
    write(folder, make_group())
    assert len(read(folder)) == 1


def test_latents_are_a_view_of_what_arrow_read(tmp_path: Path) -> None:
    write(tmp_path, make_group())
    latents = read(tmp_path)[0].trajectory.latents
    assert not latents.flags.owndata
    assert not latents.flags.writeable
    assert latents.ctypes.data % 4 == 0


def test_epochs_are_found_by_number_and_others_left_alone(tmp_path: Path) -> None:
    for epoch in (12, 3, 1_000_000):
        path = write(tmp_path, make_group(epoch), epoch=epoch)
        assert path.name == f"epoch_{epoch:06d}.parquet"
    (tmp_path / "epoch_7.parquet").write_text("of another")
    (tmp_path / "notes.txt").write_text("of another")
    recording = open_recording(tmp_path)
    assert recording.epochs == [3, 12, 1_000_000]
    assert [group.trajectory.noise.epoch for group in recording.read_epoch(12)] == [12]
    with pytest.raises(RecordingError, match=r"no epoch 4; it has 3 epochs from 3 to 1000000"):
        next(recording.read_epoch(4))


def test_any_parquet_reader_shows_the_numbers(tmp_path: Path) -> None:
    group = make_group()
    table = pq.read_table(write(tmp_path, group))
    assert table["prompt"].to_pylist() == [group.trajectory.prompt]
    assert table["rewards"].to_pylist() == [group.score.rewards.tolist()]
    header = json.loads(table["header"][0].as_py())
    assert header["stamp"] == {"version": 7, "digest": "f" * 64, "run_id": "r1"}
    assert header["arrays"][0] == ["latents", "<f4", [18, 2, 4, 4]]


def test_a_file_costs_little_more_than_its_latents(tmp_path: Path) -> None:
    groups = [make_group(seed, images=8, size=16) for seed in range(4)]
    size = write(tmp_path, *groups).stat().st_size
    assert size < 1.15 * sum(group.trajectory.nbytes for group in groups)


def test_writing_and_reading_hold_one_group_at_a_time(tmp_path: Path) -> None:
    group = make_group(images=8, size=128)
    pool, most = pa.default_memory_pool(), 0

    def many() -> Iterator[ScoredGroup]:
        nonlocal most
        for _ in range(20):
            most = max(most, pool.bytes_allocated())
            yield group

    before = pool.bytes_allocated()
    TrajectoryWriter(tmp_path).write_epoch(0, many())
    for _ in open_recording(tmp_path).read_epoch(0):
        most = max(most, pool.bytes_allocated())
    assert most - before < 5 * group.trajectory.nbytes


class TestWriting:
    def test_a_failure_on_the_way_leaves_the_earlier_file_and_nothing_else(self, tmp_path: Path) -> None:
        path = write(tmp_path, make_group(1))
        before = path.read_bytes()

        def breaking() -> Iterator[ScoredGroup]:
            yield make_group(2)
            raise KeyError("the object store lost it")

        with pytest.raises(KeyError):
            TrajectoryWriter(tmp_path).write_epoch(0, breaking())
        assert [item.name for item in tmp_path.iterdir()] == [path.name]
        assert path.read_bytes() == before

    def test_no_group_and_a_folder_that_is_a_file_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RecordingError):
            write(tmp_path)
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "taken").write_text("x")
        with pytest.raises(RecordingError, match="taken"):
            write(tmp_path / "taken", make_group())

    def test_a_full_disk_is_refused_and_leaves_nothing(self, tmp_path: Path) -> None:
        code = (
            "import resource, signal, sys\n"
            "from pathlib import Path\n"
            "from common.errors import RecordingError\n"
            "from tests.driver.run.test_recordings import write\n"
            "from tests.scored_groups import make_group\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
            "try:\n"
            "    write(Path(sys.argv[1]), make_group(size=64))\n"
            "except RecordingError as error:\n"
            "    print(error)\n"
        )
        root = Path(__file__).parents[3]
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, timeout=120
        )
        assert "Cannot write the recording" in done.stdout, done.stderr
        assert os.strerror(errno.EFBIG) in done.stdout
        assert list(tmp_path.iterdir()) == []
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY

    @pytest.mark.parametrize(
        ("part", "change", "reason"),
        [
            ("trajectory", {"latents": np.full((18, 2, 4, 4), np.nan, "f4")}, "latents"),
            ("trajectory", {"latents": np.zeros((17, 2, 4, 4), np.float32)}, "17 latents"),
            ("trajectory", {"latents": np.zeros((18, 2, 4, 4))}, "latents.*float32"),
            ("trajectory", {"nodes": np.zeros((3, 5), np.int32)}, r"T\+1"),
            ("trajectory", {"condition": {"a": np.array([np.nan])}}, "condition a"),
            ("trajectory", {"log_prob": np.full((3, 4), -np.inf)}, "log_prob"),
            ("trajectory", {"log_ratio": np.zeros((3, 5), "f4")}, "log_ratio"),
            ("trajectory", {"stochastic_steps": np.array([0, 2, 1, 3])}, "increasing"),
            ("trajectory", {"stochastic_steps": np.array([0, 1, 2, 5])}, "increasing"),
            ("trajectory", {"nodes": np.zeros((3, 1), np.int32)}, r"T\+1"),
            ("score", {"rewards": np.zeros(2)}, "rewards"),
            ("score", {"rewards": np.array([1.0, np.nan, 2.0])}, "rewards"),
            ("score", {"differences": np.ones((3, 3))}, "antisymmetric"),
            ("score", {"differences": np.zeros((3, 2))}, "differences"),
            ("score", {"parts": {"a": np.zeros(4)}}, "part a"),
        ],
    )
    def test_an_unsound_group_is_not_written(
        self, tmp_path: Path, part: str, change: dict[str, Any], reason: str
    ) -> None:
        group = make_group()
        bad = replace(group, **{part: replace(getattr(group, part), **change)})
        with pytest.raises(RecordingError, match=rf"Group 2 cannot be recorded in .*epoch_000000.*{reason}"):
            write(tmp_path, group, bad)
        assert list(tmp_path.iterdir()) == []


CLEAN: dict[str, Any] = {
    "latents": make_group(0).trajectory.latents[:3],
    "nodes": np.arange(3, dtype=np.int32)[:, None],
    "stochastic_steps": np.empty(0, np.int64),
    "log_prob": np.empty((3, 0)),
    "log_ratio": None,
}
"""Of trajectories: x_0 alone."""


class TestCheck:
    def test_a_fitting_recording_passes(self, tmp_path: Path) -> None:
        write(tmp_path, make_group(0), epoch=0)
        write(tmp_path, make_group(1), epoch=1)
        open_recording(tmp_path).check("abc", (2, 4, 4), "base", Needs(reference=True, whole_epoch=False))

    @pytest.mark.parametrize(
        ("run", "mentions"),
        [
            (("abc", (2, 4, 4), "other"), r"epoch_000000.*another pretrained model"),
            (("xyz", (2, 4, 4), "base"), r"epoch_000000\.parquet, row 1: .*abc.*xyz"),
            (("abc", (4, 8, 8), "base"), r"row 1: latents .*\(2, 4, 4\).*\(4, 8, 8\)"),
        ],
    )
    def test_what_does_not_fit_the_run_is_refused_with_file_and_row(
        self, tmp_path: Path, run: tuple[str, tuple[int, ...], str], mentions: str
    ) -> None:
        write(tmp_path, make_group(0))
        with pytest.raises(RecordingError, match=mentions):
            open_recording(tmp_path).check(*run, Needs(reference=False, whole_epoch=False))

    @pytest.mark.parametrize(
        ("lacks", "needs", "mentions"),
        [
            ({"log_ratio": None}, Needs(reference=True, whole_epoch=False), "row 1: it holds no log ratios"),
            ({"log_ratio": None}, Needs(reference=False, whole_epoch=False), ""),
            (CLEAN, Needs(reference=False, whole_epoch=False), "row 1: it holds clean latents alone"),
            (CLEAN, Needs(reference=False, whole_epoch=True, steps=False), ""),
        ],
    )
    def test_what_the_objective_needs_is_there(
        self, tmp_path: Path, lacks: dict[str, Any], needs: Needs, mentions: str
    ) -> None:
        group = make_group(0)
        write(tmp_path, replace(group, trajectory=replace(group.trajectory, **lacks)))
        recording = open_recording(tmp_path)
        if mentions:
            with pytest.raises(RecordingError, match=mentions):
                recording.check("abc", (2, 4, 4), "base", needs)
        else:
            recording.check("abc", (2, 4, 4), "base", needs)

    @pytest.mark.parametrize(
        ("weights", "mentions"),
        [
            ({"a": 1.0, "b": 0.0}, ""),
            ({"a": 3.0, "b": 2.0}, ""),
            ({"a": 1.0, "b": 1.0}, r"epoch_000001\.parquet: .*weights"),
            ({"a": 1.0}, r"epoch_000001\.parquet: scored by a, b.* a;"),
            ({"a": 1.0, "mine": 0.0}, r"epoch_000001\.parquet: scored by a, b.* a, mine;"),
        ],
    )
    def test_scores_are_the_weighted_sums_of_the_rewards_that_are_named(
        self, tmp_path: Path, weights: dict[str, float], mentions: str
    ) -> None:
        """make_group's reward is a, and b is -a."""
        write(tmp_path / "trajectories", make_group(1), epoch=1)
        recording = open_recording(tmp_path)
        if mentions:
            with pytest.raises(RecordingError, match=mentions):
                recording.check_rewards(weights)
        else:
            recording.check_rewards(weights)
