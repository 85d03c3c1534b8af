"""The blocks of docs/python.md, run in their order as they stand there, but for the folder of the run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

PAGE = Path("docs/python.md").read_text(encoding="utf-8")


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_blocks_of_the_page_run(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL):
        exec(block.replace('"run.name=first"', f'"run.name=first", "run.folder={tmp_path}"'), names)
    assert names["finished"]
    assert (tmp_path / "first" / "result.md").is_file()
    assert [epoch for epoch, *_ in names["curve"]] == [0, 1, 2]
    assert names["table"].num_rows == 3
    assert names["images"].shape[0] == len(names["score"].rewards) == 4
    assert names["images"].dtype == np.uint8
    assert names["picture"].size == (64, 64)
    before, after = names["evaluations"]
    assert (before.epoch, after.epoch) == (0, 2)
    assert before.sets[0].prompts == after.sets[0].prompts
