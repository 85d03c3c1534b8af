"""The trainer's side: how a run asks its rewards and adds up what they say."""
