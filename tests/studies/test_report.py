"""The page's numbers are those of the committed results."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from studies.catalogue import STUDIES
from studies.report import PAGE, alarm_table, cost_table, curves_table, filled, tables, work_table
from studies.results import read_rows
from tests.studies.test_results import row


def test_the_page_holds_the_tables_of_the_committed_results() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert filled(page, tables({name: read_rows(name) for name in STUDIES})) == (page, [])


def test_a_number_of_the_page_is_made_again_from_the_rows() -> None:
    run = [one for one in read_rows("sweep") if (one.cell, one.seed) == ("prdp_0.0002", 100)]
    table = PAGE.read_text(encoding="utf-8").split("<!-- sweep -->")[1].split("<!-- end -->")[0]
    head, _, *lines = [line.strip("| ").split(" | ") for line in table.strip().splitlines()]
    found = {line[0]: dict(zip(head, line, strict=True)) for line in lines}
    gain = run[-1].unseen_proxy - run[0].unseen_proxy
    assert found["prdp"]["0.0002"].split(" / ")[0] == f"{gain:+.4f}".replace("0.", ".")


def test_a_cell_is_compared_with_prdp_over_equal_seeds() -> None:
    rows = []
    for seed, (ours, theirs) in enumerate([(0.7, 0.6), (0.8, 0.6), (0.9, 0.6)]):
        rows += [row("prdp", seed, unseen=0.5), row("prdp", seed, 4, unseen=ours)]
        rows += [row("ddpo", seed, unseen=0.5), row("ddpo", seed, 4, unseen=theirs)]
    head, *lines = curves_table([*rows, row("ddpo", 7, unseen=0.5)], ["prdp", "ddpo"])
    ddpo = dict(zip(head, lines[1], strict=True))
    assert ddpo["seeds"] == "4"
    assert ddpo["end less that of prdp"] == "-.2000 [-.3000, -.1000]"


def test_work_is_a_share_of_what_plain_took_and_its_end_less_that_of_the_same_seed() -> None:
    plain = [row("plain", seed, 8, unseen=end) for seed, end in enumerate([0.7, 0.8, 0.9])]
    less = [row("less", seed, 4, unseen=0.8, gold=0.7, passes=200) for seed in (0, 1, 2, 7)]
    head, *lines = work_table([*plain, *less, row("other", 9)], ["plain", "less", "other"])
    itself, found = (dict(zip(head, line, strict=True)) for line in lines)
    assert (itself["passes"], itself["queries"]) == ("1.00", "1.00")
    assert (found["seeds"], found["passes"], found["queries"]) == ("3", "0.25", "0.50")
    assert found["unseen proxy, end less that of plain"] == "+.0000 [-.1000, +.1000]"
    assert found["unseen gold, end less that of plain"] == "-.1000 [-.2000, +.0000]"


def test_alarms_are_counted_where_their_rule_was_known() -> None:
    rows = [
        replace(row(cell, 0, epoch, unseen=proxy), unseen_gold=gold, alarm=alarm)
        for cell, proxies, golds, alarms in (
            ("before the rule", (0.5, 0.6), (0.6, 0.5), (None, None)),
            ("missed", (0.5, 0.6), (0.6, 0.5), (False, False)),
            ("hacked", (0.5, 0.6), (0.6, 0.5), (False, True)),
            ("fallen", (0.6, 0.5), (0.6, 0.5), (False, False)),
            ("false alarm", (0.5, 0.6), (0.5, 0.6), (False, True)),
        )
        for epoch, proxy, gold, alarm in zip((0, 4), proxies, golds, alarms, strict=True)
    ]
    assert alarm_table({"kl": rows, "large": rows[:2]})[1:] == [["kl", "4", "2", "1", "1"]]


def test_hours_are_those_of_finished_cells() -> None:
    rows = [replace(row(epoch=epoch), seconds=900.0 * epoch) for epoch in (0, 4)]
    table = cost_table({"kl": rows})
    assert table[1][1] == "1"
    assert table[-1][-1] == "1.00"


@pytest.mark.parametrize("name", STUDIES)
def test_no_run_of_the_results_is_cut_off(name: str) -> None:
    """Every run has an evaluation at its beginning and at its last epoch, and finite scores."""
    rows = read_rows(name)
    for one in rows:
        assert np.isfinite([one.seen_proxy, one.seen_gold, one.unseen_proxy, one.unseen_gold]).all()
        assert one.settings == STUDIES[name].digest(one.cell), "run again: the catalogue has changed"
    runs = {(one.cell, one.seed) for one in rows}
    for cell, seed in runs:
        epochs = [one.epoch for one in rows if (one.cell, one.seed) == (cell, seed)]
        assert (epochs[0], epochs[-1]) == (0, STUDIES[name].config(cell, seed).run.epochs)
