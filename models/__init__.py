"""The small text-to-image model, its two learned rewards and its prompts, with the recipe that made them."""
