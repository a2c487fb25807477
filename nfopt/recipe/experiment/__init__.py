"""Experiments over zoos of networks."""

# The jobs enter themselves.
from nfopt.recipe.experiment import experiment

__all__ = ["experiment"]
