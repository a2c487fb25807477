"""Zoos: thousands of small nets, fitted side by side into one file."""

# The jobs enter themselves.
from nfopt.recipe.zoo import zoo

__all__ = ["zoo"]
