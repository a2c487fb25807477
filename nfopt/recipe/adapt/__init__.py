"""Domain adaptation: edits of models, contests between methods, and the editor's training."""

# The jobs enter themselves.
from nfopt.recipe.adapt import adapt, contest, folder, from_weights, train_editor

__all__ = ["adapt", "contest", "folder", "from_weights", "train_editor"]
