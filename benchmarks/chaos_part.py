"""What a chaos benchmark has found so far, so that the same command goes on where it was cut off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.chaos_kills import Kill, Recovery

PART_FILE = "chaos.part.json"


class Part:
    """The file in the folder of results. asked: what the kills depend on; of another one nothing is taken."""

    def __init__(self, folder: Path, asked: Sequence[object]) -> None:
        self._path = folder / PART_FILE
        self._asked = [str(one) for one in asked]

    def read(self) -> list[Recovery]:
        """The runs that were done, in order."""
        if not self._path.exists():
            return []
        content = json.loads(self._path.read_text())
        return [_recovery(one) for one in content["found"]] if content["asked"] == self._asked else []

    def write(self, found: Sequence[Recovery]) -> None:
        """Keep the runs so far."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        content = {"asked": self._asked, "found": [asdict(one) for one in found]}
        self._path.write_text(json.dumps(content, indent=1) + "\n")

    def end(self) -> None:
        """All is done: the result itself has it."""
        self._path.unlink(missing_ok=True)


def _recovery(fields: dict[str, Any]) -> Recovery:
    kill, differences = Kill(**fields.pop("kill")), tuple(fields.pop("differences"))
    return Recovery(kill=kill, differences=differences, **fields)
