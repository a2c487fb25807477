"""Comparisons of optimizers on one task."""

# The jobs enter themselves.
from nfopt.recipe.compare import compare

__all__ = ["compare"]
