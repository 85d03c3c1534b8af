"""The recipe that makes the embedded model, rewards and prompts: ``python -m models.train_tiny --help``."""
