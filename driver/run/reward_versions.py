"""Which version of each reward scored what: kept in the run folder, so that a continued run knows it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.records import read_record
from common.storage import replace_file
from common.trajectory import ScorerStamp
from reward_service.client.versions import Swap, VersionHistory

VERSIONS_FILE = "reward_versions.json"


@dataclass(frozen=True)
class VersionRecord:
    """The first group that a version scored.

    epoch: epochs finished when it is through, that is the tracker's step. group: position in the epoch, or in
    the evaluation. index: of the version, 1 = the first.
    """

    epoch: int
    group: int
    name: str
    index: int
    version: str
    digest: str

    @property
    def stamp(self) -> ScorerStamp:
        """As it stands in scores."""
        return ScorerStamp(self.name, self.version, self.digest)


class VersionLog:
    """The versions of all rewards, in the order in which groups are learned. earlier: of a continued run."""

    def __init__(self, earlier: Sequence[VersionRecord] = ()) -> None:
        self._records = list(earlier)
        names = dict.fromkeys(record.name for record in earlier)
        self._histories = {
            name: VersionHistory(*(record.stamp for record in earlier if record.name == name))
            for name in names
        }

    @property
    def records(self) -> tuple[VersionRecord, ...]:
        """Oldest first."""
        return tuple(self._records)

    @property
    def swaps(self) -> tuple[VersionRecord, ...]:
        """The records of versions that took over from another."""
        return tuple(record for record in self._records if record.index > 1)

    def indices(self) -> dict[str, int]:
        """Number of the version that scores now, by reward."""
        return {name: history.index for name, history in self._histories.items()}

    def scored(self, epoch: int, group: int, scorers: Sequence[ScorerStamp]) -> list[Swap]:
        """A group was scored by these versions. Returns the swaps that this shows."""
        swaps: list[Swap] = []
        for stamp in scorers:
            if stamp.name not in self._histories:
                self._histories[stamp.name] = VersionHistory(stamp)
                self._note(epoch, group, stamp)
            if swap := self._histories[stamp.name].scored_by(stamp):
                self._note(epoch, group, stamp)
                swaps.append(swap)
        return swaps

    def to_json(self) -> str:
        """All records, as text that load_versions reads."""
        return json.dumps([asdict(record) for record in self._records], indent=1) + "\n"

    def save(self, run_folder: Path) -> None:
        """Write them into the run folder. Raises RunFolderError where that cannot be written."""
        replace_file(run_folder / VERSIONS_FILE, self.to_json().encode())

    def _note(self, epoch: int, group: int, stamp: ScorerStamp) -> None:
        index = self._histories[stamp.name].index
        self._records.append(VersionRecord(epoch, group, stamp.name, index, stamp.version, stamp.digest))


def load_versions(run_folder: Path, epochs: int) -> list[VersionRecord]:
    """The records of the first so many epochs of the run in a folder; none where there is no file.

    Raises RunFolderError where it cannot be read.
    """
    if not epochs:
        return []
    known = read_record(run_folder / VERSIONS_FILE, list[VersionRecord], "Delete it to go on without it.")
    return [record for record in known or () if record.epoch <= epochs]
