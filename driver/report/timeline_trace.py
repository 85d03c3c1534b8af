"""A timeline as a file that Perfetto and Chrome (chrome://tracing) open, and that is read back.

Format: the JSON object of Chrome's Trace Event Format, times in microseconds from the epoch's begin.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import RunFolderError
from driver.report.timeline_path import advice, critical_path
from driver.report.timeline_spans import ROLES, Span, Timeline

PATH = "waited for"
MICRO = 1e6


def trace(timeline: Timeline) -> dict[str, Any]:
    """The whole file. Each role is a process of the trace, each of its processes one thread or more."""
    return {
        "displayTimeUnit": "ms",
        "otherData": {
            "epoch": timeline.epoch,
            "begin_s": timeline.begin_s,
            "end_s": timeline.end_s,
            "advice": advice(timeline),
        },
        "traceEvents": [*_path_events(timeline), *_work_events(timeline)],
    }


def lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans, by when they began, dealt out so that none overlaps another of its lane."""
    found: list[list[Span]] = []
    for span in spans:
        free = next((lane for lane in found if lane[-1].end_s <= span.begin_s), None)
        if free is None:
            found.append([span])
        else:
            free.append(span)
    return found


def _path_events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    yield from _names(0, PATH, {0: "the epoch waited for"})
    for piece in critical_path(timeline):
        yield {
            "ph": "X",
            "cat": PATH,
            "name": piece.who or piece.role,
            "pid": 0,
            "tid": 0,
            "ts": (piece.begin_s - timeline.begin_s) * MICRO,
            "dur": piece.seconds * MICRO,
        }


def _work_events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for number, role in enumerate(ROLES, start=1):
        thread = 0
        names: dict[int, str] = {}
        for process in timeline.processes(role):
            for lane in lanes([span for span in timeline.of(role) if span.process == process]):
                names[thread] = process
                yield from (_event(timeline, span, number, thread) for span in lane)
                thread += 1
        yield from _names(number, role, names)


def _event(timeline: Timeline, span: Span, pid: int, tid: int) -> dict[str, Any]:
    return {
        "ph": "X",
        "cat": span.role,
        "name": span.what,
        "pid": pid,
        "tid": tid,
        "ts": (span.begin_s - timeline.begin_s) * MICRO,
        "dur": (span.end_s - span.begin_s) * MICRO,
        "args": {"process": span.process, "group": span.group, "busy_s": span.busy_s},
    }


def _names(pid: int, process: str, threads: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": pid, "tid": 0, "args": {"name": process}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "tid": 0, "args": {"sort_index": pid}}
    for thread, name in threads.items():
        yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": thread, "args": {"name": name}}


def write_trace(file: Path, timeline: Timeline) -> None:
    """Write the file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(trace(timeline)))
    os.replace(partial, file)


def read_trace(file: Path) -> Timeline:
    """The timeline of a file that write_trace has written. Raises RunFolderError where it is none."""
    try:
        found = json.loads(file.read_text())
        facts = found["otherData"]
        spans = tuple(
            _read_span(event, facts["begin_s"]) for event in found["traceEvents"] if _is_work(event)
        )
        return Timeline(facts["epoch"], facts["begin_s"], facts["end_s"], spans)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{file} is no timeline of a run ({error!r}).") from error


def _is_work(event: Mapping[str, Any]) -> bool:
    return event["ph"] == "X" and event["cat"] in ROLES


def _read_span(event: Mapping[str, Any], begin_s: float) -> Span:
    start_s = begin_s + event["ts"] / MICRO
    end_s = start_s + event["dur"] / MICRO
    args = event["args"]
    return Span(event["cat"], args["process"], event["name"], start_s, end_s, args["group"], args["busy_s"])
