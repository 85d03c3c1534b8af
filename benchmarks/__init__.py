"""Measurements of what the machinery costs."""

from common.terminal import need_docstrings

need_docstrings()
