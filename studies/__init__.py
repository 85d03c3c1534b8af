"""Experiments as code: what is claimed of this project, put to the test, with the results beside it."""

from common.terminal import quiet_libraries

quiet_libraries()
