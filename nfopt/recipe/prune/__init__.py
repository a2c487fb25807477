"""Pruning: masks, trainings under them, channels, and the learned mask's training."""

# The jobs enter themselves.
from nfopt.recipe.prune import channels, mask, race, train, train_mask

__all__ = ["channels", "mask", "race", "train", "train_mask"]
