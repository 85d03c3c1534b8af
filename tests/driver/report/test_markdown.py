"""Texts of others inside Markdown."""

from __future__ import annotations

import pytest

from driver.report.markdown import code, plain_markdown


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a|b", r"a\|b"),
        ("<b>&amp; $x$ *y* [z]", r"\<b\>\&amp; \$x\$ \*y\* \[z\]"),
        ("my_prompts _x_", r"my_prompts \_x\_"),
        ("two\nlines \x1b", r"two lines \\x1b"),
    ],
)
def test_nothing_in_a_text_is_markdown(text: str, written: str) -> None:
    assert plain_markdown(text) == written


@pytest.mark.parametrize(
    ("text", "written"), [("a/b", "`a/b`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```"), ("a\nb", "`a b`")]
)
def test_code_ends_where_the_text_does(text: str, written: str) -> None:
    assert code(text) == written
