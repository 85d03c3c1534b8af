"""The results of a study: a Parquet file, one row an evaluation of one cell with one seed.

consumes: rows of cells that are through. produces: studies/results/STUDY.parquet. waits for: another process
that adds to the same file. unblocked by: that process, or its end.
"""

from __future__ import annotations

import fcntl
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from common.storage import replace_file
from driver.report.evaluation import Evaluation

if TYPE_CHECKING:
    from studies.cell import Measurement

FOLDER = Path("studies/results")


@dataclass(frozen=True)
class Row:
    """One evaluation. The unit of rewards is that of the scorer: a cosine.

    settings: digest of what the catalogue says of the cell; a cell of other settings is run again. epoch:
    finished ones. queries, passes, seconds: see Measurement. seen_proxy ..: means over prompts and images.
    gradient_norm: mean over the updates since the row before, before clipping; NaN in the first row.
    log_ratio: mean over trajectories of log pi_old - log pi_ref, SUM over steps and a latent's elements,
    at the last epoch's first update; NaN where there is no reference. clipped: share of what the objective
    clips, mean over the updates since the row before; NaN where it counts none. skipped: of these, those not
    made. alarm: whether the over-optimisation alarm is raised; None for cells that were run before its rule
    was what it is. weights: digest, see common.model.weights.
    """

    study: str
    cell: str
    seed: int
    settings: str
    epoch: int
    queries: int
    passes: int
    seen_proxy: float
    seen_gold: float
    unseen_proxy: float
    unseen_gold: float
    gradient_norm: float
    log_ratio: float
    clipped: float
    skipped: int
    alarm: bool | None
    seconds: float
    weights: str

    @staticmethod
    def of(study: str, cell: str, seed: int, settings: str, measured: Measurement, alarm: str | None) -> Row:
        """The row of a measurement. alarm: see over_optimisation."""
        reports = measured.reports
        ratio = reports[-1].log_ratio_mean if reports else None
        shares = [report.stats["clip_share"] for report in reports if "clip_share" in report.stats]
        return Row(
            study=study,
            cell=cell,
            seed=seed,
            settings=settings,
            epoch=measured.epoch,
            queries=measured.queries,
            passes=measured.passes,
            seen_proxy=_mean(measured.evaluation, "seen", "proxy"),
            seen_gold=_mean(measured.evaluation, "seen", "gold"),
            unseen_proxy=_mean(measured.evaluation, "unseen", "proxy"),
            unseen_gold=_mean(measured.evaluation, "unseen", "gold"),
            gradient_norm=float(np.mean([report.gradient_norm for report in reports])) if reports else np.nan,
            log_ratio=np.nan if ratio is None else ratio * reports[-1].latent_elements,
            clipped=float(np.mean(shares)) if shares else np.nan,
            skipped=sum(not report.applied for report in reports),
            alarm=alarm is not None,
            seconds=measured.seconds,
            weights=measured.evaluation.stamp.digest,
        )


def _mean(evaluation: Evaluation, prompts: str, score: str) -> float:
    (measured,) = (one for one in evaluation.sets if one.name == prompts)
    return float(measured.scores[score].mean())


_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool | None": pa.bool_()}
_SCHEMA = pa.schema([(field.name, _TYPES[str(field.type)]) for field in fields(Row)])


def read_rows(study: str, folder: Path = FOLDER) -> list[Row]:
    """All rows of a study, in the order of cell, seed and epoch; none where nothing has been run."""
    path = _path(study, folder)
    return [Row(**values) for values in pq.read_table(path).to_pylist()] if path.exists() else []


def add_rows(rows: Sequence[Row], folder: Path = FOLDER) -> None:
    """Put a finished cell's rows into its study's file, in place of earlier ones of that cell and seed."""
    first = rows[0]
    path = _path(first.study, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = [
            row for row in read_rows(first.study, folder) if (row.cell, row.seed) != (first.cell, first.seed)
        ]
        whole = sorted([*kept, *rows], key=lambda row: (row.cell, row.seed, row.epoch))
        replace_file(path, _packed(whole))


def twin_rows(study: str, cell: str, seed: int, settings: str, folder: Path = FOLDER) -> list[Row]:
    """Rows of another study's run of the same settings and seed, whose bits are the same, as if they were
    this cell's; none where there is no such run, or it was judged by another rule of the alarm. They took no
    time.
    """
    for path in sorted(folder.glob("*.parquet")):
        found = [
            row
            for row in read_rows(path.stem, folder)
            if (row.seed, row.settings) == (seed, settings) and row.alarm is not None and row.study != study
        ]
        if found:
            return [
                replace(row, study=study, cell=cell, seconds=0.0)
                for row in found
                if row.cell == found[0].cell
            ]
    return []


def _packed(rows: Iterable[Row]) -> bytes:
    packed = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], _SCHEMA), packed, compression="zstd")
    return packed.getvalue()


def _path(study: str, folder: Path) -> Path:
    return folder / f"{study}.parquet"
