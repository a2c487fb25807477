"""The race: optimizers on many tasks, each tuned with the same budget."""

# The jobs enter themselves.
from nfopt.recipe.race import race

__all__ = ["race"]
