"""What a scorer is and says: protocols, results, pairs, the registry of names, settings."""

from reward_service.contract.reward import check_scorer

__all__ = ["check_scorer"]
