"""Experiments as code: what is claimed of this project, put to the test, with the results beside it."""
