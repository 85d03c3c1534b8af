"""What a benchmark found: printed, and written as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.machine import Machine, load
from benchmarks.timing import Comparison
from common.terminal import say
from driver.report.markdown import code, plain_markdown

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Verdict:
    """One judged figure. allowed: the target in words; detail: what it is made of."""

    what: str
    value: str
    allowed: str
    met: bool
    detail: str


@dataclass(frozen=True)
class Result:
    """A benchmark's run. figures: reported beside the verdicts, by name; raw: every measured value."""

    name: str
    command: str
    settings: Mapping[str, object]
    machine: Machine
    verdicts: tuple[Verdict, ...]
    figures: Mapping[str, str]
    raw: Mapping[str, object]
    notes: tuple[str, ...] = ()
    load_at_end: float = field(default_factory=load)
    finished: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))

    def markdown(self) -> str:
        """A page with the tables."""
        lines = [
            f"# benchmarks.{self.name}",
            "",
            f"{code(self.command)}, {self.finished}",
            "",
            f"Machine: {self.machine.as_text()} and {self.load_at_end} when it ended.",
        ]
        settings = (f"{key} {plain_markdown(str(value))}" for key, value in self.settings.items())
        lines += ["", f"Settings: {', '.join(settings)}."]
        if self.verdicts:
            lines += ["", "| What | Measured | Target | Met | From |", "| --- | --- | --- | --- | --- |"]
            lines += [
                f"| {one.what} | **{one.value}** | {one.allowed} | {_yes(one.met)} | {one.detail} |"
                for one in self.verdicts
            ]
        if self.figures:
            lines += ["", "| Besides | |", "| --- | --- |"]
            lines += [f"| {name} | {value} |" for name, value in self.figures.items()]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(lines) + "\n"

    def as_json(self) -> str:
        """Everything, measured values included."""
        content = {
            "name": self.name,
            "command": self.command,
            "finished": self.finished,
            "settings": dict(self.settings),
            "machine": self.machine.as_dict(),
            "load_at_end": self.load_at_end,
            "verdicts": [vars(one) for one in self.verdicts],
            "figures": dict(self.figures),
            "raw": dict(self.raw),
            "notes": list(self.notes),
        }
        return json.dumps(content, indent=1) + "\n"

    def publish(self, folder: Path) -> None:
        """Write NAME.md and NAME.json into the folder and show the page."""
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in {"md": self.markdown(), "json": self.as_json()}.items():
            (folder / f"{self.name}.{ending}").write_text(text, encoding="utf-8")
        say(self.markdown())
        say(f"Written to {folder / self.name}.md and .json")


def verdict_of(comparison: Comparison) -> Verdict:
    """A comparison as a row."""
    lower, upper = comparison.spread
    return Verdict(
        what=comparison.what,
        value=f"{comparison.ratio:.3f}",
        allowed=f"at least {comparison.target:.2f}",
        met=comparison.met,
        detail=(
            f"{comparison.ours_per_s:.4g} against {comparison.bare_per_s:.4g} {comparison.unit}/s, medians "
            f"of {len(comparison.ours.wall)} turns; middle half of their ratios {lower:.3f} to {upper:.3f}"
        ),
    )


def raw_of(comparison: Comparison) -> dict[str, object]:
    """A comparison's measured seconds."""
    return {
        "items": comparison.items,
        "ours_s": list(comparison.ours.wall),
        "bare_s": list(comparison.bare.wall),
        "ours_cpu_s": list(comparison.ours.cpu),
        "bare_cpu_s": list(comparison.bare.cpu),
    }


def _yes(met: bool) -> str:
    return "yes" if met else "NO"
