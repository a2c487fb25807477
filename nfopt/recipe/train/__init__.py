"""Training of timm models over epochs."""

# The jobs enter themselves.
from nfopt.recipe.train import train_timm

__all__ = ["train_timm"]
