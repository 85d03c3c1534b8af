"""The recipe that makes the embedded model, rewards and prompts: ``python -m models.train_tiny --help``."""

from common.terminal import need_docstrings

need_docstrings()
