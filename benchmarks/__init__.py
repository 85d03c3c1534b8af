"""Measurements of what the machinery costs."""

from common.terminal import need_docstrings, quiet_libraries

need_docstrings()
quiet_libraries()
