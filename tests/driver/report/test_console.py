"""Text on the console is no markup, wherever it stands."""

from __future__ import annotations

import io

from rich.table import Table

from driver.report.console import PlainConsole, plain_progress

ODD = "[/v2] [bold]x[/bold] :smile: \x1b[31m"
SHOWN = r"[/v2] [bold]x[/bold] :smile: \x1b[31m"


def test_text_tables_and_bars_are_shown_as_they_are() -> None:
    file = io.StringIO()
    console = PlainConsole(file, width=200)
    console.print(ODD)
    table = Table(title=ODD, caption=ODD)
    table.add_column(ODD)
    table.add_row(ODD)
    console.print(table)
    assert file.getvalue().count(SHOWN) == 5
    with plain_progress(console) as bars:
        bars.add_task("[/v2]")
    assert "[/v2]" in file.getvalue().splitlines()[-1]
