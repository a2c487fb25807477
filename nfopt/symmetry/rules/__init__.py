"""Tracing rules by family of ATen operation; importing the package enters all of them."""

from nfopt.symmetry.rules import (  # noqa: F401
    attention,
    combine,
    contraction,
    convolution,
    factories,
    indexing,
    normalisation,
    pointwise,
    recurrent,
    reduction,
    reshaping,
    spatial,
    subsets,
)
