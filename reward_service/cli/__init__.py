"""The commands of `python -m reward_service`."""
