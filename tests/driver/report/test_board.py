"""The board: every metric has a panel, and the committed file is the one that the tables make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common.cluster.live_metrics import LIVE_METRICS
from common.cluster.metrics import METRICS
from driver.observe.gauges import prometheus_name
from driver.report.board import OTHERS, Query, board
from driver.report.board_json import COLUMNS, board_text, grafana
from driver.report.board_picture import filled_in, legend_of, main
from driver.report.prometheus import Series

FILE = Path("deploy/grafana/prdp.json")


def test_the_committed_board_is_the_one_that_the_tables_make() -> None:
    assert FILE.read_text() == board_text(), f"python -m driver.report.board_json > {FILE}"


def test_every_metric_has_a_panel_below_a_heading_of_its_own() -> None:
    everything = " ".join(query.expr for row in board() for panel in row.panels for query in panel.queries)
    names = [metric.name for metric in LIVE_METRICS] + [prometheus_name(metric) for metric in METRICS]
    assert [name for name in names if f"ray_{name}" not in everything] == []
    assert OTHERS not in [row.title for row in board()], (
        "give the new metrics a row in driver/report/board.py"
    )


def test_panels_neither_overlap_nor_leave_the_board() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in grafana(board())["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + column, place["y"] + line)
            for column in range(place["w"])
            for line in range(place["h"])
        }
        assert not cells & taken
        assert max(column for column, _ in cells) < COLUMNS
        taken |= cells


def test_ids_are_unique_and_titles_say_something() -> None:
    panels = grafana(board())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(panel["title"].strip() for panel in panels)
    assert all(panel["description"] for panel in panels if panel["type"] != "row")


def test_queries_and_legends_are_filled_in() -> None:
    query = Query('rate(x{run=~"$run"}[$__rate_interval])', "{{run}} of {{missing}}")
    assert filled_in(query, "a|b", "1m") == 'rate(x{run=~"a|b"}[1m])'
    assert legend_of(query, Series({"run": "a"}, np.zeros(1), np.zeros(1))) == "a of"


def test_a_missing_prometheus_is_said_kindly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "board.png"), "--prometheus", "http://127.0.0.1:1"]) == 1
    assert "No Prometheus answers at http://127.0.0.1:1" in capsys.readouterr().err
