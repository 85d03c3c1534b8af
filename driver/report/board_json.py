"""The board for Grafana: `python -m driver.report.board_json > deploy/grafana/prdp.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from driver.report.board import Panel, Row, board

UID = "prdp-on-ray"
UNITS = {
    "s": "s",
    "bytes": "bytes",
    "bytes/s": "Bps",
    "share": "percentunit",
}
"""Grafana's names of our units; it takes any other as `suffix:`."""

COLUMNS, PANEL_WIDTH, PANEL_HEIGHT = 24, 8, 7
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
METRIC_OF_EVERY_RUN = "ray_prdp_scored_images_total"


def grafana(rows: Sequence[Row]) -> dict[str, Any]:
    """The dashboard as Grafana imports or provisions it."""
    return {
        "uid": UID,
        "title": "PRDP on Ray",
        "description": "Black-box reward finetuning of diffusion models: throughput, queues, rewards, KL.",
        "tags": ["prdp", "ray"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": list(_panels(rows)),
    }


def _variables() -> list[dict[str, Any]]:
    query = f"label_values({METRIC_OF_EVERY_RUN}, run)"
    return [
        {"name": "datasource", "label": "Source", "type": "datasource", "query": "prometheus"},
        {
            "name": "run",
            "label": "Run",
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": "run"},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def _panels(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for row in rows:
        number += 1
        place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": place,
            "panels": [],
        }
        top += 1
        across = COLUMNS // PANEL_WIDTH
        for index, panel in enumerate(row.panels):
            number += 1
            place = {
                "x": index % across * PANEL_WIDTH,
                "y": top + index // across * PANEL_HEIGHT,
                "w": PANEL_WIDTH,
                "h": PANEL_HEIGHT,
            }
            yield {"id": number, "gridPos": place, **_panel(panel)}
        top += -(-len(row.panels) // across) * PANEL_HEIGHT


def _panel(panel: Panel) -> dict[str, Any]:
    unit = UNITS.get(panel.unit, f"suffix: {panel.unit}" if panel.unit else "none")
    limits = {"min": 0, "max": 1} if panel.unit == "share" else {}
    targets = [
        {
            "refId": chr(ord("A") + index),
            "expr": query.expr,
            "legendFormat": query.legend,
            "datasource": SOURCE,
        }
        for index, query in enumerate(panel.queries)
    ]
    custom = {"lineWidth": 2, "fillOpacity": 8, "showPoints": "auto", "spanNulls": True}
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": unit, "custom": custom, **limits}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def board_text() -> str:
    """The dashboard as a file."""
    return json.dumps(grafana(board()), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(board_text())
