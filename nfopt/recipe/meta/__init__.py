"""Meta-training of the update rule, and how a rule is looked at."""

# The jobs enter themselves.
from nfopt.recipe.meta import constant_mixture, heldout, meta_train, portrait

__all__ = ["constant_mixture", "heldout", "meta_train", "portrait"]
